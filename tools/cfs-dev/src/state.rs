//! What is known of a cluster between two commands: `cluster.json` in its directory.
//!
//! ```text
//! DIR/cluster.json            written before anything is made, so that what is half made can be taken away
//! DIR/lock                    held by the command that changes something
//! DIR/nodes/n1/node.toml …    configuration, log, sockets, metadata and pool of a node
//! DIR/clients/c1/mnt …        mountpoint, log and certificate of a client
//! DIR/monitor                 configuration, log and samples of the monitoring
//! DIR/run                     control sockets of the mounts
//! DIR/controller/sock …       socket, log and reports of the fault controller
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Kind, Result};
use crate::net::Network;
use crate::process::Process;

const FILE: &str = "cluster.json";
const LOCK: &str = "lock";
/// Grows when an older program would misunderstand the file.
const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    pub name: String,
    /// What runs: 1 nodes, 2 clients as well, 3 monitoring and the fault controller as well.
    pub phase: u8,
    pub site: String,
    pub replicas: usize,
    pub shard_count: u32,
    pub network: Network,
    pub nodes: Vec<Member>,
    pub clients: Vec<Member>,
    /// Of the monitoring, of phase 3.
    #[serde(default)]
    pub monitor: Option<Process>,
    /// The fault controller.
    #[serde(default)]
    pub controller: Option<Process>,
}

/// A node or a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// `n1`, `c1`, …
    pub name: String,
    pub instance_type: String,
    pub process: Option<Process>,
}

impl Member {
    pub fn new(name: String, instance_type: &str) -> Member {
        Member { name, instance_type: instance_type.to_owned(), process: None }
    }

    /// Its process, if it lives.
    pub fn running(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| process.is_alive())
    }
}

impl State {
    pub fn new(name: &str, network: Network) -> State {
        State {
            version: VERSION,
            name: name.to_owned(),
            phase: 1,
            site: String::new(),
            replicas: 1,
            shard_count: 1,
            network,
            nodes: Vec::new(),
            clients: Vec::new(),
            monitor: None,
            controller: None,
        }
    }

    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.nodes.iter().chain(&self.clients)
    }

    /// Of the cluster in this directory; nothing if there is none.
    pub fn load(directory: &Path) -> Result<Option<State>> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing(|| format!("cannot read {}", path.display())),
        };
        let state: State = serde_json::from_str(&text).map_err(|error| {
            let what = format!("{} is damaged, or of another version: {error}", path.display());
            Error::new(Kind::Failed, what).next("use the cfs-dev that made it")
        })?;
        if state.version != VERSION {
            let (path, found) = (path.display(), state.version);
            let what = format!("{path} is of version {found}, this program knows {VERSION}");
            return Err(Error::new(Kind::Failed, what).next("use the cfs-dev that made it"));
        }
        Ok(Some(state))
    }

    /// Replaces the file as a whole.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("plain data always serialises");
        let new = directory.join("cluster.json.new");
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().doing(|| format!("cannot write {}", path.display()))
    }

    /// Forgets the cluster and the directory with what cfs-dev has put there.
    pub fn remove(directory: &Path) -> Result<()> {
        if let Some(mount) = mounts()?.into_iter().find(|mount| mount.starts_with(directory)) {
            let what = format!("{} is mounted: nothing is deleted", mount.display());
            return Err(
                Error::new(Kind::Precondition, what).next(format!("umount {}", mount.display()))
            );
        }
        let doing = |path: &Path| format!("cannot remove {}", path.display());
        for name in ["nodes", "clients", "run", "monitor", "controller"] {
            let path = directory.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).doing(|| doing(&path));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // The state goes last: what failed before can be tried again.
        for name in ["cluster.json.new", FILE, LOCK] {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).doing(|| doing(&path));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // Something else may be in it, which is not ours.
        let _ = fs::remove_dir(directory);
        Ok(())
    }
}

/// Every mountpoint of this process's mount namespace.
pub fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo");
    let table = table.doing(|| "cannot read the mount table".into())?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect())
}

/// Spaces and the like are written as octal numbers there.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = bytes[at + 1..].get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.map(|digits| u8::from_str_radix(digits, 8)) {
            Some(Ok(byte)) if bytes[at] == b'\\' => {
                plain.push(byte);
                at += 4;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(plain).into()
}

/// Held while something is changed; one command at a time.
#[derive(Debug)]
pub struct Lock {
    /// The lock goes when it is closed.
    _file: File,
}

impl Lock {
    /// Makes the directory if it is not there.
    pub fn take(directory: &Path) -> Result<Lock> {
        fs::create_dir_all(directory).doing(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.doing(|| format!("cannot open {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(Errno::WOULDBLOCK) => {
                let what =
                    format!("another command changes the cluster of {}", directory.display());
                Err(Error::new(Kind::Precondition, what).next(
                    "wait until it has ended; `cfs-dev fault status` tells whether it is the fault controller",
                ))
            }
            Err(error) => Err(error).doing(|| format!("cannot lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Provider;

    #[test]
    fn the_state_is_kept_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let lock = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err().kind, Kind::Precondition);
        assert_eq!(State::load(&path).unwrap(), None);
        let network = Network::choose(Provider::Loopback, "dev").unwrap();
        let mut state = State::new("dev", network);
        state.nodes.push(Member::new("n1".into(), "i4i.large"));
        state.nodes[0].process = Process::of(std::process::id());
        state.save(&path).unwrap();
        let found = State::load(&path).unwrap().unwrap();
        assert_eq!(found, state);
        assert!(found.nodes[0].running().is_some());
        fs::create_dir_all(path.join("nodes/n1")).unwrap();
        fs::write(path.join("of somebody else"), "").unwrap();
        State::remove(&path).unwrap();
        drop(lock);
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["of somebody else"]);
    }

    #[test]
    fn a_damaged_or_newer_state_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{}").unwrap();
        assert!(State::load(directory.path()).unwrap_err().what.contains("damaged"));
        let network = Network::choose(Provider::Loopback, "dev").unwrap();
        let state = State { version: 2, ..State::new("dev", network) };
        state.save(directory.path()).unwrap();
        assert!(State::load(directory.path()).unwrap_err().what.contains("version 2"));
    }

    #[test]
    fn mountpoints_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), PathBuf::from("/a b\\c"));
        assert_eq!(unescape("/a\\04"), PathBuf::from("/a\\04"));
        assert!(mounts().unwrap().contains(&PathBuf::from("/")));
    }
}
