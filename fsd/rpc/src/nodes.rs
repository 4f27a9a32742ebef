//! From storage node to storage node: connections kept for each target, one request at a time on each.
//!
//! ```text
//!   call(target, request) ─ idle connection, or a new one ─ reply ─ back among the idle
//!   relay(target, …)      ─ a new one, given away greeted: bytes are passed on from then on
//! ```
//! TLS both ways with the nodes' own certificates: the one at the other end has to be the node that is meant,
//! not just any of the cluster. A request that failed is not sent again: who asks knows whether it may be.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use raftmeta_types::NodeId;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::CallError;
use crate::client::dial::UNHEARD_MS_MAX;
use crate::client::pool::{check_protocol, distrust};
use crate::frame::{self, FrameError, Kind};
use crate::message::{Failure, Hello, NodeRequest, Origin, PROTOCOLS, Request, Response, Role};
use crate::server::Peer;
use crate::tls::{self, Identity, TlsError};

/// Requests of one kind under way to one node; further ones wait for a place.
const CALLS_MAX: usize = 64;
/// Connections kept for a node without a request.
const IDLE_MAX: usize = 16;
/// A node that is reached takes less; a lost one is given up after this.
const DIAL_MAX: Duration = Duration::from_secs(3);
const READ_BUFFER_BYTES: usize = 16 << 10;

/// A node and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub node: NodeId,
    /// `host:port`
    pub address: String,
}

type Stream = BufReader<TlsStream<TcpStream>>;

/// A greeted connection to the node that serves a client, and what it said.
pub struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) answer: Response,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("answer", &self.answer).finish_non_exhaustive()
    }
}

/// What is urgent does not wait behind what is large: each kind of request has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// Small, and somebody counts the seconds: the metadata group, signs of life, epochs.
    Urgent,
    /// Ops of shards.
    Replica,
    /// Chunks, and all that may take long.
    Bulk,
}

fn lane(request: &Request) -> Lane {
    match request {
        Request::Raft
        | Request::Node(
            NodeRequest::Usage { .. }
            | NodeRequest::Announce { .. }
            | NodeRequest::NewEpoch { .. }
            | NodeRequest::Reclaim,
        ) => Lane::Urgent,
        Request::Replica => Lane::Replica,
        _ => Lane::Bulk,
    }
}

struct Pool {
    room: Semaphore,
    idle: Mutex<Vec<Stream>>,
}

/// Connections of one node to the others. Clones share them.
#[derive(Clone)]
pub struct Nodes {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    connector: Mutex<TlsConnector>,
    pools: Mutex<HashMap<(Target, Lane), Arc<Pool>>>,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("own", &self.inner.own).finish_non_exhaustive()
    }
}

/// A connection that nothing comes through any more ends, also while only an answer is waited for.
fn notice_silence(tcp: &TcpStream) -> rustix::io::Result<()> {
    let unheard = Duration::from_millis(UNHEARD_MS_MAX.into());
    rustix::net::sockopt::set_tcp_user_timeout(tcp, UNHEARD_MS_MAX)?;
    rustix::net::sockopt::set_tcp_keepidle(tcp, unheard)?;
    rustix::net::sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(1))?;
    rustix::net::sockopt::set_socket_keepalive(tcp, true)
}

impl Nodes {
    /// Connections of node `own`, which shows this identity.
    pub fn new(own: NodeId, identity: &Identity) -> Result<Nodes, TlsError> {
        let connector = Mutex::new(TlsConnector::from(tls::client_config(identity)?));
        Ok(Nodes { inner: Arc::new(Inner { own, connector, pools: Mutex::default() }) })
    }

    /// Connections from now on show this certificate.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), TlsError> {
        *self.inner.connector.lock() = TlsConnector::from(tls::client_config(identity)?);
        self.inner.pools.lock().clear();
        Ok(())
    }

    /// Asks a node. `Response::Failed` comes back as [`CallError::Failure`].
    ///
    /// # Errors
    /// `Timeout` after `deadline`, everything included; `Transport`, `Tls`: it is not known whether the
    /// request was done.
    pub async fn call(
        &self,
        target: &Target,
        request: &Request,
        data: &[Bytes],
        deadline: Duration,
    ) -> Result<(Response, Bytes), CallError> {
        let called = timeout(deadline, self.exchange(target, request, data)).await;
        match called.map_err(|_| CallError::Timeout(deadline))?? {
            (Response::Failed(failure), _) => Err(failure.into()),
            answer => Ok(answer),
        }
    }

    async fn exchange(
        &self,
        target: &Target,
        request: &Request,
        data: &[Bytes],
    ) -> Result<(Response, Bytes), CallError> {
        let pool = self.pool(target, lane(request));
        let _place = pool.room.acquire().await.map_err(|_| CallError::Aborted)?;
        let idle = pool.idle.lock().pop();
        let reused = idle.is_some();
        let mut stream = match idle {
            Some(stream) => stream,
            None => self.greeted(target).await?,
        };
        let mut written = write(&mut stream, request, data).await;
        if written.is_err() && reused {
            // It was closed while nobody looked; a new one tells whether the node is there.
            pool.idle.lock().clear();
            stream = self.greeted(target).await?;
            written = write(&mut stream, request, data).await;
        }
        written?;
        let read = frame::read_async(&mut stream).await;
        if read.is_err() && reused {
            // So are the others, most likely: the next request finds out whether the node is there.
            pool.idle.lock().clear();
        }
        let frame = read?;
        let response: Response = frame.message(Kind::Reply)?;
        if !matches!(response, Response::Failed(Failure::Protocol(_))) {
            let mut idle = pool.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(stream);
            }
        }
        Ok((response, frame.data))
    }

    fn pool(&self, target: &Target, lane: Lane) -> Arc<Pool> {
        let mut pools = self.inner.pools.lock();
        let key = (target.clone(), lane);
        if let Some(pool) = pools.get(&key) {
            return Arc::clone(pool);
        }
        // The same node under another address: the old one is not used any more.
        pools.retain(|(known, _), _| known.node != target.node || known == target);
        let pool = Arc::new(Pool { room: Semaphore::new(CALLS_MAX), idle: Mutex::default() });
        pools.insert(key, Arc::clone(&pool));
        pool
    }

    async fn greeted(&self, target: &Target) -> Result<Stream, CallError> {
        let hello = hello(Role::Node { id: self.inner.own });
        let (stream, answer) = self.greet(target, &hello, &[]).await?;
        match answer {
            Response::Welcome(welcome) => {
                check_protocol(&welcome)?;
                Ok(stream)
            }
            Response::Failed(failure) => Err(failure.into()),
            _ => Err(CallError::UnexpectedAnswer),
        }
    }

    /// A connection for somebody else, to the node that leads.
    pub async fn relay(
        &self,
        target: &Target,
        peer: &Peer,
        client: &Hello,
        deadline: Duration,
    ) -> Result<Upstream, CallError> {
        let open = match &client.role {
            Role::Session { open, .. } => open.as_slice(),
            Role::NewSession { .. }
            | Role::Admin
            | Role::Enrol
            | Role::Node { .. }
            | Role::Relayed { .. } => &[],
        };
        let data: Bytes = open.iter().flat_map(|ino| ino.0.to_le_bytes()).collect();
        let hello = hello(Role::Relayed { from: origin(peer), hello: Box::new(client.clone()) });
        let data = if data.is_empty() { vec![] } else { vec![data] };
        let greeted = timeout(deadline, self.greet(target, &hello, &data)).await;
        let (stream, answer) = greeted.map_err(|_| CallError::Timeout(deadline))??;
        Ok(Upstream { stream, answer })
    }

    /// Connects, makes sure of who answers, and says hello.
    async fn greet(
        &self,
        target: &Target,
        hello: &Request,
        data: &[Bytes],
    ) -> Result<(Stream, Response), CallError> {
        let connector = self.inner.connector.lock().clone();
        let reached = timeout(DIAL_MAX, TcpStream::connect(&target.address)).await;
        let reached = reached.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tcp = reached.map_err(|error| {
            let why = format!("cannot reach {target}: {error}");
            FrameError::Io(io::Error::new(error.kind(), why))
        })?;
        tcp.set_nodelay(true).map_err(FrameError::Io)?;
        notice_silence(&tcp).map_err(|error| FrameError::Io(error.into()))?;
        let shaken = timeout(DIAL_MAX, connector.connect(tls::server_name(), tcp)).await;
        let shaken = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let tls = shaken.map_err(|error| distrust(FrameError::Io(error)))?;
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let subject = certificate.and_then(|der| tls::facts(der)).map(|facts| facts.subject);
        let meant = format!("node:{}", target.node);
        if subject.as_ref() != Some(&meant) {
            let found = subject.unwrap_or_else(|| "somebody else".into());
            let why = format!("at {} answers {found}, not {meant}", target.address);
            return Err(Failure::Refused(why).into());
        }
        let mut stream = BufReader::with_capacity(READ_BUFFER_BYTES, tls);
        write(&mut stream, hello, data).await.map_err(distrust)?;
        // Only now does the other end say what it thinks of this node's certificate.
        let frame = frame::read_async(&mut stream).await.map_err(distrust)?;
        Ok((stream, frame.message(Kind::Reply)?))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} at {}", self.node, self.address)
    }
}

fn hello(role: Role) -> Request {
    let build = env!("CARGO_PKG_VERSION").to_owned();
    Request::Hello(Hello { protocols: PROTOCOLS, build, role })
}

fn origin(peer: &Peer) -> Origin {
    match peer {
        Peer::Unix { uid, gid, .. } => Origin::Unix { uid: *uid, gid: *gid },
        Peer::Tls { certificate, address } => Origin::Tls {
            subject: certificate.subject.clone(),
            serial: certificate.serial,
            expires_secs: certificate.expires_secs,
            address: *address,
        },
        Peer::TlsAnonymous { address } => Origin::Anonymous { address: *address },
    }
}

async fn write(stream: &mut Stream, request: &Request, data: &[Bytes]) -> Result<(), FrameError> {
    frame::write_async(stream.get_mut(), Kind::Request, request, data).await
}
