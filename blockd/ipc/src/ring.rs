//! One direction of a queue: a ring of entries with one producer and one consumer, in shared memory.
//!
//! Each side keeps its own index privately and only publishes it; of the peer's index it believes
//! nothing that would put more than `depth` entries in the ring. A lying peer therefore gets an
//! error, and can at worst make us read entries that it scribbled over.
//!
//! Sleeping: the consumer raises its flag, looks once more, and waits on the eventfd; the producer
//! publishes, then looks at the flag. Both put a full fence between their store and their load, so
//! that at least one of them sees the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use hugepages::Arena;

use crate::error::{Error, Kind};
use crate::layout;

/// Where a ring lies in the arena.
#[derive(Clone, Copy, Debug)]
struct Place {
    tail_at: usize,
    head_at: usize,
    /// Flag of the ring's consumer.
    sleeps_at: usize,
    entries_at: usize,
    depth: u32,
}

const fn submissions(depth: u32) -> Place {
    Place {
        tail_at: layout::SQ_TAIL_AT,
        head_at: layout::SQ_HEAD_AT,
        sleeps_at: layout::SERVER_SLEEPS_AT,
        entries_at: layout::SQ_AT,
        depth,
    }
}

const fn completions(depth: u32) -> Place {
    Place {
        tail_at: layout::CQ_TAIL_AT,
        head_at: layout::CQ_HEAD_AT,
        sleeps_at: layout::CLIENT_SLEEPS_AT,
        entries_at: layout::CQ_AT,
        depth,
    }
}

/// The client's ends.
pub(crate) fn client(arena: &Arc<Arena>, depth: u32) -> (SqProducer, CqConsumer) {
    (Producer::new(arena, submissions(depth)), Consumer::new(arena, completions(depth)))
}

/// The server's ends.
pub(crate) fn server(arena: &Arc<Arena>, depth: u32) -> (SqConsumer, CqProducer) {
    (Consumer::new(arena, submissions(depth)), Producer::new(arena, completions(depth)))
}

pub(crate) type SqProducer = Producer<{ layout::SQE_WORDS }>;
pub(crate) type SqConsumer = Consumer<{ layout::SQE_WORDS }>;
pub(crate) type CqProducer = Producer<{ layout::CQE_WORDS }>;
pub(crate) type CqConsumer = Consumer<{ layout::CQE_WORDS }>;

/// Whether a depth is one that rings can have: a power of two up to [`layout::DEPTH_MAX`].
pub(crate) fn depth_is_valid(depth: u32) -> bool {
    depth.is_power_of_two() && depth <= layout::DEPTH_MAX
}

/// Empties both rings and writes the header. Only while nobody uses them.
pub(crate) fn format(arena: &Arena, depth: u32) {
    for at in [
        layout::SQ_TAIL_AT,
        layout::SQ_HEAD_AT,
        layout::SERVER_SLEEPS_AT,
        layout::CQ_TAIL_AT,
        layout::CQ_HEAD_AT,
        layout::CLIENT_SLEEPS_AT,
    ] {
        word32(arena, at).store(0, Ordering::Relaxed);
    }
    word32(arena, layout::VERSION_AT).store(layout::VERSION, Ordering::Relaxed);
    word32(arena, layout::DEPTH_AT).store(depth, Ordering::Relaxed);
    word64(arena, layout::MAGIC_AT).store(layout::MAGIC, Ordering::Release);
}

/// Writes a word of the queue, as a peer may at any time.
pub(crate) fn scribble(arena: &Arena, at: u32, value: u64) {
    let words = layout::QUEUE_BYTES / 8;
    word64(arena, at as usize % words * 8).store(value, Ordering::Relaxed);
}

/// Whether the header says what the hello said.
pub(crate) fn check_format(arena: &Arena, depth: u32) -> Result<(), Error> {
    let magic = word64(arena, layout::MAGIC_AT).load(Ordering::Acquire);
    let version = word32(arena, layout::VERSION_AT).load(Ordering::Relaxed);
    let found = word32(arena, layout::DEPTH_AT).load(Ordering::Relaxed);
    if magic != layout::MAGIC || version != layout::VERSION || found != depth {
        return Err(Error::new(Kind::Invalid, "header of the queues in the arena"));
    }
    Ok(())
}

/// The side that writes entries.
pub(crate) struct Producer<const WORDS: usize> {
    arena: Arc<Arena>,
    place: Place,
    tail: u32,
}

impl<const WORDS: usize> Producer<WORDS> {
    fn new(arena: &Arc<Arena>, place: Place) -> Self {
        assert!(depth_is_valid(place.depth));
        Producer { arena: Arc::clone(arena), place, tail: 0 }
    }

    /// Entries that the consumer has not taken yet.
    ///
    /// # Errors
    /// `Invalid` when the consumer's index is impossible.
    pub(crate) fn used(&self) -> Result<u32, Error> {
        let head = word32(&self.arena, self.place.head_at).load(Ordering::Acquire);
        let used = self.tail.wrapping_sub(head);
        if used > self.place.depth {
            return Err(Error::new(Kind::Invalid, format!("head {head} of a ring")));
        }
        Ok(used)
    }

    /// Writes an entry; false when the ring is full. Then ask [`Producer::must_announce`].
    ///
    /// # Errors
    /// As [`Producer::used`].
    pub(crate) fn push(&mut self, entry: [u64; WORDS]) -> Result<bool, Error> {
        if self.used()? == self.place.depth {
            return Ok(false);
        }
        let at = entry_at::<WORDS>(self.place, self.tail);
        for (index, word) in entry.into_iter().enumerate() {
            word64(&self.arena, at + index * 8).store(word.to_le(), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        word32(&self.arena, self.place.tail_at).store(self.tail, Ordering::Release);
        Ok(true)
    }

    /// Whether the consumer sleeps and its eventfd must be written; answers true once per sleep.
    pub(crate) fn must_announce(&self) -> bool {
        fence(Ordering::SeqCst);
        let sleeps = word32(&self.arena, self.place.sleeps_at);
        sleeps.load(Ordering::Relaxed) != 0 && sleeps.swap(0, Ordering::AcqRel) != 0
    }
}

/// The side that takes entries.
pub(crate) struct Consumer<const WORDS: usize> {
    arena: Arc<Arena>,
    place: Place,
    head: u32,
}

impl<const WORDS: usize> Consumer<WORDS> {
    fn new(arena: &Arc<Arena>, place: Place) -> Self {
        assert!(depth_is_valid(place.depth));
        Consumer { arena: Arc::clone(arena), place, head: 0 }
    }

    fn available(&self) -> Result<u32, Error> {
        let tail = word32(&self.arena, self.place.tail_at).load(Ordering::Acquire);
        let available = tail.wrapping_sub(self.head);
        if available > self.place.depth {
            return Err(Error::new(Kind::Invalid, format!("tail {tail} of a ring")));
        }
        Ok(available)
    }

    /// Takes the oldest entry.
    ///
    /// # Errors
    /// `Invalid` when the producer's index is impossible.
    pub(crate) fn pop(&mut self) -> Result<Option<[u64; WORDS]>, Error> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let at = entry_at::<WORDS>(self.place, self.head);
        let entry = std::array::from_fn(|index| {
            u64::from_le(word64(&self.arena, at + index * 8).load(Ordering::Relaxed))
        });
        self.head = self.head.wrapping_add(1);
        word32(&self.arena, self.place.head_at).store(self.head, Ordering::Release);
        Ok(Some(entry))
    }

    /// Raises the sleep flag; false when there is an entry after all, then do not sleep.
    pub(crate) fn prepare_sleep(&self) -> bool {
        word32(&self.arena, self.place.sleeps_at).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let empty = matches!(self.available(), Ok(0));
        if !empty {
            self.wake();
        }
        empty
    }

    /// Lowers the sleep flag; whether the producer has done so before: then it announces, or did.
    pub(crate) fn wake(&self) -> bool {
        word32(&self.arena, self.place.sleeps_at).swap(0, Ordering::Relaxed) == 0
    }
}

impl<const WORDS: usize> fmt::Debug for Producer<WORDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("place", &self.place).field("tail", &self.tail).finish()
    }
}

impl<const WORDS: usize> fmt::Debug for Consumer<WORDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("place", &self.place).field("head", &self.head).finish()
    }
}

fn entry_at<const WORDS: usize>(place: Place, index: u32) -> usize {
    place.entries_at + (index & (place.depth - 1)) as usize * WORDS * 8
}

fn word32(arena: &Arena, at: usize) -> &AtomicU32 {
    assert!(at.is_multiple_of(4) && at + 4 <= layout::QUEUE_BYTES.min(arena.bytes()));
    // SAFETY: inside the mapping and aligned (asserted; a mapping starts on a page). The first
    // QUEUE_BYTES of an arena are accessed by atomics only, and the reference borrows the arena.
    unsafe { arena.start().add(at).cast::<AtomicU32>().as_ref() }
}

fn word64(arena: &Arena, at: usize) -> &AtomicU64 {
    assert!(at.is_multiple_of(8) && at + 8 <= layout::QUEUE_BYTES.min(arena.bytes()));
    // SAFETY: as in word32.
    unsafe { arena.start().add(at).cast::<AtomicU64>().as_ref() }
}

#[cfg(test)]
mod tests;
