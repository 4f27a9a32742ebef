//! Who this node is: the file `identity.toml` in its data directory.
//!
//! It is written first of all, with `state = "creating"`, and again with `state = "ready"` when the
//! cluster exists on disk. A start that finds `creating` goes on with the creation under the same names;
//! one that finds `ready` makes nothing that is missing, for then it was lost. A node that joins a cluster starts
//! with `joining` instead.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use raftmeta_types::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::NodeError;
use crate::data_dir::DataDir;

const NAME: &str = "identity.toml";
const BESIDE: &str = "new";
/// Written by this version: 2 names the volume. The first one did not say it.
pub(super) const FORMAT: u32 = 2;

fn first_format() -> u32 {
    1
}

/// Refuses a file of a newer version before anything in it is understood.
pub(super) fn check_format(path: &Path, text: &str) -> Result<(), NodeError> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default = "first_format")]
        format: u32,
    }
    // What is no such file at all is said by whoever reads the rest.
    match toml::from_str(text) {
        Ok(Head { format }) if format > FORMAT => {
            Err(NodeError::NewerFormat { path: path.into(), found: format, reads: FORMAT })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// How far the creation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Begun; parts may exist.
    Creating,
    /// The cluster has given it a number and keys; the metadata and the pool may be incomplete.
    Joining,
    /// The cluster exists on disk, and so does the pool.
    Ready,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Version of this file and of what else a node keeps in the directory in text: [`FORMAT`].
    #[serde(default = "first_format")]
    pub format: u32,
    pub cluster: Uuid,
    pub node: u64,
    pub state: Stage,
    /// The volume of its data, once it is ready: another one has the data of another node, or of no one. Format 1 did
    /// not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Uuid>,
    /// How often the node was started: what others were told of an earlier start is outdated.
    #[serde(default)]
    pub starts: u32,
}

impl Identity {
    /// What the directory says; in a blank one a new identity is written.
    pub fn load_or_create(directory: &DataDir) -> Result<Identity, NodeError> {
        let path = directory.path().join(NAME);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                check_format(&path, &text)?;
                toml::from_str(&text)
                    .map_err(|error| NodeError::Identity { path, why: error.message().to_owned() })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Of a first start that ended while it wrote.
                let _ = std::fs::remove_file(path.with_extension(BESIDE));
                if !directory.is_blank()? {
                    return Err(NodeError::NotANode { path: directory.path().into() });
                }
                let identity = Identity {
                    format: FORMAT,
                    cluster: Uuid::new_v4(),
                    node: 1,
                    state: Stage::Creating,
                    volume: None,
                    starts: 0,
                };
                identity.save(directory.path())?;
                Ok(identity)
            }
            Err(source) => Err(NodeError::File { path, doing: "reading it", source }),
        }
    }

    /// Whether the directory is a node's.
    pub fn exists(directory: &Path) -> bool {
        directory.join(NAME).exists()
    }

    /// Writes it; durable on return.
    pub fn save(&self, directory: &Path) -> Result<(), NodeError> {
        let text = toml::to_string(self).expect("plain data always serialises");
        replace(&directory.join(NAME), text.as_bytes())
    }

    pub fn node_id(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// Writes beside, syncs and renames: the file is there whole or not at all. Only the owner reads it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    let write = || -> std::io::Result<()> {
        let beside = path.with_extension(BESIDE);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| NodeError::File { path: path.into(), doing: "writing it", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_only_in_a_blank_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::lock(dir.path()).unwrap();
        // A first start that was killed while it wrote.
        std::fs::write(dir.path().join("identity.new"), "clus").unwrap();
        let first = Identity::load_or_create(&held).unwrap();
        assert_eq!(first.state, Stage::Creating);
        let ready = Identity { state: Stage::Ready, ..first };
        ready.save(dir.path()).unwrap();
        assert_eq!(Identity::load_or_create(&held).unwrap(), ready);

        // The first version did not write one.
        let text = std::fs::read_to_string(dir.path().join(NAME)).unwrap();
        std::fs::write(dir.path().join(NAME), text.replace("format = 2\n", "")).unwrap();
        let old = Identity { format: 1, ..ready };
        assert_eq!(Identity::load_or_create(&held).unwrap(), old);
        // One to come, whatever else it says.
        std::fs::write(dir.path().join(NAME), "format = 3\ncolour = \"red\"\n").unwrap();
        let error = Identity::load_or_create(&held).unwrap_err().to_string();
        for part in ["identity.toml", "format 3", "newer than 2"] {
            assert!(error.contains(part), "{error}");
        }

        std::fs::write(dir.path().join(NAME), "cluster = 3").unwrap();
        let error = Identity::load_or_create(&held).unwrap_err().to_string();
        assert!(error.contains("identity.toml"), "{error}");
        std::fs::rename(dir.path().join(NAME), dir.path().join("elsewhere")).unwrap();
        let error = Identity::load_or_create(&held).unwrap_err();
        assert!(matches!(error, NodeError::NotANode { .. }), "{error}");
    }
}
