//! Memory that the kernel has pinned for a ring, so that operations on it need no pinning of their own.
//!
//! Files and block devices take a whole arena as one buffer. Kernels differ in what they take for NVMe commands: newer ones a whole arena as one buffer, older ones (6.1) only
//! buffers of a page. What the kernel takes is found out once, with a read, when the device is opened. Whatever is not
//! pinned works, too, only slower.

use std::io;
use std::sync::{Arc, Weak};

use hugepages::Arena;
use io_uring::{IoUring, Submitter, cqueue, squeue};

/// Entries of the table of a ring.
const SLOTS: u32 = 16_384;
const SLOT_BYTES: usize = 4096;
/// Longest buffer that the kernel registers.
const BUFFER_BYTES_MAX: usize = 1 << 30;

/// What the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An arena as one buffer.
    Arenas,
    /// A page as one buffer.
    Pages,
    /// Nothing.
    Off,
}

type Ring = IoUring<squeue::Entry128, cqueue::Entry32>;

#[derive(Debug)]
struct Pinned {
    arena: Weak<Arena>,
    /// First entry of the table, and how many.
    first: u32,
    count: u32,
    /// It was tried and cannot be had: its commands are not fixed.
    refused: bool,
}

/// The table of one ring.
#[derive(Debug)]
pub struct Fixed {
    mode: Mode,
    pinned: Vec<Pinned>,
}

impl Fixed {
    /// Makes an empty table in the ring. Where the kernel has none, nothing will be pinned.
    pub fn new(submitter: &Submitter<'_>, mode: Mode) -> Fixed {
        let has_table = mode != Mode::Off && submitter.register_buffers_sparse(SLOTS).is_ok();
        Fixed { mode: if has_table { mode } else { Mode::Off }, pinned: Vec::new() }
    }

    /// The buffer that holds `len` bytes at `offset` of an arena, which is pinned first if it is new.
    pub fn index(
        &mut self,
        submitter: &Submitter<'_>,
        arena: &Arc<Arena>,
        offset: usize,
        len: usize,
    ) -> Option<u16> {
        if self.mode == Mode::Off {
            return None;
        }
        let known =
            self.pinned.iter().position(|p| std::ptr::eq(p.arena.as_ptr(), Arc::as_ptr(arena)));
        let entry = match known {
            Some(entry) => entry,
            None => {
                self.release_dead(submitter);
                let pinned = self.pin(submitter, arena);
                self.pinned.push(pinned);
                self.pinned.len() - 1
            }
        };
        let pinned = &self.pinned[entry];
        if pinned.refused {
            return None;
        }
        let slot = match self.mode {
            Mode::Arenas => 0,
            Mode::Pages if offset % SLOT_BYTES + len <= SLOT_BYTES => (offset / SLOT_BYTES) as u32,
            Mode::Pages | Mode::Off => return None,
        };
        u16::try_from(pinned.first + slot).ok()
    }

    /// The arena's commands are not fixed any more.
    pub fn refuse(&mut self, arena: &Arc<Arena>) {
        for pinned in &mut self.pinned {
            if std::ptr::eq(pinned.arena.as_ptr(), Arc::as_ptr(arena)) {
                pinned.refused = true;
            }
        }
    }

    fn pin(&self, submitter: &Submitter<'_>, arena: &Arc<Arena>) -> Pinned {
        let refused = Pinned { arena: Arc::downgrade(arena), first: 0, count: 0, refused: true };
        let (size, count) = match self.mode {
            Mode::Arenas => (arena.bytes(), 1),
            Mode::Pages => (SLOT_BYTES, (arena.bytes() / SLOT_BYTES) as u32),
            Mode::Off => return refused,
        };
        let Some(first) = self.room(count).filter(|_| size <= BUFFER_BYTES_MAX) else {
            tracing::debug!(bytes = arena.bytes(), "no room to pin an arena");
            return refused;
        };
        let start = arena.start().as_ptr();
        let vectors: Vec<libc::iovec> = (0..count as usize)
            .map(|i| libc::iovec { iov_base: start.wrapping_add(i * size).cast(), iov_len: size })
            .collect();
        // SAFETY: the vectors lie in the arena's mapping. Commands name them only while an operation holds the arena, and
        // pinned pages outlive its mapping, so what stays here after the arena is gone is memory that nobody else has.
        match unsafe { submitter.register_buffers_update(first, &vectors, None) } {
            Ok(()) => Pinned { first, count, refused: false, ..refused },
            Err(error) => {
                tracing::debug!(%error, bytes = arena.bytes(), "an arena cannot be pinned");
                refused
            }
        }
    }

    /// The first gap of `count` entries.
    fn room(&self, count: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> =
            self.pinned.iter().filter(|p| p.count > 0).map(|p| (p.first, p.count)).collect();
        taken.sort_unstable();
        let mut first = 0;
        for (start, len) in taken {
            if start - first >= count {
                break;
            }
            first = start + len;
        }
        (first + count <= SLOTS).then_some(first)
    }

    /// Unpins arenas that nobody has any more.
    pub fn release_dead(&mut self, submitter: &Submitter<'_>) {
        self.pinned.retain(|pinned| {
            if pinned.arena.strong_count() > 0 {
                return true;
            }
            let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
            let vectors = vec![none; pinned.count as usize];
            // SAFETY: empty vectors; no command names these entries, since an operation would hold the arena.
            let released = pinned.count == 0
                || unsafe { submitter.register_buffers_update(pinned.first, &vectors, None) }
                    .is_ok();
            // What cannot be released keeps its place, so that it is not used twice.
            !released
        });
    }

    /// Whether something may have to be released.
    pub fn has_dead(&self) -> bool {
        self.pinned.iter().any(|p| p.arena.strong_count() == 0)
    }
}

/// Finds out what the kernel takes; `read` reads a block of the device into the start of the arena by a buffer of the table.
pub fn probe(
    make: impl Fn() -> io::Result<Ring>,
    mut read: impl FnMut(&mut Ring, &Arc<Arena>, u16) -> io::Result<()>,
) -> Mode {
    let Ok(arena) = Arena::new(hugepages::HUGE_PAGE_BYTES) else { return Mode::Off };
    let arena = Arc::new(arena);
    for mode in [Mode::Arenas, Mode::Pages] {
        let Ok(mut ring) = make() else { return Mode::Off };
        let mut fixed = Fixed::new(&ring.submitter(), mode);
        let index = fixed.index(&ring.submitter(), &arena, 0, SLOT_BYTES);
        if index.is_some_and(|index| read(&mut ring, &arena, index).is_ok()) {
            return mode;
        }
    }
    Mode::Off
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        IoUring::builder().build(8).unwrap()
    }

    #[test]
    fn arenas_come_and_go() {
        for mode in [Mode::Arenas, Mode::Pages] {
            let ring = ring();
            let mut fixed = Fixed::new(&ring.submitter(), mode);
            let one = Arc::new(Arena::ordinary(2 << 20).unwrap());
            let two = Arc::new(Arena::ordinary(2 << 20).unwrap());
            let a = fixed.index(&ring.submitter(), &one, 4096, 4096).unwrap();
            let b = fixed.index(&ring.submitter(), &two, 4096, 4096).unwrap();
            assert_eq!(fixed.index(&ring.submitter(), &one, 4096, 4096), Some(a));
            assert_ne!(a, b);
            let wide = fixed.index(&ring.submitter(), &two, 4096, 8192);
            assert_eq!(wide.is_some(), mode == Mode::Arenas);
            drop(one);
            assert!(fixed.has_dead());
            fixed.release_dead(&ring.submitter());
            assert!(!fixed.has_dead());
            let three = Arc::new(Arena::ordinary(2 << 20).unwrap());
            assert_eq!(
                fixed.index(&ring.submitter(), &three, 4096, 4096),
                Some(a),
                "the gap is used again"
            );
            fixed.refuse(&three);
            assert_eq!(fixed.index(&ring.submitter(), &three, 4096, 4096), None);
        }
    }

    #[test]
    fn a_probe_takes_what_works() {
        assert_eq!(probe(|| IoUring::builder().build(8), |_, _, _| Ok(())), Mode::Arenas);
        let mut tries = 0;
        let second = probe(
            || IoUring::builder().build(8),
            |_, _, _| {
                tries += 1;
                if tries == 2 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
            },
        );
        assert_eq!(second, Mode::Pages);
        let none = probe(
            || IoUring::builder().build(8),
            |_, _, _| Err(io::ErrorKind::InvalidInput.into()),
        );
        assert_eq!(none, Mode::Off);
    }
}
