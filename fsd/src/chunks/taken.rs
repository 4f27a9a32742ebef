//! What puts have brought since the start, and what became of it: what deduplication and compression save, and what
//! sealing costs, is the difference of two of these.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::format::record_bytes;
use super::pack::Sealed;
use super::seal::TAG;

/// In bytes. Each step counts what is left after the one before; copies on other nodes do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Of all chunks, as clients know them.
    pub put: u64,
    /// Of those that were not here yet.
    pub new: u64,
    /// The same, compressed where that saves something.
    pub packed: u64,
    /// The same, sealed.
    pub sealed: u64,
    /// The same, as records in segments.
    pub stored: u64,
}

/// Counts [`Taken`].
#[derive(Debug, Default)]
pub(super) struct Intake {
    put: AtomicU64,
    new: AtomicU64,
    packed: AtomicU64,
    sealed: AtomicU64,
    stored: AtomicU64,
}

/// What one put has stored.
pub(super) fn sum(records: &[Sealed]) -> Taken {
    let mut sum = Taken::default();
    for Sealed { head, .. } in records {
        let sealed = u64::from(head.stored_len);
        sum.new += u64::from(head.plain_len);
        sum.packed += sealed - TAG as u64;
        sum.sealed += sealed;
        sum.stored += record_bytes(head.stored_len) as u64;
    }
    sum
}

impl Intake {
    pub fn add(&self, taken: Taken) {
        for (counter, bytes) in [
            (&self.put, taken.put),
            (&self.new, taken.new),
            (&self.packed, taken.packed),
            (&self.sealed, taken.sealed),
            (&self.stored, taken.stored),
        ] {
            counter.fetch_add(bytes, Relaxed);
        }
    }

    pub fn so_far(&self) -> Taken {
        Taken {
            put: self.put.load(Relaxed),
            new: self.new.load(Relaxed),
            packed: self.packed.load(Relaxed),
            sealed: self.sealed.load(Relaxed),
            stored: self.stored.load(Relaxed),
        }
    }
}
