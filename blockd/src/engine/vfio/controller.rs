//! A controller: what its queues share, and how they learn of a reset.
//!
//! A reset stops the controller, so that nothing is transferred any more, and then counts the *epoch* up. A queue that
//! sees another epoch than its own takes back what it had sent, clears its rings, and asks the keeper to make it anew; it sends
//! nothing before that is done. So no queue is touched by two threads, and no lock is on the way of an I/O.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::admin::{Admin, Pair};
use super::bus::Bus;
use super::memory::Arenas;
use super::registers::{self, Capabilities};
use crate::engine::{Health, HealthCell};
use crate::nvme::command::Command;
use crate::nvme::identify::{self, Limits, SMART_BYTES, smart_warning};
use crate::nvme::opcode::LOG_SMART;

/// The epoch of a controller that is gone.
pub const DEAD: u64 = u64::MAX;
/// I/O queues that are asked for: one a core and namespace, and one for each pool's metadata.
const QUEUES_WANTED: u16 = 128;
/// Entries of an I/O queue.
const ENTRIES_MAX: u32 = 256;

/// What a queue and the keeper tell each other.
#[derive(Debug)]
pub struct Seat {
    pub pair: Pair,
    /// Wakes the queue's thread: interrupts, and the keeper.
    pub event: OwnedFd,
    /// The epoch for which the queue wants its pair.
    pub wanted: AtomicU64,
    /// The epoch for which it was made.
    pub created: AtomicU64,
    /// By command id: when it was sent, in the keeper's milliseconds; 0 for none.
    pub sent_ms: Box<[AtomicU64]>,
}

impl Seat {
    pub fn wake(&self) {
        signal(&self.event);
    }
}

/// Makes an eventfd readable. Fails only when it is so already.
pub fn signal(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

pub fn new_event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// The admin side; gone when the device is.
pub struct Parts {
    pub bus: Arc<dyn Bus>,
    pub admin: Admin,
    pub arenas: Arc<Arenas>,
}

/// See the module.
pub struct Controller {
    pub name: String,
    pub capabilities: Capabilities,
    pub identity: identify::Controller,
    pub timeout: Duration,
    pub queues_max: u16,
    pub entries: u16,
    pub epoch: AtomicU64,
    /// The keeper's clock: milliseconds since the start, at least 1.
    pub now_ms: AtomicU64,
    pub since: Instant,
    pub health: HealthCell,
    pub errors: AtomicU64,
    pub reset_wanted: AtomicBool,
    /// A command has succeeded since the last reset.
    pub progress: AtomicBool,
    pub stopping: AtomicBool,
    /// Wakes the keeper.
    pub wake: OwnedFd,
    pub seats: Mutex<Vec<Arc<Seat>>>,
    namespaces: Mutex<BTreeSet<u32>>,
    parts: Mutex<Option<Parts>>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Controller {
    /// Resets a controller, starts it, and asks what it is.
    pub fn start(name: String, bus: Arc<dyn Bus>, timeout: Duration) -> io::Result<Controller> {
        let capabilities = registers::capabilities(bus.as_ref())?;
        if registers::disable(bus.as_ref(), &capabilities).is_err() {
            bus.function_reset()?;
            registers::disable(bus.as_ref(), &capabilities)?;
        }
        let mut admin = Admin::new(&bus, capabilities)?;
        admin.start(bus.as_ref())?;
        let page = admin.fetch(bus.as_ref(), &Command::identify(1, 0, 0))?;
        let identity = identify::Controller::parse(&page);
        if identity.sq_entry & 0xf > 6 || identity.cq_entry & 0xf > 4 {
            return Err(io::Error::other("its queue entries are not of 64 and 16 bytes"));
        }
        let wanted = QUEUES_WANTED.min(registers::queue_max(bus.as_ref(), &capabilities)).max(1);
        let queues_max = admin.queues(bus.as_ref(), wanted)?;
        let arenas = Arc::new(Arenas::new(&bus));
        Ok(Controller {
            name,
            capabilities,
            identity,
            timeout,
            queues_max,
            entries: capabilities.entries_max.clamp(2, ENTRIES_MAX) as u16,
            epoch: AtomicU64::new(1),
            now_ms: AtomicU64::new(1),
            since: Instant::now(),
            health: HealthCell::default(),
            errors: AtomicU64::new(0),
            reset_wanted: AtomicBool::new(false),
            progress: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            wake: new_event()?,
            seats: Mutex::new(Vec::new()),
            namespaces: Mutex::new(BTreeSet::new()),
            parts: Mutex::new(Some(Parts { bus, admin, arenas })),
        })
    }

    pub fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn seats(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_dead(&self) -> bool {
        self.epoch.load(Ordering::Acquire) == DEAD
    }

    pub fn set_health(&self, health: Health) {
        self.health.set(&self.name, health);
    }

    /// What is left of trouble that has passed.
    pub fn recovered(&self) {
        let errors = self.errors.load(Ordering::Relaxed);
        self.set_health(if errors == 0 {
            Health::Ok
        } else {
            Health::Degraded(format!("{errors} commands failed since blockd was started"))
        });
    }

    /// The controller's state, asking it if that is possible now.
    pub fn ask_health(&self) -> Health {
        let known = self.health.get();
        if known != Health::Ok {
            return known;
        }
        let Ok(mut parts) = self.parts.try_lock() else {
            // The keeper has it; if that is for a reset, it says so.
            return self.health.get();
        };
        let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return self.health.get() };
        match admin.fetch(bus.as_ref(), &Command::log_page(LOG_SMART, SMART_BYTES as u32)) {
            Ok(page) => {
                let page = page.first_chunk().expect("a page is longer");
                smart_warning(page).map_or(Health::Ok, Health::Degraded)
            }
            Err(error) => {
                // If it timed out, the keeper resets the controller.
                signal(&self.wake);
                Health::Degraded(format!("it does not answer for its health: {error}"))
            }
        }
    }

    /// Takes a namespace, the only one if none is named. With `alone`, only while no other of the controller is open.
    ///
    /// # Errors
    /// `WouldBlock` if it is open already.
    pub fn claim_namespace(&self, nsid: Option<u32>, alone: bool) -> io::Result<u32> {
        let list = self.fetch(&Command::identify(2, 0, 0))?;
        let active: Vec<u32> = list
            .chunks_exact(4)
            .map(|b| crate::nvme::bytes::u32_at(b, 0))
            .take_while(|n| *n != 0)
            .collect();
        let nsid = match (nsid, active.as_slice()) {
            (Some(nsid), all) if all.contains(&nsid) => nsid,
            (None, [only]) => *only,
            (_, all) => {
                let all: Vec<String> = all.iter().map(|n| format!("{}/n{n}", self.name)).collect();
                let message = format!("name one of its namespaces: {}", all.join(", "));
                return Err(io::Error::other(message));
            }
        };
        let mut open = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if alone && !open.is_empty() || !open.insert(nsid) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(nsid)
    }

    /// What a namespace is, and what our commands to it must keep to.
    pub fn look_at(&self, nsid: u32) -> io::Result<(identify::Namespace, Limits)> {
        let page = self.fetch(&Command::identify(0, 0, nsid))?;
        let namespace = identify::Namespace::parse(&page)
            .ok_or_else(|| io::Error::other("the namespace is inactive"))?;
        // Not every controller knows this one.
        let zeroes = match self.fetch(&Command::identify(6, 0, 0)) {
            Ok(page) => page[1],
            Err(error) if error.kind() == io::ErrorKind::Other => 0,
            Err(error) => return Err(error),
        };
        let limits =
            Limits::of(&self.identity, &namespace, zeroes, u64::MAX).map_err(io::Error::other)?;
        Ok((namespace, limits))
    }

    /// Runs an admin command that fills a page.
    pub fn fetch(&self, command: &Command) -> io::Result<[u8; identify::BYTES]> {
        let mut parts = self.parts();
        let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return Err(registers::gone()) };
        admin.fetch(bus.as_ref(), command)
    }

    /// Runs an admin command without data that may take as long as that; the keeper waits meanwhile.
    pub fn perform(&self, command: &Command, within: Duration) -> io::Result<()> {
        let mut parts = self.parts();
        let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return Err(registers::gone()) };
        admin.run_within(bus.as_ref(), command, within).map(drop)
    }

    /// The namespace may be opened again. Whether others of the controller are still open.
    pub fn close_namespace(&self, nsid: u32) -> bool {
        let mut open = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&nsid);
        !open.is_empty()
    }

    /// Makes the pair of a new queue; `place` puts its rings into memory and gives their addresses.
    pub fn seat(
        &self,
        place: impl FnOnce(&Arc<dyn Bus>, u16) -> io::Result<(u64, u64)>,
    ) -> io::Result<(Arc<Seat>, u64)> {
        let mut parts = self.parts();
        let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return Err(registers::gone()) };
        let mut seats = self.seats();
        let free = (1..=self.queues_max).find(|id| seats.iter().all(|s| s.pair.id != *id));
        let id = free.ok_or_else(|| {
            io::Error::other(format!(
                "the controller has only {} queues: use fewer cores",
                self.queues_max
            ))
        })?;
        let (sq, cq) = place(bus, self.entries)?;
        let vector = (id < bus.vectors()).then_some(id);
        let pair = Pair { id, entries: self.entries, sq, cq, vector };
        let epoch = self.epoch.load(Ordering::Acquire);
        admin.create_pair(bus.as_ref(), &pair)?;
        let seat = Arc::new(Seat {
            pair,
            event: new_event()?,
            wanted: AtomicU64::new(epoch),
            created: AtomicU64::new(epoch),
            sent_ms: (0..self.entries).map(|_| AtomicU64::new(0)).collect(),
        });
        seats.push(Arc::clone(&seat));
        Ok((seat, epoch))
    }

    /// Removes a queue's pair. `false` if the device may still use its memory.
    pub fn leave(&self, seat: &Arc<Seat>) -> bool {
        let mut parts = self.parts();
        self.seats().retain(|s| !Arc::ptr_eq(s, seat));
        let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return true };
        let epoch = self.epoch.load(Ordering::Acquire);
        if seat.created.load(Ordering::Acquire) != epoch {
            // A reset has removed it.
            return true;
        }
        admin.delete_pair(bus.as_ref(), seat.pair.id).is_ok()
    }

    /// Nothing is transferred any more, and nothing will be: whatever is in flight fails, and the kernel may have the device.
    pub fn die(&self, reason: &str) {
        self.set_health(Health::Failed(reason.to_owned()));
        self.end();
    }

    /// The end in peace: the controller is told and comes to rest.
    pub fn shut_down(&self) {
        if let Some(Parts { bus, .. }) = self.parts().as_ref() {
            match registers::shut_down(bus.as_ref()) {
                Ok(()) => tracing::info!(device = self.name, "the controller is at rest"),
                Err(error) => {
                    tracing::warn!(device = self.name, %error, "the controller does not shut down");
                }
            }
        }
        self.end();
    }

    fn end(&self) {
        let parts = self.parts().take();
        if let Some(Parts { bus, .. }) = &parts {
            bus.isolate();
        }
        self.epoch.store(DEAD, Ordering::Release);
        for seat in self.seats().iter() {
            seat.wake();
        }
        // Only now: nobody is to wait for it.
        if let Some(Parts { bus, .. }) = &parts {
            bus.release();
        }
    }
}
