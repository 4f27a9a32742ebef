//! The directory a node keeps its metadata in, held by one server at a time.
//!
//! The lock is the kernel's (`flock` on the file `lock`), so it goes with the process however that ends;
//! the process id in the file is only for the message to whoever comes second.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

#[cfg(test)]
mod tests;

/// Name of the lock file in the directory.
const LOCK_NAME: &str = "lock";

/// A server that was killed while it started a child holds the lock until the child has become a program of
/// its own.
const PATIENCE: Duration = Duration::from_secs(1);

/// A data directory held by this process until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Carries the `flock`; closing it lets go.
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {path}: {source} while {doing}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("data directory {path} is in use by another server{}: stop that one first", holder(.pid))]
    InUse { path: PathBuf, pid: Option<u32> },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl DataDir {
    /// Makes the directory if there is none (only its owner may enter it: it holds keys) and locks it.
    /// A directory that another server holds is `InUse`.
    pub fn lock(path: &Path) -> Result<DataDir, DataDirError> {
        let io = |doing| move |source| DataDirError::Io { path: path.into(), doing, source };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(io("making it"))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_NAME))
            .map_err(io("opening its lock file"))?;
        let since = Instant::now();
        let locked = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) if since.elapsed() < PATIENCE => {
                    std::thread::sleep(PATIENCE / 50);
                }
                locked => break locked,
            }
        };
        match locked {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // The id is a courtesy; a lock file that cannot be read is still held by someone.
                let _ = (&mut file).take(16).read_to_string(&mut text);
                return Err(DataDirError::InUse {
                    path: path.into(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(errno) => return Err(io("locking it")(errno.into())),
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(io("writing its lock file"))?;
        Ok(DataDir { path: path.into(), _lock: file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing but the lock is in it: a node that never ran. A directory that cannot be listed is
    /// an error and never blank, for a blank one may be initialised.
    pub fn is_blank(&self) -> Result<bool, DataDirError> {
        let list = || -> io::Result<bool> {
            for entry in std::fs::read_dir(&self.path)? {
                if entry?.file_name() != LOCK_NAME {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        list().map_err(|source| DataDirError::Io {
            path: self.path.clone(),
            doing: "listing it",
            source,
        })
    }
}
