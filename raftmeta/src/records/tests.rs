use proptest::prelude::*;
use raftmeta_types::cluster::{ClusterInfo, NodeInfo, SessionInfo, ShardInfo};
use raftmeta_types::lock::Lock;
use raftmeta_types::{Envelope, Inode};

use super::*;
use crate::group::LogPayload;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Any bytes as any record or command: an error or a value, never a panic, and nothing larger than
    /// what was read.
    #[test]
    fn any_bytes_are_decoded(mut bytes in prop::collection::vec(any::<u8>(), 0..300), current: bool) {
        if current && let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let key = b"key";
        let _any = decode::<Inode>(key, &bytes);
        let _any = decode::<Dentry>(key, &bytes);
        let _any = decode::<ExtentRecord>(key, &bytes);
        let _any = decode::<Orphan>(key, &bytes);
        let _any = decode::<Slot>(key, &bytes);
        let _any = decode::<Vec<Lock>>(key, &bytes);
        let _any = decode::<ClusterInfo>(key, &bytes);
        let _any = decode::<NodeInfo>(key, &bytes);
        let _any = decode::<ShardInfo>(key, &bytes);
        let _any = decode::<SessionInfo>(key, &bytes);
        let _any = decode::<Counters>(key, &bytes);
        let _any = decode::<Remembered>(key, &bytes);
        if let Ok(pending) = decode::<PendingDelete>(key, &bytes) {
            prop_assert!(pending.hashes.len() * 32 <= bytes.len());
        }
        let _any = postcard::from_bytes::<Envelope>(&bytes);
        let _any = postcard::from_bytes::<LogPayload>(&bytes);
    }
}

#[test]
fn an_unknown_version_is_named() {
    let error = decode::<Counters>(b"Mcounters", &[9, 0, 0]).unwrap_err().to_string();
    assert!(error.contains("Mcounters") && error.contains("version 9"), "{error}");
    assert!(error.contains(&format!("reads {VERSION}")), "{error}");
    let error = decode::<Counters>(b"Mcounters", &[]).unwrap_err().to_string();
    assert!(error.contains("empty"), "{error}");
}
