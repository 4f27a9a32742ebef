//! What a client keeps to be known to its cluster: `credentials.toml` in `~/.cfs`, readable by its
//! owner only.
//!
//! ```text
//!   token ──enrol──> Credentials ──save──> ~/.cfs/credentials.toml ──load──> Endpoint::Tcp
//!                                                   ^                            │
//!                                                   └── renewed, 30 days before ─┘
//! ```
//!
//! One file holds the certificate, its key, the CA and the addresses, and is replaced as a whole: the key
//! always fits the certificate.

mod enrol;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::take;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use crate::client::{CallError, Endpoint};
use crate::tls::{self, CaFingerprint, Identity, TlsError};
use crate::token::TokenError;

pub use enrol::{Joining, enrol, join};

/// Name of the file in the directory.
pub const FILE_NAME: &str = "credentials.toml";
/// Port of a storage node where none is written.
pub const PORT: u16 = 9400;
/// A certificate is renewed when it has less than this left.
pub const RENEWAL_SECS: i64 = 30 * 24 * 3600;
/// A longer file is refused; ours have about 3 KiB.
const FILE_LEN_MAX: u64 = 64 << 10;

/// See the module.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub cluster_name: String,
    pub cluster_uuid: Uuid,
    /// `host` or `host:port` of storage nodes.
    pub servers: Vec<String>,
    pub identity: Identity,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("no certificate in {path}: enrol first with `cfs mount --token`")]
    Missing { path: PathBuf },
    #[error("{path}: {source} while {doing}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: mode {mode:o} lets others read the key: `chmod 600` it")]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path} is damaged ({why}): remove it and enrol again with `cfs mount --token`")]
    Damaged { path: PathBuf, why: String },
    #[error("the certificate in {path} has ended: enrol again with `cfs mount --token`")]
    Expired { path: PathBuf },
    #[error("{path} is for cluster {known}, not for {new}: remove it or use another directory")]
    Foreign { path: PathBuf, known: String, new: String },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the token is for {what}")]
    Purpose { what: &'static str },
    #[error("cannot find storage node `{server}`: {why}")]
    Server { server: String, why: String },
    #[error("no storage node is named: add `@HOST` to the token, or give --server HOST[:PORT]")]
    NoServer,
    #[error("enrolment: {0}")]
    Call(#[from] CallError),
    #[error("the storage node answered with {what}: this is not the cluster of the token")]
    Answer { what: &'static str },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("making a key failed: {0}")]
    Key(#[from] rcgen::Error),
}

/// Last line of a certificate in PEM.
const CERTIFICATE_END: &str = "-----END CERTIFICATE-----";

/// As it lies in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    cluster: String,
    uuid: Uuid,
    servers: Vec<String>,
    ca: String,
    certificate: String,
    key: String,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Credentials {
    /// Reads and checks the credentials in the directory, their time included.
    pub fn load(dir: &Path) -> Result<Credentials, CredentialsError> {
        let path = dir.join(FILE_NAME);
        let credentials = read(&path)?;
        if credentials.expires_secs()? <= now_secs() {
            return Err(CredentialsError::Expired { path });
        }
        Ok(credentials)
    }

    /// Replaces the file in the directory, which is made if there is none. Credentials of another cluster
    /// are not overwritten.
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        let path = dir.join(FILE_NAME);
        match read(&path) {
            Ok(known) if known.cluster_uuid != self.cluster_uuid => {
                let name = |c: &Credentials| format!("{} ({})", c.cluster_name, c.cluster_uuid);
                return Err(CredentialsError::Foreign {
                    path,
                    known: name(&known),
                    new: name(self),
                });
            }
            Ok(_) | Err(CredentialsError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        let stored = Stored {
            cluster: self.cluster_name.clone(),
            uuid: self.cluster_uuid,
            servers: self.servers.clone(),
            ca: self.identity.ca_pem.clone(),
            certificate: self.identity.certificate_pem.clone(),
            key: self.identity.key_pem.to_string(),
        };
        let text = toml::to_string(&stored).expect("strings are valid TOML");
        replace(dir, &path, &Zeroizing::new(text)).map_err(|source| CredentialsError::Io {
            path,
            doing: "writing it",
            source,
        })
    }

    /// Seconds since 1970 at which the certificate ends.
    pub fn expires_secs(&self) -> Result<i64, CredentialsError> {
        Ok(tls::facts_of_pem(&self.identity.certificate_pem)?.expires_secs)
    }

    /// The authority that signed the certificate: it comes first of those that are trusted.
    pub fn signer(&self) -> Result<CaFingerprint, CredentialsError> {
        Ok(CaFingerprint::of_pem(&self.identity.ca_pem)?)
    }

    /// Forgets all other authorities; whether there were any.
    pub fn trust_signer_alone(&mut self) -> bool {
        let pem = &self.identity.ca_pem;
        let end = pem.find(CERTIFICATE_END).map_or(pem.len(), |at| at + CERTIFICATE_END.len());
        let is_more = pem[end..].contains(CERTIFICATE_END);
        if is_more {
            self.identity.ca_pem = format!("{}\n", &pem[..end]);
        }
        is_more
    }

    /// Less than 30 days are left.
    pub fn is_near_its_end(&self) -> Result<bool, CredentialsError> {
        Ok(self.expires_secs()? < now_secs().saturating_add(RENEWAL_SECS))
    }

    /// For [`crate::Client::connect`]; names are looked up now.
    pub fn endpoint(&self) -> Result<Endpoint, CredentialsError> {
        let addrs = resolve(&self.servers)?;
        Ok(Endpoint::Tcp { addrs, identity: self.identity.clone() })
    }
}

/// Addresses of `host`, `host:port` or bare addresses, in order.
pub fn resolve(servers: &[String]) -> Result<Vec<SocketAddr>, CredentialsError> {
    let mut addrs = Vec::new();
    for server in servers {
        let failed = |why: String| CredentialsError::Server { server: server.clone(), why };
        let found = if let Ok(ip) = server.parse::<IpAddr>() {
            Ok(vec![SocketAddr::new(ip, PORT)].into_iter())
        } else if server.contains(':') {
            server.to_socket_addrs()
        } else {
            (server.as_str(), PORT).to_socket_addrs()
        };
        addrs.extend(found.map_err(|error| failed(error.to_string()))?);
    }
    if addrs.is_empty() { Err(CredentialsError::NoServer) } else { Ok(addrs) }
}

fn read(path: &Path) -> Result<Credentials, CredentialsError> {
    let io = |doing| move |source| CredentialsError::Io { path: path.into(), doing, source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(CredentialsError::Missing { path: path.into() });
        }
        Err(error) => return Err(io("opening it")(error)),
    };
    let mode = file.metadata().map_err(io("reading its mode"))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::Readable { path: path.into(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize));
    (&mut file).take(FILE_LEN_MAX).read_to_string(&mut text).map_err(io("reading it"))?;
    let damaged = |why: String| CredentialsError::Damaged { path: path.into(), why };
    // The parser's own message would show the line, which may be of the key.
    let mut stored: Stored =
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
    let identity = Identity {
        certificate_pem: take(&mut stored.certificate),
        key_pem: Zeroizing::new(take(&mut stored.key)),
        ca_pem: take(&mut stored.ca),
    };
    // Checks all of the PEM, and that the key fits the certificate.
    tls::client_config(&identity).map_err(|error| damaged(error.to_string()))?;
    tls::facts_of_pem(&identity.certificate_pem).map_err(|error| damaged(error.to_string()))?;
    Ok(Credentials {
        cluster_name: take(&mut stored.cluster),
        cluster_uuid: stored.uuid,
        servers: take(&mut stored.servers),
        identity,
    })
}

/// Writes beside, syncs and renames: the file is there whole or not at all.
fn replace(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let beside = dir.join(format!("{FILE_NAME}.{}.new", std::process::id()));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        File::open(dir)?.sync_all()
    };
    write().inspect_err(|_| {
        // The first error counts; a leftover is overwritten by the next attempt of this process.
        let _ = std::fs::remove_file(&beside);
    })
}

fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
