//! The queue of one core on one namespace: a pair of rings, polled; interrupts only while its thread sleeps.
//!
//! ```text
//! arena of 4 MiB   0 submission ring · 16 KiB completion ring · 64 KiB zeros · 256 KiB a PRP list for each command id
//!                  2 MiB and on: bounce buffers, for memory that is not in an arena
//! ```
//!
//! A command id is its place in `flights`. Interrupts are connected when the thread goes to sleep, and disconnected again
//! when polling has found much without sleep: both take a system call, and a busy queue needs neither.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use hugepages::{Arena, BUFFER_BYTES_MAX, Buffer, Pool};

use super::bus::Bus;
use super::controller::{Controller, DEAD, Seat, signal};
use super::memory::{Arenas, Shown, publish};
use super::registers;
use crate::engine::operations::{Operations, Started};
use crate::engine::{Completion, Health, Memory, Op, Queue};
use crate::nvme::PAGE_BYTES;
use crate::nvme::command::{Command, Data, dataset_range};
use crate::nvme::identify::{Limits, ZEROS_BYTES};
use crate::nvme::plan::{Kind, Step};
use crate::nvme::prp;
use crate::nvme::ring::{CQE_BYTES, Completions, Cqe, SQE_BYTES, Submission};
use crate::nvme::status::Outcome;

const SQ_AT: usize = 0;
const CQ_AT: usize = 16 << 10;
const ZEROS_AT: usize = 64 << 10;
const LISTS_AT: usize = 256 << 10;
const BOUNCE_AT: usize = 2 << 20;
const ARENA_BYTES: usize = 4 << 20;
/// The part of a completion queue that is taken at most before the device is told.
const UNTOLD_SHARE: u16 = 4;
/// Completions without a sleep, after which interrupts are disconnected.
const BUSY: u32 = 256;

const _: () = assert!(ZEROS_AT + ZEROS_BYTES as usize <= LISTS_AT);
const _: () = assert!(LISTS_AT + 256 * PAGE_BYTES as usize <= BOUNCE_AT);

/// A command with the device. It keeps what the device may touch.
struct Flight {
    started: Started,
    memory: Option<Memory>,
    bounce: Option<Buffer>,
}

/// What the queue holds of the device; let go when the device is dead, so that it can be given back.
struct Link {
    bus: Arc<dyn Bus>,
    arenas: Arc<Arenas>,
    rings: Shown,
    bounce: Arc<Pool>,
    sq_doorbell: usize,
    cq_doorbell: usize,
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
    known: Vec<(Weak<Arena>, u64)>,
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
            let rings = Shown::new(bus, ARENA_BYTES)?;
            let addresses = (rings.iova(SQ_AT), rings.iova(CQ_AT));
            made = Some((Arc::clone(bus), rings));
            Ok(addresses)
        })?;
        let (bus, rings) = made.expect("a seat has its place");
        let entries = seat.pair.entries;
        let doorbell = |is_cq| registers::doorbell(&controller.capabilities, seat.pair.id, is_cq);
        let link = Link {
            bus,
            arenas,
            bounce: Pool::new(Arc::clone(rings.arena()), BOUNCE_AT, || {}),
            rings,
            sq_doorbell: doorbell(false),
            cq_doorbell: doorbell(true),
        };
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
            known: Vec::new(),
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
            self.known.clear();
            self.link = None;
            return;
        }
        if let Some(link) = &self.link {
            link.rings.zero(CQ_AT, usize::from(self.seat.pair.entries) * CQE_BYTES);
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
            let link = self.link.as_ref().expect("seen above");
            link.rings.write(SQ_AT + usize::from(slot) * SQE_BYTES, &entry);
            self.unrung.set(true);
        }
    }

    /// Tells the device of the commands that were put into the ring since it was told last.
    fn ring(&self) {
        if self.unrung.replace(false)
            && let Some(link) = &self.link
        {
            publish();
            link.bus.write32(link.sq_doorbell, self.submission.tail().into());
        }
    }

    /// The entry of a command, and what it keeps. `None` if it has to wait for a bounce buffer.
    fn prepare(&mut self, started: Started, id: u16) -> Option<(Flight, [u8; SQE_BYTES])> {
        let step = started.step;
        let memory = self.operations.memory(&started);
        let arena_iova = memory.as_ref().and_then(|m| self.arena_iova(m));
        let link = self.link.as_ref().expect("start() has looked");
        let list_at = LISTS_AT + usize::from(id) * PAGE_BYTES as usize;
        let list = link.rings.iova(list_at);
        let entry = |index: usize, address| link.rings.write_u64(list_at + index * 8, address);
        let mut bounce = None;
        let data = match (step.kind, &memory) {
            (Kind::WriteOfZeros, _) => prp::build(link.rings.iova(ZEROS_AT), step.len, list, entry),
            (Kind::Deallocate, _) => {
                link.rings.write(list_at, &dataset_range(step.lba, step.blocks));
                Data { prp1: list, prp2: 0 }
            }
            (_, None) => Data::default(),
            (_, Some(memory)) => {
                let address = match arena_iova {
                    Some(address) => address,
                    None => {
                        assert!(memory.len() <= BUFFER_BYTES_MAX, "commands are cut shorter");
                        let Some(mut buffer) = link.bounce.take(memory.len()) else {
                            self.operations.put_back(started);
                            return None;
                        };
                        if matches!(step.kind, Kind::Write { .. }) {
                            memory.read(0, &mut buffer);
                        }
                        let offset = buffer.arena_offset().expect("a pool has an arena");
                        bounce = Some(buffer);
                        link.rings.iova(offset)
                    }
                };
                prp::build(address, step.len, list, entry)
            }
        };
        let entry = Command::of_step(&step, self.nsid).encode(id, data);
        Some((Flight { started, memory, bounce }, entry))
    }

    /// The device's address of memory in an arena, which the device is shown if it is new.
    fn arena_iova(&mut self, memory: &Memory) -> Option<u64> {
        let (arena, offset) = memory.arena()?;
        if !offset.is_multiple_of(4) {
            return None;
        }
        let known = self.known.iter().find(|(k, _)| std::ptr::eq(k.as_ptr(), Arc::as_ptr(arena)));
        let start = match known {
            Some((_, start)) => *start,
            None => {
                self.known.retain(|(k, _)| k.strong_count() > 0);
                match self.link.as_ref()?.arenas.iova(arena) {
                    Ok(start) => {
                        self.known.push((Arc::downgrade(arena), start));
                        start
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an arena cannot be shown to the device");
                        return None;
                    }
                }
            }
        };
        Some(start + offset as u64)
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
            link.bus.write32(link.cq_doorbell, self.completions.head().into());
        }
    }

    fn next_completion(&mut self) -> Option<Cqe> {
        let link = self.link.as_ref()?;
        let at = CQ_AT + usize::from(self.completions.head()) * CQE_BYTES;
        if !self.completions.is_new(link.rings.poll_u16(at + 14)) {
            return None;
        }
        let cqe = Cqe::parse(&link.rings.read(at));
        self.completions.advance();
        Some(cqe)
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
        self.link.as_ref().is_some_and(|link| {
            let at = CQ_AT + usize::from(self.completions.head()) * CQE_BYTES;
            self.completions.is_new(link.rings.poll_u16(at + 14))
        })
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
                link.rings.leak();
            }
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}
