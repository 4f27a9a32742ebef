//! Parsers that have no other door, for the package `fuzz`.

use std::sync::Arc;

use hugepages::Arena;

use crate::error::Error;
use crate::handshake::{self, Grant, Wish};
use crate::layout::SQE_WORDS;
use crate::ring;
use crate::volume::Geometry;

pub use crate::handshake::{ANSWER_BYTES, HELLO_BYTES};

/// Volume, depth and bytes of the arena that a hello asks for, and the hello that says the same.
#[allow(clippy::type_complexity)]
pub fn hello(bytes: [u8; HELLO_BYTES]) -> Result<((String, u32, usize), [u8; HELLO_BYTES]), Error> {
    let wish = Wish::decode(bytes)?;
    let again = wish.encode()?;
    Ok(((wish.volume, wish.depth, wish.arena_bytes), again))
}

/// A hello.
pub fn encode_hello(
    volume: &str,
    depth: u32,
    arena_bytes: usize,
) -> Result<[u8; HELLO_BYTES], Error> {
    Wish { volume: volume.to_owned(), depth, arena_bytes }.encode()
}

/// Volume and geometry that an answer grants, and the answer that says the same.
pub fn answer(bytes: [u8; ANSWER_BYTES]) -> Result<(u64, Geometry, [u8; ANSWER_BYTES]), Error> {
    let Grant { volume, geometry } = handshake::decode_answer(bytes)?;
    Ok((volume, geometry, handshake::encode_answer(Ok(Grant { volume, geometry }))))
}

/// An answer.
pub fn encode_answer(volume: u64, geometry: Geometry) -> [u8; ANSWER_BYTES] {
    handshake::encode_answer(Ok(Grant { volume, geometry }))
}

/// The queues of a peer that writes what it likes: every word at the start of the arena is the peer's.
#[derive(Debug)]
pub struct Queues {
    arena: Arc<Arena>,
}

impl Queues {
    /// # Errors
    /// As [`Arena::ordinary`].
    pub fn new() -> Result<Queues, hugepages::Error> {
        Ok(Queues { arena: Arc::new(Arena::ordinary(2 * hugepages::HUGE_PAGE_BYTES)?) })
    }

    /// Sets words (their number modulo the queue's, and a value), then takes and completes what the rings
    /// hold. Gives the submissions that were there, or the error that ends the connection.
    pub fn take(&self, depth: u32, words: &[(u32, u64)]) -> Result<Vec<[u64; SQE_WORDS]>, Error> {
        ring::format(&self.arena, depth);
        for &(at, value) in words {
            ring::scribble(&self.arena, at, value);
        }
        ring::check_format(&self.arena, depth)?;
        let (mut submissions, mut completions) = ring::server(&self.arena, depth);
        let mut found = Vec::new();
        while let Some(words) = submissions.pop()? {
            assert!(found.len() < depth as usize, "more submissions than the ring has entries");
            found.push(words);
            completions.push([words[5], 0])?;
        }
        Ok(found)
    }
}
