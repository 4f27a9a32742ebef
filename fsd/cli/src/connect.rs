//! How a command finds a storage node.
//!
//! Administrators use the Unix socket of a node of this host; it is, first one wins: `--socket`, `CFS_SOCKET`,
//! `/run/claudefs/fsd.sock` (`$CFS_RUNTIME_DIR/fsd.sock`), where a running `cfs server` of root puts a link to its
//! socket.
//!
//! A mount may use the network as well (`--server`, TCP with mutual TLS), with the certificate in `--identity`
//! (else `~/.cfs`). Without either, the socket is used if there is one, else the network if this host is
//! enrolled.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use fsd_rpc::admin::{AdminReply, AdminRequest};
use fsd_rpc::client::{CallError, Client, ConnectOptions, Endpoint};
use fsd_rpc::message::{Request, Response};

use crate::failed::{self, Exit, Failed};
use crate::mount::control;
use crate::{advertise, units};

/// Where the node of this host is looked for.
fn default_socket() -> PathBuf {
    control::runtime_dir().join(advertise::NAME)
}

/// A node of this host.
#[derive(Clone, Debug, Args)]
pub struct Local {
    /// Unix socket of the node of this host [default: /run/claudefs/fsd.sock]
    #[arg(long, value_name = "PATH", env = "CFS_SOCKET", global = true)]
    pub socket: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration,
          global = true)]
    pub timeout: Duration,
}

/// The node answers there, or the reason why not at once: not after a time of retries.
pub fn probe(socket: &Path) -> Result<(), Failed> {
    let error = match UnixStream::connect(socket) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let path = socket.display();
    let absent = |what| {
        Failed::new(Exit::Precondition, "NO_SERVER", what)
            .next("start one with `cfs server --config FILE`, or name its socket with --socket")
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

impl Local {
    /// An administrator's connection.
    pub fn admin(&self) -> Result<Admin, Failed> {
        let socket = self.socket.clone().unwrap_or_else(default_socket);
        probe(&socket)?;
        let options =
            ConnectOptions { deadline: self.timeout, admin: true, ..ConnectOptions::default() };
        let client = Client::connect(Endpoint::Unix(socket.clone()), options).map_err(|error| {
            failed::call(&format!("cannot talk to {}", socket.display()), error)
        })?;
        Ok(Admin { client })
    }
}

/// See [`Local::admin`].
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

/// A node of this host or of the network.
#[derive(Clone, Debug, Args)]
pub struct Anywhere {
    /// Unix socket of the node of this host [default: /run/claudefs/fsd.sock]
    #[arg(long, value_name = "PATH", env = "CFS_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Storage nodes of the network (TCP with mutual TLS) instead; port 9400 if none
    #[arg(long, value_name = "HOST[:PORT],…", env = "CFS_SERVER")]
    pub server: Option<String>,
    /// Directory of this host's certificate [default: ~/.cfs]
    #[arg(long, value_name = "DIR", env = "CFS_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration)]
    pub timeout: Duration,
}

/// Where a mount gets its data from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Socket(PathBuf),
    /// Servers named on the command line (else those of the credentials), and where the credentials are.
    Network {
        servers: Option<Vec<String>>,
        identity: PathBuf,
    },
}

impl Anywhere {
    pub fn servers(&self) -> Option<Vec<String>> {
        let server = self.server.as_ref()?;
        Some(server.split(',').map(|server| server.trim().to_owned()).collect())
    }

    pub fn place(&self) -> Result<Place, Failed> {
        let identity = || crate::identity::directory(self.identity.as_deref());
        if let Some(servers) = self.servers() {
            return Ok(Place::Network { servers: Some(servers), identity: identity()? });
        }
        match &self.socket {
            Some(socket) => Ok(Place::Socket(socket.clone())),
            None if !default_socket().exists()
                && identity().is_ok_and(|directory| crate::identity::exists(&directory)) =>
            {
                Ok(Place::Network { servers: None, identity: identity()? })
            }
            None => Ok(Place::Socket(default_socket())),
        }
    }
}

impl Place {
    /// Where to connect, after a look whether it makes sense.
    pub fn endpoint(&self) -> Result<Endpoint, Failed> {
        let (servers, identity) = match self {
            Place::Socket(socket) => {
                probe(socket)?;
                return Ok(Endpoint::Unix(socket.clone()));
            }
            Place::Network { servers, identity } => (servers, identity),
        };
        let mut credentials = crate::identity::load(identity)?;
        if let Some(servers) = servers {
            credentials.servers.clone_from(servers);
        }
        credentials.endpoint().map_err(|error| {
            Failed::new(Exit::Failed, "RESOLVE", error.to_string())
                .next("name storage nodes with --server HOST[:PORT]")
        })
    }

    /// Where renewed credentials are kept.
    pub fn credentials(&self) -> Option<PathBuf> {
        match self {
            Place::Socket(_) => None,
            Place::Network { identity, .. } => Some(identity.clone()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Socket(socket) => write!(f, "{}", socket.display()),
            Place::Network { servers: Some(servers), .. } => f.write_str(&servers.join(",")),
            Place::Network { servers: None, identity } => {
                write!(f, "the cluster of {}", identity.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anywhere(socket: Option<&str>, server: Option<&str>) -> Anywhere {
        Anywhere {
            socket: socket.map(Into::into),
            server: server.map(Into::into),
            identity: Some("/id".into()),
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_network_only_if_it_is_named() {
        let network = anywhere(Some("/s"), Some("a:1, b")).place().unwrap();
        let servers = Some(vec!["a:1".to_owned(), "b".to_owned()]);
        assert_eq!(network, Place::Network { servers, identity: "/id".into() });
        assert_eq!(network.to_string(), "a:1,b");
        let socket = anywhere(Some("/s"), None).place().unwrap();
        assert_eq!(socket, Place::Socket("/s".into()));
        assert_eq!(socket.credentials(), None);
    }

    #[test]
    fn an_absent_server_is_told_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.sock");
        let failed = probe(&path).unwrap_err();
        assert_eq!((failed.exit, failed.code.as_str()), (Exit::Precondition, "NO_SERVER"));
        assert!(failed.what.contains("none.sock"), "{failed}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let failed = probe(&path).unwrap_err();
        assert!(failed.what.contains("nobody serves"), "{failed}");
    }
}
