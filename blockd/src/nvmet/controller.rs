//! A controller: what the admin queue and the I/O queues of one host's association share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::abort::Aborts;
use super::fabrics::READY;
use super::registry::Subsystem;
use super::secret::Secret;
use super::status::Status;

/// Error log entries that are kept; the oldest goes.
pub const ERRORS_MAX: usize = 16;

/// Bits of asynchronous events, as in OAES and the feature that enables them.
pub const EVENT_NAMESPACE: u32 = 1 << 8;
pub const EVENT_DISCOVERY: u32 = 1 << 31;
/// All that we send.
pub const EVENTS: u32 = EVENT_NAMESPACE | EVENT_DISCOVERY;

/// The far end of a connection: closes and wakes it from anywhere.
pub struct Link {
    closed: AtomicBool,
    established: AtomicBool,
    waker: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Link {
    pub fn new(waker: impl Fn() + Send + Sync + 'static) -> Arc<Link> {
        Arc::new(Link {
            closed: AtomicBool::new(false),
            established: AtomicBool::new(false),
            waker: Box::new(waker),
        })
    }

    /// Ends the connection soon.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The host has connected and proved who it is.
    pub fn establish(&self) {
        self.established.store(true, Ordering::Release);
    }

    /// The host has lost what it had: it may as well not have connected.
    pub fn expel(&self) {
        self.established.store(false, Ordering::Release);
    }

    pub fn is_established(&self) -> bool {
        self.established.load(Ordering::Acquire)
    }

    pub fn wake(&self) {
        (self.waker)();
    }
}

/// What a host must prove, and what the controller proves to it.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub host: Secret,
    pub controller: Option<Secret>,
}

/// A failed command, for the error log.
#[derive(Clone, Copy, Debug)]
pub struct ErrorEntry {
    pub count: u64,
    pub queue: u16,
    pub command: u16,
    pub status: Status,
    pub lba: u64,
    pub nsid: u32,
}

/// Registers of fabrics controllers (NVMe base 2.0 §3.1.3).
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    pub configuration: u32,
    pub status: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Controller {
    pub id: u16,
    pub host_nqn: String,
    pub host_id: [u8; 16],
    /// `None` is the discovery controller.
    pub subsystem: Option<Arc<Subsystem>>,
    pub credentials: Option<Credentials>,
    pub registers: Mutex<Registers>,
    /// Off: every write is written through.
    pub write_cache: AtomicBool,
    pub keep_alive_ms: AtomicU32,
    /// Set by every command of the admin queue, cleared by the clock.
    pub alive: AtomicBool,
    last_seen: Mutex<Option<Instant>>,
    /// Events that the host wants, that have happened, and that wait until their log page is read.
    pub events_enabled: AtomicU32,
    pending: AtomicU32,
    reported: AtomicU32,
    changed: Mutex<BTreeSet<u32>>,
    queues: Mutex<BTreeMap<u16, Arc<Link>>>,
    pub aborts: Aborts,
    errors: Mutex<VecDeque<ErrorEntry>>,
    error_count: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    pub fn new(
        id: u16,
        host_nqn: String,
        host_id: [u8; 16],
        subsystem: Option<Arc<Subsystem>>,
        credentials: Option<Credentials>,
        admin: Arc<Link>,
    ) -> Controller {
        Controller {
            id,
            host_nqn,
            host_id,
            subsystem,
            credentials,
            registers: Mutex::default(),
            write_cache: AtomicBool::new(true),
            keep_alive_ms: AtomicU32::new(0),
            alive: AtomicBool::new(true),
            last_seen: Mutex::new(None),
            events_enabled: AtomicU32::new(0),
            pending: AtomicU32::new(0),
            reported: AtomicU32::new(0),
            changed: Mutex::default(),
            queues: Mutex::new(BTreeMap::from([(0, admin)])),
            aborts: Aborts::default(),
            errors: Mutex::default(),
            error_count: AtomicU64::new(0),
        }
    }

    pub fn is_discovery(&self) -> bool {
        self.subsystem.is_none()
    }

    /// Whether it takes commands: one that was enabled with what it does not offer does not.
    pub fn is_ready(&self) -> bool {
        lock(&self.registers).status & READY != 0
    }

    /// It was disabled: its I/O queues end, and its features are as they were in the beginning.
    pub fn reset(&self) {
        self.close_queues();
        self.write_cache.store(true, Ordering::Release);
        self.events_enabled.store(0, Ordering::Release);
        self.reported.store(0, Ordering::Release);
    }

    /// Adds an I/O queue; `false` if there is one of that number.
    pub fn attach(&self, queue: u16, link: &Arc<Link>) -> bool {
        let mut queues = lock(&self.queues);
        // The admin queue may have ended meanwhile, and with it the controller.
        if queues.contains_key(&queue) || !queues.contains_key(&0) {
            return false;
        }
        queues.insert(queue, Arc::clone(link));
        true
    }

    /// A connection ended. The end of the admin queue ends them all.
    pub fn detach(&self, queue: u16) {
        let mut queues = lock(&self.queues);
        queues.remove(&queue);
        self.aborts.ended(queue);
        if let Some(admin) = queues.get(&0) {
            admin.wake();
        }
        drop(queues);
        if queue == 0 {
            self.close_queues();
        }
    }

    /// Ends the I/O queues.
    fn close_queues(&self) {
        lock(&self.queues).iter().filter(|(id, _)| **id != 0).for_each(|(_, link)| link.close());
    }

    /// Ends all queues.
    pub fn close(&self) {
        lock(&self.queues).values().for_each(|link| link.close());
    }

    /// Does something for a queue and wakes it; `false` if there is none of that number, and nothing was done. The queue
    /// does not end in between.
    pub fn wake_queue(&self, queue: u16, before: impl FnOnce()) -> bool {
        let queues = lock(&self.queues);
        let Some(link) = queues.get(&queue) else { return false };
        before();
        link.wake();
        true
    }

    /// Wakes all queues.
    pub fn wake(&self) {
        lock(&self.queues).values().for_each(|link| link.wake());
    }

    pub fn queue_count(&self) -> usize {
        lock(&self.queues).len()
    }

    /// Something happened; the admin queue tells the host if it wants to know.
    pub fn happened(&self, event: u32, nsid: Option<u32>) {
        if let Some(nsid) = nsid {
            lock(&self.changed).insert(nsid);
        }
        self.pending.fetch_or(event, Ordering::AcqRel);
        if let Some(admin) = lock(&self.queues).get(&0) {
            admin.wake();
        }
    }

    /// Whether [`Controller::next_event`] has anything to say. One load.
    pub fn has_event(&self) -> bool {
        self.reportable() != 0
    }

    fn reportable(&self) -> u32 {
        self.pending.load(Ordering::Acquire)
            & self.events_enabled.load(Ordering::Acquire)
            & !self.reported.load(Ordering::Acquire)
    }

    /// Takes one event to report.
    pub fn next_event(&self) -> Option<u32> {
        let events = self.reportable();
        let event = [EVENT_NAMESPACE, EVENT_DISCOVERY].into_iter().find(|e| events & e != 0)?;
        self.pending.fetch_and(!event, Ordering::AcqRel);
        self.reported.fetch_or(event, Ordering::AcqRel);
        Some(event)
    }

    /// The event's log page was read: the next one is reported again.
    pub fn acknowledge(&self, event: u32) {
        self.reported.fetch_and(!event, Ordering::AcqRel);
    }

    /// The changed namespaces; forgotten unless `retain`.
    pub fn changed_namespaces(&self, retain: bool) -> Vec<u32> {
        let mut changed = lock(&self.changed);
        let list = changed.iter().copied().collect();
        if !retain {
            changed.clear();
        }
        list
    }

    pub fn log_error(&self, mut entry: ErrorEntry) {
        entry.count = self.error_count.fetch_add(1, Ordering::AcqRel) + 1;
        let mut errors = lock(&self.errors);
        errors.truncate(ERRORS_MAX - 1);
        errors.push_front(entry);
    }

    /// The newest errors first.
    pub fn errors(&self) -> Vec<ErrorEntry> {
        lock(&self.errors).iter().copied().collect()
    }

    pub fn error_count(&self) -> u64 {
        self.error_count.load(Ordering::Acquire)
    }

    /// Whether the keep-alive time has passed without a sign of the host.
    pub fn is_expired(&self, now: Instant) -> bool {
        let timeout_ms = self.keep_alive_ms.load(Ordering::Acquire);
        let mut last_seen = lock(&self.last_seen);
        if self.alive.swap(false, Ordering::AcqRel) || last_seen.is_none() {
            *last_seen = Some(now);
        }
        let silent = last_seen.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        timeout_ms != 0 && silent > Duration::from_millis(timeout_ms.into())
    }
}
