//! The blocking half of a client: one session, a bounded pool of connections, retries.
//!
//! A request that broke with its connection is sent again on a new one until the deadline. Reads may
//! be repeated freely; mutations carry `(slot, seq)`, so that the server answers a repetition with
//! the stored reply. When the server no longer knows the session, what was under way is in doubt and
//! fails with [`CallError::SessionLost`]; later calls go on in a new session.

mod connection;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use raftmeta_types::lock::Lock;
use raftmeta_types::{Command, Ino, Reply, SessionId};

use self::connection::{Closer, Connection};
use crate::frame::FrameError;
use crate::message::{Event, Failure, Limits, PROTOCOL_VERSION, Request, Response, Role, Welcome};
use crate::tls::{Identity as ClientIdentity, TlsError};

/// Most connections of a session (without the subscription); a further call waits for one.
pub const CONNECTIONS_MAX: usize = 32;
/// Mutations under way at once; a further one waits.
pub const SLOTS: u16 = 64;
/// Pause before the second attempt; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// The server says at least every 15 s on a subscription that it lives; after this it is gone.
const SUBSCRIPTION_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where the storage node is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Same host; the kernel says who we are.
    Unix(PathBuf),
    /// Tried in order.
    Tcp { addrs: Vec<SocketAddr>, identity: ClientIdentity },
}

#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Shown to administrators: host name and mountpoint.
    pub client: String,
    /// Version of the program.
    pub build: String,
    /// A call fails with [`CallError::Timeout`] after this long, retries included.
    pub deadline: Duration,
    /// An administrator's command: no session, no mutations.
    pub admin: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            client: String::new(),
            build: env!("CARGO_PKG_VERSION").into(),
            deadline: Duration::from_secs(30),
            admin: false,
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server's answer: it refused.
    #[error("{0}")]
    Failure(#[from] Failure),
    #[error("no answer from the storage node within {0:?}")]
    Timeout(Duration),
    /// The server forgot the session while this mutation was under way: it may or may not have
    /// been done.
    #[error("the session was lost while the request was under way")]
    SessionLost,
    /// The client was aborted (`umount --force`) or said goodbye.
    #[error("the connection was ended on this side")]
    Aborted,
    #[error("transport: {0}")]
    Transport(#[from] FrameError),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The answer is of a kind that does not belong to the request.
    #[error("unexpected answer from the storage node")]
    UnexpectedAnswer,
}

impl CallError {
    fn is_transient(&self) -> bool {
        match self {
            CallError::Transport(FrameError::Io(_)) | CallError::Failure(Failure::NotReady(_)) => {
                true
            }
            CallError::Failure(_)
            | CallError::Timeout(_)
            | CallError::SessionLost
            | CallError::Aborted
            | CallError::Transport(_)
            | CallError::Tls(_)
            | CallError::UnexpectedAnswer => false,
        }
    }
}

type OpenInodes = Box<dyn Fn() -> Vec<Ino> + Send + Sync>;

/// A session with the cluster. Clones are the same session.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("session", &self.session()).finish_non_exhaustive()
    }
}

struct Inner {
    endpoint: Endpoint,
    options: ConnectOptions,
    aborted: AtomicBool,
    /// Held while a connection greets, so that a lost session is replaced once.
    greeting: Mutex<()>,
    state: Mutex<State>,
    /// A connection, its place in the pool or a slot became free, or the client was aborted.
    freed: Condvar,
    open_inodes: Mutex<Option<OpenInodes>>,
    /// Ends the ping thread when dropped.
    ping_stop: Mutex<Option<mpsc::Sender<()>>>,
}

#[derive(Default)]
struct State {
    welcome: Option<Welcome>,
    /// Counts sessions.
    generation: u64,
    idle: Vec<Connection>,
    /// Connections that exist or are being made.
    count: usize,
    /// What ends each live connection from another thread.
    closers: HashMap<u64, Closer>,
    connections_made: u64,
    free_slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    slot: u16,
    /// Number of the slot's next command.
    seq: u64,
    generation: u64,
}

impl State {
    fn adopt(&mut self, welcome: Welcome) {
        let same = self.welcome.as_ref().is_some_and(|old| old.session == welcome.session);
        if !same {
            self.generation += 1;
            self.count -= self.idle.len();
            for connection in self.idle.drain(..) {
                self.closers.remove(&connection.id);
            }
            let generation = self.generation;
            self.free_slots =
                (0..SLOTS).rev().map(|slot| Slot { slot, seq: 1, generation }).collect();
        }
        self.welcome = Some(welcome);
    }
}

impl Client {
    /// Opens a session. Fails at the deadline when no storage node can be reached.
    pub fn connect(endpoint: Endpoint, options: ConnectOptions) -> Result<Client, CallError> {
        let inner = Arc::new(Inner {
            endpoint,
            options,
            aborted: AtomicBool::new(false),
            greeting: Mutex::new(()),
            state: Mutex::default(),
            freed: Condvar::new(),
            open_inodes: Mutex::new(None),
            ping_stop: Mutex::new(None),
        });
        let until = Instant::now() + inner.options.deadline;
        let mut backoff = BACKOFF_MIN;
        loop {
            match inner.checkout(until) {
                Ok(connection) => {
                    inner.checkin(connection);
                    break;
                }
                Err(error) if error.is_transient() => inner.pause(&mut backoff, until, error)?,
                Err(error) => return Err(error),
            }
        }
        let client = Client { inner };
        if !client.inner.options.admin {
            client.start_pinging();
        }
        Ok(client)
    }

    /// Who reports the open inodes when a session is resumed after a server restart.
    pub fn set_open_inodes(&self, report: impl Fn() -> Vec<Ino> + Send + Sync + 'static) {
        *self.inner.open_inodes.lock() = Some(Box::new(report));
    }

    pub fn session(&self) -> SessionId {
        self.inner.state.lock().welcome.as_ref().map_or(SessionId(0), |w| w.session)
    }

    /// Counts sessions, from 1: a change means that locks and open files of before are lost.
    pub fn generation(&self) -> u64 {
        self.inner.state.lock().generation
    }

    /// What the server said when the session opened.
    pub fn welcome(&self) -> Welcome {
        self.inner.state.lock().welcome.clone().expect("connect succeeded")
    }

    pub fn limits(&self) -> Limits {
        self.inner.state.lock().welcome.as_ref().expect("connect succeeded").limits.clone()
    }

    /// Asks something that may be asked twice. `Response::Failed` comes back as
    /// [`CallError::Failure`].
    pub fn call(&self, request: &Request, data: &[&[u8]]) -> Result<(Response, Bytes), CallError> {
        let until = Instant::now() + self.inner.options.deadline;
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.inner.attempt(None, request, data, until).1 {
                Err(error) if error.is_transient() => {
                    self.inner.pause(&mut backoff, until, error)?;
                }
                done => return done,
            }
        }
    }

    /// Changes something, exactly once. `durable`: answered only when it survives a power cut.
    pub fn mutate(&self, durable: bool, command: Command) -> Result<Reply, CallError> {
        let mut request = Request::Mutate { slot: 0, seq: 0, durable, command };
        self.numbered(&mut request, self.inner.options.deadline)
    }

    /// Takes a lock, waiting for conflicting ones up to `wait_ms`: `MetaError::WouldBlock` or
    /// `Failure::Timeout` after that.
    pub fn lock_wait(&self, lock: Lock, wait_ms: u32) -> Result<Reply, CallError> {
        let mut request = Request::LockWait { slot: 0, seq: 0, lock, wait_ms };
        let wait = Duration::from_millis(u64::from(wait_ms));
        self.numbered(&mut request, self.inner.options.deadline + wait)
    }

    fn numbered(&self, request: &mut Request, deadline: Duration) -> Result<Reply, CallError> {
        let until = Instant::now() + deadline;
        let mut taken = self.inner.take_slot(until)?;
        number(request, taken);
        let mut sent = false;
        let mut backoff = BACKOFF_MIN;
        let result = loop {
            let (now_sent, answer) =
                self.inner.attempt(Some(taken.generation), request, &[], until);
            sent |= now_sent;
            match answer {
                Err(CallError::SessionLost) if !sent => {
                    taken = self.inner.take_slot(until)?;
                    number(request, taken);
                }
                Err(error) if error.is_transient() => {
                    if let Err(error) = self.inner.pause(&mut backoff, until, error) {
                        break Err(error);
                    }
                }
                Ok((Response::Reply(reply), _)) => break Ok(reply),
                Ok(_) => break Err(CallError::UnexpectedAnswer),
                Err(error) => break Err(error),
            }
        };
        // The next number also fences off a command in doubt that is still on its way: arriving
        // after its successor, it is out of sequence.
        self.inner.give_slot(Slot { seq: taken.seq + u64::from(sent), ..taken });
        result
    }

    /// Calls `notify` from a thread of its own for every event, until the client ends. After a gap
    /// in the subscription it gets [`Event::Overflow`].
    pub fn subscribe(&self, notify: impl Fn(Event) + Send + 'static) -> std::io::Result<()> {
        let weak = Arc::downgrade(&self.inner);
        thread::Builder::new()
            .name("cfs-events".into())
            .spawn(move || follow_events(&weak, &notify))?;
        Ok(())
    }

    /// Ends the session in order: locks and orphans are released. Later calls fail.
    pub fn goodbye(&self) {
        let until = Instant::now() + self.inner.options.deadline.min(Duration::from_secs(5));
        if let (_, Err(error)) = self.inner.attempt(None, &Request::Goodbye, &[], until) {
            tracing::debug!(%error, "goodbye was not answered");
        }
        self.abort();
    }

    /// Makes every call under way and every later one fail at once.
    pub fn abort(&self) {
        self.inner.abort();
    }

    fn start_pinging(&self) {
        let lease_ms = u64::from(self.limits().lease_ms).max(300);
        let (stop, stopped) = mpsc::channel::<()>();
        *self.inner.ping_stop.lock() = Some(stop);
        let weak = Arc::downgrade(&self.inner);
        let ping = move || {
            let every = Duration::from_millis(lease_ms / 3);
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                let Some(inner) = weak.upgrade() else { return };
                if inner.aborted.load(Ordering::Acquire) {
                    return;
                }
                let until = Instant::now() + every;
                if let (_, Err(error)) = inner.attempt(None, &Request::Ping, &[], until) {
                    tracing::debug!(%error, "ping");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("cfs-ping".into()).spawn(ping) {
            tracing::warn!(%error, "no thread for pings: an idle session will expire");
        }
    }
}

impl Inner {
    fn check_aborted(&self) -> Result<(), CallError> {
        if self.aborted.load(Ordering::Acquire) { Err(CallError::Aborted) } else { Ok(()) }
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        let mut state = self.state.lock();
        state.closers.values().for_each(Closer::close);
        state.count -= state.idle.len();
        for connection in std::mem::take(&mut state.idle) {
            state.closers.remove(&connection.id);
        }
        drop(state);
        self.ping_stop.lock().take();
        self.freed.notify_all();
    }

    /// Waits before another attempt, or gives up with the reason when the deadline would pass.
    fn pause(
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
        let mut state = self.state.lock();
        let wake = Instant::now() + *backoff;
        while Instant::now() < wake && !self.aborted.load(Ordering::Acquire) {
            self.freed.wait_until(&mut state, wake);
        }
        drop(state);
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        self.check_aborted()
    }

    /// One attempt on one connection, only in that generation of the session if one is given
    /// (numbers mean nothing in another). Says whether the request was (perhaps) sent.
    fn attempt(
        &self,
        session: Option<u64>,
        request: &Request,
        data: &[&[u8]],
        until: Instant,
    ) -> (bool, Result<(Response, Bytes), CallError>) {
        let mut connection = match self.checkout(until) {
            Ok(connection) => connection,
            Err(error) => return (false, Err(error)),
        };
        let generation = connection.generation;
        if session.is_some_and(|session| session != generation) {
            self.checkin(connection);
            return (false, Err(CallError::SessionLost));
        }
        match connection.exchange(request, data, until) {
            Ok((Response::Failed(failure), _)) => {
                match failure {
                    Failure::Protocol(_) => self.discard(connection),
                    _ => self.checkin(connection),
                }
                (true, Err(failure.into()))
            }
            Ok(answer) => {
                self.checkin(connection);
                (true, Ok(answer))
            }
            Err(error) => {
                self.discard(connection);
                self.drop_idle();
                let error = self.check_aborted().err().unwrap_or(error.into());
                (true, Err(error))
            }
        }
    }

    /// An idle connection, or a new one when the pool has room; waits otherwise.
    fn checkout(&self, until: Instant) -> Result<Connection, CallError> {
        let mut state = self.state.lock();
        loop {
            self.check_aborted()?;
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.count < CONNECTIONS_MAX {
                break;
            }
            if self.freed.wait_until(&mut state, until).timed_out() {
                return Err(CallError::Timeout(self.options.deadline));
            }
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

    /// Connects and greets; a session that the server forgot is replaced by the new one.
    fn open(&self, until: Instant) -> Result<Connection, CallError> {
        let _one_at_a_time = self.greeting.lock();
        let id = {
            let mut state = self.state.lock();
            state.connections_made += 1;
            state.connections_made
        };
        let register = |closer: Closer| {
            self.state.lock().closers.insert(id, closer);
            // An abort that came between would have missed it.
            self.check_aborted()
        };
        let opened = self.greet(id, until, register);
        if opened.is_err() {
            self.state.lock().closers.remove(&id);
        }
        opened
    }

    fn greet(
        &self,
        id: u64,
        until: Instant,
        register: impl FnOnce(Closer) -> Result<(), CallError>,
    ) -> Result<Connection, CallError> {
        let mut connection = Connection::open(&self.endpoint, id, until)?;
        register(connection.closer()?)?;
        let known = self.state.lock().welcome.as_ref().map(|w| (w.session, w.secret));
        let mut open = Vec::new();
        let role = match known {
            _ if self.options.admin => Role::Admin,
            None => Role::NewSession { client: self.options.client.clone() },
            Some((session, secret)) => {
                let inos = self.open_inodes.lock().as_ref().map_or_else(Vec::new, |f| f());
                open = inos.iter().flat_map(|ino| ino.0.to_le_bytes()).collect();
                Role::Session { session, secret, open: Vec::new() }
            }
        };
        let hello = crate::message::Hello {
            protocol: PROTOCOL_VERSION,
            build: self.options.build.clone(),
            role,
        };
        match connection.exchange(&Request::Hello(hello), &[&open], until)?.0 {
            Response::Welcome(welcome) => {
                let mut state = self.state.lock();
                state.adopt(welcome);
                connection.generation = state.generation;
                Ok(connection)
            }
            Response::Failed(failure) => Err(failure.into()),
            _ => Err(CallError::UnexpectedAnswer),
        }
    }

    fn checkin(&self, connection: Connection) {
        let mut state = self.state.lock();
        if connection.generation == state.generation && !self.aborted.load(Ordering::Acquire) {
            state.idle.push(connection);
        } else {
            state.count -= 1;
            state.closers.remove(&connection.id);
        }
        drop(state);
        self.freed.notify_one();
    }

    fn discard(&self, connection: Connection) {
        let mut state = self.state.lock();
        state.count -= 1;
        state.closers.remove(&connection.id);
        drop(state);
        self.freed.notify_one();
    }

    /// One connection broke: the idle ones to that server are most likely broken, too.
    fn drop_idle(&self) {
        let mut state = self.state.lock();
        state.count -= state.idle.len();
        for connection in std::mem::take(&mut state.idle) {
            state.closers.remove(&connection.id);
        }
        drop(state);
        self.freed.notify_all();
    }

    fn take_slot(&self, until: Instant) -> Result<Slot, CallError> {
        let mut state = self.state.lock();
        loop {
            self.check_aborted()?;
            if let Some(slot) = state.free_slots.pop() {
                return Ok(slot);
            }
            if self.freed.wait_until(&mut state, until).timed_out() {
                return Err(CallError::Timeout(self.options.deadline));
            }
        }
    }

    fn give_slot(&self, slot: Slot) {
        let mut state = self.state.lock();
        if slot.generation == state.generation {
            state.free_slots.push(slot);
        }
        drop(state);
        self.freed.notify_all();
    }
}

fn number(request: &mut Request, taken: Slot) {
    match request {
        Request::Mutate { slot, seq, .. } | Request::LockWait { slot, seq, .. } => {
            (*slot, *seq) = (taken.slot, taken.seq);
        }
        _ => unreachable!("only mutations are numbered"),
    }
}

fn follow_events(weak: &Weak<Inner>, notify: &(impl Fn(Event) + Send)) {
    let mut backoff = BACKOFF_MIN;
    let mut first = true;
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let until = Instant::now() + inner.options.deadline;
        let opened = inner.open(until);
        let id = opened.as_ref().ok().map(|connection| connection.id);
        drop(inner);
        if let Ok(mut connection) = opened {
            let subscribed = connection.exchange(&Request::Subscribe, &[], until);
            if matches!(subscribed, Ok((Response::Done, _))) {
                backoff = BACKOFF_MIN;
                if !std::mem::replace(&mut first, false) {
                    notify(Event::Overflow);
                }
                while let Ok(event) = connection.next_event(SUBSCRIPTION_SILENCE_MAX) {
                    notify(event);
                    if weak.strong_count() == 0 {
                        return;
                    }
                }
            }
        }
        let Some(inner) = weak.upgrade() else { return };
        if let Some(id) = id {
            inner.state.lock().closers.remove(&id);
        }
        if inner.aborted.load(Ordering::Acquire) {
            return;
        }
        drop(inner);
        thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The subscription's connection lives in its thread: wake it.
        self.state.get_mut().closers.values().for_each(Closer::close);
    }
}
