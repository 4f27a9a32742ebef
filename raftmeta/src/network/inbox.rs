//! Puts the parts of a checkpoint together again.
//!
//! ```text
//!   begin ──▶ incoming.part, from its start or where it was ──▶ parts in order ──▶ end: verified ──▶ openraft
//! ```
//! One checkpoint at a time. A part that is not the next one is answered with the offset of that; so nothing that
//! is lost, repeated or late does harm. Before its last byte is there and every checksum in it is right, nothing of
//! it is used. What a crash leaves of it is removed when the store is opened.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::Snapshot;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use tokio::sync::Mutex;

use super::RaftAnswer;
use super::message::{CheckpointId, PART_BYTES};
use crate::checkpoint;
use crate::fs::{self, File, OpenOptions, blocking};
use crate::group::Types;

/// Largest checkpoint that is taken, in bytes.
const SIZE_MAX: u64 = 1 << 42;

struct Incoming {
    id: CheckpointId,
    meta: SnapshotMetaOf<Types>,
    file: Arc<File>,
    /// Bytes that are there.
    at: u64,
}

/// Where the parts go.
pub(crate) struct Inbox {
    path: PathBuf,
    incoming: Mutex<Option<Incoming>>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A checkpoint that is whole.
pub(crate) type Whole = SnapshotOf<Types, PathBuf>;

fn refused(why: impl ToString) -> RaftAnswer {
    RaftAnswer::Refused(why.to_string())
}

fn busy() -> RaftAnswer {
    refused("a checkpoint is being read in")
}

impl Inbox {
    pub fn new(checkpoints: &Path) -> Inbox {
        Inbox { path: checkpoints.join("incoming.part"), incoming: Mutex::new(None) }
    }

    pub async fn begin(&self, meta: SnapshotMetaOf<Types>, id: CheckpointId) -> RaftAnswer {
        if id.size > SIZE_MAX || id.last != meta.last_log_id || id.last.is_none() {
            return refused("such a checkpoint cannot be");
        }
        let Ok(mut incoming) = self.incoming.try_lock() else { return busy() };
        if let Some(known) = incoming.as_ref()
            && known.id == id
            && known.meta == meta
        {
            return RaftAnswer::CheckpointAt { offset: known.at };
        }
        *incoming = None;
        let path = self.path.clone();
        let made = blocking(move || {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
        });
        match made.await {
            Ok(file) => {
                tracing::info!(size = id.size, last = ?id.last, "a checkpoint comes in");
                *incoming = Some(Incoming { id, meta, file: Arc::new(file), at: 0 });
                RaftAnswer::CheckpointAt { offset: 0 }
            }
            Err(error) => refused(format_args!("{}: {error}", self.path.display())),
        }
    }

    pub async fn part(
        &self,
        id: &CheckpointId,
        offset: u64,
        crc: u32,
        bytes: bytes::Bytes,
    ) -> RaftAnswer {
        let Ok(mut guard) = self.incoming.try_lock() else { return busy() };
        let Some(incoming) = guard.as_mut().filter(|known| known.id == *id) else {
            return refused("this checkpoint was not begun");
        };
        if offset != incoming.at {
            return RaftAnswer::CheckpointAt { offset: incoming.at };
        }
        let end = offset + bytes.len() as u64;
        if bytes.is_empty() || bytes.len() > PART_BYTES || end > id.size {
            return refused("such a part cannot be");
        }
        if checkpoint::crc(&bytes) != crc {
            return refused("the part's checksum is wrong");
        }
        let file = Arc::clone(&incoming.file);
        match blocking(move || file.write_all_at(&bytes, offset)).await {
            Ok(()) => {
                incoming.at = end;
                RaftAnswer::CheckpointAt { offset: end }
            }
            Err(error) => {
                *guard = None;
                refused(format_args!("{}: {error}", self.path.display()))
            }
        }
    }

    /// Verifies what has come in and has `install` make it the state. Nobody else may use the inbox meanwhile.
    pub async fn end<F: Future<Output = RaftAnswer>>(
        &self,
        id: &CheckpointId,
        install: impl FnOnce(Whole) -> F,
    ) -> RaftAnswer {
        let Ok(mut guard) = self.incoming.try_lock() else { return busy() };
        let Some(incoming) = guard.take_if(|known| known.id == *id) else {
            return refused("this checkpoint was not begun");
        };
        if incoming.at != id.size {
            let offset = incoming.at;
            *guard = Some(incoming);
            return RaftAnswer::CheckpointAt { offset };
        }
        let path = self.path.clone();
        let verified = blocking(move || {
            incoming.file.sync_all()?;
            let state = checkpoint::verify(&path)?;
            let meta = &incoming.meta;
            if state.applied != meta.last_log_id || state.membership != meta.last_membership {
                return Err(io::Error::other("the checkpoint is not the one announced"));
            }
            Ok(incoming.meta)
        });
        let answer = match verified.await {
            Ok(meta) => install(Snapshot { meta, snapshot: self.path.clone() }).await,
            Err(error) => {
                tracing::error!(%error, "a checkpoint that came in is not used");
                refused(error)
            }
        };
        // Where it was not needed any more it is still there.
        let path = self.path.clone();
        let _ = blocking(move || fs::remove_file(path)).await;
        answer
    }
}
