//! Rings in memory that the peer writes to as it likes, and the submissions and completions in them.
//!
//! What a ring gives is bounded by its depth, whatever the indexes say; a submission that is taken is the
//! one that was written.

use std::cell::RefCell;

use blockd_ipc::fuzz::Queues;
use blockd_ipc::layout::{Cqe, Opcode, Sqe};

use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[
    // Numbers of the words of the head of a queue, and of the first entries.
    &[8, 0, 0, 0],
    &[16, 0, 0, 0],
    &[24, 0, 0, 0],
    &[32, 0, 0, 0],
    &[40, 0, 0, 0],
    &[0, 2, 0, 0],
    b"CFSQUEUE",
];

thread_local! {
    static QUEUES: RefCell<Queues> = RefCell::new(Queues::new().unwrap());
}

/// Depth as a power of two, then words of the queue.
pub fn seeds() -> Vec<Vec<u8>> {
    let sqe = |opcode, fua| Sqe {
        opcode,
        fua,
        volume: 7,
        lba: 8,
        blocks: 9,
        buffer_offset: 2 << 20,
        cookie: 11,
    };
    let place = |words: &[(u32, u64)]| {
        let bytes = words
            .iter()
            .flat_map(|(at, value)| at.to_le_bytes().into_iter().chain(value.to_le_bytes()));
        [4].into_iter().chain(bytes).collect::<Vec<u8>>()
    };
    let entry = |sqe: Sqe| {
        let words = (0x1000 / 8..).zip(sqe.encode());
        let tail = (0x40 / 8, 1);
        place(&[tail].into_iter().chain(words).collect::<Vec<_>>())
    };
    vec![
        place(&[]),
        place(&[(0x40 / 8, 16), (0x140 / 8, 0)]),
        entry(sqe(Opcode::Write, true)),
        entry(sqe(Opcode::Flush, false)),
    ]
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let depth = 1 << (cursor.u8() % 13);
    let mut words = Vec::new();
    let mut entry = cursor.clone();
    while !cursor.is_empty() {
        words.push((cursor.u32(), cursor.u64()));
    }
    let taken = QUEUES.with_borrow(|queues| queues.take(depth, &words)).unwrap_or_default();
    assert!(taken.len() <= depth as usize);
    let loose = std::array::from_fn(|_| entry.u64());
    for words in taken.into_iter().chain([loose]) {
        if let Ok(sqe) = Sqe::decode(words) {
            assert_eq!(sqe.encode(), words);
        }
        let cqe = Cqe::decode([words[0], words[1]]);
        assert_eq!(cqe.encode(), [words[0], words[1]]);
    }
}
