//! The tokio half of a server: accepts, knows its peers, bounds them, and hands requests on.
//!
//! Every connection is a task. Bad bytes, silence or a vanished peer end that connection and nothing
//! else. What a peer may do follows from who it is: a Unix peer by its uid, a TLS peer by its
//! certificate, and a TLS peer without one may only enrol: it is served no other byte.

mod connection;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use raftmeta_types::SessionId;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::message::{Event, Failure, Hello, Request, Response, Welcome};
use crate::tls::Facts;

/// Most connections; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// Most connections of one session; the greeting of a further one is refused.
pub const SESSION_CONNECTIONS_MAX: usize = 64;
/// A connection that has not greeted by then is closed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection without a request for this long is closed; its session lives by its lease.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A peer that does not take or give the rest of a frame for this long is gone.
const STALL_MAX: Duration = Duration::from_secs(60);
/// How often a subscriber hears that the server lives.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, Default)]
pub struct ServerConfig {
    /// Path of the local door.
    pub unix: Option<PathBuf>,
    /// Who may use it besides root and the server's own user.
    pub allowed_uids: Vec<u32>,
    /// Address of the network door; it speaks only TLS.
    pub tcp: Option<(SocketAddr, Arc<rustls::ServerConfig>)>,
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
    pub hello: Hello,
}

/// What fsd does with requests. Every future may be dropped when the server stops.
pub trait Handler: Send + Sync + 'static {
    /// Opens, resumes or joins a session. Also the place to refuse revoked certificates.
    fn hello(
        &self,
        peer: &Peer,
        hello: &Hello,
    ) -> impl Future<Output = Result<Welcome, Failure>> + Send;

    /// Answers `Request::Enrol`, from anybody.
    fn enrol(
        &self,
        peer: &Peer,
        token: String,
        csr_der: Bytes,
    ) -> impl Future<Output = Result<Response, Failure>> + Send;

    /// Anything but `Hello`, `Enrol` and `Subscribe`.
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
    unix: Option<(UnixListener, PathBuf)>,
    tcp: Option<(TcpListener, tokio_rustls::TlsAcceptor)>,
    allowed_uids: Vec<u32>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("unix", &self.unix).finish_non_exhaustive()
    }
}

/// What the tasks of a running server share.
struct Shared<H> {
    handler: Arc<H>,
    stop: watch::Receiver<bool>,
    sessions: Mutex<HashMap<SessionId, usize>>,
    allowed_uids: Vec<u32>,
}

impl Server {
    /// Binds the doors. A socket file that nobody serves is replaced, a served one refused.
    pub async fn bind(config: ServerConfig) -> Result<Server, ServerError> {
        let unix = match config.unix {
            Some(path) => Some((bind_unix(&path)?, path)),
            None => None,
        };
        let tcp = match config.tcp {
            Some((address, tls)) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|source| ServerError::Tcp { address, source })?;
                Some((listener, tokio_rustls::TlsAcceptor::from(tls)))
            }
            None => None,
        };
        let mut allowed_uids = config.allowed_uids;
        allowed_uids.extend([0, rustix::process::geteuid().as_raw()]);
        Ok(Server { unix, tcp, allowed_uids })
    }

    /// The network door's address, with the port that the system chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves until `stop` turns true, then lets requests under way end (at most 5 s) and removes
    /// the socket file.
    pub async fn run(self, handler: Arc<impl Handler>, mut stop: watch::Receiver<bool>) {
        let shared = Arc::new(Shared {
            handler,
            stop: stop.clone(),
            sessions: Mutex::default(),
            allowed_uids: self.allowed_uids,
        });
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut tasks = JoinSet::new();
        let mut id = 0;
        while !*stop.borrow() {
            let accepted = tokio::select! {
                biased;
                changed = stop.changed() => {
                    if changed.is_err() { break }
                    continue;
                }
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = accept(&self.unix, &self.tcp) => accepted,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: give the others time to go.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                tracing::warn!("{CONNECTIONS_MAX} connections: a further one was closed");
                continue;
            };
            id += 1;
            let shared = shared.clone();
            tasks.spawn(async move {
                connection::serve(shared, accepted, id).await;
                drop(permit);
            });
        }
        if let Some((listener, path)) = self.unix {
            drop(listener);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(%error, path = %path.display(), "socket file");
            }
        }
        let ending = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), ending).await.is_err() {
            tracing::warn!("requests under way were cut off at stop");
        }
    }
}

enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream, SocketAddr, tokio_rustls::TlsAcceptor),
}

async fn accept(
    unix: &Option<(UnixListener, PathBuf)>,
    tcp: &Option<(TcpListener, tokio_rustls::TlsAcceptor)>,
) -> io::Result<Accepted> {
    let unix = async {
        match unix {
            Some((listener, _)) => listener.accept().await.map(|(s, _)| Accepted::Unix(s)),
            None => std::future::pending().await,
        }
    };
    let tcp = async {
        match tcp {
            Some((listener, tls)) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address, tls.clone()))
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! { accepted = unix => accepted, accepted = tcp => accepted }
}

fn bind_unix(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Unix { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.into() });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(ServerError::InUse { path: path.into() }),
            Err(source) => return Err(failed(source)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed(source)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}
