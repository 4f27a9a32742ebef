//! The queue of one core: a ring of big entries.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugepages::Arena;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::{Shared, ioctl};
use crate::engine::fixed::{self, Fixed, Mode};
use crate::engine::operations::{Operations, Started};
use crate::engine::{Completion, Health, Memory, Op, Queue};
use crate::nvme::command::{Command, dataset_range};
use crate::nvme::plan::{Kind, Step};
use crate::nvme::status::{Outcome, Status};

/// Commands with the kernel at once; further ones wait.
const DEPTH: u32 = 256;
/// Entries of the ring. More than commands, so that an entry is seldom still held when its turn comes again.
const ENTRIES: u32 = 1024;
/// Polls between two looks for arenas that are gone.
const SWEEP_POLLS: u32 = 1 << 14;

/// What the kernel says when it has cancelled a command, for a reset most likely, or has no memory or tags for it now. The
/// memory of a command is always there: EFAULT is seen for some that meet a reset, and passes.
const TRANSIENT: [i32; 5] = [libc::EINTR, libc::EAGAIN, libc::ENOMEM, libc::EBUSY, libc::EFAULT];

type Ring = IoUring<squeue::Entry128, cqueue::Entry32>;

/// A command with the kernel. It keeps what its data pointer names.
struct Flight {
    started: Started,
    memory: Option<Memory>,
    /// The range of a deallocation.
    range: Box<[u8; 16]>,
    is_fixed: bool,
    /// Its entry. Some kernels read it again when they could not issue the command at once, so it is not written until the
    /// command has ended.
    position: usize,
}

/// See the module.
pub struct PassthruQueue {
    ring: Ring,
    shared: Arc<Shared>,
    operations: Operations,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    // By position in the ring: whether a command in flight has the entry. `tail` is the next position.
    held: Vec<bool>,
    tail: usize,
    fixed: Fixed,
    // Slots and results, between the ring and their operations.
    batch: Vec<(usize, i32)>,
    unsubmitted: bool,
    troubled: bool,
    polls: u32,
}

fn make(polled: bool, depth: u32) -> io::Result<Ring> {
    let mut builder = Ring::builder();
    if polled {
        builder.setup_iopoll();
    }
    builder.dontfork().build(depth)
}

impl PassthruQueue {
    pub fn new(shared: Arc<Shared>) -> io::Result<PassthruQueue> {
        let ring = make(shared.polled, ENTRIES)?;
        ring.submitter().register_files(&[shared.claim.file.as_raw_fd()])?;
        Ok(PassthruQueue {
            fixed: Fixed::new(&ring.submitter(), shared.fixed),
            ring,
            operations: Operations::new(shared.limits, shared.timeout.as_millis() as u64),
            shared,
            flights: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH as usize).rev().collect(),
            held: vec![false; ENTRIES as usize],
            tail: 0,
            batch: Vec::with_capacity(DEPTH as usize),
            unsubmitted: false,
            troubled: false,
            polls: 0,
        })
    }

    fn now_ms(&self) -> u64 {
        crate::engine::coarse_ms()
    }

    /// Sends commands while there are some and the ring has room.
    fn start(&mut self) {
        if self.free.is_empty() || self.held[self.tail] {
            return;
        }
        let now = self.now_ms();
        while let (Some(&slot), false) = (self.free.last(), self.held[self.tail]) {
            let Some(started) = self.operations.next(now) else { return };
            self.free.pop();
            let memory = match started.step.kind {
                Kind::WriteOfZeros => Some(self.shared.zeros.part(0, started.step.len as usize)),
                _ => self.operations.memory(&started),
            };
            let range = Box::new(dataset_range(started.step.lba, started.step.blocks));
            let position = self.tail;
            self.flights[slot] = Some(Flight { started, memory, range, is_fixed: false, position });
            self.push(slot);
        }
    }

    fn push(&mut self, slot: usize) {
        let flight = self.flights[slot].as_mut().expect("a pushed slot is taken");
        let (address, len) = match &flight.memory {
            Some(memory) => (memory.as_ptr() as u64, memory.len() as u32),
            None if flight.started.step.kind == Kind::Deallocate => {
                (flight.range.as_ptr() as u64, flight.range.len() as u32)
            }
            None => (0, 0),
        };
        let arena = flight.memory.as_ref().and_then(Memory::arena);
        let index = arena.and_then(|(arena, offset)| {
            self.fixed.index(&self.ring.submitter(), arena, offset, len as usize)
        });
        flight.is_fixed = index.is_some();
        let command = Command::of_step(&flight.started.step, self.shared.claim.nsid);
        // The kernel begins to abort at half of the time, so that there is some left to try again.
        let timeout_ms = (self.shared.timeout.as_millis() / 2) as u32;
        let entry = entry(&command, address, len, timeout_ms, index).user_data(slot as u64);
        self.unsubmitted = true;
        loop {
            // SAFETY: memory and range of the entry belong to the flight in `slot`, which is kept until its completion is
            // collected; the file is registered for the life of the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.held[self.tail] = true;
                self.tail = (self.tail + 1) % self.held.len();
                return;
            }
            // Cannot stay full: the ring has more entries than there are slots, and submitting empties it.
            let _ = self.ring.submit();
        }
    }

    fn submit_ring(&mut self) {
        // EBUSY, EAGAIN and EINTR leave the entries in the ring; the next poll submits them again.
        if self.unsubmitted || self.shared.polled {
            self.unsubmitted = self.ring.submit().is_err() && !self.ring.submission().is_empty();
        }
    }

    fn ended(&mut self, slot: usize, result: i32, is_live: bool) {
        let flight = self.flights[slot].take().expect("a completion has its flight");
        self.free.push(slot);
        self.held[flight.position] = false;
        let now = self.now_ms();
        if result == -libc::EINVAL
            && flight.is_fixed
            && let Some((arena, _)) = flight.memory.as_ref().and_then(Memory::arena)
        {
            // The kernel takes fixed buffers, but not this: once more without.
            self.fixed.refuse(arena);
            self.operations.end(flight.started, Outcome::Retry, now);
            return;
        }
        let outcome = self.outcome(&flight.started.step, result, is_live);
        self.operations.end(flight.started, outcome, now);
    }

    fn outcome(&mut self, step: &Step, result: i32, is_live: bool) -> Outcome {
        let outcome = match result {
            0 if !is_live => Outcome::Retry,
            0.. => Status(result as u16).outcome(),
            errno if TRANSIENT.contains(&-errno) => Outcome::Retry,
            errno if [-libc::ENODEV, -libc::ENXIO].contains(&errno) => {
                self.shared.trouble(Health::Failed("the kernel has removed it".to_owned()));
                Outcome::Failed(libc::EIO)
            }
            errno => Outcome::Failed(-errno),
        };
        match outcome {
            Outcome::Done => {
                if self.troubled {
                    self.troubled = false;
                    self.shared.recovered();
                }
            }
            Outcome::Retry => {
                self.troubled = true;
                let reason = format!("commands were not done: {}", says(result));
                self.shared.trouble(Health::Recovering(reason));
            }
            Outcome::Failed(_) => {
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                let (path, lba, kind) = (&self.shared.path, step.lba, step.kind);
                let says = says(result);
                tracing::warn!(path, lba, ?kind, says, "a command failed");
                self.troubled = false;
                self.shared.recovered();
            }
        }
        outcome
    }

    /// Whether nothing goes on without a call of `poll`.
    fn must_poll(&self) -> bool {
        self.unsubmitted || self.operations.has_done() || self.operations.is_waiting()
    }
}

fn entry(
    command: &Command,
    address: u64,
    len: u32,
    timeout_ms: u32,
    index: Option<u16>,
) -> squeue::Entry128 {
    opcode::UringCmd80::new(types::Fixed(0), ioctl::URING_IO)
        .cmd(ioctl::encode(command, address, len, timeout_ms))
        .buf_index(index)
        .build()
}

/// The end of a command in words: the device's status, or the kernel's error.
fn says(result: i32) -> String {
    match u16::try_from(result) {
        Ok(status) => Status(status).to_string(),
        Err(_) => io::Error::from_raw_os_error(-result).to_string(),
    }
}

impl Queue for PassthruQueue {
    fn submit(&mut self, op: Op) {
        let now = self.now_ms();
        self.operations.submit(op, now);
        self.start();
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(SWEEP_POLLS) && self.fixed.has_dead() {
            self.fixed.release_dead(&self.ring.submitter());
        }
        if self.operations.in_flight() == 0 {
            return;
        }
        self.submit_ring();
        let mut batch = std::mem::take(&mut self.batch);
        batch.extend(self.ring.completion().map(|cqe| (cqe.user_data() as usize, cqe.result())));
        // Asked after the completions are there: what came before cannot be a dropped command then.
        let is_live = batch.is_empty() || self.shared.is_live();
        for (slot, result) in batch.drain(..) {
            self.ended(slot, result, is_live);
        }
        self.batch = batch;
        self.start();
        if self.unsubmitted {
            self.submit_ring();
        }
        self.operations.take_done(done);
    }

    fn wait_fd(&self) -> Option<RawFd> {
        (!self.shared.polled && !self.must_poll()).then(|| self.ring.as_raw_fd())
    }

    fn in_flight(&self) -> usize {
        self.operations.in_flight()
    }
}

impl Drop for PassthruQueue {
    fn drop(&mut self) {
        // The kernel may still use the flights' memory: wait for it, and if that fails leak them.
        while self.free.len() < self.flights.len() {
            if self.ring.submit_and_wait(1).is_err_and(|e| e.kind() != io::ErrorKind::Interrupted) {
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
            while let Some(cqe) = { self.ring.completion().next() } {
                let slot = cqe.user_data() as usize;
                self.flights[slot] = None;
                self.free.push(slot);
            }
        }
    }
}

/// Finds out which fixed buffers the kernel takes, by reading the first block.
pub fn probe(shared: &Shared) -> Mode {
    fixed::probe(
        || make(false, 8),
        |ring, arena, index| {
            ring.submitter().register_files(&[shared.claim.file.as_raw_fd()])?;
            read_block(shared, ring, arena, index)
        },
    )
}

fn read_block(shared: &Shared, ring: &mut Ring, arena: &Arc<Arena>, index: u16) -> io::Result<()> {
    let blocks = 4096 >> shared.limits.lba_shift;
    let step = Step { kind: Kind::Read, lba: 0, blocks, at: 0, len: 4096 };
    let command = Command::of_step(&step, shared.claim.nsid);
    let timeout_ms = shared.timeout.as_millis() as u32;
    let entry = entry(&command, arena.start().as_ptr() as u64, 4096, timeout_ms, Some(index));
    // SAFETY: the arena is borrowed from the caller for longer than the wait for the only completion below.
    unsafe { ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Submitted or not: the kernel may write to the arena for as long as the ring lives.
                std::mem::forget(Arc::clone(arena));
                return Err(error);
            }
            Ok(_) => break,
        }
    }
    match ring.completion().next().map(|cqe| cqe.result()) {
        Some(0) => Ok(()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
