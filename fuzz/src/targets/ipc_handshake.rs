//! The hello of a client and the answer of blockd. What is accepted is said again in the same bytes, but for
//! reserved ones.

use blockd_ipc::Geometry;
use blockd_ipc::fuzz::{ANSWER_BYTES, HELLO_BYTES, answer, encode_answer, encode_hello, hello};
use blockd_ipc::layout::DEPTH_MAX;

use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[b"CFSB", &[0, 2, 0, 0], &[0, 16, 0, 0]];

pub fn seeds() -> Vec<Vec<u8>> {
    let geometry = Geometry { block_size: 4096, blocks: 77, transfer_bytes_max: 1 << 20 };
    vec![
        [&[0][..], &encode_hello("chunks", 64, 4 << 20).unwrap()].concat(),
        [&[0][..], &encode_hello(&"v".repeat(64), 4096, 1 << 36).unwrap()].concat(),
        [&[1][..], &encode_answer(3, geometry)].concat(),
    ]
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    if cursor.u8() & 1 == 0 {
        let bytes: [u8; HELLO_BYTES] = cursor.array();
        let Ok(((name, depth, arena_bytes), again)) = hello(bytes) else { return };
        assert!((1..=64).contains(&name.len()));
        assert!(depth.is_power_of_two() && depth <= DEPTH_MAX);
        assert!(arena_bytes <= 1 << 36);
        assert_eq!(hello(again).unwrap().0, (name, depth, arena_bytes));
    } else {
        let bytes: [u8; ANSWER_BYTES] = cursor.array();
        let Ok((volume, geometry, again)) = answer(bytes) else { return };
        assert!(matches!(geometry.block_size, 512 | 4096));
        let (same_volume, same_geometry, _) = answer(again).unwrap();
        assert_eq!((same_volume, same_geometry), (volume, geometry));
    }
}
