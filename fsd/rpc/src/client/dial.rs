//! Reaching a storage node: a Unix socket, or the first address that answers, under TLS. A node that
//! answers and cannot help makes the next one the first.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::connection::Stream;
use super::{CallError, Endpoint};
use crate::credentials::resolve;
use crate::frame::FrameError;
use crate::tls::{self, Identity};

/// Addresses that a client remembers.
const ADDRESSES_MAX: usize = 64;
/// Longest wait for one of several addresses.
const ADDRESS_MAX: Duration = Duration::from_secs(2);
/// A connection whose bytes nobody takes for this long has ended: the node is gone, or cut off.
pub(crate) const UNHEARD_MS_MAX: u32 = 5000;

pub(crate) enum Dial {
    Unix(PathBuf),
    Tcp {
        addrs: Mutex<Vec<SocketAddr>>,
        /// Which of them is tried first.
        first: AtomicUsize,
        tls: Mutex<Arc<ClientConfig>>,
    },
}

impl Dial {
    pub(super) fn new(endpoint: Endpoint) -> Result<Dial, CallError> {
        Ok(match endpoint {
            Endpoint::Unix(path) => Dial::Unix(path),
            Endpoint::Tcp { addrs, identity } => {
                let tls = Mutex::new(tls::client_config(&identity)?);
                Dial::Tcp { addrs: Mutex::new(addrs), first: AtomicUsize::new(0), tls }
            }
        })
    }

    /// Connections from now on show this certificate.
    pub(super) fn set_identity(&self, identity: &Identity) -> Result<(), CallError> {
        match self {
            Dial::Unix(_) => {}
            Dial::Tcp { tls, .. } => *tls.lock() = tls::client_config(identity)?,
        }
        Ok(())
    }

    /// These nodes exist as well; those that were known stay.
    pub(super) fn learn(&self, servers: &[String]) {
        let Dial::Tcp { addrs, .. } = self else { return };
        // One whose name is not known on this host is of no use to it.
        let found = servers.iter().filter_map(|server| resolve(std::slice::from_ref(server)).ok());
        let found: Vec<SocketAddr> = found.flatten().collect();
        let mut addrs = addrs.lock();
        for addr in found {
            if addrs.len() < ADDRESSES_MAX && !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
    }

    /// An attempt that ends so early that another node may still be asked; where there is only one, it may take all
    /// the time that there is.
    pub(super) fn limit(&self, until: Instant, most: Duration) -> Instant {
        match self {
            Dial::Tcp { addrs, .. } if addrs.lock().len() > 1 => {
                Instant::now().checked_add(most).map_or(until, |limit| limit.min(until))
            }
            Dial::Unix(_) | Dial::Tcp { .. } => until,
        }
    }

    /// The node that was reached cannot help at the moment: the next one is tried first.
    pub(super) fn turn(&self) {
        match self {
            Dial::Unix(_) => {}
            Dial::Tcp { first, .. } => {
                first.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Connects; TLS shakes hands with the first bytes. `go_on` is asked between addresses.
    pub(super) fn dial(
        &self,
        until: Instant,
        go_on: impl Fn() -> Result<(), CallError>,
    ) -> Result<Stream, CallError> {
        match self {
            Dial::Unix(path) => {
                let stream = dial_unix(path).map_err(|error| unreachable(&path.display(), &error));
                Ok(Stream::Unix(stream.map_err(FrameError::Io)?))
            }
            Dial::Tcp { addrs, first, tls } => {
                let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no address given");
                let addrs = addrs.lock().clone();
                let from = first.load(Ordering::Relaxed) % addrs.len().max(1);
                for addr in addrs[from..].iter().chain(&addrs[..from]) {
                    go_on()?;
                    match dial_tcp(addr, until) {
                        Ok(tcp) => return over_tls(tcp, tls.lock().clone()),
                        Err(error) => last = unreachable(addr, &error),
                    }
                }
                Err(FrameError::Io(last).into())
            }
        }
    }
}

/// TLS over a connection; hands are shaken with the first bytes.
pub(crate) fn over_tls(tcp: TcpStream, config: Arc<ClientConfig>) -> Result<Stream, CallError> {
    let tls = ClientConnection::new(config, tls::server_name())
        .map_err(|error| CallError::Tls(error.into()))?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(tls, tcp))))
}

/// Never waits: when the server does not take connections, that is an error to try again.
fn dial_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

pub(crate) fn dial_tcp(addr: &SocketAddr, until: Instant) -> io::Result<TcpStream> {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let tcp = TcpStream::connect_timeout(addr, left.min(ADDRESS_MAX))?;
    tcp.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&tcp, UNHEARD_MS_MAX)?;
    Ok(tcp)
}

/// A failure to connect, with where to.
pub(crate) fn unreachable(place: &dyn std::fmt::Display, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot reach the storage node at {place}: {error}"))
}
