//! One block of memory, owned.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use crate::arena::Arena;
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
    /// A range of an arena that its owner, another process, lent for an operation.
    Lent { arena: Arc<Arena>, offset: usize, capacity: usize },
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

    /// The range of an arena that another process asks an operation on; dropping it gives nothing
    /// back. The other process may change the bytes at any time: never decide on them twice.
    ///
    /// # Panics
    /// When the range is empty or does not lie in the arena.
    ///
    /// # Safety
    /// While the buffer lives, this process makes no other reference to these bytes: hand them to a
    /// device by address, or copy, where the other process could have asked for overlapping ranges.
    pub unsafe fn lent(arena: Arc<Arena>, offset: usize, len: usize) -> Buffer {
        let inside = offset.checked_add(len).is_some_and(|end| end <= arena.bytes());
        assert!(len > 0 && inside, "{len} bytes at {offset:#x} of an arena");
        // SAFETY: offset is inside the mapping (asserted), which the Arc keeps alive.
        let start = unsafe { arena.start().add(offset) };
        Buffer { memory: Memory::Lent { arena, offset, capacity: len }, start, len }
    }

    /// Whether the buffer is a range of this very mapping, in other words whether the other side of
    /// the arena can see it at [`Buffer::arena_offset`].
    pub fn is_in(&self, arena: &Arena) -> bool {
        match &self.memory {
            Memory::Pooled { pool, .. } => std::ptr::eq(Arc::as_ptr(pool.arena()), arena),
            Memory::Lent { arena: of, .. } => std::ptr::eq(Arc::as_ptr(of), arena),
            Memory::Private { .. } => false,
        }
    }

    /// Offset in the arena that the buffer lies in, in bytes; `None` for private memory.
    pub fn arena_offset(&self) -> Option<usize> {
        match &self.memory {
            Memory::Pooled { offset, .. } | Memory::Lent { offset, .. } => Some(*offset),
            Memory::Private { .. } => None,
        }
    }

    /// Bytes of the block, to which [`Buffer::set_len`] can grow.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Pooled { capacity, .. } | Memory::Lent { capacity, .. } => *capacity,
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
            Memory::Lent { arena: _, .. } | Memory::Private { pages: _ } => {}
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
