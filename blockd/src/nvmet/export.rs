//! What is exported to whom, as configuration and admin door write it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::controller::Credentials;
use super::secret::Secret;
use super::text::{NQN_PREFIX, is_nqn};
use crate::error::{Error, Result};

/// Hosts of one export.
const HOSTS_MAX: usize = 256;
/// Longest file of a secret, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

/// One `[[export]]`: a volume as a namespace of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    pub volume: String,
    /// Name of the subsystem; without it one made of the volume's name. Exports of one name are namespaces of one subsystem.
    #[serde(default)]
    pub nqn: Option<String>,
    /// Number of the namespace; without it the lowest that is free.
    #[serde(default)]
    pub nsid: Option<u32>,
    #[serde(default)]
    pub read_only: bool,
    /// Every host may connect. Without it only those that are listed.
    #[serde(default)]
    pub any_host: bool,
    #[serde(default, rename = "host")]
    pub hosts: Vec<Host>,
}

/// A host that may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub nqn: String,
    /// File with the DH-HMAC-CHAP secret that the host has to know, `DHHC-1:…`. Without it the name is enough.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// File with the secret by which the controller proves itself to a host that asks.
    #[serde(default)]
    pub controller_secret_file: Option<PathBuf>,
}

impl Export {
    /// The subsystem's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.nqn.clone().unwrap_or_else(|| format!("{NQN_PREFIX}{}", self.volume))
    }

    /// Everything that can be checked without the volume and the secrets.
    pub fn check(&self) -> Result<()> {
        let name = self.name();
        if !is_nqn(&name) || name == super::text::DISCOVERY_NQN {
            return Err(Error::Invalid(format!(
                "export of {:?}: {name:?} is no name for a subsystem; give one like nqn.2025-01.org.example:name",
                self.volume
            )));
        }
        check_hosts(&self.hosts, self.any_host)
            .map_err(|e| Error::Invalid(format!("export of {:?}: {e}", self.volume)))
    }
}

/// Whether a list of hosts makes sense.
pub fn check_hosts(hosts: &[Host], any_host: bool) -> Result<()> {
    let wrong = |message: String| Err(Error::Invalid(message));
    if hosts.is_empty() && !any_host {
        return wrong("no host may connect: list hosts, or set any_host".to_owned());
    }
    if hosts.len() > HOSTS_MAX {
        return wrong(format!("{} hosts, at most {HOSTS_MAX}", hosts.len()));
    }
    for (i, host) in hosts.iter().enumerate() {
        if !is_nqn(&host.nqn) {
            return wrong(format!("{:?} is no host name; it starts with nqn.", host.nqn));
        }
        if hosts[..i].iter().any(|h| h.nqn == host.nqn) {
            return wrong(format!("host {} is listed twice", host.nqn));
        }
        if host.secret_file.is_none() && host.controller_secret_file.is_some() {
            return wrong(format!(
                "host {}: a controller's secret needs a host's secret beside it",
                host.nqn
            ));
        }
    }
    Ok(())
}

/// Who may connect, with the secrets read.
#[derive(Clone, Debug)]
pub struct Access {
    pub any_host: bool,
    hosts: BTreeMap<String, (Host, Option<Credentials>)>,
}

impl Access {
    /// Reads the secrets. A secret that cannot be read refuses the export: it never opens it.
    pub fn load(hosts: &[Host], any_host: bool) -> Result<Access> {
        check_hosts(hosts, any_host)?;
        let mut loaded = BTreeMap::new();
        for host in hosts {
            let credentials = match &host.secret_file {
                None => None,
                Some(path) => {
                    let controller = host.controller_secret_file.as_deref().map(read_secret);
                    let controller = controller.transpose()?;
                    Some(Credentials { host: read_secret(path)?, controller })
                }
            };
            loaded.insert(host.nqn.clone(), (host.clone(), credentials));
        }
        Ok(Access { any_host, hosts: loaded })
    }

    /// Whether that host may connect, and what it has to prove.
    pub fn admits(&self, host: &str) -> Option<Option<Credentials>> {
        match self.hosts.get(host) {
            Some((_, credentials)) => Some(credentials.clone()),
            None => self.any_host.then_some(None),
        }
    }

    /// Whether both were configured alike.
    pub fn is_like(&self, other: &Access) -> bool {
        self.any_host == other.any_host
            && self.hosts.values().map(|(h, _)| h).eq(other.hosts.values().map(|(h, _)| h))
    }

    /// Names, and whether a secret is needed; no secret.
    pub fn describe(&self) -> Value {
        let list = self.hosts.values().map(|(host, credentials)| {
            json!({
                "nqn": host.nqn,
                "authenticated": credentials.is_some(),
                "mutual": credentials.as_ref().is_some_and(|c| c.controller.is_some()),
            })
        });
        list.collect::<Vec<_>>().into()
    }
}

fn read_secret(path: &Path) -> Result<Secret> {
    use std::io::Read;
    let failed = |e: &dyn std::fmt::Display| {
        Error::Invalid(format!("the secret in {}: {e}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|e| failed(&e))?;
    Secret::parse(&text).map_err(|e| failed(&e))
}
