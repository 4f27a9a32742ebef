//! A device whose operations end in time, whatever it does: for engines that cannot take an operation back.
//!
//! ```text
//! submit ─► slot: since when ─► inner queue ─► completion ─► slot ─► caller
//!                │
//!                ├ half of the time over: the device is *degraded*
//!                └ all of it over: EIO to the caller; the device has *failed*
//! ```
//!
//! What the kernel or a broken device has, it keeps: an operation that was given up may still be done later, and its memory
//! stays with the inner queue until then. A write that is done late would undo a newer one, so after the first operation that was
//! given up nothing is begun any more: whatever comes fails, until blockd is restarted.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Completion, Device, DeviceFacts, Fault, Health, HealthCell, Op, Queue, coarse_ms};

/// What the queues of a device share.
#[derive(Debug)]
struct Shared {
    path: String,
    timeout_ms: u64,
    health: HealthCell,
    has_failed: AtomicBool,
}

/// See the module.
pub struct Watched {
    inner: Arc<dyn Device>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("over", &self.inner.engine()).finish_non_exhaustive()
    }
}

impl Watched {
    /// An operation of `inner` that has not ended within `timeout` is given up.
    #[must_use]
    pub fn new(path: String, inner: Arc<dyn Device>, timeout: Duration) -> Watched {
        let timeout_ms = timeout.as_millis() as u64;
        let health = HealthCell::default();
        let shared = Shared { path, timeout_ms, health, has_failed: AtomicBool::new(false) };
        Watched { inner, shared: Arc::new(shared) }
    }
}

impl Device for Watched {
    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    fn facts(&self) -> DeviceFacts {
        let facts = self.inner.facts();
        match (self.shared.health.get(), &facts.health) {
            (Health::Ok, _) | (_, Health::Failed(_)) => facts,
            (health, _) => DeviceFacts { health, ..facts },
        }
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(WatchedQueue {
            inner: Some(self.inner.queue()?),
            shared: Arc::clone(&self.shared),
            slots: Vec::new(),
            free: Vec::new(),
            given_up: 0,
            failed: Vec::new(),
            is_late: false,
            looked_ms: 0,
        }))
    }

    fn reset(&self) -> io::Result<()> {
        self.inner.reset()
    }

    fn shut_down(&self) {
        self.inner.shut_down();
    }

    fn fault(&self) -> Option<&Fault> {
        self.inner.fault()
    }
}

/// Of an operation that is with the inner queue.
#[derive(Clone, Copy)]
enum Slot {
    Free,
    Taken { tag: u64, since_ms: u64 },
    GivenUp,
}

struct WatchedQueue {
    // Taken only to leak it.
    inner: Option<Box<dyn Queue>>,
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    given_up: usize,
    // Failed without the device.
    failed: Vec<Completion>,
    // This queue has said that operations are late.
    is_late: bool,
    looked_ms: u64,
}

impl WatchedQueue {
    fn inner(&mut self) -> &mut dyn Queue {
        self.inner.as_deref_mut().expect("kept until the end")
    }

    fn fail(&mut self, tag: u64) {
        let result = Err(io::Error::from_raw_os_error(libc::EIO));
        self.failed.push(Completion { tag, result });
    }

    /// Gives the caller's tags to what the inner queue says has ended; what was given up has ended for the caller already.
    fn translate(&mut self, done: &mut Vec<Completion>, from: usize) {
        let mut kept = from;
        for i in from..done.len() {
            let id = done[i].tag as usize;
            let slot = std::mem::replace(&mut self.slots[id], Slot::Free);
            self.free.push(id);
            match slot {
                Slot::Taken { tag, .. } => {
                    done[i].tag = tag;
                    done.swap(kept, i);
                    kept += 1;
                }
                Slot::GivenUp => self.given_up -= 1,
                Slot::Free => unreachable!("a completion of no operation"),
            }
        }
        done.truncate(kept);
    }

    /// Looks for operations that are late.
    fn look(&mut self, now_ms: u64) {
        self.looked_ms = now_ms;
        let timeout_ms = self.shared.timeout_ms;
        let mut age_ms = 0;
        for id in 0..self.slots.len() {
            let Slot::Taken { tag, since_ms } = self.slots[id] else { continue };
            let own_ms = now_ms.saturating_sub(since_ms);
            age_ms = age_ms.max(own_ms);
            if own_ms >= timeout_ms {
                self.slots[id] = Slot::GivenUp;
                self.given_up += 1;
                self.fail(tag);
            }
        }
        let seconds = age_ms / 1000;
        if age_ms >= timeout_ms {
            let reason =
                format!("an operation did not end within {timeout_ms} ms: the device hangs");
            self.shared.health.set(&self.shared.path, Health::Failed(reason));
            self.shared.has_failed.store(true, Ordering::Release);
        } else if age_ms >= timeout_ms / 2 && !self.is_late {
            self.is_late = true;
            let reason = format!("operations have been with the device for {seconds} s and more");
            self.shared.health.set(&self.shared.path, Health::Degraded(reason));
        } else if self.is_late && age_ms < timeout_ms / 2 {
            self.is_late = false;
            self.shared.health.set(&self.shared.path, Health::Ok);
        }
    }
}

impl Queue for WatchedQueue {
    fn submit(&mut self, op: Op) {
        if self.shared.has_failed.load(Ordering::Acquire) {
            self.fail(op.tag);
            return;
        }
        let slot = Slot::Taken { tag: op.tag, since_ms: coarse_ms() };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.inner().submit(Op { tag: id as u64, action: op.action });
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        let from = done.len();
        self.inner().poll(done);
        self.translate(done, from);
        // Only after the device was asked: this thread may have been what was late.
        if self.slots.len() > self.free.len() {
            let now = coarse_ms();
            if now.saturating_sub(self.looked_ms) >= (self.shared.timeout_ms / 8).clamp(1, 250) {
                self.look(now);
            }
        } else if self.is_late {
            self.look(coarse_ms());
        }
        done.append(&mut self.failed);
    }

    fn wait_fd(&self) -> Option<RawFd> {
        if !self.failed.is_empty() {
            return None;
        }
        self.inner.as_ref()?.wait_fd()
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.given_up + self.failed.len()
    }
}

impl Drop for WatchedQueue {
    fn drop(&mut self) {
        if self.given_up > 0 {
            let (device, count) = (&self.shared.path, self.given_up);
            tracing::error!(device, count, "operations that hang are left to the kernel");
            // Waiting for them may take for ever, and their memory is theirs.
            std::mem::forget(self.inner.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::engine::tests::{BYTES, conforms};
    use crate::engine::{Action, FaultSettings, Mem, Memory, run};

    fn device(timeout: Duration) -> (Watched, Fault) {
        let fault = Fault::new(Arc::new(Mem::new(BYTES)), FaultSettings::default()).unwrap();
        let inner: Arc<dyn Device> = Arc::new(fault.clone());
        (Watched::new("d".to_owned(), inner, timeout), fault)
    }

    fn read(tag: u64) -> Op {
        Op { tag, action: Action::Read { offset: 0, memory: Memory::zeroed(4096) } }
    }

    fn hanging() -> FaultSettings {
        FaultSettings { hang_ppm: 1_000_000, ..FaultSettings::default() }
    }

    /// Polls until something has ended.
    fn one(queue: &mut dyn Queue) -> Completion {
        let end = Instant::now() + Duration::from_secs(60);
        let mut done = Vec::new();
        while done.is_empty() {
            assert!(Instant::now() < end, "nothing ends");
            queue.poll(&mut done);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(done.len(), 1);
        done.remove(0)
    }

    #[test]
    fn it_is_the_device_beneath() {
        conforms(&device(Duration::from_secs(600)).0);
    }

    #[test]
    fn a_device_that_hangs_fails_by_the_deadline() {
        let (device, fault) = device(Duration::from_millis(200));
        let mut queue = device.queue().unwrap();
        run(queue.as_mut(), Action::Flush).unwrap();
        assert_eq!(device.facts().health, Health::Ok);
        fault.set(hanging());
        queue.submit(read(7));
        assert_eq!(queue.in_flight(), 1);
        let ended = one(queue.as_mut());
        assert_eq!((ended.tag, ended.result.unwrap_err().raw_os_error()), (7, Some(libc::EIO)));
        let Health::Failed(reason) = device.facts().health else { panic!("not failed") };
        assert!(reason.contains("200 ms"), "{reason}");
        assert_eq!(queue.in_flight(), 0);
        // Nothing is begun any more, though the device would do it.
        fault.set(FaultSettings::default());
        queue.submit(read(8));
        assert_eq!(queue.wait_fd(), None);
        let ended = one(queue.as_mut());
        assert_eq!((ended.tag, ended.result.is_err()), (8, true));
        let mut other = device.queue().unwrap();
        run(other.as_mut(), Action::Flush).unwrap_err();
    }

    #[test]
    fn what_is_late_degrades_and_is_forgiven() {
        let (device, fault) = device(Duration::from_secs(600));
        let mut queue = WatchedQueue {
            inner: Some(fault.queue().unwrap()),
            shared: Arc::clone(&device.shared),
            slots: Vec::new(),
            free: Vec::new(),
            given_up: 0,
            failed: Vec::new(),
            is_late: false,
            looked_ms: 0,
        };
        fault.set(FaultSettings { delay_ppm: 1_000_000, delay_polls: 3, ..Default::default() });
        queue.submit(read(1));
        queue.look(coarse_ms() + 300_000);
        assert!(matches!(device.facts().health, Health::Degraded(_)));
        assert_eq!(one(&mut queue).tag, 1);
        queue.poll(&mut Vec::new());
        assert_eq!(device.facts().health, Health::Ok);
    }
}
