//! Buffers out of an arena.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::arena::Arena;
use crate::buddy::{BLOCK_BYTES, Buddy, ORDER_MAX};
use crate::buffer::{BUFFER_BYTES_MAX, Buffer};

/// Hands out blocks of one arena, from `start_bytes` to its end.
pub struct Pool {
    arena: Arc<Arena>,
    start_bytes: usize,
    buddy: Mutex<Buddy>,
    on_free: Box<dyn Fn() + Send + Sync>,
}

impl Pool {
    /// A pool over the arena from `start_bytes` on (a multiple of 2 MiB; what lies before is the
    /// caller's, queues for example). `on_free` is called after each buffer that comes back, by
    /// whichever thread dropped it: wake those who wait for memory there.
    pub fn new(
        arena: Arc<Arena>,
        start_bytes: usize,
        on_free: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Pool> {
        assert!(start_bytes < arena.bytes(), "a pool needs room behind its start");
        let buddy = Mutex::new(Buddy::new(arena.bytes() - start_bytes));
        Arc::new(Pool { arena, start_bytes, buddy, on_free: Box::new(on_free) })
    }

    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// A buffer of `len` bytes, 1 to 2 MiB, aligned to 4 KiB; its contents are whatever they were.
    /// `None` when the pool is empty now: try again after `on_free`.
    pub fn take(self: &Arc<Pool>, len: usize) -> Option<Buffer> {
        assert!((1..=BUFFER_BYTES_MAX).contains(&len), "a buffer of {len} bytes");
        let order = order(len);
        let offset = self.buddy.lock().take(order)?;
        Some(Buffer::pooled(Arc::clone(self), self.start_bytes + offset, len))
    }

    /// Bytes that no buffer holds.
    pub fn free_bytes(&self) -> usize {
        self.buddy.lock().free_bytes()
    }

    pub(crate) fn give(&self, offset: usize, capacity: usize) {
        self.buddy.lock().give(offset - self.start_bytes, order(capacity));
        (self.on_free)();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("arena", &self.arena)
            .field("free_bytes", &self.free_bytes())
            .finish()
    }
}

/// The block size, in bytes, that holds `len`.
pub(crate) fn capacity(len: usize) -> usize {
    BLOCK_BYTES << order(len)
}

fn order(len: usize) -> usize {
    let order = len.div_ceil(BLOCK_BYTES).next_power_of_two().trailing_zeros() as usize;
    assert!(order <= ORDER_MAX);
    order
}
