//! The queue of one core on one namespace: a pair of rings, polled; interrupts only while its thread sleeps.
//!
//! A command id is its place in `flights`; [`Link`] has the rings' memory. Interrupts are connected when the thread goes to sleep, and disconnected again
//! when polling has found much without sleep: both take a system call, and a busy queue needs neither.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hugepages::Buffer;

use super::controller::{Controller, DEAD, Seat, signal};
use super::link::Link;
use super::registers;
use crate::engine::operations::{Operations, Started};
use crate::engine::{Completion, Health, Memory, Op, Queue};
use crate::nvme::command::Command;
use crate::nvme::identify::Limits;
use crate::nvme::plan::{Kind, Step};
use crate::nvme::ring::{Completions, Cqe, SQE_BYTES, Submission};
use crate::nvme::status::Outcome;

/// The part of a completion queue that is taken at most before the device is told.
const UNTOLD_SHARE: u16 = 4;
/// Completions without a sleep, after which interrupts are disconnected.
const BUSY: u32 = 256;

/// A command with the device. It keeps what the device may touch.
struct Flight {
    started: Started,
    memory: Option<Memory>,
    bounce: Option<Buffer>,
}

/// See the module.
pub struct VfioQueue {
    controller: Arc<Controller>,
    seat: Arc<Seat>,
    nsid: u32,
    link: Option<Link>,
    epoch: u64,
    operations: Operations,
    flights: Vec<Option<Flight>>,
    free: Vec<u16>,
    submission: Submission,
    completions: Completions,
    troubled: bool,
    armed: Cell<bool>,
    slept: Cell<bool>,
    since_sleep: Cell<u32>,
    /// Completions that were taken and that the device was not told of.
    untold: Cell<u16>,
    /// Commands are in the ring and the device was not told.
    unrung: Cell<bool>,
}

impl VfioQueue {
    pub fn new(controller: Arc<Controller>, nsid: u32, limits: Limits) -> io::Result<VfioQueue> {
        let mut made = None;
        let arenas = controller.parts().as_ref().map(|p| Arc::clone(&p.arenas));
        let arenas = arenas.ok_or_else(registers::gone)?;
        let (seat, epoch) = controller.seat(|bus, _| {
            let rings = Link::rings(bus)?;
            let addresses = Link::addresses(&rings);
            made = Some((Arc::clone(bus), rings));
            Ok(addresses)
        })?;
        let (bus, rings) = made.expect("a seat has its place");
        let entries = seat.pair.entries;
        let doorbell = |is_cq| registers::doorbell(&controller.capabilities, seat.pair.id, is_cq);
        let link = Link::new(bus, arenas, rings, (doorbell(false), doorbell(true)));
        let slots = entries - 1;
        Ok(VfioQueue {
            operations: Operations::new(limits, controller.timeout.as_millis() as u64),
            controller,
            nsid,
            link: Some(link),
            epoch,
            flights: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            submission: Submission::new(entries),
            completions: Completions::new(entries),
            troubled: false,
            armed: Cell::new(false),
            slept: Cell::new(false),
            since_sleep: Cell::new(0),
            untold: Cell::new(0),
            unrung: Cell::new(false),
            seat,
        })
    }

    fn now_ms(&self) -> u64 {
        self.controller.now_ms.load(Ordering::Relaxed)
    }

    /// Whether the pair exists: it does not for a while after a reset.
    fn is_live(&self) -> bool {
        self.seat.created.load(Ordering::Acquire) == self.epoch
    }

    /// Looks whether there was a reset, or the end.
    fn follow(&mut self) {
        let epoch = self.controller.epoch.load(Ordering::Acquire);
        if epoch == self.epoch {
            return;
        }
        self.epoch = epoch;
        let now = self.now_ms();
        let outcome = if epoch == DEAD { Outcome::Failed(libc::EIO) } else { Outcome::Retry };
        for id in 0..self.flights.len() {
            if let Some(flight) = self.flights[id].take() {
                self.seat.sent_ms[id].store(0, Ordering::Release);
                self.free.push(id as u16);
                self.operations.end(flight.started, outcome, now);
            }
        }
        self.submission = Submission::new(self.seat.pair.entries);
        self.completions = Completions::new(self.seat.pair.entries);
        self.armed.set(false);
        self.untold.set(0);
        self.unrung.set(false);
        if epoch == DEAD {
            let (device, queue) = (&self.controller.name, self.seat.pair.id);
            let lost = self.operations.in_flight();
            tracing::info!(
                device,
                queue,
                lost,
                "the queue has no controller any more: EIO from now on"
            );
            self.operations.fail_waiting(libc::EIO);
            self.link = None;
            return;
        }
        if let Some(link) = &self.link {
            link.clear_completions(self.seat.pair.entries);
        }
        self.troubled = true;
        self.seat.wanted.store(epoch, Ordering::Release);
        signal(&self.controller.wake);
    }

    /// Sends commands while there are some and the rings have room.
    fn start(&mut self) {
        if self.link.is_none() {
            self.operations.fail_waiting(libc::EIO);
            return;
        }
        if !self.is_live() {
            return;
        }
        let now = self.now_ms();
        while let Some(&id) = self.free.last() {
            let Some(started) = self.operations.next(now) else { break };
            let Some(flight) = self.prepare(started, id) else { break };
            let Some(slot) = self.submission.take() else {
                // There are fewer ids than entries, so this cannot be, unless a device tells us nonsense.
                self.operations.put_back(flight.0.started);
                break;
            };
            let (flight, entry) = flight;
            self.free.pop();
            self.flights[usize::from(id)] = Some(flight);
            self.seat.sent_ms[usize::from(id)].store(now, Ordering::Release);
            self.link.as_ref().expect("seen above").put(slot, &entry);
            self.unrung.set(true);
        }
    }

    /// Tells the device of the commands that were put into the ring since it was told last.
    fn ring(&self) {
        if self.unrung.replace(false)
            && let Some(link) = &self.link
        {
            link.ring(&self.submission);
        }
    }

    /// The entry of a command, and what it keeps. `None` if it has to wait for a bounce buffer.
    fn prepare(&mut self, started: Started, id: u16) -> Option<(Flight, [u8; SQE_BYTES])> {
        let memory = self.operations.memory(&started);
        let link = self.link.as_mut().expect("start() has looked");
        let Some((data, bounce)) = link.data(&started.step, memory.as_ref(), id) else {
            self.operations.put_back(started);
            return None;
        };
        let entry = Command::of_step(&started.step, self.nsid).encode(id, data);
        Some((Flight { started, memory, bounce }, entry))
    }

    /// Takes what has completed.
    fn reap(&mut self) {
        let now = self.now_ms();
        let mut seen = 0;
        while let Some(cqe) = self.next_completion() {
            seen += 1;
            self.submission.fetched(cqe.sq_head);
            let id = usize::from(cqe.id);
            let Some(flight) = self.flights.get_mut(id).and_then(Option::take) else {
                tracing::warn!(device = self.controller.name, id, "a completion of no command");
                continue;
            };
            self.seat.sent_ms[id].store(0, Ordering::Release);
            self.free.push(cqe.id);
            let outcome = cqe.status.outcome();
            if outcome == Outcome::Done
                && flight.started.step.kind == Kind::Read
                && let (Some(memory), Some(bounce)) = (&flight.memory, &flight.bounce)
            {
                memory.write(0, bounce);
            }
            self.note(&flight.started.step, outcome, cqe);
            self.operations.end(flight.started, outcome, now);
        }
        if seen > 0 {
            self.since_sleep.set(self.since_sleep.get().saturating_add(seen));
            self.untold.set(self.untold.get() + seen as u16);
            let in_flight = self.flights.len() - self.free.len();
            let (untold, entries) = (self.untold.get(), self.seat.pair.entries);
            if untold >= entries / UNTOLD_SHARE
                || in_flight + usize::from(untold) + 1 >= entries.into()
            {
                self.tell();
            }
        }
    }

    /// Tells the device which completions were taken. It needs to know only when it runs out of entries, or to know what is
    /// new to us before a sleep; a write to its registers for each would be the dearest part of a small read.
    fn tell(&self) {
        if self.untold.replace(0) > 0
            && let Some(link) = &self.link
        {
            link.took(&self.completions);
        }
    }

    fn next_completion(&mut self) -> Option<Cqe> {
        self.link.as_ref()?.next_completion(&mut self.completions)
    }

    fn note(&mut self, step: &Step, outcome: Outcome, cqe: Cqe) {
        match outcome {
            Outcome::Done => {
                if std::mem::take(&mut self.troubled) {
                    self.controller.progress.store(true, Ordering::Release);
                    self.controller.recovered();
                }
            }
            Outcome::Retry => {
                self.troubled = true;
                let reason = format!("commands were not done: {}", cqe.status);
                self.controller.set_health(Health::Recovering(reason));
            }
            Outcome::Failed(_) => {
                self.controller.errors.fetch_add(1, Ordering::Relaxed);
                let (device, lba, kind) = (&self.controller.name, step.lba, step.kind);
                tracing::warn!(device, lba, ?kind, status = %cqe.status, "a command failed");
                self.troubled = false;
                self.controller.recovered();
            }
        }
    }

    fn has_completion(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has_completion(&self.completions))
    }

    /// Connects interrupts; `false` if there are none.
    fn arm(&self) -> bool {
        let (Some(link), Some(vector)) = (&self.link, self.seat.pair.vector) else { return false };
        if !self.armed.get() {
            match link.bus.connect(vector, Some(self.seat.event.as_raw_fd())) {
                Ok(()) => self.armed.set(true),
                Err(error) => tracing::debug!(%error, vector, "an interrupt cannot be connected"),
            }
        }
        self.armed.get()
    }

    fn disarm_if_busy(&self) {
        let (Some(link), Some(vector)) = (&self.link, self.seat.pair.vector) else { return };
        if self.armed.get()
            && self.since_sleep.get() >= BUSY
            && link.bus.connect(vector, None).is_ok()
        {
            self.armed.set(false);
        }
    }
}

impl Queue for VfioQueue {
    fn submit(&mut self, op: Op) {
        let now = self.now_ms();
        self.operations.submit(op, now);
        self.follow();
        self.start();
        // One goes at once; beside others it waits for the next look, which comes after all that are submitted now: a write to
        // a register for all of them.
        if self.flights.len() - self.free.len() == 1 {
            self.ring();
        }
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        self.follow();
        if self.slept.take() {
            // Empties the counter; that it is empty already is no error.
            let _ = rustix::io::read(&self.seat.event, &mut [0_u8; 8]);
        }
        if self.operations.in_flight() > 0 {
            self.reap();
            self.start();
            self.ring();
            self.disarm_if_busy();
        }
        self.operations.take_done(done);
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.ring();
        // While the pair is being made, the keeper wakes.
        if self.operations.has_done() || (self.operations.is_waiting() && self.is_live()) {
            return None;
        }
        self.tell();
        let has_sent = self.free.len() < self.flights.len();
        // The order matters: what completes after the look makes the eventfd readable.
        if has_sent && (!self.arm() || self.has_completion()) {
            return None;
        }
        self.slept.set(true);
        self.since_sleep.set(0);
        let is_new = self.controller.epoch.load(Ordering::Acquire) != self.epoch;
        (!is_new).then(|| self.seat.event.as_raw_fd())
    }

    fn in_flight(&self) -> usize {
        self.operations.in_flight()
    }
}

impl Drop for VfioQueue {
    fn drop(&mut self) {
        self.follow();
        let is_quiet = self.controller.leave(&self.seat);
        if !is_quiet {
            // The device may still use the rings and the flights' memory.
            if let Some(link) = &self.link {
                link.leak();
            }
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}
