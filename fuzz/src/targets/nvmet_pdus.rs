//! Bytes of an NVMe/TCP host, before anything is done with them.
//!
//! However they are cut into pieces, and whether or not data is received directly into its buffer, the same PDUs come
//! out, or the same refusal.

use blockd::nvmet::fuzz::{digest, receive};
use blockd::nvmet::pdu;

use super::u32_at;
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[
    // Common headers: type, flags, HLEN, PDO, PLEN.
    &[0, 0, 128, 0, 128, 0, 0, 0],
    &[2, 0, 24, 0, 24, 0, 0, 0],
    &[4, 0, 72, 0, 72, 0, 0, 0],
    &[4, 1, 72, 0, 76, 0, 0, 0],
    &[4, 3, 72, 76, 90, 0, 0, 0],
    &[6, 4, 24, 24, 40, 0, 0, 0],
    &[6, 7, 24, 28, 48, 0, 0, 0],
    &[0, 4, 0, 0],
    &[8, 0, 0, 0],
];

const HEADER_DIGEST: u8 = 1;
const DATA_DIGEST: u8 = 2;

/// Flags of an input.
const ESTABLISHED: u8 = 4;
const MENDS: u8 = 8;
const DIRECT: u8 = 16;

/// A PDU with room for the digests, data at a multiple of 4 after its header.
fn pdu(kind: u8, header_len: usize, data: &[u8], digests: u8) -> Vec<u8> {
    let mut bytes = vec![0; header_len];
    let front = header_len + if digests & HEADER_DIGEST == 0 { 0 } else { 4 };
    let has_data_digest = !data.is_empty() && digests & DATA_DIGEST != 0;
    let total = front + data.len() + if has_data_digest { 4 } else { 0 };
    let flags = digests & HEADER_DIGEST | if has_data_digest { DATA_DIGEST } else { 0 };
    let offset = if data.is_empty() { 0 } else { front as u8 };
    pdu::common(&mut bytes, kind, flags, offset, total as u32);
    if kind == pdu::H2C_DATA {
        bytes[16..20].copy_from_slice(&(data.len() as u32).to_le_bytes());
    }
    bytes.resize(front, 0);
    bytes.extend_from_slice(data);
    bytes.resize(total, 0);
    bytes
}

/// Flags, length of the pieces, then the stream.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![[&[MENDS, 7][..], &pdu(pdu::IC_REQUEST, pdu::IC_BYTES, &[], 0)].concat()];
    for digests in 0..4 {
        let stream = [
            pdu(pdu::COMMAND, pdu::COMMAND_BYTES, &[], digests),
            pdu(pdu::COMMAND, pdu::COMMAND_BYTES, &[5; 100], digests),
            pdu(pdu::H2C_DATA, pdu::DATA_BYTES, &[6; 300], digests),
            pdu(pdu::H2C_TERM, pdu::TERM_BYTES, &[], 0),
        ];
        for (more, piece) in [(0, 1), (DIRECT, 33), (DIRECT, 250)] {
            let flags = digests | ESTABLISHED | MENDS | more;
            seeds.push([&[flags, piece][..], &stream.concat()].concat());
        }
    }
    seeds
}

/// Puts right the digests of all PDUs that can be reached.
fn mend(bytes: &mut [u8], digests: u8) {
    let mut at = 0;
    while let Some(total) = u32_at(bytes, at + 4) {
        let (kind, flags) = (bytes[at], bytes[at + 1]);
        let (header_len, offset) = (usize::from(bytes[at + 2]), usize::from(bytes[at + 3]));
        let end = at.saturating_add(total as usize);
        if end > bytes.len() || end < at + pdu::COMMON_BYTES {
            return;
        }
        let has_header_digest = kind == pdu::COMMAND || kind == pdu::H2C_DATA;
        if digests & HEADER_DIGEST != 0 && has_header_digest && at + header_len + 4 <= end {
            let sum = digest(&bytes[at..at + header_len]).to_le_bytes();
            bytes[at + header_len..at + header_len + 4].copy_from_slice(&sum);
        }
        if digests & flags & DATA_DIGEST != 0 && at + offset + 4 <= end {
            let sum = digest(&bytes[at + offset..end - 4]).to_le_bytes();
            bytes[end - 4..end].copy_from_slice(&sum);
        }
        at = end;
    }
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let (flags, piece) = (cursor.u8(), usize::from(cursor.u8()));
    let mut stream = cursor.0.to_vec();
    if flags & MENDS != 0 {
        mend(&mut stream, flags);
    }
    let established = (flags & ESTABLISHED != 0)
        .then_some((flags & HEADER_DIGEST != 0, flags & DATA_DIGEST != 0));
    let whole = receive(&stream, established, stream.len(), false);
    assert!(whole.data.len() <= stream.len());
    assert_eq!(receive(&stream, established, piece, flags & DIRECT != 0), whole);
}
