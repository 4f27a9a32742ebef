//! How many written bytes all files together may hold in memory.
//!
//! A counter, not a semaphore: who finds it full makes room itself, by flushing, and learns of the
//! failure if that is not possible. So nobody waits for a server that does not answer longer than
//! the one call takes.

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct Budget {
    bytes_max: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes_max: u64) -> Budget {
        Budget { bytes_max, used: AtomicU64::new(0) }
    }

    /// Whether `bytes` more fit. Threads that ask at once may overshoot by one write each.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        used == 0 || used + bytes as u64 <= self.bytes_max
    }

    /// A buffer went from `before` to `after` bytes.
    pub(crate) fn changed(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add((after - before) as u64, Ordering::Relaxed);
        } else {
            let freed = (before - after) as u64;
            let used = self.used.fetch_sub(freed, Ordering::Relaxed);
            debug_assert!(used >= freed, "more freed than was used");
        }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}
