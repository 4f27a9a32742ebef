//! The blocking half of a client: one session, a bounded pool of connections, retries.
//!
//! A request that broke with its connection is sent again on a new one until the deadline. Reads may
//! be repeated freely; mutations carry `(slot, seq)`, so that the server answers a repetition with
//! the stored reply. When the server no longer knows the session, what was under way is in doubt and
//! fails with [`CallError::SessionLost`]; later calls go on in a new session.

pub(crate) mod connection;
pub(crate) mod dial;
mod events;
mod keep;
pub(crate) mod pool;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftmeta_types::lock::Lock;
use raftmeta_types::{Command, Ino, Reply, SessionId};

use self::dial::Dial;
use self::pool::{Inner, Slot};
use crate::frame::FrameError;
use crate::message::{Event, Failure, Limits, Request, Response, Welcome};
use crate::tls::{Identity, TlsError};

/// Most connections of a session (without the subscription); a further call waits for one.
pub const CONNECTIONS_MAX: usize = 32;
/// Mutations under way at once; a further one waits.
pub const SLOTS: u16 = 64;
/// Pause before the second attempt; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Where the storage node is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// Same host; the kernel says who we are.
    Unix(PathBuf),
    /// Tried in order.
    Tcp { addrs: Vec<SocketAddr>, identity: Identity },
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
    /// Directory of the [`crate::credentials`] that the identity is from: the certificate is renewed there
    /// before it ends.
    pub credentials: Option<PathBuf>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            client: String::new(),
            build: env!("CARGO_PKG_VERSION").into(),
            deadline: Duration::from_secs(30),
            admin: false,
            credentials: None,
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
    /// One side does not trust the other: trying again does not help.
    #[error(transparent)]
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

    /// Nothing came in time, for no reason that is known.
    fn is_silence(&self) -> bool {
        match self {
            CallError::Transport(FrameError::Io(error)) => {
                matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
            }
            _ => false,
        }
    }
}

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

impl Client {
    /// Opens a session. Fails at the deadline when no storage node can be reached, with the last reason.
    pub fn connect(endpoint: Endpoint, options: ConnectOptions) -> Result<Client, CallError> {
        let inner = Arc::new(Inner::new(Dial::new(endpoint)?, options));
        let until = Instant::now() + inner.options.deadline;
        let mut backoff = BACKOFF_MIN;
        loop {
            match inner.checkout(until) {
                Ok(connection) => {
                    inner.checkin(connection);
                    break;
                }
                Err(error) if error.is_transient() => {
                    if Instant::now() + backoff >= until && !error.is_silence() {
                        return Err(error);
                    }
                    inner.pause(&mut backoff, until, error)?;
                }
                Err(error) => return Err(error),
            }
        }
        let client = Client { inner };
        if !client.inner.options.admin {
            client.keep_alive();
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
            match self.inner.attempt(None, request, data, until).answer {
                // The next attempt opens a new session.
                Err(error) if error.is_transient() || matches!(error, CallError::SessionLost) => {
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
            let attempt = self.inner.attempt(Some(taken.generation), request, &[], until);
            sent |= attempt.sent;
            match attempt.answer {
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
    pub fn subscribe(&self, notify: impl Fn(Event) + Send + 'static) -> io::Result<()> {
        let weak = Arc::downgrade(&self.inner);
        thread::Builder::new()
            .name("cfs-events".into())
            .spawn(move || events::follow(&weak, &notify))?;
        Ok(())
    }

    /// Ends the session in order: locks and orphans are released. Later calls fail.
    pub fn goodbye(&self) {
        let until = Instant::now() + self.inner.options.deadline.min(Duration::from_secs(5));
        if let Err(error) = self.inner.attempt(None, &Request::Goodbye, &[], until).answer {
            tracing::debug!(%error, "goodbye was not answered");
        }
        self.abort();
    }

    /// Makes every call under way and every later one fail at once.
    pub fn abort(&self) {
        self.inner.abort();
    }

    /// Connections from now on show this certificate.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), CallError> {
        self.inner.dial.set_identity(identity)
    }

    fn keep_alive(&self) {
        let (stop, stopped) = mpsc::channel::<()>();
        *self.inner.keep_stop.lock() = Some(stop);
        let every = Duration::from_millis(u64::from(self.limits().lease_ms).max(300) / 3);
        let weak = Arc::downgrade(&self.inner);
        let keep = move || keep::session(&weak, every, &stopped);
        if let Err(error) = thread::Builder::new().name("cfs-keep".into()).spawn(keep) {
            tracing::warn!(%error, "no thread for pings: an idle session will expire");
        }
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
