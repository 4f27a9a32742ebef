//! Buffers of one connection: reused, so that a 4 KiB read does not go through the allocator, and bounded, so that no
//! host makes the daemon grow.

use crate::engine::{BLOCK_BYTES, Memory};

/// Classes double from 4 KiB to 1 MiB.
const CLASSES: usize = 9;
/// Longest buffer.
pub const BUFFER_BYTES_MAX: usize = (BLOCK_BYTES as usize) << (CLASSES - 1);
/// Bytes that are kept for reuse; beyond it a buffer is freed.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// See the module.
#[derive(Debug)]
pub struct Buffers {
    kept: [Vec<Memory>; CLASSES],
    kept_bytes: usize,
    used_bytes: usize,
    limit_bytes: usize,
}

impl Buffers {
    pub fn new(limit_bytes: usize) -> Buffers {
        let limit_bytes = limit_bytes.max(2 * BUFFER_BYTES_MAX);
        Buffers { kept: Default::default(), kept_bytes: 0, used_bytes: 0, limit_bytes }
    }

    /// The queue has `depth` commands of `capsule` bytes, which are never refused their buffer.
    pub fn reserve(&mut self, depth: usize, capsule: usize) {
        let capsule = capsule.next_power_of_two().max(BLOCK_BYTES as usize);
        self.limit_bytes = self.limit_bytes.max(depth * capsule + 2 * BUFFER_BYTES_MAX);
    }

    /// A buffer of at least `len` bytes; `None` while too much is in use.
    pub fn take(&mut self, len: usize) -> Option<Memory> {
        let (_, bytes) = class_of(len);
        (self.used_bytes + bytes <= self.limit_bytes).then(|| self.take_reserved(len))
    }

    /// A buffer for the data of a capsule, whose number the queue's depth bounds.
    pub fn take_reserved(&mut self, len: usize) -> Memory {
        let (class, bytes) = class_of(len);
        self.used_bytes += bytes;
        match self.kept[class].pop() {
            Some(memory) => {
                self.kept_bytes -= bytes;
                memory
            }
            None => Memory::zeroed(bytes),
        }
    }

    /// Gives a buffer back that `take` gave.
    pub fn give(&mut self, memory: Memory) {
        let (class, bytes) = class_of(memory.len());
        assert_eq!(bytes, memory.len(), "a buffer of this pool");
        self.used_bytes -= bytes;
        if self.kept_bytes + bytes <= KEPT_BYTES_MAX {
            self.kept_bytes += bytes;
            self.kept[class].push(memory);
        }
    }

    #[cfg(test)]
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

fn class_of(len: usize) -> (usize, usize) {
    assert!(len > 0 && len <= BUFFER_BYTES_MAX, "a buffer of {len} bytes");
    let bytes = len.max(BLOCK_BYTES as usize).next_power_of_two();
    ((bytes / BLOCK_BYTES as usize).trailing_zeros() as usize, bytes)
}
