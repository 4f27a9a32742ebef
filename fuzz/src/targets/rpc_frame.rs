//! One frame: header, message, data.
//!
//! What is read is written as the same bytes, nothing follows it, and no reader asks for more than the header
//! announces.

use fsd_rpc::frame::{self, HEADER_LEN, Kind};
use fsd_rpc::message::Request;

use super::{crc32c, in_both_modes, put_crc, u32_at, with_mode};

pub const DICTIONARY: &[&[u8]] =
    &[b"CFSR", &[1, 1, 0, 0], &[1, 2, 0, 0], &[1, 3, 0, 0], &[1, 4, 0, 0]];

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |request: Request, data: &[&[u8]]| {
        let mut out = Vec::new();
        frame::write(&mut out, Kind::Request, &request, data).unwrap();
        out
    };
    in_both_modes(vec![
        seed(Request::Ping, &[]),
        seed(Request::GetChunks { hashes: vec![raftmeta_types::ChunkHash([7; 32])] }, &[b"ab"]),
        seed(
            Request::Lookup { parent: raftmeta_types::Ino(1), name: "name".into() },
            &[b"", b"cde"],
        ),
    ])
}

/// Puts both checksums right.
fn mend(bytes: &mut [u8]) {
    if let Some(meta_len) = u32_at(bytes, 8)
        && let Some(meta) = bytes.get(HEADER_LEN..HEADER_LEN.saturating_add(meta_len as usize))
    {
        let sum = crc32c(meta).to_le_bytes();
        bytes[24..28].copy_from_slice(&sum);
    }
    put_crc(bytes, 0..28, 28);
}

pub fn target(bytes: &[u8]) {
    let (mends, bytes) = with_mode(bytes);
    let mut bytes = bytes.to_vec();
    if mends {
        mend(&mut bytes);
    }
    let mut input = &bytes[..];
    let Ok(read) = frame::read(&mut input) else { return };
    let used = bytes.len() - input.len();
    assert_eq!(used, HEADER_LEN + read.meta.len() + read.data.len());
    assert_eq!(&read.meta[..], &bytes[HEADER_LEN..HEADER_LEN + read.meta.len()]);
    for kind in [Kind::Request, Kind::Reply, Kind::Event] {
        let message = read.message::<Request>(kind);
        assert!(message.is_err() || kind == read.kind, "a {:?} read as a {kind:?}", read.kind);
        let Ok(message) = message else { continue };
        let mut out = Vec::new();
        frame::write(&mut out, kind, &message, &[&read.data[..]]).unwrap();
        let again = frame::read(&mut &out[..]).unwrap();
        again.message::<Request>(kind).unwrap();
        assert_eq!(again.data, read.data);
    }
}
