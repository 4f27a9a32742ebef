//! Every value of the state machine. What decodes says the same when it is written again.

use std::collections::VecDeque;

use raftmeta::keys;
use raftmeta::records::{
    self, Counters, Dentry, ExtentRecord, Orphan, PendingDelete, Remembered, Slot,
};
use raftmeta_types::cluster::{
    CertificateInfo, ClusterInfo, NodeInfo, SessionInfo, ShardInfo, TokenInfo,
};
use raftmeta_types::lock::Lock;
use raftmeta_types::{
    ChunkHash, Epoch, ExtentData, FileKind, Ino, Inode, MetaError, Reply, SessionId, Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[&[1], &[0xff, 0xff, 0xff, 0xff, 0x0f]];

pub fn seeds() -> Vec<Vec<u8>> {
    fn seed(which: u8, value: &impl Serialize) -> Vec<u8> {
        [&[which][..], &records::encode(value)].concat()
    }
    let extent = |data| ExtentRecord { len: 3, data, version: Version(70) };
    let hash = ChunkHash([8; 32]);
    vec![
        seed(0, &Dentry { ino: Ino(1 << 60), kind: FileKind::Directory }),
        seed(1, &extent(ExtentData::Inline("abc".into()))),
        seed(1, &extent(ExtentData::Chunk { hash, chunk_offset: 9 })),
        seed(2, &Orphan { sessions: vec![SessionId(1), SessionId(500)], linkable: true }),
        seed(3, &PendingDelete { epoch: Epoch(4), hashes: vec![hash] }),
        seed(4, &Remembered { since: Epoch(3), deletions: VecDeque::from([(Epoch(4), 7)]) }),
        seed(5, &Slot { seq: 5, answer: Ok(Reply::Done) }),
        seed(5, &Slot { seq: 6, answer: Err(MetaError::StaleEpoch(Epoch(9))) }),
        seed(6, &Counters { inodes: 4, logical_bytes: 1 << 40 }),
    ]
}

fn one<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let key = [b'I', 0, 0xff, b'\n'];
    match records::decode::<T>(&key, bytes) {
        Ok(value) => {
            let once = records::encode(&value);
            let again: T = records::decode(&key, &once).expect("what is written is read");
            assert_eq!(records::encode(&again), once);
        }
        Err(error) => assert!(error.to_string().contains(r"I\x00\xff\n"), "{error}"),
    }
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let which = cursor.u8();
    let value = cursor.0;
    // Keys are read, too: of whatever length, they are not more than wrong.
    _ = (keys::first_number(value), keys::second_number(value));
    match which % 15 {
        0 => one::<Dentry>(value),
        1 => one::<ExtentRecord>(value),
        2 => one::<Orphan>(value),
        3 => one::<PendingDelete>(value),
        4 => one::<Remembered>(value),
        5 => one::<Slot>(value),
        6 => one::<Counters>(value),
        7 => one::<Inode>(value),
        8 => one::<Vec<Lock>>(value),
        9 => one::<NodeInfo>(value),
        10 => one::<ShardInfo>(value),
        11 => one::<TokenInfo>(value),
        12 => one::<CertificateInfo>(value),
        13 => one::<SessionInfo>(value),
        _ => one::<ClusterInfo>(value),
    }
}
