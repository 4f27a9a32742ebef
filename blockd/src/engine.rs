//! Engines: how bytes reach a device.
//!
//! A [`Device`] is shared by all cores; each core opens its own [`Queue`] on it, submits operations and polls for
//! completions. An engine never lies about durability: a write with FUA, or a flush, is durable when its
//! completion arrives. Memory of an operation belongs to it from `submit` to its completion.

mod facts;
mod fault;
mod mem;
mod memory;
pub mod socket;
mod sysfs;
mod uring;

use std::io;
use std::os::fd::RawFd;

pub use facts::{DeviceFacts, Health, HealthCell};
pub use fault::{Fault, FaultSettings};
pub use mem::Mem;
pub use memory::Memory;
pub use uring::Uring;

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

    /// Becomes readable when a completion arrives; `None` if completions are there at the next poll.
    fn wait_fd(&self) -> Option<RawFd>;

    /// Operations submitted and not yet collected.
    fn in_flight(&self) -> usize;

    /// Tells the engine that operations will come from this memory, so that it may pin it once. A hint.
    fn register(&mut self, _memory: &Memory) {}
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
            health: Health::Ok,
        }
    }

    /// Opens a queue for one core.
    fn queue(&self) -> io::Result<Box<dyn Queue>>;

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
            Some(fd) => wait_readable(&[fd], None)?,
            None => std::thread::yield_now(),
        }
    }
}

/// Sleeps until one of the descriptors is readable or the time is over. A signal ends it early.
pub fn wait_readable(fds: &[RawFd], timeout_ms: Option<i32>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the pointer and the length describe `polled`, which outlives the call.
    let n = unsafe {
        libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms.unwrap_or(-1))
    };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
