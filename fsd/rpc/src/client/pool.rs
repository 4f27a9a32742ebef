//! The connections and slots of a session, shared by the threads of a client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use raftmeta_types::{Ino, MetaError};

use super::connection::{Closer, Connection};
use super::dial::Dial;
use super::{BACKOFF_MAX, CONNECTIONS_MAX, CallError, ConnectOptions, SLOTS};
use crate::frame::FrameError;
use crate::message::{Failure, Hello, PROTOCOLS, Request, Response, Role, Welcome};
use crate::tls::TlsError;

/// Where there are several nodes, one that does not greet, or answer, within this is left for the next one. A
/// request is repeated under the same number.
const GREETING_MAX: Duration = Duration::from_secs(4);
const ANSWER_MAX: Duration = Duration::from_secs(10);

type OpenInodes = Box<dyn Fn() -> Vec<Ino> + Send + Sync>;

pub(super) struct Inner {
    pub(super) dial: Dial,
    pub(super) options: ConnectOptions,
    pub(super) aborted: AtomicBool,
    /// Held while a connection greets, so that a lost session is replaced once.
    greeting: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// A connection, or its place in the pool, became free. Each of the three is also notified by an
    /// abort.
    freed: Condvar,
    slot_freed: Condvar,
    pausing: Condvar,
    pub(super) open_inodes: Mutex<Option<OpenInodes>>,
    /// Ends the thread that keeps the session alive when dropped.
    pub(super) keep_stop: Mutex<Option<mpsc::Sender<()>>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) welcome: Option<Welcome>,
    /// Counts sessions.
    pub(super) generation: u64,
    idle: Vec<Connection>,
    /// Connections that exist or are being made, without subscriptions.
    count: usize,
    /// What ends each live connection from another thread.
    closers: HashMap<u64, Closer>,
    connections_made: u64,
    free_slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) slot: u16,
    /// Number of the slot's next command.
    pub(super) seq: u64,
    pub(super) generation: u64,
}

/// What became of one attempt.
pub(super) struct Attempt {
    /// The server has done, or may have done, what was asked.
    pub(super) sent: bool,
    pub(super) answer: Result<(Response, Bytes), CallError>,
}

impl State {
    fn adopt(&mut self, welcome: Welcome) {
        let same = self.welcome.as_ref().is_some_and(|old| old.session == welcome.session);
        if !same {
            self.generation += 1;
            self.drop_idle();
            let generation = self.generation;
            self.free_slots =
                (0..SLOTS).rev().map(|slot| Slot { slot, seq: 1, generation }).collect();
        }
        self.welcome = Some(welcome);
    }

    fn drop_idle(&mut self) {
        for connection in std::mem::take(&mut self.idle) {
            self.remove(connection);
        }
    }

    fn remove(&mut self, connection: Connection) {
        self.count -= 1;
        self.closers.remove(&connection.id);
    }
}

/// How long one node may take to answer before another one is asked.
fn patience(request: &Request) -> Duration {
    match request {
        Request::LockWait { wait_ms, .. } => {
            ANSWER_MAX + Duration::from_millis(u64::from(*wait_ms))
        }
        // Of administrators: some of it takes long, and there is no session to lose.
        Request::Admin(_) => Duration::MAX,
        _ => ANSWER_MAX,
    }
}

impl Inner {
    pub(super) fn new(dial: Dial, options: ConnectOptions) -> Inner {
        Inner {
            dial,
            options,
            aborted: AtomicBool::new(false),
            greeting: Mutex::new(()),
            state: Mutex::default(),
            freed: Condvar::new(),
            slot_freed: Condvar::new(),
            pausing: Condvar::new(),
            open_inodes: Mutex::new(None),
            keep_stop: Mutex::new(None),
        }
    }

    pub(super) fn check_aborted(&self) -> Result<(), CallError> {
        if self.aborted.load(Ordering::Acquire) { Err(CallError::Aborted) } else { Ok(()) }
    }

    pub(super) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        let mut state = self.state.lock();
        state.closers.values().for_each(Closer::close);
        state.drop_idle();
        drop(state);
        self.keep_stop.lock().take();
        self.freed.notify_all();
        self.slot_freed.notify_all();
        self.pausing.notify_all();
    }

    /// Waits before another attempt, or gives up with the reason when the deadline would pass.
    pub(super) fn pause(
        &self,
        backoff: &mut Duration,
        until: Instant,
        reason: CallError,
    ) -> Result<(), CallError> {
        self.check_aborted()?;
        if Instant::now() + *backoff >= until {
            tracing::debug!(%reason, "deadline");
            return Err(match reason {
                CallError::Failure(_) => reason,
                _ => CallError::Timeout(self.options.deadline),
            });
        }
        if matches!(reason, CallError::Failure(_)) {
            // It answers, and cannot help.
            self.dial.turn();
        }
        self.sleep(*backoff);
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        self.check_aborted()
    }

    /// Sleeps, or until an abort.
    pub(super) fn sleep(&self, time: Duration) {
        let wake = Instant::now() + time;
        let mut state = self.state.lock();
        while Instant::now() < wake && !self.aborted.load(Ordering::Acquire) {
            self.pausing.wait_until(&mut state, wake);
        }
    }

    /// One attempt on one connection, only in that generation of the session if one is given
    /// (numbers mean nothing in another).
    pub(super) fn attempt(
        &self,
        generation: Option<u64>,
        request: &Request,
        data: &[&[u8]],
        until: Instant,
    ) -> Attempt {
        let mut connection = match self.checkout(until) {
            Ok(connection) => connection,
            Err(error) => return Attempt { sent: false, answer: Err(error) },
        };
        if generation.is_some_and(|generation| generation != connection.generation) {
            self.checkin(connection);
            return Attempt { sent: false, answer: Err(CallError::SessionLost) };
        }
        let until = self.dial.limit(until, patience(request));
        let answer = match connection.exchange(request, data, until) {
            Ok((Response::Failed(failure), _)) => {
                match failure {
                    Failure::Meta(MetaError::SessionExpired) => {
                        self.drop_connections(connection);
                        return Attempt { sent: false, answer: Err(CallError::SessionLost) };
                    }
                    Failure::Protocol(_) => self.discard(connection),
                    _ => self.checkin(connection),
                }
                Err(failure.into())
            }
            Ok(answer) => {
                self.checkin(connection);
                Ok(answer)
            }
            Err(error) => {
                // The idle ones to that server are most likely broken, too.
                self.drop_connections(connection);
                self.dial.turn();
                Err(self.check_aborted().err().unwrap_or(error.into()))
            }
        };
        Attempt { sent: true, answer }
    }

    /// An idle connection, or a new one when the pool has room; waits otherwise.
    pub(super) fn checkout(&self, until: Instant) -> Result<Connection, CallError> {
        let mut state = self.state.lock();
        loop {
            self.check_aborted()?;
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.count < CONNECTIONS_MAX {
                break;
            }
            self.wait(&self.freed, &mut state, until)?;
        }
        state.count += 1;
        drop(state);
        let opened = self.open(until);
        if opened.is_err() {
            self.state.lock().count -= 1;
            self.freed.notify_one();
        }
        opened
    }

    fn wait(
        &self,
        freed: &Condvar,
        state: &mut MutexGuard<'_, State>,
        until: Instant,
    ) -> Result<(), CallError> {
        match freed.wait_until(state, until).timed_out() {
            true => Err(CallError::Timeout(self.options.deadline)),
            false => Ok(()),
        }
    }

    /// Connects and greets; a session that the server forgot is replaced by the new one. The connection
    /// is not counted.
    pub(super) fn open(&self, until: Instant) -> Result<Connection, CallError> {
        let one_at_a_time = self.greeting.try_lock_until(until);
        let _one_at_a_time = one_at_a_time.ok_or(CallError::Timeout(self.options.deadline))?;
        self.check_aborted()?;
        // The others' greetings do not count: whoever waited for one has a greeting's time of its own.
        let until = self.dial.limit(until, GREETING_MAX);
        let id = {
            let mut state = self.state.lock();
            state.connections_made += 1;
            state.connections_made
        };
        let opened = self.greet(id, until);
        if opened.is_err() {
            self.forget(id);
            self.dial.turn();
        }
        opened
    }

    /// A connection that [`Inner::open`] made, and that never went to the pool, ended.
    pub(super) fn forget(&self, id: u64) {
        self.state.lock().closers.remove(&id);
    }

    fn greet(&self, id: u64, until: Instant) -> Result<Connection, CallError> {
        let stream = self.dial.dial(until, || self.check_aborted())?;
        let mut connection = Connection::new(stream, id);
        let closer = connection.closer().map_err(FrameError::Io)?;
        self.state.lock().closers.insert(id, closer);
        // An abort that came between would have missed it.
        self.check_aborted()?;

        let known = self.state.lock().welcome.as_ref().map(|w| (w.session, w.secret));
        let mut inos = Vec::new();
        let role = match known {
            _ if self.options.admin => Role::Admin,
            None => Role::NewSession { client: self.options.client.clone() },
            Some((session, secret)) => {
                if let Some(report) = self.open_inodes.lock().as_ref() {
                    inos = report();
                }
                let client = self.options.client.clone();
                Role::Session { session, secret, client, open: Vec::new() }
            }
        };
        let open: Vec<u8> = inos.iter().flat_map(|ino| ino.0.to_le_bytes()).collect();
        let build = self.options.build.clone();
        let hello = Request::Hello(Hello { protocols: PROTOCOLS, build, role });
        let answer = connection.exchange(&hello, &[&open], until);
        match answer.map_err(distrust)?.0 {
            Response::Welcome(welcome) => {
                self.check_cluster(&welcome)?;
                check_protocol(&welcome)?;
                let known = self.state.lock().welcome.as_ref().map(|known| known.servers.clone());
                if known.as_ref() != Some(&welcome.servers) {
                    self.dial.learn(&welcome.servers);
                }
                let mut state = self.state.lock();
                state.adopt(welcome);
                connection.generation = state.generation;
                Ok(connection)
            }
            Response::Failed(failure) => Err(failure.into()),
            _ => Err(CallError::UnexpectedAnswer),
        }
    }

    /// Another cluster at the same address is not an heir of this session: its inodes are others.
    fn check_cluster(&self, welcome: &Welcome) -> Result<(), CallError> {
        match &self.state.lock().welcome {
            Some(known) if known.cluster_uuid != welcome.cluster_uuid => {
                let why = format!(
                    "this is cluster {} ({}) and not {} ({}) any more",
                    welcome.cluster_name,
                    welcome.cluster_uuid,
                    known.cluster_name,
                    known.cluster_uuid
                );
                Err(Failure::Refused(why).into())
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn checkin(&self, connection: Connection) {
        let mut state = self.state.lock();
        if connection.generation == state.generation && !self.aborted.load(Ordering::Acquire) {
            state.idle.push(connection);
        } else {
            state.remove(connection);
        }
        drop(state);
        self.freed.notify_one();
    }

    fn discard(&self, connection: Connection) {
        self.state.lock().remove(connection);
        self.freed.notify_one();
    }

    /// This connection and the idle ones: the next request greets anew.
    fn drop_connections(&self, connection: Connection) {
        let mut state = self.state.lock();
        state.remove(connection);
        state.drop_idle();
        drop(state);
        self.freed.notify_all();
    }

    pub(super) fn take_slot(&self, until: Instant) -> Result<Slot, CallError> {
        let mut state = self.state.lock();
        loop {
            self.check_aborted()?;
            if let Some(slot) = state.free_slots.pop() {
                return Ok(slot);
            }
            self.wait(&self.slot_freed, &mut state, until)?;
        }
    }

    pub(super) fn give_slot(&self, slot: Slot) {
        let mut state = self.state.lock();
        if slot.generation == state.generation {
            state.free_slots.push(slot);
        }
        drop(state);
        self.slot_freed.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The subscription's connection lives in its thread: wake it.
        self.state.get_mut().closers.values().for_each(Closer::close);
    }
}

/// The node has taken one of the versions that this client named.
pub(crate) fn check_protocol(welcome: &Welcome) -> Result<(), CallError> {
    match (PROTOCOLS.min..=PROTOCOLS.max).contains(&welcome.protocol) {
        true => Ok(()),
        false => {
            let (taken, ours) = (welcome.protocol, PROTOCOLS);
            let why = format!("the node answers in protocol {taken}, this program speaks {ours}");
            Err(Failure::Protocol(why).into())
        }
    }
}

/// While greeting, what TLS objects to is about the certificates and stays as it is.
pub(crate) fn distrust(error: FrameError) -> CallError {
    let FrameError::Io(io) = &error else { return error.into() };
    match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => TlsError::from_handshake(tls).into(),
        None => error.into(),
    }
}
