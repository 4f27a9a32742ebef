//! Engines: how bytes reach a device.
//!
//! A [`Device`] is shared by all cores; each core opens its own [`Queue`] on it, submits operations and polls for
//! completions. An engine never lies about durability: a write with FUA, or a flush, is durable when its
//! completion arrives. Memory of an operation belongs to it from `submit` to its completion.

mod admin;
mod facts;
mod fault;
mod fixed;
mod mem;
mod memory;
mod operations;
mod passthru;
mod polled;
pub mod socket;
mod sysfs;
mod uring;
mod vfio;
mod watched;

use std::io;
use std::os::fd::RawFd;

pub use admin::{Admin, claim};
pub use facts::{ControllerFacts, DeviceFacts, Health, HealthCell};
pub use fault::{Fault, FaultSettings};
pub use mem::Mem;
pub use memory::Memory;
pub use passthru::Passthru;
pub use polled::Polled;
pub use uring::Uring;
pub use vfio::Vfio;
pub use watched::Watched;

/// Tries for the lock, 20 ms apart; then the device counts as in use.
const LOCK_TRIES: u32 = 500;

/// Who waits for an operation looks at its device at least this often, so that one that hangs is seen to.
pub const LOOK_MS: i32 = 1000;

/// Smallest unit of I/O of a device, in bytes; offsets and lengths are multiples of it.
pub const BLOCK_BYTES: u64 = 4096;

/// What to do. Offsets and lengths are bytes on the device.
#[derive(Debug)]
pub enum Action {
    /// Fills the memory.
    Read { offset: u64, memory: Memory },
    /// Writes the memory; durable on completion with `fua`.
    Write { offset: u64, memory: Memory, fua: bool },
    /// Makes all writes completed before it durable.
    Flush,
    /// The range is no longer needed. It reads as zeros or as it was.
    Deallocate { offset: u64, len: u64 },
    /// The range reads as zeros from now on.
    Zero { offset: u64, len: u64 },
}

/// An operation; `tag` comes back with its completion.
#[derive(Debug)]
pub struct Op {
    pub tag: u64,
    pub action: Action,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    pub tag: u64,
    pub result: io::Result<()>,
}

/// A submission and a completion queue of one device, used by one thread at a time.
pub trait Queue: Send {
    /// Takes the operation. What does not fit the hardware queue waits in memory, so the caller bounds its own depth.
    fn submit(&mut self, op: Op);

    /// Starts what was submitted and collects what ended, without blocking.
    fn poll(&mut self, done: &mut Vec<Completion>);

    /// Becomes readable when a completion arrives, or when the device has something else to say; `None` if the caller has
    /// to poll. Asked before every sleep; the queue is polled after it.
    fn wait_fd(&self) -> Option<RawFd>;

    /// Operations submitted and not yet collected.
    fn in_flight(&self) -> usize;
}

/// A device as all cores share it.
pub trait Device: Send + Sync {
    /// Name of the engine, for the operator.
    fn engine(&self) -> &'static str;

    /// Size in bytes, a multiple of [`BLOCK_BYTES`].
    fn bytes(&self) -> u64;

    /// What it is and how it is now, for the operator.
    fn facts(&self) -> DeviceFacts {
        DeviceFacts {
            engine: self.engine(),
            model: String::new(),
            serial: String::new(),
            firmware: String::new(),
            bytes: self.bytes(),
            lba_bytes: BLOCK_BYTES as u32,
            transfer_bytes_max: 0,
            volatile_cache: false,
            atomic_bytes: BLOCK_BYTES,
            controller: None,
            health: Health::Ok,
        }
    }

    /// Opens a queue for one core.
    fn queue(&self) -> io::Result<Box<dyn Queue>>;

    /// Resets the controller beneath; operations in flight are sent again. For engines that have one.
    ///
    /// # Errors
    /// `Unsupported` where there is none.
    fn reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The admin commands of the NVMe controller beneath, where the engine speaks to one itself.
    fn admin(&self) -> Option<&dyn Admin> {
        None
    }

    /// Called once, after the last operation: the device is told that it may lose power. Nothing is served afterwards.
    fn shut_down(&self) {}

    /// The fault controls, of the engine that has them.
    fn fault(&self) -> Option<&Fault> {
        None
    }
}

/// Runs one operation to its end, sleeping meanwhile. For metadata and tests; the queue must be otherwise idle.
pub fn run(queue: &mut dyn Queue, action: Action) -> io::Result<()> {
    assert_eq!(queue.in_flight(), 0, "run() shares its queue with nothing");
    queue.submit(Op { tag: 0, action });
    let mut done = Vec::with_capacity(1);
    loop {
        queue.poll(&mut done);
        if let Some(completion) = done.pop() {
            return completion.result;
        }
        match queue.wait_fd() {
            Some(fd) => {
                wait_readable(&[fd], Some(LOOK_MS))?;
            }
            None => std::thread::yield_now(),
        }
    }
}

/// Sleeps until one of the descriptors is readable or the time is over. A signal ends it early.
pub fn wait_readable(fds: &[RawFd], timeout_ms: Option<i32>) -> io::Result<()> {
    let mut polled = Polled::default();
    for fd in fds {
        polled.add(*fd);
    }
    polled.wait(timeout_ms)
}

/// Milliseconds of a clock that costs little to read wherever it comes from, and does not run while the machine is suspended.
/// It steps by some.
fn coarse_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The kernel takes rings down, and with them their registered files, some time after their process has ended: a
/// lock that a dead blockd holds goes away soon.
fn lock(file: &std::fs::File) -> io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    for _ in 0..LOCK_TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            other => return Ok(other?),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

#[cfg(test)]
mod tests;
