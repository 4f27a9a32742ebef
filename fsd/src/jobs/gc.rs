//! Deletes chunks whose last reference went.
//!
//! ```text
//!   garbage(shard) ─ BeginDelete(epoch + 1), durable ─ chunks.delete ─ EndDelete
//! ```
//! The first command is durable before anything is deleted: after a power cut the log must not end before
//! the unlink that made the chunk garbage.
//!
//! Each deletion makes older receipts of its shard worthless for chunks without references. So a shard
//! deletes only now and then, and not while a refused write is putting its chunks again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fsd_rpc::message::Failure;
use raftmeta::read;
use raftmeta_types::{ChunkHash, Command, Epoch, MetaError, Reply, ShardId};

use super::Found;
use crate::node::Node;
use crate::replication::Host;
use crate::service::storage;

/// Chunks in one deletion.
pub(super) const BATCH: usize = 2048;
/// Between two deletions of a shard.
const PAUSE: Duration = Duration::from_secs(5);

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub chunks: u64,
    /// Bytes that they took in the segments of their primaries.
    pub bytes: u64,
    /// Shards with garbage that had to be left alone for the moment.
    pub shards_left: u32,
}

pub(super) async fn round(node: &Arc<Node>) -> Result<Found, Failure> {
    let collected = collect_in_turn(&**node, PAUSE).await?;
    let idle = collected.chunks == 0 && collected.shards_left == 0;
    Ok(if idle { Found::Nothing } else { Found::Something })
}

/// As [`collect`], when nobody else deletes.
pub(crate) async fn collect_in_turn(
    node: &impl Host,
    pause: Duration,
) -> Result<Collected, Failure> {
    let _turn = node.upkeep().turn.lock().await;
    collect(node, pause).await
}

/// One deletion in each shard that has garbage and may delete. The caller has the turn.
pub(super) async fn collect(node: &impl Host, pause: Duration) -> Result<Collected, Failure> {
    let mut collected = Collected::default();
    for id in 0..node.chunks().shard_count() {
        let shard = ShardId(id as u16);
        loop {
            let may_delete = node.upkeep().may_delete(shard, pause);
            let limit = if may_delete { BATCH } else { 1 };
            let garbage = read::garbage(&node.view(), shard, limit).map_err(storage)?;
            if garbage.is_empty() {
                break;
            }
            if !may_delete {
                collected.shards_left += 1;
                break;
            }
            let full = garbage.len() == BATCH;
            let (chunks, bytes) = delete(node, shard, garbage).await?;
            collected.chunks += chunks;
            collected.bytes += bytes;
            if !full {
                break;
            }
        }
    }
    Ok(collected)
}

/// Deletes those of the chunks that nothing references.
pub(super) async fn delete(
    node: &impl Host,
    shard: ShardId,
    hashes: Vec<ChunkHash>,
) -> Result<(u64, u64), Failure> {
    // One that an error interrupted goes first; what the store has done already it does not do again.
    if let Some(pending) = read::pending_delete(&node.view(), shard).map_err(storage)? {
        carry_out(node, shard, pending.epoch, &pending.hashes).await?;
    }
    let info = read::shard(&node.view(), shard).map_err(storage)?;
    let info = info.ok_or(Failure::Meta(MetaError::NotFound))?;
    let epoch = Epoch(info.gc_epoch.0 + 1);
    let begin = Command::BeginDelete { shard, epoch, hashes };
    let Reply::Deleting { epoch, hashes } = node.command(begin, true).await? else {
        return Err(Failure::Storage("unexpected answer to BeginDelete".into()));
    };
    let bytes = carry_out(node, shard, epoch, &hashes).await?;
    node.upkeep().deleted.fetch_add(hashes.len() as u64, Ordering::Relaxed);
    Ok((hashes.len() as u64, bytes))
}

async fn carry_out(
    node: &impl Host,
    shard: ShardId,
    epoch: Epoch,
    hashes: &[ChunkHash],
) -> Result<u64, Failure> {
    let deleted = node.delete_chunks(shard, epoch, hashes).await;
    node.upkeep().note_deleted(shard);
    // Also after a failure: the index has forgotten them, only space was not given back yet.
    node.command(Command::EndDelete { shard, epoch }, false).await?;
    deleted
}
