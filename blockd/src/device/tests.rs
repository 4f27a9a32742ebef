use std::path::PathBuf;

use super::*;

const BYTES: u64 = 32 << 20;

fn file(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

fn found(path: &Path) -> Contents {
    Spare::open(path).unwrap().identify().unwrap().contents
}

#[test]
fn a_file_becomes_a_pool_and_blank_again() {
    let (_dir, path) = file(BYTES);
    assert_eq!(found(&path), Contents::Blank);
    Spare::open(&path).unwrap().format(false).unwrap();
    let Contents::Pool { volumes, extents, extents_free, .. } = found(&path) else { panic!() };
    assert_eq!((volumes.len(), extents_free), (0, extents));

    let spare = Spare::open(&path).unwrap();
    let pool = Pool::open("d", std::sync::Arc::clone(&spare.device), false).unwrap();
    pool.create("precious", 4 << 20, false).unwrap();
    drop(pool);
    let refused = spare.format(false).unwrap_err();
    assert_eq!(refused.code(), "NOT_BLANK");
    assert!(refused.to_string().contains("precious"), "{refused}");
    spare.format(true).unwrap();
    spare.wipe(false).unwrap();
    drop(spare);
    assert_eq!(found(&path), Contents::Blank);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), BYTES);
}

#[test]
fn what_others_wrote_is_named_and_kept() {
    let cases: [(usize, &[u8], &str); 4] = [
        (0x438, b"\x53\xef", "ext4"),
        (0, b"XFSB", "XFS"),
        (0x200, b"EFI PART", "GPT"),
        (5000, b"anything", "unknown"),
    ];
    for (at, bytes, word) in cases {
        let (_dir, path) = file(BYTES);
        let mut all = vec![0; BYTES as usize];
        all[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, &all).unwrap();
        let spare = Spare::open(&path).unwrap();
        let refused = spare.format(false).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), all, "{word}");
        spare.wipe(true).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "{word}");
    }
}

#[test]
fn a_damaged_pool_is_told_from_none() {
    let (_dir, path) = file(BYTES);
    Spare::open(&path).unwrap().format(false).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    for copy in [0, SUPERBLOCK_BYTES] {
        bytes[copy + 100] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(found(&path), Contents::DamagedPool { .. }));
}

#[test]
fn what_is_no_device_is_refused() {
    let (dir, path) = file(4096);
    let missing = Spare::open(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.code(), "NOT_FOUND");
    assert_eq!(Spare::open(dir.path()).unwrap_err().code(), "INVALID");
    let small = Spare::open(&path).unwrap();
    assert_eq!(small.format(false).unwrap_err().code(), "FORMAT");
    let second = Spare::open(&path).unwrap_err();
    assert_eq!(second.code(), "BUSY");
}
