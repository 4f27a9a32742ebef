//! The commands of one queue, each with a slot from its capsule to its response, and the buffers that they need.
//!
//! ```text
//! add ─► acquire ─┬─ all buffers there ───────────────► fetched (R2T ─► H2CData …) or executed ─► remove
//!                 └─ waits in line ─► next_ready ─►┘
//! ```
//! Numbers and memory only: what is sent for a command, and when it is executed, the connection decides. There are as many
//! slots as the queue has entries.

use std::collections::VecDeque;
use std::sync::Arc;

use super::buffers::Buffers;
use super::capsule::Sqe;
use super::pdu::{DataHeader, Fatal};
use super::registry::Namespace;
use super::status::Status;
use crate::engine::Memory;

/// Longest data of one H2CData PDU, and what one R2T asks for.
pub const TRANSFER_BYTES_MAX: u32 = 256 << 10;

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Data of its capsule is coming.
    Capsule,
    /// No buffer is free.
    Waiting,
    /// Data is fetched from the host.
    Fetching,
    /// Requests are with the volume; which ones depends on the command.
    First,
    Second,
    /// An event request that waits for its event.
    Event,
    /// An Abort that the queue of its command answers.
    Abort,
}

/// A command from its capsule to its response.
#[derive(Debug)]
pub struct Command {
    pub sqe: Sqe,
    pub stage: Stage,
    /// Bytes to or from the host.
    pub len: usize,
    pub memory: Option<Memory>,
    /// A second buffer, of commands that compare or copy.
    pub second: Option<Memory>,
    /// Bytes that both have to have.
    pub need: [usize; 2],
    pub fetch: bool,
    asked: u32,
    received: u32,
    pub status: Status,
    pub outstanding: u32,
    /// Of a deallocation: the range that it is at, and how many blocks of it are done.
    pub progress: (usize, u64),
    pub namespace: Option<Arc<Namespace>>,
}

/// What data from the host has made of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The host is still sending what it was asked for.
    Coming,
    /// More may be asked for.
    Part,
    Whole,
    /// All that was asked for is there, and it was in vain.
    Failed(Status),
}

impl Command {
    fn new(sqe: Sqe, memory: Option<Memory>) -> Command {
        Command {
            sqe,
            stage: Stage::Capsule,
            len: 0,
            memory,
            second: None,
            need: [0, 0],
            fetch: false,
            asked: 0,
            received: 0,
            status: Status::SUCCESS,
            outstanding: 0,
            progress: (0, 0),
            namespace: None,
        }
    }

    /// Offset and length of the next R2T; `None` while `r2t_max` are under way, or when all is asked for.
    pub fn ask(&mut self, r2t_max: u32) -> Option<(u32, u32)> {
        let under_way =
            self.asked.div_ceil(TRANSFER_BYTES_MAX) - self.received / TRANSFER_BYTES_MAX;
        let (offset, total) = (self.asked, self.len as u32);
        if offset == total || under_way >= r2t_max {
            return None;
        }
        let len = (total - offset).min(TRANSFER_BYTES_MAX);
        self.asked += len;
        Some((offset, len))
    }

    /// Whether data may come as its header says, and the memory that it goes to.
    fn expects(&self, header: &DataHeader) -> Result<Memory, Fatal> {
        if self.sqe.id() != header.command {
            return Err(Fatal::HeaderField(8));
        }
        if header.offset != self.received {
            return Err(Fatal::DataRange(12));
        }
        // What one R2T asked for ends at a multiple of the longest transfer, or with the data.
        let end = (self.received / TRANSFER_BYTES_MAX + 1) * TRANSFER_BYTES_MAX;
        if header.len > end.min(self.asked) - self.received {
            return Err(Fatal::DataRange(16));
        }
        Ok(self.memory.clone().expect("acquired before the first R2T"))
    }

    /// Data has come; `sound` if its digest was right.
    pub fn received(&mut self, len: u32, sound: bool) -> Fetched {
        self.received += len;
        if !sound {
            self.status = Status::TRANSIENT;
        }
        match (self.status, self.received) {
            (Status::SUCCESS, n) if n as usize == self.len => Fetched::Whole,
            (Status::SUCCESS, _) => Fetched::Part,
            // The host sends what it was asked for; more is not asked for.
            (_, n) if n < self.asked => Fetched::Coming,
            (failed, _) => Fetched::Failed(failed),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Commands {
    slots: Vec<Option<Command>>,
    free: Vec<usize>,
    /// Those without buffers, in the order of their coming.
    waiting: VecDeque<usize>,
    pub buffers: Buffers,
}

impl Commands {
    pub fn new(buffers: Buffers) -> Commands {
        Commands { slots: Vec::new(), free: Vec::new(), waiting: VecDeque::new(), buffers }
    }

    /// Commands that have a slot.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A slot for a command, with a buffer for the data of its capsule. The caller bounds their number.
    pub fn add(&mut self, sqe: Sqe, in_capsule: usize) -> usize {
        let memory = (in_capsule > 0).then(|| self.buffers.take_reserved(in_capsule));
        let command = Command::new(sqe, memory);
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(command);
                slot
            }
            None => {
                self.slots.push(Some(command));
                self.slots.len() - 1
            }
        }
    }

    pub fn get(&mut self, slot: usize) -> &mut Command {
        self.slots[slot].as_mut().expect("a slot in use")
    }

    /// The slot of a command.
    pub fn find(&self, id: u16) -> Option<usize> {
        self.slots.iter().position(|c| c.as_ref().is_some_and(|c| c.sqe.id() == id))
    }

    /// The slot that data of that header is for, whose tag is one, and the memory that it goes to.
    pub fn destination(&self, header: &DataHeader) -> Result<(usize, Memory), Fatal> {
        let slot = usize::from(header.tag);
        let command = self.slots.get(slot).and_then(Option::as_ref);
        let command = command.filter(|c| c.stage == Stage::Fetching);
        let command = command.ok_or(Fatal::HeaderField(10))?;
        Ok((slot, command.expects(header)?))
    }

    /// Gets a command its buffers; `false` if it has to wait in line for them.
    pub fn acquire(&mut self, slot: usize) -> bool {
        let needs = self.get(slot).need != [0, 0];
        if needs && !self.waiting.is_empty() || !self.take(slot) {
            self.get(slot).stage = Stage::Waiting;
            self.waiting.push_back(slot);
            return false;
        }
        true
    }

    /// Takes what the command needs and does not have: all of it or nothing.
    fn take(&mut self, slot: usize) -> bool {
        let command = self.slots[slot].as_mut().expect("a slot in use");
        let [first, second] = command.need;
        let took_first = first > 0 && command.memory.is_none();
        if took_first {
            command.memory = self.buffers.take(first);
            if command.memory.is_none() {
                return false;
            }
        }
        if second > 0 && command.second.is_none() {
            command.second = self.buffers.take(second);
            if command.second.is_none() {
                if took_first && let Some(memory) = command.memory.take() {
                    self.buffers.give(memory);
                }
                return false;
            }
        }
        true
    }

    /// The command that has waited longest, if there are buffers for it now.
    pub fn next_ready(&mut self) -> Option<usize> {
        let slot = *self.waiting.front()?;
        if !self.take(slot) {
            return None;
        }
        self.waiting.pop_front()
    }

    /// The command does not wait any more.
    pub fn forget_waiting(&mut self, slot: usize) {
        self.waiting.retain(|waiting| *waiting != slot);
    }

    /// Frees the slot and what buffers the command still has.
    pub fn remove(&mut self, slot: usize) -> Sqe {
        let command = self.slots[slot].take().expect("a slot in use");
        assert_eq!(command.outstanding, 0, "no request of a finished command is under way");
        self.free.push(slot);
        for memory in [command.memory, command.second].into_iter().flatten() {
            self.buffers.give(memory);
        }
        command.sqe
    }
}
