//! Subsystems, their namespaces and hosts, and the controllers that are connected: what all connections share.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::controller::{Controller, EVENT_DISCOVERY, EVENT_NAMESPACE, Link, Registers};
use super::export::Access;
use super::status::Status;
use super::text::DISCOVERY_NQN;
use crate::engine::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::reactor::Share;

/// A connection that has not connected to a controller by then is closed.
const ESTABLISH_TIME: Duration = Duration::from_secs(10);
/// Namespaces of a subsystem.
pub const NAMESPACES_MAX: u32 = 256;
/// Controllers at once; a further host is told to come again.
const CONTROLLERS_MAX: usize = 1024;
const CONTROLLER_ID_MAX: u16 = 0xffef;

/// Bounds that the configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; a further one is closed at once.
    pub connections_max: usize,
    /// I/O queues of one controller.
    pub queues_max: u16,
    /// Entries of a queue.
    pub depth: u16,
    /// Buffers of one connection, in bytes.
    pub buffer_bytes: usize,
}

/// A volume as hosts see it.
#[derive(Debug)]
pub struct Namespace {
    pub nsid: u32,
    pub share: Arc<Share>,
    pub read_only: bool,
    /// UUID and NGUID.
    pub id: [u8; 16],
}

impl Namespace {
    pub fn blocks(&self) -> u64 {
        self.share.volume.bytes / BLOCK_BYTES
    }
}

/// Counts for the SMART log. 4 KiB blocks and commands of all controllers.
#[derive(Debug, Default)]
pub struct Counters {
    pub read_blocks: AtomicU64,
    pub written_blocks: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
}

/// A name that hosts connect to.
#[derive(Debug)]
pub struct Subsystem {
    pub nqn: String,
    pub serial: String,
    pub counters: Counters,
    /// Grows with every change of the namespaces, so that a connection may keep its list.
    version: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    namespaces: BTreeMap<u32, Arc<Namespace>>,
    access: Access,
}

impl Subsystem {
    fn new(nqn: &str, access: &Access) -> Subsystem {
        let state = State { namespaces: BTreeMap::new(), access: access.clone() };
        Subsystem {
            nqn: nqn.to_owned(),
            serial: serial_of(nqn),
            counters: Counters::default(),
            version: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The namespaces, by their number, and the version of the list.
    pub fn namespaces(&self) -> (u64, Vec<Arc<Namespace>>) {
        let state = lock(&self.state);
        (self.version(), state.namespaces.values().cloned().collect())
    }

    fn change(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the module.
#[derive(Debug)]
pub struct Registry {
    pub limits: Limits,
    /// Where discovery sends hosts, if not to the address that they asked.
    pub advertise: Option<IpAddr>,
    /// The addresses that are listened on, once they are.
    pub bound: OnceLock<Bound>,
    pub connections: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    subsystems: BTreeMap<String, Arc<Subsystem>>,
    controllers: BTreeMap<u16, Arc<Controller>>,
    last_id: u16,
    generation: u64,
    unestablished: Vec<(Weak<Link>, Option<Instant>)>,
}

/// Where hosts connect.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    pub io: Vec<SocketAddr>,
    pub discovery: Vec<SocketAddr>,
}

/// Who connects to what.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub subsystem: &'a str,
    pub host: &'a str,
    pub host_id: [u8; 16],
}

impl Registry {
    pub fn new(limits: Limits, advertise: Option<IpAddr>) -> Registry {
        let inner = Mutex::new(Inner { generation: 1, ..Inner::default() });
        let (bound, connections) = (OnceLock::new(), AtomicUsize::new(0));
        Registry { limits, advertise, bound, connections, inner }
    }

    /// Adds a volume to the subsystem of that name, which is made if it is missing. Gives the namespace's number.
    pub fn add(
        &self,
        nqn: &str,
        nsid: Option<u32>,
        access: &Access,
        read_only: bool,
        share: Arc<Share>,
        id: [u8; 16],
    ) -> Result<u32> {
        let mut inner = lock(&self.inner);
        let known = inner.subsystems.get(nqn).cloned();
        let subsystem = known.unwrap_or_else(|| Arc::new(Subsystem::new(nqn, access)));
        let mut state = lock(&subsystem.state);
        if !state.access.is_like(access) {
            return Err(Error::Invalid(format!(
                "{nqn} has other hosts: the volumes of one subsystem are seen by the same hosts"
            )));
        }
        let free = (1..=NAMESPACES_MAX).find(|n| !state.namespaces.contains_key(n));
        let nsid = match (nsid, free) {
            (Some(n), _) if state.namespaces.contains_key(&n) => {
                return Err(Error::Invalid(format!("{nqn} has a namespace {n} already")));
            }
            (Some(n), _) if (1..=NAMESPACES_MAX).contains(&n) => n,
            (None, Some(n)) => n,
            _ => {
                return Err(Error::Invalid(format!(
                    "a namespace's number is 1 to {NAMESPACES_MAX}, and no subsystem has more"
                )));
            }
        };
        state.namespaces.insert(nsid, Arc::new(Namespace { nsid, share, read_only, id }));
        subsystem.change();
        drop(state);
        inner.subsystems.insert(nqn.to_owned(), Arc::clone(&subsystem));
        inner.changed(&subsystem, Some(nsid));
        Ok(nsid)
    }

    /// Takes a volume's namespaces out of a subsystem, or of all. The number of them that are gone.
    pub fn remove(&self, volume: &str, nqn: Option<&str>) -> usize {
        let mut inner = lock(&self.inner);
        let mut removed = 0;
        for subsystem in inner.subsystems.values().cloned().collect::<Vec<_>>() {
            if nqn.is_some_and(|name| name != subsystem.nqn) {
                continue;
            }
            let mut state = lock(&subsystem.state);
            let found: Vec<u32> = state
                .namespaces
                .values()
                .filter(|n| n.share.volume.name == volume)
                .map(|n| n.nsid)
                .collect();
            found.iter().for_each(|nsid| drop(state.namespaces.remove(nsid)));
            subsystem.change();
            let empty = state.namespaces.is_empty();
            drop(state);
            removed += found.len();
            for nsid in &found {
                inner.changed(&subsystem, Some(*nsid));
            }
            if empty {
                inner.subsystems.remove(&subsystem.nqn);
                inner.close(|c| c.subsystem.as_ref().is_some_and(|s| s.nqn == subsystem.nqn));
            }
        }
        removed
    }

    /// The names under which a volume is exported.
    pub fn names_of(&self, volume: &str) -> Vec<String> {
        let inner = lock(&self.inner);
        let has = |s: &&Arc<Subsystem>| {
            lock(&s.state).namespaces.values().any(|n| n.share.volume.name == volume)
        };
        inner.subsystems.values().filter(has).map(|s| s.nqn.clone()).collect()
    }

    /// Whether anything is exported under that name.
    pub fn exists(&self, nqn: &str) -> Result<()> {
        if lock(&self.inner).subsystems.contains_key(nqn) {
            return Ok(());
        }
        Err(Error::NotExported(format!("a subsystem {nqn}")))
    }

    /// Who may connect from now on; controllers of others are closed.
    pub fn set_access(&self, nqn: &str, access: &Access) -> Result<()> {
        let mut inner = lock(&self.inner);
        let subsystem = inner.subsystems.get(nqn).cloned();
        let subsystem =
            subsystem.ok_or_else(|| Error::NotExported(format!("a subsystem {nqn}")))?;
        lock(&subsystem.state).access = access.clone();
        inner.close(|c| {
            c.subsystem.as_ref().is_some_and(|s| s.nqn == nqn)
                && access.admits(&c.host_nqn).is_none()
        });
        inner.changed(&subsystem, None);
        Ok(())
    }

    /// A connection that has yet to say what it wants.
    pub fn watch(&self, link: &Arc<Link>) {
        lock(&self.inner).unestablished.push((Arc::downgrade(link), None));
    }

    /// Makes a controller for an admin queue.
    pub fn connect(
        &self,
        caller: Caller<'_>,
        link: &Arc<Link>,
    ) -> std::result::Result<Arc<Controller>, Status> {
        let mut inner = lock(&self.inner);
        let (subsystem, credentials) = if caller.subsystem == DISCOVERY_NQN {
            (None, None)
        } else {
            let subsystem = inner.subsystems.get(caller.subsystem);
            let subsystem = subsystem.ok_or(Status::CONNECT_PARAMETERS)?;
            let credentials =
                lock(&subsystem.state).access.admits(caller.host).ok_or(Status::CONNECT_HOST)?;
            (Some(Arc::clone(subsystem)), credentials)
        };
        if inner.controllers.len() >= CONTROLLERS_MAX {
            return Err(Status::CONNECT_BUSY);
        }
        let mut id = inner.last_id;
        loop {
            id = if id >= CONTROLLER_ID_MAX { 1 } else { id + 1 };
            if !inner.controllers.contains_key(&id) {
                break;
            }
        }
        inner.last_id = id;
        let controller = Arc::new(Controller::new(
            id,
            caller.host.to_owned(),
            caller.host_id,
            subsystem,
            credentials,
            Arc::clone(link),
        ));
        inner.controllers.insert(id, Arc::clone(&controller));
        Ok(controller)
    }

    /// The controller of an I/O queue that connects.
    pub fn find(&self, id: u16, caller: Caller<'_>) -> Option<Arc<Controller>> {
        let controller = lock(&self.inner).controllers.get(&id).cloned()?;
        let same = controller.subsystem.as_ref().is_some_and(|s| s.nqn == caller.subsystem)
            && controller.host_nqn == caller.host
            && controller.host_id == caller.host_id;
        same.then_some(controller)
    }

    /// A queue's connection ended.
    pub fn leave(&self, controller: &Controller, queue: u16) {
        if queue == 0 {
            lock(&self.inner).controllers.remove(&controller.id);
        }
        controller.detach(queue);
    }

    /// Closes what is silent for too long. Called about twice a second.
    pub fn tick(&self, now: Instant) {
        let mut inner = lock(&self.inner);
        for controller in inner.controllers.values() {
            if controller.is_expired(now) {
                let (host, id) = (&controller.host_nqn, controller.id);
                tracing::warn!(host, id, "a host is silent for longer than its keep-alive time");
                controller.close();
            }
        }
        inner.unestablished.retain_mut(|(link, since)| {
            let Some(link) = link.upgrade() else { return false };
            if link.is_established() || link.is_closed() {
                return false;
            }
            if now.saturating_duration_since(*since.get_or_insert(now)) > ESTABLISH_TIME {
                tracing::debug!("a connection said nothing useful in time");
                link.close();
                return false;
            }
            true
        });
    }

    /// The generation, and what that host may connect to.
    pub fn discover(&self, host: &str) -> (u64, Vec<String>) {
        let inner = lock(&self.inner);
        let visible = inner
            .subsystems
            .values()
            .filter(|s| lock(&s.state).access.admits(host).is_some())
            .map(|s| s.nqn.clone());
        (inner.generation, visible.collect())
    }

    /// Subsystems and controllers, for the operator.
    pub fn describe(&self) -> Value {
        let inner = lock(&self.inner);
        let subsystems = inner.subsystems.values().map(|s| {
            let state = lock(&s.state);
            let namespaces = state.namespaces.values().map(|n| {
                json!({
                    "nsid": n.nsid,
                    "volume": n.share.volume.name,
                    "bytes": n.share.volume.bytes,
                    "read_only": n.read_only,
                    "uuid": uuid::Uuid::from_bytes(n.id),
                })
            });
            json!({
                "nqn": s.nqn,
                "serial": s.serial,
                "namespaces": namespaces.collect::<Vec<_>>(),
                "any_host": state.access.any_host,
                "hosts": state.access.describe(),
            })
        });
        let controllers = inner.controllers.values().map(|c| {
            let Registers { configuration, status } = *lock(&c.registers);
            json!({
                "id": c.id,
                "host": c.host_nqn,
                "subsystem": c.subsystem.as_ref().map_or(DISCOVERY_NQN, |s| &s.nqn),
                "queues": c.queue_count(),
                "enabled": configuration & 1 != 0,
                "ready": status & 1 != 0,
                "keep_alive_ms": c.keep_alive_ms.load(Ordering::Acquire),
                "errors": c.error_count(),
            })
        });
        json!({
            "listen": self.bound.get().map_or(&[][..], |b| &b.io),
            "discovery": self.bound.get().map_or(&[][..], |b| &b.discovery),
            "generation": inner.generation,
            "connections": self.connections.load(Ordering::Acquire),
            "subsystems": subsystems.collect::<Vec<_>>(),
            "controllers": controllers.collect::<Vec<_>>(),
        })
    }
}

impl Inner {
    fn changed(&mut self, subsystem: &Subsystem, nsid: Option<u32>) {
        self.generation += 1;
        for controller in self.controllers.values() {
            match &controller.subsystem {
                None => controller.happened(EVENT_DISCOVERY, None),
                Some(of) if of.nqn == subsystem.nqn && nsid.is_some() => {
                    controller.happened(EVENT_NAMESPACE, nsid);
                    // Each lets go of the namespaces that it knows, so that a volume is free at once.
                    controller.wake();
                }
                Some(_) => {}
            }
        }
    }

    fn close(&self, which: impl Fn(&Controller) -> bool) {
        self.controllers.values().filter(|c| which(c)).for_each(|c| c.close());
    }
}

/// Twenty digits that stay the same for a name.
fn serial_of(nqn: &str) -> String {
    let hash = digest(&SHA256, nqn.as_bytes());
    hash.as_ref()[..10].iter().map(|b| format!("{b:02x}")).collect()
}
