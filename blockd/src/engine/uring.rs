//! Files and block devices through io_uring with O_DIRECT.
//!
//! The file is registered with the ring, and so are the arenas of clients ([`Fixed`]). A short transfer is continued
//! where it stopped; the operation completes once, whole or with an error. FUA is `RWF_DSYNC`, flush is `fdatasync`, both of which reach a volatile write cache.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::fixed::{Fixed, Mode};
use super::{
    Action, BLOCK_BYTES, Completion, Device, DeviceFacts, LOCK_TRIES, Memory, Op, Queue, lock,
    sysfs,
};

/// Operations in the hardware ring at once; further ones wait in the queue's own backlog.
const RING_DEPTH: u32 = 256;
/// Polls between two looks for arenas that are gone.
const SWEEP_POLLS: u32 = 1 << 14;
/// EINTR and EAGAIN of one operation are retried this often, then reported.
const RETRIES_MAX: u32 = 1000;

/// See the module.
#[derive(Debug)]
pub struct Uring {
    file: Arc<File>,
    bytes: u64,
    is_block: bool,
}

impl Uring {
    /// Opens the file or block device and takes its exclusive lock. With `create`, a missing file is made with `size`
    /// bytes. A lock that another process holds gives `WouldBlock`.
    pub fn open(path: &Path, create: bool, size: Option<u64>) -> io::Result<Uring> {
        // Exclusively, so that a mounted device is refused and nobody mounts it meanwhile.
        let is_block = path.metadata().is_ok_and(|m| m.file_type().is_block_device());
        let exclusive = if is_block { libc::O_EXCL } else { 0 };
        let open_once = |direct: i32| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(create && size.is_some() && !is_block)
                .truncate(false)
                .custom_flags(direct | exclusive | libc::O_CLOEXEC)
                .mode(0o600)
                .open(path)
        };
        let open = |direct: i32| {
            // A blockd that was killed keeps it for a moment; see `lock`.
            let is_busy = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
            let mut outcome = open_once(direct);
            for _ in 0..LOCK_TRIES {
                if !outcome.as_ref().is_err_and(is_busy) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
                outcome = open_once(direct);
            }
            outcome.map_err(|error| explain_busy(error, path))
        };
        let file = match open(libc::O_DIRECT) {
            // tmpfs of old kernels and some overlay file systems have no direct I/O.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0)?,
            other => other?,
        };
        // A second blockd must not even look at the superblocks while this one may change them.
        lock(&file)?;
        let kind = file.metadata()?.file_type();
        let mut bytes = if kind.is_block_device() {
            use std::io::{Seek, SeekFrom};
            (&file).seek(SeekFrom::End(0))?
        } else {
            file.metadata()?.len()
        };
        if bytes == 0 && create && kind.is_file() {
            bytes = size.unwrap_or(0);
            file.set_len(bytes)?;
            file.sync_all()?;
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
        Ok(Uring { file: Arc::new(file), bytes, is_block: kind.is_block_device() })
    }
}

/// Says why a block device is busy.
fn explain_busy(error: io::Error, path: &Path) -> io::Error {
    if error.raw_os_error() != Some(libc::EBUSY) {
        return error;
    }
    let path = path.display();
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("it is mounted or in use by the kernel: see `lsblk {path}`"),
    )
}

impl Device for Uring {
    fn engine(&self) -> &'static str {
        "uring"
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn facts(&self) -> DeviceFacts {
        sysfs::block_facts(&self.file, self.bytes)
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        let ring = IoUring::builder().dontfork().build(RING_DEPTH)?;
        ring.submitter().register_files(&[self.file.as_raw_fd()])?;
        Ok(Box::new(UringQueue {
            fixed: Fixed::new(&ring.submitter(), Mode::Arenas),
            polls: 0,
            ring,
            flights: (0..RING_DEPTH).map(|_| None).collect(),
            free: (0..RING_DEPTH as usize).rev().collect(),
            backlog: VecDeque::new(),
            unsubmitted: false,
            bytes: self.bytes,
            is_block: self.is_block,
            done: Vec::new(),
            _file: Arc::clone(&self.file),
        }))
    }
}

/// An operation in the ring; it owns its memory until its last completion.
struct Flight {
    op: Op,
    done_bytes: usize,
    retries: u32,
}

struct UringQueue {
    // Dropped first: closing the ring ends kernel access before the flights' memory goes; see `Drop`.
    ring: IoUring,
    fixed: Fixed,
    polls: u32,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    backlog: VecDeque<Op>,
    /// The ring has entries that the kernel has not taken.
    unsubmitted: bool,
    bytes: u64,
    is_block: bool,
    done: Vec<Completion>,
    _file: Arc<File>,
}

impl UringQueue {
    fn push(&mut self, slot: usize) {
        let entry = self.entry(slot).user_data(slot as u64);
        self.unsubmitted = true;
        loop {
            // SAFETY: the memory of the entry belongs to the flight in `slot`, which is kept until its completion
            // is collected; the file is registered for the life of the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Cannot stay full: the ring has as many entries as there are slots, and submitting empties it.
            let _ = self.ring.submit();
        }
    }

    fn entry(&mut self, slot: usize) -> squeue::Entry {
        let flight = self.flights[slot].as_ref().expect("a pushed slot is taken");
        let fd = types::Fixed(0);
        let done = flight.done_bytes;
        let mut buffer = |memory: &Memory| {
            let (arena, offset) = memory.arena()?;
            self.fixed.index(&self.ring.submitter(), arena, offset, memory.len())
        };
        match &flight.op.action {
            Action::Read { offset, memory } => {
                let rest = memory.part(done, memory.len() - done);
                let (start, len, offset) = (rest.as_ptr(), rest.len() as u32, offset + done as u64);
                match buffer(&rest) {
                    Some(index) => {
                        opcode::ReadFixed::new(fd, start, len, index).offset(offset).build()
                    }
                    None => opcode::Read::new(fd, start, len).offset(offset).build(),
                }
            }
            Action::Write { offset, memory, fua } => {
                let rest = memory.part(done, memory.len() - done);
                let (start, len, offset) = (rest.as_ptr(), rest.len() as u32, offset + done as u64);
                let flags = if *fua { libc::RWF_DSYNC } else { 0 };
                match buffer(&rest) {
                    Some(index) => opcode::WriteFixed::new(fd, start, len, index)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => {
                        opcode::Write::new(fd, start, len).offset(offset).rw_flags(flags).build()
                    }
                }
            }
            Action::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Action::Deallocate { offset, len } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Action::Zero { offset, len } => {
                // A hole in a file reads as zeros; a device without a zeroing discard writes them itself.
                let how = if self.is_block {
                    libc::FALLOC_FL_ZERO_RANGE
                } else {
                    libc::FALLOC_FL_PUNCH_HOLE
                };
                opcode::Fallocate::new(fd, *len)
                    .offset(*offset)
                    .mode(how | libc::FALLOC_FL_KEEP_SIZE)
                    .build()
            }
        }
    }

    fn submit_all(&mut self) {
        if self.unsubmitted {
            // Whatever it answers: what the kernel did not take is still there, and the next poll submits it again.
            let _ = self.ring.submit();
            self.unsubmitted = !self.ring.submission().is_empty();
        }
    }

    fn start_backlog(&mut self) {
        while let (Some(&slot), false) = (self.free.last(), self.backlog.is_empty()) {
            self.free.pop();
            let op = self.backlog.pop_front().expect("not empty");
            self.flights[slot] = Some(Flight { op, done_bytes: 0, retries: 0 });
            self.push(slot);
        }
    }

    /// Looks at one result: the operation's end, or a reason to go on with it.
    fn ended(&mut self, slot: usize, result: i32) -> Option<io::Result<()>> {
        let flight = self.flights[slot].as_mut().expect("a completion has its flight");
        if result == -libc::EINTR || result == -libc::EAGAIN {
            flight.retries += 1;
            if flight.retries <= RETRIES_MAX {
                return None;
            }
        }
        if result < 0 {
            let best_effort = matches!(flight.op.action, Action::Deallocate { .. })
                && result == -libc::EOPNOTSUPP;
            return Some(if best_effort {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(-result))
            });
        }
        let wanted = match &flight.op.action {
            Action::Read { memory, .. } | Action::Write { memory, .. } => memory.len(),
            Action::Flush | Action::Deallocate { .. } | Action::Zero { .. } => return Some(Ok(())),
        };
        flight.done_bytes += result as usize;
        if flight.done_bytes >= wanted {
            return Some(Ok(()));
        }
        // Nothing at all: the device ends before its size, it was truncated underneath.
        (result == 0).then(|| Err(io::Error::from_raw_os_error(libc::EIO)))
    }
}

impl Queue for UringQueue {
    fn submit(&mut self, op: Op) {
        let inside = |offset: u64, len: u64| {
            len > 0 && offset.checked_add(len).is_some_and(|end| end <= self.bytes)
        };
        let valid = match &op.action {
            Action::Read { offset, memory } | Action::Write { offset, memory, .. } => {
                inside(*offset, memory.len() as u64)
            }
            Action::Deallocate { offset, len } | Action::Zero { offset, len } => {
                inside(*offset, *len)
            }
            Action::Flush => true,
        };
        if !valid {
            let result = Err(io::Error::from_raw_os_error(libc::EINVAL));
            self.done.push(Completion { tag: op.tag, result });
            return;
        }
        self.backlog.push_back(op);
        self.start_backlog();
        // At once: many together would save calls, but the device would stand still until it hears of the first. On a
        // virtual disk at depth 32 that costs a third of the throughput.
        self.submit_all();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(SWEEP_POLLS) && self.fixed.has_dead() {
            self.fixed.release_dead(&self.ring.submitter());
        }
        self.submit_all();
        loop {
            let next = self.ring.completion().next();
            let Some(cqe) = next else { break };
            let slot = cqe.user_data() as usize;
            match self.ended(slot, cqe.result()) {
                None => self.push(slot),
                Some(result) => {
                    let flight = self.flights[slot].take().expect("seen by ended()");
                    self.free.push(slot);
                    done.push(Completion { tag: flight.op.tag, result });
                }
            }
        }
        self.start_backlog();
        self.submit_all();
    }

    fn wait_fd(&self) -> Option<RawFd> {
        (!self.unsubmitted && self.done.is_empty()).then(|| self.ring.as_raw_fd())
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len() + self.backlog.len() + self.done.len()
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        // The kernel may still read or write the flights' memory: wait for it, and if that fails leak them.
        self.backlog.clear();
        self.done.clear();
        while self.in_flight() > 0 {
            if self.ring.submit_and_wait(1).is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
            self.poll(&mut Vec::new());
        }
    }
}
