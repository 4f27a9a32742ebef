//! One mapping of shared memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::pages::{self, Pages};
use crate::{Error, HUGE_PAGE_BYTES};

/// What an arena was asked for as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// 2 MiB pages reserved by the administrator (`vm.nr_hugepages`).
    Huge,
    /// Ordinary pages, which the kernel was asked to make huge where it can.
    Transparent,
}

/// A shared mapping of a memfd, readable and writable, until dropped.
#[derive(Debug)]
pub struct Arena {
    start: NonNull<u8>,
    bytes: usize,
    backing: Backing,
    fd: OwnedFd,
}

// SAFETY: an arena is an address, a length and a descriptor. Access to the bytes goes through raw
// pointers whose users (Buffer, queue layouts) keep exclusion themselves.
unsafe impl Send for Arena {}
// SAFETY: as above: no method hands out a reference to the bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps `bytes` (a multiple of 2 MiB, not 0) of new memory, huge pages first.
    ///
    /// # Errors
    /// `Length` for a bad length, `System` when not even ordinary pages can be had.
    pub fn new(bytes: usize) -> Result<Arena, Error> {
        check_length(bytes)?;
        Self::huge(bytes).or_else(|_| Self::ordinary(bytes))
    }

    /// Maps `bytes` of ordinary pages, also where huge ones are to be had.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn ordinary(bytes: usize) -> Result<Arena, Error> {
        check_length(bytes)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("claudefs", flags).map_err(system("memfd_create", 0))?;
        size(&fd, bytes)?;
        Self::map(fd, bytes, Backing::Transparent)
    }

    fn huge(bytes: usize) -> Result<Arena, Error> {
        let flags = MemfdFlags::CLOEXEC
            | MemfdFlags::ALLOW_SEALING
            | MemfdFlags::HUGETLB
            | MemfdFlags::HUGE_2MB;
        let fd = memfd_create("claudefs", flags).map_err(system("memfd_create", 0))?;
        size(&fd, bytes)?;
        Self::map(fd, bytes, Backing::Huge)
    }

    /// Maps an arena that another process made and whose descriptor it passed.
    ///
    /// # Errors
    /// `Length` when the descriptor's file is not exactly `bytes` long, or could be made shorter later:
    /// touching what is gone would kill this process. `System` when it is no memfd.
    pub fn from_fd(fd: OwnedFd, bytes: usize) -> Result<Arena, Error> {
        check_length(bytes)?;
        let stat = fstat(&fd).map_err(system("fstat", bytes))?;
        if u64::try_from(stat.st_size) != Ok(bytes as u64) {
            return Err(Error::Length { bytes, reason: "is not the length of the descriptor" });
        }
        let seals = fcntl_get_seals(&fd).map_err(system("F_GET_SEALS", bytes))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::Length { bytes, reason: "is not sealed against shrinking" });
        }
        let huge = usize::try_from(stat.st_blksize) == Ok(HUGE_PAGE_BYTES);
        Self::map(fd, bytes, if huge { Backing::Huge } else { Backing::Transparent })
    }

    fn map(fd: OwnedFd, bytes: usize, backing: Backing) -> Result<Arena, Error> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
        .map_err(system("mmap", bytes))?;
        if backing == Backing::Transparent {
            // SAFETY: advice on the mapping made above; it changes no contents. Refusal is no error.
            let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        }
        let start =
            NonNull::new(start.cast()).expect("mmap without MAP_FIXED never gives address 0");
        Ok(Arena { start, bytes, backing, fd })
    }

    /// Address of the first byte. Valid for `bytes()` while the arena lives.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes: a multiple of 2 MiB. Never 0.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// The pages that it has at this moment; reads `/proc/self/smaps`, so not for often.
    pub fn pages(&self) -> Pages {
        match self.backing {
            Backing::Huge => Pages::Hugetlb,
            Backing::Transparent => match std::fs::read_to_string("/proc/self/smaps") {
                Ok(smaps) => pages::of_mapping(&smaps, self.start.as_ptr().addr()),
                Err(_) => Pages::Unknown,
            },
        }
    }

    /// The memfd, to pass to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every Buffer into it holds the arena alive.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn check_length(bytes: usize) -> Result<(), Error> {
    if bytes == 0 || !bytes.is_multiple_of(HUGE_PAGE_BYTES) {
        return Err(Error::Length { bytes, reason: "must be a multiple of 2 MiB and not 0" });
    }
    Ok(())
}

/// Gives a new memfd its length for good.
fn size(fd: &OwnedFd, bytes: usize) -> Result<(), Error> {
    ftruncate(fd, bytes as u64).map_err(system("ftruncate", bytes))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(fd, seals).map_err(system("F_ADD_SEALS", bytes))
}

fn system(call: &'static str, bytes: usize) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::System { call, bytes, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_mapping_of_the_descriptor_sees_the_bytes() {
        let ours = Arena::new(HUGE_PAGE_BYTES).expect("memory");
        let fd = ours.fd().try_clone_to_owned().expect("descriptor");
        let theirs = Arena::from_fd(fd, HUGE_PAGE_BYTES).expect("mapping");
        // SAFETY: both addresses are inside their mappings and nobody else uses them.
        unsafe {
            ours.start().add(4097).write(77);
            assert_eq!(theirs.start().add(4097).read(), 77);
        }
    }

    #[test]
    fn what_was_touched_has_pages_of_one_kind_or_the_other() {
        let arena = Arena::ordinary(2 * HUGE_PAGE_BYTES).expect("memory");
        // SAFETY: the address is inside the mapping and nobody else uses it.
        unsafe { arena.start().write(1) };
        match arena.pages() {
            Pages::Ordinary { resident_bytes, huge_bytes } => {
                assert!((4096..=2 * HUGE_PAGE_BYTES as u64).contains(&resident_bytes));
                assert!(huge_bytes <= resident_bytes);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_descriptor_that_could_shrink_is_refused() {
        let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("memfd");
        ftruncate(&fd, HUGE_PAGE_BYTES as u64).expect("size");
        assert!(matches!(Arena::from_fd(fd, HUGE_PAGE_BYTES), Err(Error::Length { .. })));
        let arena = Arena::ordinary(HUGE_PAGE_BYTES).expect("memory");
        assert!(ftruncate(arena.fd(), 4096).is_err());
        let fd = arena.fd().try_clone_to_owned().expect("descriptor");
        assert!(matches!(Arena::from_fd(fd, 2 * HUGE_PAGE_BYTES), Err(Error::Length { .. })));
    }
}
