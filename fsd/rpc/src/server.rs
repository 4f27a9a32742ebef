//! The tokio half of a server: accepts, knows its peers, bounds them, and hands requests on.
//!
//! Every connection is a task; a greeted local one has a thread beside it (`server/local.rs`). Bad bytes, silence or a vanished peer end that connection and nothing
//! else. What a peer may do follows from who it is: a Unix peer by its uid, a TLS peer by its
//! certificate, and a TLS peer without one may only enrol: it is served no other byte.

mod connection;
mod doors;
mod live;
mod local;
mod relay;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use raftmeta_types::SessionId;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use self::doors::{Accepted, Doors};
use self::live::Live;

use crate::message::{
    Enrolment, Event, Failure, Hello, Join, PROTOCOLS, Request, Response, Versions, Welcome,
};
use crate::nodes::Upstream;
use crate::tls::Facts;

/// Most connections at each door; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// Most network connections that have not greeted; further ones are closed at once, so that strangers
/// cannot take the room of clients.
pub const STRANGERS_MAX: usize = 128;
/// Most connections of one session; the greeting of a further one is refused.
pub const SESSION_CONNECTIONS_MAX: usize = 64;
/// A TLS handshake that takes longer is broken off.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection that has not greeted, or enrolled, by then is closed.
const GREETING_MAX: Duration = Duration::from_secs(30);
/// A greeting's message is short; what a client has open comes in the data part.
const HELLO_META_LEN_MAX: usize = 4 << 10;
/// A connection without a request for this long is closed; its session lives by its lease.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A peer that does not take or give the rest of a frame for this long is gone.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often a subscriber hears that the server lives.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How often the certificates of open connections are looked at again: a revocation by another node
/// takes effect within this time.
const RECHECK_EVERY: Duration = Duration::from_secs(20);
/// How long requests under way may take to end at stop.
const STOP_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Versions of the protocol that are spoken.
    pub protocols: Versions,
    /// Path of the local door.
    pub unix: Option<PathBuf>,
    /// Who may use it besides root and the server's own user.
    pub allowed_uids: Vec<u32>,
    /// Address of the network door; it speaks only TLS.
    pub tcp: Option<(SocketAddr, Arc<rustls::ServerConfig>)>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { protocols: PROTOCOLS, unix: None, allowed_uids: Vec::new(), tcp: None }
    }
}

/// Why somebody was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TLS did not come about: there was no TLS at all, or the other end does not trust this node.
    Handshake,
    /// A certificate of another authority.
    Authority,
    /// A certificate that has ended, or has not begun.
    Dates,
    /// A certificate that was revoked.
    Revoked,
    /// A certificate that is missing, cannot be read, or is not that of who it shall be.
    Certificate,
    /// A user of this host who may not use the local door.
    User,
    /// Bytes that are no request, or a request where it does not belong.
    Garbage,
    /// No version of the protocol in common.
    Protocol,
    /// More connections than there is room for.
    Crowd,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Unix {
        uid: u32,
        gid: u32,
        pid: Option<i32>,
    },
    /// Verified against the cluster CA, in its time.
    Tls {
        certificate: Facts,
        address: SocketAddr,
    },
    /// No certificate: may only enrol.
    TlsAnonymous {
        address: SocketAddr,
    },
}

/// One greeted connection.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Unique while the server runs.
    pub id: u64,
    pub peer: Peer,
    /// 0 for administrators.
    pub session: SessionId,
    /// The version of the protocol that both speak.
    pub protocol: u32,
    pub hello: Hello,
}

/// What fsd does with requests. Every future may be dropped when the server stops.
pub trait Handler: Send + Sync + 'static {
    /// Whether this peer may be served: false for a certificate that was revoked, or never issued. Asked
    /// before `hello`, for every open connection from time to time, and at [`Control::recheck`]. Only TLS
    /// peers with a certificate are asked about; their time has been checked.
    fn admits(&self, peer: &Peer) -> bool;

    /// Opens, resumes or joins a session.
    fn hello(
        &self,
        peer: &Peer,
        hello: &Hello,
    ) -> impl Future<Output = Result<Welcome, Failure>> + Send;

    /// Answers `Request::Enrol`, from anybody.
    fn enrol(
        &self,
        peer: &Peer,
        enrolment: Enrolment,
    ) -> impl Future<Output = Result<Response, Failure>> + Send;

    /// Answers `Request::Join`, from anybody.
    fn join(
        &self,
        peer: &Peer,
        _join: Join,
    ) -> impl Future<Output = Result<Response, Failure>> + Send {
        let why = format!("{peer:?}: this node takes no others in");
        async { Err(Failure::Refused(why)) }
    }

    /// Somebody was refused before his request came to any of the others.
    fn refused(&self, _source: &str, _refusal: Refusal, _why: &dyn std::fmt::Display) {}

    /// Whether clients are served here. If not, their connections are passed on (`route`).
    fn serves(&self) -> bool {
        true
    }

    /// A connection to the node that serves, for this peer who has said `hello`.
    fn route(
        &self,
        _peer: &Peer,
        _hello: &Hello,
    ) -> impl Future<Output = Result<Upstream, Failure>> + Send {
        async { Err(Failure::NotReady("no other node is known".into())) }
    }

    /// Answers `Request::Renew` with `Response::Enrolled`, for the subject of the certificate that was
    /// shown.
    fn renew(
        &self,
        certificate: &Facts,
        csr_der: Bytes,
    ) -> impl Future<Output = Result<Response, Failure>> + Send;

    /// Anything but `Hello`, `Enrol`, `Renew` and `Subscribe`.
    fn call(
        &self,
        conn: &Conn,
        request: Request,
        data: Bytes,
    ) -> impl Future<Output = (Response, Vec<Bytes>)> + Send;

    /// Events for this connection from now on; closing the channel ends the connection.
    fn subscribe(&self, conn: &Conn) -> Result<mpsc::Receiver<Event>, Failure>;

    /// The connection ended; its session lives on until its lease runs out.
    fn disconnected(&self, conn: &Conn);
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{path} is served by another process already: stop it first")]
    InUse { path: PathBuf },
    #[error("{path} exists and is no socket: remove it or configure another path")]
    NotASocket { path: PathBuf },
    #[error("cannot listen on {path}: {source}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
}

/// Listening doors, not yet serving.
pub struct Server {
    protocols: Versions,
    doors: Doors,
    allowed_uids: Vec<u32>,
    control: Control,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("doors", &self.doors).finish_non_exhaustive()
    }
}

/// Steers a running server. Clones steer the same one.
#[derive(Clone)]
pub struct Control {
    recheck: Arc<Notify>,
    tls: Arc<Mutex<Option<TlsAcceptor>>>,
    /// Counts how often everybody was sent away.
    moves: watch::Sender<u64>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Asks [`Handler::admits`] for every open connection now: call it after a revocation.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Ends every connection but those of nodes: another node leads from now on, and who comes again is
    /// served there. What is under way is not answered.
    pub fn send_away(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Connections from now on are greeted with this certificate: call it after a renewal.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) {
        *self.tls.lock() = Some(TlsAcceptor::from(tls));
    }
}

/// What the tasks of a running server share.
struct Shared<H> {
    handler: Arc<H>,
    protocols: Versions,
    stop: watch::Receiver<bool>,
    sessions: Mutex<HashMap<SessionId, usize>>,
    live: Live,
    allowed_uids: Vec<u32>,
    control: Control,
    strangers: Arc<Semaphore>,
}

impl Server {
    /// Binds the doors. A socket file that nobody serves is replaced, a served one refused.
    pub async fn bind(config: ServerConfig) -> Result<Server, ServerError> {
        let (address, tls) = config.tcp.unzip();
        let doors = Doors::bind(config.unix, address).await?;
        let mut allowed_uids = config.allowed_uids;
        allowed_uids.extend([0, rustix::process::geteuid().as_raw()]);
        let tls = Arc::new(Mutex::new(tls.map(TlsAcceptor::from)));
        let control = Control { recheck: Arc::default(), tls, moves: watch::Sender::new(0) };
        Ok(Server { protocols: config.protocols, doors, allowed_uids, control })
    }

    /// The network door's address, with the port that the system chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.doors.tcp_address()
    }

    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Serves until `stop` turns true, then lets requests under way end (5 s at most) and removes
    /// the socket file.
    pub async fn run(self, handler: Arc<impl Handler>, mut stop: watch::Receiver<bool>) {
        let Server { protocols, doors, allowed_uids, control } = self;
        let shared = Arc::new(Shared {
            handler,
            protocols,
            stop: stop.clone(),
            sessions: Mutex::default(),
            live: Live::default(),
            allowed_uids,
            control: control.clone(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(recheck(shared.clone()));
        let mut next_id = 1;
        let room = [CONNECTIONS_MAX; 2].map(|most| Arc::new(Semaphore::new(most)));
        while !*stop.borrow() {
            let accepted = tokio::select! {
                biased;
                changed = stop.changed() => {
                    if changed.is_err() { break }
                    continue;
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = doors.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => admit(&shared, &mut tasks, &room, accepted, &mut next_id),
                Err(error) => {
                    // Out of descriptors, most likely: give the others time to go.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        doors.close();
        let ending = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, ending).await.is_err() {
            tracing::warn!("requests under way were cut off at stop");
        }
    }
}

/// Gives an accepted connection its task, or closes it when there is no room.
fn admit<H: Handler>(
    shared: &Arc<Shared<H>>,
    tasks: &mut JoinSet<()>,
    room: &[Arc<Semaphore>; 2],
    accepted: Accepted,
    next_id: &mut u64,
) {
    let door = match accepted {
        Accepted::Unix(_) => 0,
        Accepted::Tcp(..) => 1,
    };
    let Ok(permit) = room[door].clone().try_acquire_owned() else {
        let why = format!("{CONNECTIONS_MAX} connections are open: a further one was closed");
        return shared.handler.refused(&accepted.source(), Refusal::Crowd, &why);
    };
    let id = *next_id;
    *next_id += 1;
    let shared = shared.clone();
    tasks.spawn(async move {
        connection::serve(shared, accepted, id).await;
        drop(permit);
    });
}

/// Ends connections whose certificate was revoked or has ended, until the server stops.
async fn recheck<H: Handler>(shared: Arc<Shared<H>>) {
    let mut stop = shared.stop.clone();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = shared.control.recheck.notified() => {}
            () = tokio::time::sleep(RECHECK_EVERY) => {}
        }
        shared.live.end_unless(|peer| shared.admits(peer));
    }
}

impl Peer {
    /// What stays the same when it comes again: its user, or its address without the port, and whose certificate it
    /// has shown.
    pub fn source(&self) -> String {
        match self {
            Peer::Unix { uid, .. } => format!("uid {uid}"),
            Peer::Tls { certificate, address } => {
                format!("{} at {}", certificate.subject, address.ip())
            }
            Peer::TlsAnonymous { address } => address.ip().to_string(),
        }
    }
}

impl<H: Handler> Shared<H> {
    fn admits(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Tls { certificate, .. } => {
                certificate.expires_secs > now_secs() && self.handler.admits(peer)
            }
            Peer::Unix { .. } | Peer::TlsAnonymous { .. } => true,
        }
    }
}

/// Seconds since 1970.
fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
