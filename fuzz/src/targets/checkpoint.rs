//! A checkpoint of the metadata. A block whose checksum is right is read as it was written; whatever else is
//! refused by the name of the file.

use raftmeta::fuzz::{checkpoint, checkpoint_image};

use super::{crc32c, in_both_modes, u32_at, with_mode};

pub const DICTIONARY: &[&[u8]] = &[b"CFSCKPT\x02", &[0; 4], &[0xff, 0xff, 0xff, 3]];
const MAGIC_LEN: usize = 8;

pub fn seeds() -> Vec<Vec<u8>> {
    let pair = |n: u8| (vec![n; 3], vec![n; usize::from(n)]);
    in_both_modes(vec![
        checkpoint_image(&[]),
        checkpoint_image(&[vec![pair(1), pair(2)], vec![pair(30)]]),
    ])
}

/// Puts right the checksum of every block, and the footer.
fn mend(bytes: &mut [u8]) {
    let (mut at, mut sums, mut blocks) = (MAGIC_LEN, Vec::new(), 0u64);
    while let Some(len) = u32_at(bytes, at) {
        let payload = at + 8..(at + 8).saturating_add(len as usize);
        if len == 0 && bytes.len() >= at + 16 {
            let sum = crc32c(&sums).to_le_bytes();
            bytes[at + 4..at + 8].copy_from_slice(&sum);
            bytes[at + 8..at + 16].copy_from_slice(&blocks.to_le_bytes());
            return;
        }
        let Some(sum) = bytes.get(payload.clone()).map(crc32c) else { return };
        bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        sums.extend(sum.to_le_bytes());
        blocks += 1;
        at = payload.end;
    }
}

pub fn target(bytes: &[u8]) {
    let (mends, bytes) = with_mode(bytes);
    let mut bytes = bytes.to_vec();
    if mends {
        mend(&mut bytes);
    }
    match checkpoint(&bytes) {
        Ok(records) => {
            let held: usize = records.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert!(held <= bytes.len(), "more in the records than in the file");
            let image = checkpoint_image(std::slice::from_ref(&records));
            assert_eq!(checkpoint(&image).expect("what is written is read"), records);
        }
        Err(error) => assert!(error.to_string().contains("checkpoint"), "{error}"),
    }
}
