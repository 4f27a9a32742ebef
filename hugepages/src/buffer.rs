//! One block of memory, owned.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use crate::buddy::{BLOCK_BYTES, ORDER_MAX};
use crate::pool::{Pool, capacity};

/// Smallest block behind a buffer, in bytes; also the alignment of every buffer.
pub const BUFFER_BYTES_MIN: usize = BLOCK_BYTES;
/// Longest buffer, in bytes.
pub const BUFFER_BYTES_MAX: usize = BLOCK_BYTES << ORDER_MAX;

/// Bytes aligned to 4 KiB that a device can read and write. Exclusive until dropped.
///
/// A buffer in flight belongs to the operation: hand it over by value and get it back with the
/// completion.
pub struct Buffer {
    memory: Memory,
    start: NonNull<u8>,
    len: usize,
}

enum Memory {
    /// A block of a pool, at this offset of its arena.
    Pooled { pool: Arc<Pool>, offset: usize, capacity: usize },
    /// Private memory of the process, for simulation and for engines without an arena.
    Private { pages: Box<[Page]> },
}

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

// SAFETY: a buffer owns its bytes like a Box<[u8]> does: the allocator never hands a block out twice
// and `Private` is a Box. The other side of a shared arena touches a buffer only while its operation
// is in flight, and then the operation owns the Buffer and nobody reads or writes it here.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn pooled(pool: Arc<Pool>, offset: usize, len: usize) -> Buffer {
        let capacity = capacity(len);
        assert!(offset + capacity <= pool.arena().bytes());
        // SAFETY: offset is inside the mapping (asserted), which the pool's arena keeps alive.
        let start = unsafe { pool.arena().start().add(offset) };
        Buffer { memory: Memory::Pooled { pool, offset, capacity }, start, len }
    }

    /// Zeroed private memory of `len` bytes, at least 1: not shared, in no arena.
    pub fn private(len: usize) -> Buffer {
        assert!(len > 0, "an empty buffer");
        let mut pages = vec![Page([0; BLOCK_BYTES]); len.div_ceil(BLOCK_BYTES)].into_boxed_slice();
        let start = NonNull::new(pages.as_mut_ptr().cast()).expect("a Box is never null");
        Buffer { memory: Memory::Private { pages }, start, len }
    }

    /// Offset in the arena that the buffer's pool stands on, in bytes; `None` for private memory.
    pub fn arena_offset(&self) -> Option<usize> {
        match &self.memory {
            Memory::Pooled { offset, .. } => Some(*offset),
            Memory::Private { .. } => None,
        }
    }

    /// Bytes of the block, to which [`Buffer::set_len`] can grow.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Pooled { capacity, .. } => *capacity,
            Memory::Private { pages } => pages.len() * BLOCK_BYTES,
        }
    }

    /// Changes the length in bytes, 1 to `capacity()`; new bytes are whatever they were.
    pub fn set_len(&mut self, len: usize) {
        assert!((1..=self.capacity()).contains(&len), "length {len} of a buffer");
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start..start+len lies in the block that this buffer owns, and every byte of a memfd
        // mapping or of `vec![Page]` is initialised.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.memory {
            Memory::Pooled { pool, offset, capacity } => pool.give(*offset, *capacity),
            Memory::Private { pages: _ } => {}
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the contents: they are users' data.
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("arena_offset", &self.arena_offset())
            .finish()
    }
}
