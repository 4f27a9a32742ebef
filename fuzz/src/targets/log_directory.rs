//! A directory of log segments, as a start reads it: what the records say is put together.

use raftmeta::fuzz::{log, segment_image};

use super::{in_both_modes, log_segment, with_mode, with_scratch};

pub const DICTIONARY: &[&[u8]] = log_segment::DICTIONARY;

pub fn seeds() -> Vec<Vec<u8>> {
    in_both_modes(vec![
        segment_image(1, 512, &[]),
        segment_image(1, 1024, &[vec![1; 40], vec![2; 80]]),
    ])
}

pub fn target(bytes: &[u8]) {
    let (mends, bytes) = with_mode(bytes);
    let mut bytes = bytes.to_vec();
    if mends {
        log_segment::mend(&mut bytes);
    }
    with_scratch(|dir| {
        let dir = dir.join("log");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0000000000000001.log");
        std::fs::write(&path, &bytes).unwrap();
        match log(&dir) {
            Ok(entries) => {
                assert!(entries <= bytes.len());
                // Reading may cut off a torn tail; after that the log says the same.
                assert_eq!(log(&dir).expect("what was read once is read again"), entries);
            }
            Err(error) => assert!(error.to_string().contains("0001.log"), "{error}"),
        }
        std::fs::remove_file(path).unwrap();
    });
}
