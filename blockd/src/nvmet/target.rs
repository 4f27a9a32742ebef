//! The target as the daemon has it: exports of the configuration, and those made at run time, which are kept in a file.
//!
//! The file holds a line `claudefs-exports 1 <CRC32C of the rest, hex>` and then JSON: a list of exports. It is replaced
//! as a whole (written beside, synced, renamed), and a file that does not match its checksum is refused, not guessed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

use super::export::{Access, Export, Host};
use super::registry::{Limits, Registry};
use crate::config::NvmetConfig;
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::reactor::Share;

const HEAD: &str = "claudefs-exports 1 ";
/// Exports made at run time.
const EXPORTS_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Target {
    pub registry: Arc<Registry>,
    file: Option<PathBuf>,
    // Names of the configuration's exports.
    configured: Vec<String>,
    kept: Mutex<Vec<Export>>,
}

impl Target {
    /// Exports what the configuration and the file say. An export of the file whose volume is gone is left out with a
    /// warning, so that the others are served; one of the configuration is an error.
    pub fn start(config: &NvmetConfig, exports: &[Export], daemon: &Daemon) -> Result<Target> {
        let limits = Limits {
            connections_max: config.connections_max,
            queues_max: config.queues_max,
            depth: config.queue_depth,
            buffer_bytes: config.buffer_bytes,
        };
        let registry = Arc::new(Registry::new(limits, config.advertise));
        let kept = match &config.exports_file {
            Some(path) => load(path)?,
            None => Vec::new(),
        };
        let target = Target {
            registry,
            file: config.exports_file.clone(),
            configured: exports.iter().map(Export::name).collect(),
            kept: Mutex::new(Vec::new()),
        };
        for export in exports {
            target.add(export, daemon)?;
        }
        for export in &kept {
            if let Err(error) = target.add(export, daemon) {
                tracing::warn!(volume = export.volume, %error, "an export of the exports file is not served");
            }
        }
        *target.lock() = kept;
        Ok(target)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Export>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names under which a volume is exported, now or again after a restart.
    #[must_use]
    pub fn names_of(&self, volume: &str) -> Vec<String> {
        let kept = self.lock();
        let mut names = self.registry.names_of(volume);
        names.extend(kept.iter().filter(|e| e.volume == volume).map(Export::name));
        names.sort_unstable();
        names.dedup();
        names
    }

    fn add(&self, export: &Export, daemon: &Daemon) -> Result<u32> {
        export.check()?;
        let access = Access::load(&export.hosts, export.any_host)?;
        let share = daemon.connect(&export.volume)?;
        let id = identity(&share, daemon);
        self.registry.add(&export.name(), export.nsid, &access, export.read_only, share, id)
    }

    /// Exports a volume from now on, after a restart too. Gives the export with its name and number filled in.
    pub fn export(&self, mut export: Export, daemon: &Daemon) -> Result<Export> {
        let file = self.file()?;
        let mut kept = self.lock();
        if kept.len() >= EXPORTS_MAX {
            return Err(Error::Invalid(format!("there are {EXPORTS_MAX} exports already")));
        }
        let nsid = self.add(&export, daemon)?;
        export.nqn = Some(export.name());
        export.nsid = Some(nsid);
        kept.push(export.clone());
        if let Err(error) = save(file, &kept) {
            kept.pop();
            self.registry.remove(&export.volume, export.nqn.as_deref());
            return Err(error);
        }
        Ok(export)
    }

    /// Takes exports of a volume back. Those of the configuration come back with the next start; the answer says how
    /// many are gone, and whether one of them will.
    pub fn unexport(&self, volume: &str, nqn: Option<&str>) -> Result<(usize, bool)> {
        let mut kept = self.lock();
        let matches = |e: &Export| e.volume == volume && nqn.is_none_or(|name| e.name() == name);
        let rest: Vec<Export> = kept.iter().filter(|e| !matches(e)).cloned().collect();
        let of_file = kept.len() - rest.len();
        if of_file > 0 {
            save(self.file()?, &rest)?;
            *kept = rest;
        }
        let removed = self.registry.remove(volume, nqn);
        if removed == 0 && of_file == 0 {
            return Err(Error::NotExported(format!("volume {volume:?}")));
        }
        Ok((removed, removed > of_file))
    }

    /// Sets who may connect to a subsystem. Hosts that may not any more are disconnected. `true` if the configuration
    /// has the subsystem, and with it the last word at the next start.
    pub fn hosts(&self, nqn: &str, hosts: &[Host], any_host: bool) -> Result<bool> {
        let access = Access::load(hosts, any_host)?;
        let mut kept = self.lock();
        self.registry.exists(nqn)?;
        let of_configuration = self.configured.iter().any(|name| name == nqn);
        if !of_configuration {
            let mut next = kept.clone();
            for export in next.iter_mut().filter(|e| e.name() == nqn) {
                export.hosts = hosts.to_vec();
                export.any_host = any_host;
            }
            save(self.file()?, &next)?;
            *kept = next;
        }
        self.registry.set_access(nqn, &access)?;
        Ok(of_configuration)
    }

    fn file(&self) -> Result<&Path> {
        self.file.as_deref().ok_or_else(|| {
            Error::Invalid(
                "exports at run time would not survive a restart: set exports_file in [nvmet]"
                    .to_owned(),
            )
        })
    }
}

/// The same for a volume whatever it is exported as, and for no other volume.
fn identity(share: &Share, daemon: &Daemon) -> [u8; 16] {
    let pool = daemon.pools()[share.pool].status().uuid;
    let mut bytes = pool.as_bytes().to_vec();
    bytes.extend_from_slice(&share.volume.id.to_le_bytes());
    bytes.extend_from_slice(share.volume.name.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest(&SHA256, &bytes).as_ref()[..16]);
    // RFC 9562: version 8 (custom), variant 1.
    uuid::Builder::from_custom_bytes(id).into_uuid().into_bytes()
}

fn load(path: &Path) -> Result<Vec<Export>> {
    let wrong = |e: &dyn std::fmt::Display| {
        Error::Config(format!(
            "the exports file {}: {e}; restore it, or remove it and export again",
            path.display()
        ))
    };
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| wrong(&e))?,
    };
    let (head, body) = text.split_once('\n').ok_or_else(|| wrong(&"it is cut"))?;
    let sum = head.strip_prefix(HEAD).ok_or_else(|| wrong(&"it does not start as one"))?;
    if u32::from_str_radix(sum, 16).ok() != Some(crc_fast::crc32_iscsi(body.as_bytes())) {
        return Err(wrong(&"its checksum is wrong"));
    }
    serde_json::from_str(body).map_err(|e| wrong(&e))
}

fn save(path: &Path, exports: &[Export]) -> Result<()> {
    let body = serde_json::to_string_pretty(exports)
        .map_err(|e| Error::Invalid(format!("writing exports: {e}")))?;
    let text = format!("{HEAD}{:08x}\n{body}", crc_fast::crc32_iscsi(body.as_bytes()));
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|e| Error::Config(format!("writing the exports file {}: {e}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exports_file_is_believed_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exports");
        assert_eq!(load(&path).unwrap(), vec![]);
        let export = Export {
            volume: "v".to_owned(),
            nqn: Some("nqn.2025-01.org.example:v".to_owned()),
            nsid: Some(3),
            read_only: true,
            any_host: false,
            hosts: vec![Host {
                nqn: "nqn.2025-01.org.example:h".to_owned(),
                secret_file: Some("/s".into()),
                controller_secret_file: None,
            }],
        };
        save(&path, std::slice::from_ref(&export)).unwrap();
        assert_eq!(load(&path).unwrap(), vec![export]);
        let text = std::fs::read(&path).unwrap();
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] ^= 1;
            std::fs::write(&path, &other).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("exports file"), "{at}: {error}");
            std::fs::write(&path, &text[..at]).unwrap();
            load(&path).unwrap_err();
        }
    }
}
