//! How a command finds the cluster: a Unix socket of a node of this host, or TCP with mutual TLS.
//!
//! The socket is, first one wins: `--socket`, `CFS_SOCKET`, [`SOCKET`], which `cfs server` of root links to
//! the socket of its configuration. With `--server` (or `CFS_SERVER`) the network is used and the
//! certificate in `--identity` (or `CFS_IDENTITY`, else `~/.cfs`) is shown.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use fsd_rpc::admin::{AdminReply, AdminRequest};
use fsd_rpc::client::{CallError, Client, ConnectOptions, Endpoint};
use fsd_rpc::message::{Request, Response};

use crate::failed::{self, Exit, Failed};
use crate::units;

/// Where the node of this host is looked for.
pub const SOCKET: &str = "/run/claudefs/fsd.sock";
/// Port of a node's network door where none is given.
const PORT: u16 = 9400;

/// Where the cluster is.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// Unix socket of a node of this host [default: /run/claudefs/fsd.sock]
    #[arg(long, value_name = "PATH", env = "CFS_SOCKET", global = true)]
    pub socket: Option<PathBuf>,
    /// Storage nodes over the network (TCP with mutual TLS), instead of the socket; port 9400 if none
    #[arg(long, value_name = "HOST[:PORT],…", env = "CFS_SERVER", global = true)]
    pub server: Option<String>,
    /// Directory of this client's certificate [default: ~/.cfs]
    #[arg(long, value_name = "DIR", env = "CFS_IDENTITY", global = true)]
    pub identity: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration, global = true)]
    pub timeout: Duration,
}

impl Connection {
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| SOCKET.into())
    }

    /// The node of this host answers here, or the reason why not at once: not after a time of retries.
    pub fn probe(socket: &Path) -> Result<(), Failed> {
        let error = match UnixStream::connect(socket) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let path = socket.display();
        let absent = |what| {
            Failed::new(Exit::Precondition, "NO_SERVER", what).next(
                "start a node with `cfs server --config FILE`, or name its socket with --socket, or a \
                 node of the network with --server",
            )
        };
        Err(match error.kind() {
            io::ErrorKind::NotFound => absent(format!("no storage node on this host: no {path}")),
            io::ErrorKind::ConnectionRefused => {
                absent(format!("no storage node on this host: nobody serves {path}"))
            }
            io::ErrorKind::PermissionDenied => {
                let what = format!("{path}: permission denied");
                Failed::new(Exit::Failed, "PERMISSION", what)
                    .next("run as root, or as a user of the node's `door.allow_uids`")
            }
            _ => Failed::new(Exit::Failed, "CONNECTION", format!("{path}: {error}")),
        })
    }

    /// The endpoint of the socket, or of the network with the identity that is stored.
    pub fn endpoint(&self) -> Result<Endpoint, Failed> {
        let Some(server) = &self.server else {
            let socket = self.socket();
            Connection::probe(&socket)?;
            return Ok(Endpoint::Unix(socket));
        };
        let addrs = resolve(server)?;
        let identity = crate::identity::load(self.identity.as_deref())?;
        Ok(Endpoint::Tcp { addrs, identity })
    }

    /// An administrator's connection.
    pub fn admin(&self) -> Result<Admin, Failed> {
        let endpoint = self.endpoint()?;
        let options =
            ConnectOptions { deadline: self.timeout, admin: true, ..ConnectOptions::default() };
        let place = self.server.clone().unwrap_or_else(|| self.socket().display().to_string());
        let client = Client::connect(endpoint, options)
            .map_err(|error| failed::call(&format!("cannot talk to {place}"), error))?;
        Ok(Admin { client })
    }
}

/// Addresses of `HOST[:PORT],…`, in that order.
pub fn resolve(servers: &str) -> Result<Vec<SocketAddr>, Failed> {
    let mut addrs = Vec::new();
    for server in servers.split(',').map(str::trim) {
        let failed = |why: String| {
            let what = format!("cannot resolve storage node `{server}`: {why}");
            Failed::new(Exit::Failed, "RESOLVE", what).next("name it as HOST or HOST:PORT")
        };
        if server.is_empty() {
            return Err(failed("no name".into()));
        }
        let found = if let Ok(ip) = server.parse::<std::net::IpAddr>() {
            (ip, PORT).to_socket_addrs()
        } else if server.contains(':') {
            server.to_socket_addrs()
        } else {
            (server, PORT).to_socket_addrs()
        };
        addrs.extend(found.map_err(|error| failed(error.to_string()))?);
    }
    Ok(addrs)
}

/// See [`Connection::admin`].
#[derive(Debug)]
pub struct Admin {
    client: Client,
}

impl Admin {
    /// Asks; `doing` begins the message of a failure.
    pub fn ask(&self, doing: &str, request: AdminRequest) -> Result<AdminReply, Failed> {
        match self.client.call(&Request::Admin(request), &[]) {
            Ok((Response::Admin(reply), _)) => Ok(reply),
            Ok(_) => Err(failed::call(doing, CallError::UnexpectedAnswer)),
            Err(error) => Err(failed::call(doing, error)),
        }
    }

    /// The cluster that answers: name and identity.
    pub fn cluster(&self) -> (String, uuid::Uuid) {
        let welcome = self.client.welcome();
        (welcome.cluster_name, welcome.cluster_uuid)
    }
}

/// The failure of an answer that does not belong to the question.
pub fn unexpected(doing: &str) -> Failed {
    failed::call(doing, CallError::UnexpectedAnswer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_default_port() {
        let text = |servers| {
            let addrs = resolve(servers).unwrap();
            addrs.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text("127.0.0.1"), ["127.0.0.1:9400"]);
        assert_eq!(text("127.0.0.1:7, 127.0.0.2"), ["127.0.0.1:7", "127.0.0.2:9400"]);
        assert_eq!(text("::1,[::1]:7"), ["[::1]:9400", "[::1]:7"]);
    }

    #[test]
    fn what_is_no_address_is_named() {
        for wrong in ["", "127.0.0.1:x", "127.0.0.1,,"] {
            let failed = resolve(wrong).unwrap_err();
            assert_eq!(failed.code, "RESOLVE", "{wrong}");
        }
    }

    #[test]
    fn an_absent_server_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.sock");
        let failed = Connection::probe(&path).unwrap_err();
        assert_eq!((failed.exit, failed.code.as_str()), (Exit::Precondition, "NO_SERVER"));
        assert!(failed.what.contains("none.sock"), "{failed}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let failed = Connection::probe(&path).unwrap_err();
        assert!(failed.what.contains("nobody serves"), "{failed}");
    }
}
