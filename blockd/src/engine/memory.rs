//! [`Memory`]: bytes that a device reads or writes, and who keeps them alive.

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use hugepages::{Arena, BUFFER_BYTES_MAX, Buffer, Pool};

/// Where [`Memory::zeroed`] takes from while there is something; see [`Memory::share_pool`].
static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// Who keeps a memory mapped.
#[derive(Clone)]
enum Owner {
    /// Of the allocator; never read, only kept.
    Heap { _alive: Arc<Aligned> },
    /// A range of an arena: what a device can be told of once, for many operations.
    Arena(Arc<Arena>),
    /// A buffer of the process' own pool, which is in an arena, too.
    Pooled { _alive: Arc<Buffer>, arena: Arc<Arena> },
}

/// A range of memory with a share in its owner. Another process may see it too (an ipc arena), so it is only
/// ever copied from and to, never borrowed as a slice.
#[derive(Clone)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("start", &self.start).field("len", &self.len).finish()
    }
}

// SAFETY: the owner is Send + Sync itself and keeps the range mapped; all access is by raw copies, and whoever hands out
// an operation guarantees that the range is used by that operation alone until it completes.
unsafe impl Send for Memory {}
// SAFETY: as above; a shared reference gives copies only.
unsafe impl Sync for Memory {}

struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain allocated bytes, not tied to a thread.
unsafe impl Send for Aligned {}
// SAFETY: never dereferenced through a shared reference; see `Memory`.
unsafe impl Sync for Aligned {}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `Memory::zeroed` with this layout and freed once, here.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Memory {
    /// A part of a client's arena; `None` if it does not lie inside.
    #[must_use]
    pub fn of_arena(arena: &Arc<hugepages::Arena>, offset: u64, len: u64) -> Option<Memory> {
        let end = offset.checked_add(len)?;
        if end > arena.bytes() as u64 {
            return None;
        }
        // SAFETY: the offset is inside the mapping (checked), whose start is valid while the arena lives.
        let start = unsafe { arena.start().add(offset as usize) };
        Some(Memory { start, len: len as usize, owner: Owner::Arena(Arc::clone(arena)) })
    }

    /// From now on [`Memory::zeroed`] takes from an arena of `bytes` (a multiple of 2 MiB), so that devices that want to be
    /// told of memory find all of it in one place. What does not fit comes from the allocator as before. Once a process.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn share_pool(bytes: usize) -> Result<(), hugepages::Error> {
        if POOL.get().is_none() {
            let arena = Arc::new(Arena::new(bytes)?);
            // Whoever was first has made the pool that is used.
            let _ = POOL.set(Pool::new(arena, 0, || {}));
        }
        Ok(())
    }

    fn pooled(pool: &Arc<Pool>, len: usize) -> Option<Memory> {
        let mut buffer = pool.take(len)?;
        buffer.fill(0);
        let start = NonNull::from(&mut *buffer).cast();
        let arena = Arc::clone(pool.arena());
        Some(Memory { start, len, owner: Owner::Pooled { _alive: Arc::new(buffer), arena } })
    }

    /// Zeroed memory, aligned for direct I/O. `len` is not zero.
    #[must_use]
    pub fn zeroed(len: usize) -> Memory {
        assert!(len > 0, "memory of no bytes");
        let pool = POOL.get().filter(|_| len <= BUFFER_BYTES_MAX);
        if let Some(memory) = pool.and_then(|pool| Memory::pooled(pool, len)) {
            return memory;
        }
        let layout =
            Layout::from_size_align(len, 4096).expect("lengths of I/O are far below isize");
        // SAFETY: the layout is not of size zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Memory { start, len, owner: Owner::Heap { _alive: Arc::new(Aligned { start, layout }) } }
    }

    /// A copy of `bytes` in memory aligned for direct I/O.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Memory {
        let memory = Memory::zeroed(bytes.len());
        memory.write(0, bytes);
        memory
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The arena that it is a range of, and where in it; `None` for memory of the allocator.
    #[must_use]
    pub fn arena(&self) -> Option<(&Arc<Arena>, usize)> {
        match &self.owner {
            Owner::Arena(arena) | Owner::Pooled { arena, .. } => {
                Some((arena, self.start.as_ptr().addr() - arena.start().as_ptr().addr()))
            }
            Owner::Heap { .. } => None,
        }
    }

    /// A part of it, with a share of the same owner.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Memory {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "part outside memory");
        // SAFETY: the offset is within the range (asserted).
        let start = unsafe { self.start.add(offset) };
        Memory { start, len, owner: self.owner.clone() }
    }

    /// Copies bytes out of it.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.len));
        // SAFETY: within the range (asserted); `into` is exclusively ours and cannot overlap it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    /// Copies bytes into it.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.len));
        // SAFETY: within the range (asserted), which the operation in hand owns.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.start.as_ptr().add(offset),
                from.len(),
            );
        }
    }

    /// Copies all of another memory of the same length into it.
    pub fn copy_from(&self, from: &Memory) {
        assert_eq!(from.len, self.len, "memories of one length");
        // SAFETY: both ranges are whole memories, of one length (asserted), which the operation in hand owns; should they
        // overlap, `copy` allows it.
        unsafe { std::ptr::copy(from.start.as_ptr(), self.start.as_ptr(), self.len) }
    }

    /// Fills it with zeros.
    pub fn clear(&self) {
        // SAFETY: the range is ours (see `write`).
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), 0, self.len) }
    }

    /// A copy of all of it.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_pool_is_zeroed_and_comes_back() {
        let arena = Arc::new(Arena::ordinary(hugepages::HUGE_PAGE_BYTES).unwrap());
        let pool = Pool::new(Arc::clone(&arena), 0, || {});
        let free = pool.free_bytes();
        let memory = Memory::pooled(&pool, 8192).unwrap();
        memory.write(0, &[7; 8192]);
        let part = memory.part(4096, 4096);
        drop(memory);
        let (of, offset) = part.arena().unwrap();
        assert!(Arc::ptr_eq(of, &arena) && offset.is_multiple_of(4096));
        assert_eq!(part.to_vec(), vec![7; 4096]);
        assert_eq!(pool.free_bytes(), free - 8192, "a part keeps the whole");
        drop(part);
        assert_eq!(pool.free_bytes(), free);
        assert_eq!(Memory::pooled(&pool, 8192).unwrap().to_vec(), vec![0; 8192]);
        assert!(Memory::zeroed(4096).arena().is_none());
    }
}
