//! Our own NVMe driver, in user space: the device's queues are in our memory, and nobody is between.
//!
//! ```text
//!              reactor thread                            keeper thread (one a controller)
//!  operation ─► commands ─► SQ ring ─► doorbell           admin queue: resets, aborts, queues made anew
//!  completion ◄─ phase bit ◄─ CQ ring                     registers: fatal, gone? late commands?
//!       │                        ▲                             │
//!       └ sleeps on an eventfd ◄─┴──── MSI-X ── device ────────┘ epoch: tells queues of a reset
//! ```
//!
//! `bus` is the seam to vfio-pci (`sys`); `registers` and `admin` are NVMe's; `controller` is what threads share. Memory
//! of clients is shown to the device once, arena by arena (`memory`, `iova`); other memory goes through bounce buffers.

mod admin;
mod bus;
mod controller;
mod iova;
mod keeper;
mod link;
mod memory;
mod queue;
mod registers;
mod sys;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Admin, ControllerFacts, Device, DeviceFacts, Queue};
use crate::nvme::address::PciAddress;
use crate::nvme::command::Command;
use crate::nvme::identify::{self, Limits, Namespace};
use controller::{Controller, signal};

/// A controller with its keeper; dropping the last use shuts it down.
#[derive(Debug)]
struct Held {
    controller: Arc<Controller>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Held {
    fn new(name: String, bus: Arc<dyn bus::Bus>, timeout: Duration) -> io::Result<Held> {
        let controller = Arc::new(Controller::start(name, bus, timeout)?);
        let for_keeper = Arc::clone(&controller);
        let keeper = std::thread::Builder::new()
            .name("nvme-keeper".to_owned())
            .spawn(move || keeper::run(for_keeper))?;
        Ok(Held { controller, keeper: Mutex::new(Some(keeper)) })
    }

    fn stop(&self) {
        self.controller.stopping.store(true, Ordering::Release);
        signal(&self.controller.wake);
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if keeper.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(device = self.controller.name, "the keeper of a controller panicked");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Of a controller that is taken for its administration: nothing but that is sent to it.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(30);

/// Controllers of this process: namespaces of one share it.
static HELD: Mutex<BTreeMap<PciAddress, Weak<Held>>> = Mutex::new(BTreeMap::new());

/// The controller, taken if this process has it not yet.
fn hold(address: PciAddress, timeout: Duration) -> io::Result<Arc<Held>> {
    let mut all = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(held) = all.get(&address).and_then(Weak::upgrade) {
        return Ok(held);
    }
    let bus = Arc::new(sys::VfioBus::open(address)?);
    let held = Arc::new(Held::new(address.to_string(), bus, timeout)?);
    all.insert(address, Arc::downgrade(&held));
    Ok(held)
}

/// A namespace that this process has for itself, while it has no other of the controller.
#[derive(Debug)]
pub struct Claim {
    held: Arc<Held>,
    nsid: u32,
}

impl Claim {
    /// # Errors
    /// As [`Vfio::open`].
    pub fn take(address: PciAddress, nsid: Option<u32>) -> io::Result<Claim> {
        Claim::of(hold(address, CLAIM_TIMEOUT)?, nsid)
    }

    fn of(held: Arc<Held>, nsid: Option<u32>) -> io::Result<Claim> {
        let nsid = held.controller.claim_namespace(nsid, true)?;
        Ok(Claim { held, nsid })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.held.controller.close_namespace(self.nsid);
    }
}

impl Admin for Claim {
    fn nsid(&self) -> u32 {
        self.nsid
    }

    fn fetch(&self, command: &Command) -> io::Result<[u8; identify::BYTES]> {
        self.held.controller.fetch(command)
    }

    fn perform(&self, command: &Command, within: Duration) -> io::Result<()> {
        self.held.controller.perform(command, within)
    }
}

/// One namespace.
#[derive(Debug)]
pub struct Vfio {
    held: Arc<Held>,
    nsid: u32,
    namespace: Namespace,
    limits: Limits,
    is_shut: AtomicBool,
}

impl Vfio {
    /// Takes the controller, if this process has it not yet, and opens a namespace of it.
    ///
    /// # Errors
    /// `WouldBlock` if somebody has the controller, or this process the namespace; others say what to do.
    pub fn open(address: PciAddress, nsid: Option<u32>, timeout: Duration) -> io::Result<Vfio> {
        Vfio::of(hold(address, timeout)?, nsid)
    }

    fn of(held: Arc<Held>, nsid: Option<u32>) -> io::Result<Vfio> {
        let nsid = held.controller.claim_namespace(nsid, false)?;
        let (namespace, limits) = match held.controller.look_at(nsid) {
            Ok(found) => found,
            Err(error) => {
                held.controller.close_namespace(nsid);
                return Err(error);
            }
        };
        tracing::info!(
            device = held.controller.name,
            nsid,
            model = held.controller.identity.model,
            queues = held.controller.queues_max,
            "NVMe in user space"
        );
        Ok(Vfio { held, nsid, namespace, limits, is_shut: AtomicBool::new(false) })
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        // After `shut_down` it may be open again, and then it is another's.
        if !self.is_shut.load(Ordering::Acquire) {
            self.held.controller.close_namespace(self.nsid);
        }
    }
}

impl Device for Vfio {
    fn engine(&self) -> &'static str {
        "vfio"
    }

    fn bytes(&self) -> u64 {
        self.limits.bytes()
    }

    fn facts(&self) -> DeviceFacts {
        let controller = &self.held.controller;
        let identity = &controller.identity;
        let atomic = self.namespace.atomic_blocks.unwrap_or(identity.atomic_blocks);
        DeviceFacts {
            engine: self.engine(),
            model: identity.model.clone(),
            serial: identity.serial.clone(),
            firmware: identity.firmware.clone(),
            bytes: self.limits.bytes(),
            lba_bytes: 1 << self.limits.lba_shift,
            transfer_bytes_max: u64::from(self.limits.transfer_blocks_max) << self.limits.lba_shift,
            volatile_cache: self.limits.volatile_cache,
            atomic_bytes: u64::from(atomic) << self.limits.lba_shift,
            controller: Some(ControllerFacts::new(identity, &self.namespace, self.nsid)),
            health: controller.ask_health(),
        }
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        let controller = Arc::clone(&self.held.controller);
        Ok(Box::new(queue::VfioQueue::new(controller, self.nsid, self.limits)?))
    }

    fn admin(&self) -> Option<&dyn Admin> {
        Some(self)
    }

    fn reset(&self) -> io::Result<()> {
        self.held.controller.reset_wanted.store(true, Ordering::Release);
        signal(&self.held.controller.wake);
        Ok(())
    }

    fn shut_down(&self) {
        if self.is_shut.swap(true, Ordering::AcqRel) {
            return;
        }
        // The other namespaces of the controller go on; the last one ends it.
        if !self.held.controller.close_namespace(self.nsid) {
            self.held.stop();
        }
    }
}

impl Admin for Vfio {
    fn nsid(&self) -> u32 {
        self.nsid
    }

    fn fetch(&self, command: &Command) -> io::Result<[u8; identify::BYTES]> {
        self.held.controller.fetch(command)
    }

    fn perform(&self, command: &Command, within: Duration) -> io::Result<()> {
        self.held.controller.perform(command, within)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
