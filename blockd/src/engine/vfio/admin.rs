//! The admin queue: one command at a time, by whoever holds the lock.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bus::Bus;
use super::memory::{Shown, publish};
use super::registers::{self, Capabilities};
use crate::nvme::command::{Command, Data};
use crate::nvme::ring::{CQE_BYTES, Completions, Cqe, SQE_BYTES, Submission};
use crate::nvme::{identify, opcode};

/// Entries of both admin queues.
const ENTRIES: u16 = 32;
const SQ_AT: usize = 0;
const CQ_AT: usize = 4096;
const DATA_AT: usize = 8192;
/// A controller that has not answered by then is reset.
const TIME: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Admin {
    memory: Shown,
    submission: Submission,
    completions: Completions,
    capabilities: Capabilities,
    next_id: u16,
    /// A command has not ended in its time: the device may still write its page. Until it is stopped, no other has it.
    is_lost: bool,
}

impl Admin {
    pub fn new(bus: &Arc<dyn Bus>, capabilities: Capabilities) -> io::Result<Admin> {
        Ok(Admin {
            memory: Shown::new(bus, hugepages::HUGE_PAGE_BYTES)?,
            submission: Submission::new(ENTRIES),
            completions: Completions::new(ENTRIES),
            capabilities,
            next_id: 0,
            is_lost: false,
        })
    }

    /// Whether the controller has to be reset before it is asked anything more.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Starts the controller, which is stopped, with this queue.
    pub fn start(&mut self, bus: &dyn Bus) -> io::Result<()> {
        self.memory.zero(0, DATA_AT);
        self.submission = Submission::new(ENTRIES);
        self.completions = Completions::new(ENTRIES);
        self.is_lost = false;
        publish();
        let (sq, cq) = (self.memory.iova(SQ_AT), self.memory.iova(CQ_AT));
        registers::enable(bus, &self.capabilities, ENTRIES, sq, cq)
    }

    /// Runs a command without data and gives its dword 0.
    ///
    /// # Errors
    /// `TimedOut` or `ENODEV`: the controller has to be reset, or is gone. Others: it refused the command.
    pub fn run(&mut self, bus: &dyn Bus, command: &Command) -> io::Result<u32> {
        self.execute(bus, command, Data::default(), TIME)
    }

    /// Runs a command without data that may take as long as that.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn run_within(
        &mut self,
        bus: &dyn Bus,
        command: &Command,
        within: Duration,
    ) -> io::Result<u32> {
        self.execute(bus, command, Data::default(), within)
    }

    /// Runs a command that fills a page.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn fetch(&mut self, bus: &dyn Bus, command: &Command) -> io::Result<[u8; identify::BYTES]> {
        if self.is_lost {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.memory.zero(DATA_AT, identify::BYTES);
        let data = Data { prp1: self.memory.iova(DATA_AT), prp2: 0 };
        self.execute(bus, command, data, TIME)?;
        Ok(self.memory.read(DATA_AT))
    }

    fn execute(
        &mut self,
        bus: &dyn Bus,
        command: &Command,
        data: Data,
        within: Duration,
    ) -> io::Result<u32> {
        if self.is_lost {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let slot = self.submission.take().ok_or(io::ErrorKind::TimedOut)?;
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        self.memory.write(SQ_AT + usize::from(slot) * SQE_BYTES, &command.encode(id, data));
        publish();
        bus.write32(
            registers::doorbell(&self.capabilities, 0, false),
            self.submission.tail().into(),
        );
        let end = Instant::now() + within;
        let mut polls = 0_u32;
        loop {
            let late = Instant::now() >= end;
            while let Some(cqe) = self.completion(bus) {
                // That of an earlier command, which nobody waits for any more, is passed over.
                if cqe.id == id {
                    return if cqe.status.is_success() {
                        Ok(cqe.result)
                    } else {
                        Err(io::Error::other(format!(
                            "command {:#04x}: {}",
                            command.opcode, cqe.status
                        )))
                    };
                }
            }
            if registers::state(bus) == registers::State::Gone {
                return Err(registers::gone());
            }
            if late {
                self.is_lost = true;
                return Err(io::ErrorKind::TimedOut.into());
            }
            polls += 1;
            if polls > 100 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn completion(&mut self, bus: &dyn Bus) -> Option<Cqe> {
        let at = CQ_AT + usize::from(self.completions.head()) * CQE_BYTES;
        if !self.completions.is_new(self.memory.poll_u16(at + 14)) {
            return None;
        }
        let cqe = Cqe::parse(&self.memory.read(at));
        self.completions.advance();
        self.submission.fetched(cqe.sq_head);
        bus.write32(
            registers::doorbell(&self.capabilities, 0, true),
            self.completions.head().into(),
        );
        Some(cqe)
    }

    /// Asks for I/O queues and says how many there are.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn queues(&mut self, bus: &dyn Bus, wanted: u16) -> io::Result<u16> {
        let granted = self.run(bus, &Command::queues(wanted))?;
        let (submission, completion) = (granted as u16, (granted >> 16) as u16);
        Ok(submission.min(completion).saturating_add(1).min(wanted))
    }

    /// Makes a pair of queues.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn create_pair(&mut self, bus: &dyn Bus, pair: &Pair) -> io::Result<()> {
        let cq = Data { prp1: pair.cq, prp2: 0 };
        self.execute(bus, &Command::create_cq(pair.id, pair.entries, pair.vector), cq, TIME)?;
        let sq = Data { prp1: pair.sq, prp2: 0 };
        self.execute(bus, &Command::create_sq(pair.id, pair.entries), sq, TIME)?;
        Ok(())
    }

    /// Removes a pair of queues: afterwards none of its commands transfers anything.
    ///
    /// # Errors
    /// As [`Admin::run`].
    pub fn delete_pair(&mut self, bus: &dyn Bus, id: u16) -> io::Result<()> {
        self.run(bus, &Command::delete_queue(opcode::admin::DELETE_SQ, id))?;
        self.run(bus, &Command::delete_queue(opcode::admin::DELETE_CQ, id))?;
        Ok(())
    }
}

/// A submission and a completion queue of the same number, at the device's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub id: u16,
    pub entries: u16,
    pub sq: u64,
    pub cq: u64,
    pub vector: Option<u16>,
}
