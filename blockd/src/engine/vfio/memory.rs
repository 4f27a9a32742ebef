//! Memory that the controller sees.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hugepages::Arena;

use super::bus::Bus;

/// Queues and lists: an arena of our own that one side fills and the other reads.
pub struct Shown {
    arena: Arc<Arena>,
    iova: u64,
    bus: Arc<dyn Bus>,
    is_leaked: AtomicBool,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("arena", &self.arena).field("iova", &self.iova).finish()
    }
}

impl Shown {
    /// Zeroed memory; `bytes` is a multiple of 2 MiB.
    pub fn new(bus: &Arc<dyn Bus>, bytes: usize) -> io::Result<Shown> {
        let arena = Arena::new(bytes).map_err(io::Error::other)?;
        let iova = bus.map(arena.start(), arena.bytes())?;
        Ok(Shown {
            arena: Arc::new(arena),
            iova,
            bus: Arc::clone(bus),
            is_leaked: AtomicBool::new(false),
        })
    }

    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The device's address of an offset.
    pub fn iova(&self, offset: usize) -> u64 {
        assert!(offset < self.arena.bytes());
        self.iova + offset as u64
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.arena.bytes()),
            "{offset} + {len}"
        );
        // SAFETY: inside the mapping (asserted), which the arena keeps.
        unsafe { self.arena.start().add(offset) }
    }

    pub fn write(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: inside the mapping; the device reads this range only after the doorbell that follows.
        unsafe {
            self.at(offset, bytes.len())
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        }
    }

    pub fn write_u64(&self, offset: usize, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn zero(&self, offset: usize, len: usize) {
        // SAFETY: inside the mapping; called while the device does not use the range.
        unsafe { self.at(offset, len).write_bytes(0, len) }
    }

    /// A word that the device may be writing: what is read after this call is at least as new as it.
    pub fn poll_u16(&self, offset: usize) -> u16 {
        assert!(offset.is_multiple_of(2));
        // SAFETY: inside the mapping and aligned.
        let word = unsafe { self.at(offset, 2).cast::<u16>().read_volatile() };
        fence(Ordering::Acquire);
        u16::from_le(word)
    }

    /// Bytes that the device has finished writing.
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        // SAFETY: inside the mapping; any bytes are an array.
        unsafe { self.at(offset, N).cast::<[u8; N]>().read_volatile() }
    }

    /// Until the device is given back, nobody else gets this memory, nor its address there: the device may still write to it.
    pub fn leak(&self) {
        if !self.is_leaked.swap(true, Ordering::AcqRel) {
            std::mem::forget(Arc::clone(&self.arena));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // What is unmapped may be mapped again at the same address, for something else.
        if !self.is_leaked.load(Ordering::Acquire) {
            self.bus.unmap(self.iova, self.arena.bytes());
        }
    }
}

/// All writes to memory before this are seen by the device before the register write after it.
pub fn publish() {
    fence(Ordering::Release);
    // The fence orders memory among processors; a device needs more where memory is not strongly ordered.
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes no registers and no memory.
    unsafe {
        std::arch::asm!("dsb st", options(nostack, preserves_flags));
    }
}

struct Known {
    arena: Weak<Arena>,
    bytes: usize,
    iova: u64,
}

/// Arenas of clients that the controller sees, mapped when their first operation comes and unmapped after they are gone.
pub struct Arenas {
    bus: Arc<dyn Bus>,
    known: Mutex<Vec<Known>>,
}

impl fmt::Debug for Arenas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arenas").finish_non_exhaustive()
    }
}

impl Arenas {
    pub fn new(bus: &Arc<dyn Bus>) -> Arenas {
        Arenas { bus: Arc::clone(bus), known: Mutex::new(Vec::new()) }
    }

    /// Where the device sees the start of the arena. The address holds while somebody has the arena.
    pub fn iova(&self, arena: &Arc<Arena>) -> io::Result<u64> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // A weak reference keeps the address of the arena's count from being used by another.
        if let Some(found) =
            known.iter().find(|k| std::ptr::eq(k.arena.as_ptr(), Arc::as_ptr(arena)))
        {
            return Ok(found.iova);
        }
        let iova = self.bus.map(arena.start(), arena.bytes())?;
        known.push(Known { arena: Arc::downgrade(arena), bytes: arena.bytes(), iova });
        Ok(iova)
    }

    /// Hides arenas that nobody has any more: an operation would hold its own.
    pub fn sweep(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|k| {
            let is_used = k.arena.strong_count() > 0;
            if !is_used {
                self.bus.unmap(k.iova, k.bytes);
            }
            is_used
        });
    }
}
