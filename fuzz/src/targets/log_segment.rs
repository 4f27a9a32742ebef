//! A segment of the metadata log. Records lie in the segment; nothing is found behind the end.

use raftmeta::fuzz::{segment, segment_image};

use super::{crc32c, in_both_modes, put_crc, u32_at, with_mode};

pub const DICTIONARY: &[&[u8]] = &[b"CFSWLOG\x01", &[1, 0, 0, 0], &[2, 0, 0, 0], &[0, 0, 0x80, 0]];
const HEADER: usize = 64;
const RECORD_HEADER: usize = 32;

pub fn seeds() -> Vec<Vec<u8>> {
    in_both_modes(vec![
        segment_image(3, 512, &[]),
        segment_image(3, 1024, &[b"nine".to_vec(), Vec::new(), vec![7; 200]]),
    ])
}

/// Puts right the header's length and checksum, and checksum and chain of all records that can be reached.
pub(super) fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    let len = bytes.len() as u64;
    bytes[28..36].copy_from_slice(&len.to_le_bytes());
    put_crc(bytes, 0..60, 60);
    let (mut at, mut chain) = (HEADER, u32_at(bytes, 24).unwrap_or(0));
    while let Some(len) = u32_at(bytes, at + 4) {
        let end = at + RECORD_HEADER + len as usize;
        if end > bytes.len() || bytes[at..end].iter().all(|byte| *byte == 0) {
            return;
        }
        bytes[at + 24..at + 28].copy_from_slice(&chain.to_le_bytes());
        chain = crc32c(&bytes[at + 4..end]);
        bytes[at..at + 4].copy_from_slice(&chain.to_le_bytes());
        at = end.next_multiple_of(8);
    }
}

pub fn target(bytes: &[u8]) {
    let (mends, bytes) = with_mode(bytes);
    let mut bytes = bytes.to_vec();
    if mends {
        mend(&mut bytes);
    }
    let number =
        bytes.get(8..16).map_or(3, |number| u64::from_le_bytes(number.try_into().unwrap()));
    if let Ok(found) = segment(&bytes, number) {
        assert!(found.end <= bytes.len());
        assert!(found.records * RECORD_HEADER <= bytes.len());
        assert!(segment(&bytes, number ^ 1).is_err(), "a segment under another's name");
    }
}
