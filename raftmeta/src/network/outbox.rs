//! Sends a checkpoint to a replica that is behind the log, in parts and one after the other.
//!
//! The replica says from where on it wants it: after a broken connection it goes on where it was. What is sent is
//! the file as it was opened; if a newer checkpoint takes its place meanwhile, the old one stays readable.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::StreamingError;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf, VoteOf};

use super::link::{BULK_TIMEOUT, Link, unreadable};
use super::message::{CheckpointId, PART_BYTES};
use super::{RaftAnswer, RaftMessage};
use crate::checkpoint;
use crate::fs::{File, blocking};
use crate::group::Types;

/// Longest wait until the replica has verified a checkpoint and made it its state.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1800);
/// Answers in a row that ask for no later part, after which the transfer begins anew.
const STUCK_MAX: u32 = 8;

pub(super) async fn send(
    link: &Link,
    vote: VoteOf<Types>,
    snapshot: SnapshotOf<Types, PathBuf>,
) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
    let meta = snapshot.meta;
    let (path, expected) = (snapshot.snapshot, meta.clone());
    let opened = blocking(move || open(&path, &expected)).await;
    let (file, id) = opened.map_err(|error| unreadable(&error))?;
    let begin = RaftMessage::CheckpointBegin { vote, meta, id: id.clone() };
    let mut at = match link.call(begin, BULK_TIMEOUT).await? {
        RaftAnswer::CheckpointAt { offset } => offset.min(id.size),
        RaftAnswer::Checkpoint(answer) => return Ok(answer),
        other => return Err(link.nonsense(&other).into()),
    };
    let mut stuck = 0;
    while at < id.size {
        let bytes = read(&file, at, id.size).await.map_err(|error| unreadable(&error))?;
        let crc = checkpoint::crc(&bytes);
        let bytes = bytes.into();
        let part = RaftMessage::CheckpointPart { vote, id: id.clone(), offset: at, crc, bytes };
        let next = match link.call(part, BULK_TIMEOUT).await? {
            RaftAnswer::CheckpointAt { offset } => offset.min(id.size),
            RaftAnswer::Checkpoint(answer) => return Ok(answer),
            other => return Err(link.nonsense(&other).into()),
        };
        stuck = if next > at { 0 } else { stuck + 1 };
        if stuck > STUCK_MAX {
            let error = io::Error::other("the replica asks for the same part again and again");
            return Err(unreadable(&error));
        }
        at = next;
    }
    match link.call(RaftMessage::CheckpointEnd { vote, id }, INSTALL_TIMEOUT).await? {
        RaftAnswer::Checkpoint(answer) => Ok(answer),
        other => Err(link.nonsense(&other).into()),
    }
}

/// The file, if it still is the checkpoint that `meta` speaks of.
fn open(path: &Path, meta: &SnapshotMetaOf<Types>) -> io::Result<(Arc<File>, CheckpointId)> {
    let file = File::open(path)?;
    let (state, sum) = checkpoint::identify(path, &file)?;
    if state.applied != meta.last_log_id || state.membership != meta.last_membership {
        return Err(io::Error::other(format!(
            "{}: a newer checkpoint took its place",
            path.display()
        )));
    }
    let size = file.metadata()?.len();
    Ok((Arc::new(file), CheckpointId { last: state.applied, size, sum }))
}

async fn read(file: &Arc<File>, at: u64, size: u64) -> io::Result<Vec<u8>> {
    let file = Arc::clone(file);
    let len = (size - at).min(PART_BYTES as u64) as usize;
    blocking(move || {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    })
    .await
}
