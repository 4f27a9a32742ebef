//! Operations of an NVMe queue from their submission to their end, whatever carries their commands.
//!
//! ```text
//! submit ─► backlog ─► next: one command ─► the engine's queue ─► end ─┬─► all commands ended: done
//!                        ▲                                            │
//!                        └──────────── again, after a while ◄─────────┘ reset, abort, not ready
//! ```
//!
//! An operation is cut into commands by `nvme::plan`. Its memory is kept until its last command has ended. A command whose
//! end means "retry" is sent again until the operation's deadline; then the operation fails. No clock: the engine brings
//! the time in milliseconds.

use std::collections::VecDeque;
use std::io;

use super::{Action, Completion, Memory, Op};
use crate::nvme::identify::Limits;
use crate::nvme::plan::{self, Step};
use crate::nvme::status::Outcome;

/// A command that is to be retried waits this long: a reset takes some hundred times as long.
const RETRY_MS: u64 = 20;

/// A command on its way; the engine keeps it until it gives it back to [`Operations::end`].
#[derive(Debug)]
pub struct Started {
    operation: usize,
    pub step: Step,
}

#[derive(Debug)]
struct Operation {
    op: Op,
    // Bytes of its range for which commands were made.
    planned: u64,
    // Commands that are with the engine or wait to be sent again.
    open: u32,
    errno: i32,
    deadline_ms: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Operations {
    limits: Limits,
    timeout_ms: u64,
    slots: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// Operations with commands that were not made yet, in order.
    backlog: VecDeque<usize>,
    again: VecDeque<(u64, Started)>,
    done: Vec<Completion>,
}

impl Operations {
    /// For a namespace with these limits; an operation that takes longer than `timeout_ms` is not retried any more.
    pub fn new(limits: Limits, timeout_ms: u64) -> Operations {
        Operations {
            limits,
            timeout_ms,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            again: VecDeque::new(),
            done: Vec::new(),
        }
    }

    /// Takes an operation; one outside of the device ends with EINVAL.
    pub fn submit(&mut self, op: Op, now_ms: u64) {
        let (offset, len) = match &op.action {
            Action::Read { offset, memory } | Action::Write { offset, memory, .. } => {
                (*offset, memory.len() as u64)
            }
            Action::Deallocate { offset, len } | Action::Zero { offset, len } => (*offset, *len),
            Action::Flush => (0, 1 << self.limits.lba_shift),
        };
        let block = 1 << self.limits.lba_shift;
        let whole = len > 0 && offset % block == 0 && len % block == 0;
        if !whole || offset.checked_add(len).is_none_or(|end| end > self.limits.bytes()) {
            self.done.push(ended(op.tag, libc::EINVAL));
            return;
        }
        if plan::step(&op.action, 0, &self.limits).is_none() {
            // Nothing that the device need be told.
            self.done.push(ended(op.tag, 0));
            return;
        }
        let deadline_ms = now_ms + self.timeout_ms;
        let operation = Operation { op, planned: 0, open: 0, errno: 0, deadline_ms };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(operation);
                slot
            }
            None => {
                self.slots.push(Some(operation));
                self.slots.len() - 1
            }
        };
        self.backlog.push_back(slot);
    }

    fn get(&mut self, slot: usize) -> &mut Operation {
        self.slots[slot].as_mut().expect("an operation is kept while a command of it is open")
    }

    /// The next command to send.
    pub fn next(&mut self, now_ms: u64) -> Option<Started> {
        if self.again.front().is_some_and(|(due, _)| *due <= now_ms) {
            return self.again.pop_front().map(|(_, started)| started);
        }
        while let Some(&slot) = self.backlog.front() {
            let limits = self.limits;
            let operation = self.get(slot);
            // After an error the rest of it is not begun.
            let step = (operation.errno == 0)
                .then(|| plan::step(&operation.op.action, operation.planned, &limits))
                .flatten();
            if let Some(step) = step {
                operation.planned = step.at + step.len;
                operation.open += 1;
                if plan::step(&operation.op.action, operation.planned, &limits).is_none() {
                    self.backlog.pop_front();
                }
                return Some(Started { operation: slot, step });
            }
            self.backlog.pop_front();
            self.settle(slot);
        }
        None
    }

    /// A command that could not be sent now: it is the next one again.
    pub fn put_back(&mut self, started: Started) {
        self.again.push_front((0, started));
    }

    /// The memory of a read or write command.
    pub fn memory(&self, started: &Started) -> Option<Memory> {
        let operation = self.slots[started.operation].as_ref()?;
        match &operation.op.action {
            Action::Read { memory, .. } | Action::Write { memory, .. } => {
                Some(memory.part(started.step.at as usize, started.step.len as usize))
            }
            Action::Flush | Action::Deallocate { .. } | Action::Zero { .. } => None,
        }
    }

    /// A command has ended. What it did with its memory is over.
    pub fn end(&mut self, started: Started, outcome: Outcome, now_ms: u64) {
        let slot = started.operation;
        let operation = self.get(slot);
        match outcome {
            Outcome::Retry if now_ms < operation.deadline_ms && operation.errno == 0 => {
                self.again.push_back((now_ms + RETRY_MS, started));
                return;
            }
            // The first error is the one to tell.
            Outcome::Retry | Outcome::Failed(_) if operation.errno != 0 => {}
            Outcome::Retry => operation.errno = libc::EIO,
            Outcome::Failed(errno) => operation.errno = errno,
            Outcome::Done => {}
        }
        operation.open -= 1;
        self.settle(slot);
    }

    /// Ends the operation if nothing of it is left.
    fn settle(&mut self, slot: usize) {
        let limits = self.limits;
        let operation = self.get(slot);
        if operation.open > 0 {
            return;
        }
        // Only one that failed can be in the backlog with nothing left to do: `next` will meet it there.
        let waits = match operation.errno {
            0 => plan::step(&operation.op.action, operation.planned, &limits).is_some(),
            _ => self.backlog.contains(&slot),
        };
        if waits {
            return;
        }
        let operation = self.slots[slot].take().expect("seen above");
        self.free.push(slot);
        self.done.push(ended(operation.op.tag, operation.errno));
    }

    /// The device is gone: all that is not with the engine fails.
    pub fn fail_waiting(&mut self, errno: i32) {
        for (_, started) in std::mem::take(&mut self.again) {
            self.end(started, Outcome::Failed(errno), u64::MAX);
        }
        for slot in std::mem::take(&mut self.backlog) {
            self.get(slot).errno = errno;
            self.settle(slot);
        }
    }

    /// Moves what has ended.
    pub fn take_done(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    /// Whether a command waits to be sent again, which no event announces.
    pub fn is_waiting(&self) -> bool {
        !self.again.is_empty()
    }

    /// Whether something can be collected without waiting.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Operations that were submitted and not yet collected.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.done.len()
    }
}

fn ended(tag: u64, errno: i32) -> Completion {
    let result = if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) };
    Completion { tag, result }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> Limits {
        Limits {
            lba_shift: 9,
            blocks: 4096,
            transfer_blocks_max: 16,
            zero_blocks_max: 64,
            deallocate_blocks_max: 0,
            volatile_cache: true,
        }
    }

    fn read(tag: u64, offset: u64, len: usize) -> Op {
        Op { tag, action: Action::Read { offset, memory: Memory::zeroed(len) } }
    }

    fn errno(completion: &Completion) -> i32 {
        completion.result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
    }

    #[test]
    fn outside_and_nothing_to_do() {
        let mut operations = Operations::new(limits(), 1000);
        operations.submit(read(1, 2 << 20, 4096), 0);
        operations.submit(read(2, 100, 512), 0);
        operations.submit(read(3, u64::MAX - 511, 512), 0);
        let action = Action::Deallocate { offset: 0, len: 4096 };
        operations.submit(Op { tag: 4, action }, 0);
        assert!(operations.next(0).is_none());
        let mut done = Vec::new();
        operations.take_done(&mut done);
        let ends: Vec<_> = done.iter().map(|c| (c.tag, errno(c))).collect();
        assert_eq!(ends, [(1, libc::EINVAL), (2, libc::EINVAL), (3, libc::EINVAL), (4, 0)]);
        assert_eq!(operations.in_flight(), 0);
    }

    #[test]
    fn retries_end_at_the_deadline() {
        let mut operations = Operations::new(limits(), 1000);
        operations.submit(read(1, 0, 4096), 0);
        let mut now = 0;
        let mut sent = 0;
        while let Some(started) = operations.next(now) {
            sent += 1;
            operations.end(started, Outcome::Retry, now);
            now += RETRY_MS;
        }
        assert!((1000..1000 + 2 * RETRY_MS).contains(&now) && sent > 10, "{now} {sent}");
        let mut done = Vec::new();
        operations.take_done(&mut done);
        assert_eq!(errno(&done[0]), libc::EIO);
    }

    #[test]
    fn an_error_stops_the_rest_of_its_operation() {
        let mut operations = Operations::new(limits(), 1000);
        operations.submit(read(1, 0, 16 * 8192), 0);
        let first = operations.next(0).unwrap();
        let second = operations.next(0).unwrap();
        operations.end(second, Outcome::Failed(libc::ENOSPC), 0);
        assert!(operations.next(0).is_none());
        let mut done = Vec::new();
        operations.take_done(&mut done);
        assert!(done.is_empty(), "its memory is still with the device");
        operations.end(first, Outcome::Done, 0);
        operations.take_done(&mut done);
        assert_eq!((done.len(), errno(&done[0])), (1, libc::ENOSPC));
        operations.submit(read(2, 0, 16 * 8192), 0);
        let one = operations.next(0).unwrap();
        operations.end(one, Outcome::Retry, 0);
        operations.fail_waiting(libc::EIO);
        operations.take_done(&mut done);
        assert_eq!((done.len(), errno(&done[1]), operations.in_flight()), (2, libc::EIO, 0));
    }

    proptest! {
        /// Every operation ends once, and only after all of its commands.
        #[test]
        fn all_end_once(choices in proptest::collection::vec((0_u8..5, any::<u8>()), 1..300)) {
            let mut operations = Operations::new(limits(), 1000);
            let mut sent: Vec<Started> = Vec::new();
            let (mut tag, mut now) = (0, 0);
            let mut done = Vec::new();
            for (what, n) in choices {
                now += u64::from(n);
                match what {
                    0 => {
                        let len = 512 * (1 + usize::from(n));
                        operations.submit(read(tag, 512 * u64::from(n), len), now);
                        tag += 1;
                    }
                    1 => sent.extend(operations.next(now)),
                    _ if sent.is_empty() => {}
                    _ => {
                        let started = sent.swap_remove(usize::from(n) % sent.len());
                        let outcome = match what {
                            2 => Outcome::Done,
                            3 => Outcome::Retry,
                            _ if n < 20 => Outcome::Failed(libc::EIO),
                            _ => Outcome::Done,
                        };
                        operations.end(started, outcome, now);
                    }
                }
            }
            loop {
                now += 1000;
                for started in sent.drain(..) {
                    operations.end(started, Outcome::Done, now);
                }
                match operations.next(now) {
                    Some(started) => sent.push(started),
                    None => break,
                }
            }
            operations.take_done(&mut done);
            let mut tags: Vec<u64> = done.iter().map(|c| c.tag).collect();
            tags.sort_unstable();
            prop_assert_eq!(tags, (0..tag).collect::<Vec<_>>());
            prop_assert_eq!(operations.in_flight(), 0);
        }
    }
}
