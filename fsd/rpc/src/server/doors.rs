//! The listening sockets.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::ServerError;

#[derive(Debug)]
pub(super) struct Doors {
    unix: Option<(UnixListener, PathBuf)>,
    tcp: Option<TcpListener>,
}

pub(super) enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

impl Accepted {
    /// What stays the same when it comes again: its user, or its address without the port.
    pub(super) fn source(&self) -> String {
        match self {
            Accepted::Unix(stream) => match stream.peer_cred() {
                Ok(credentials) => format!("uid {}", credentials.uid()),
                Err(_) => "the local door".into(),
            },
            Accepted::Tcp(_, address) => address.ip().to_string(),
        }
    }
}

impl Doors {
    pub(super) async fn bind(
        unix: Option<PathBuf>,
        tcp: Option<SocketAddr>,
    ) -> Result<Doors, ServerError> {
        let unix = match unix {
            Some(path) => Some((bind_unix(&path)?, path)),
            None => None,
        };
        let tcp = match tcp {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| ServerError::Tcp { address, source })?)
            }
            None => None,
        };
        Ok(Doors { unix, tcp })
    }

    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The next connection at any door. Cancel-safe.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        let unix = async {
            match &self.unix {
                Some((listener, _)) => listener.accept().await.map(|(s, _)| Accepted::Unix(s)),
                None => std::future::pending().await,
            }
        };
        let tcp = async {
            match &self.tcp {
                Some(listener) => listener.accept().await.map(|(s, from)| Accepted::Tcp(s, from)),
                None => std::future::pending().await,
            }
        };
        tokio::select! { accepted = unix => accepted, accepted = tcp => accepted }
    }

    /// Stops listening and removes the socket file.
    pub(super) fn close(self) {
        if let Some((listener, path)) = self.unix {
            drop(listener);
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(%error, path = %path.display(), "socket file");
            }
        }
    }
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
