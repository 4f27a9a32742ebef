//! `gc`: what is pending, or all of it collected now.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{GcFreed, GcPending, GcReport};
use fsd_rpc::message::Failure;
use raftmeta::{KvRead, keys, read};
use raftmeta_types::ShardId;

use super::jobs::{Entry, blocking};
use super::status;
use crate::chunks::Usage;
use crate::jobs;
use crate::node::Node;
use crate::service::storage;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn gc(
    node: &Arc<Node>,
    entry: &Arc<Entry>,
    dry_run: bool,
) -> Result<GcReport, Failure> {
    entry.progress("looking for garbage", 0, 0, "")?;
    let before = status::data(node);
    let look = Arc::clone(node);
    let pending = blocking(move || pending(&look)).await?;
    if dry_run {
        let after = before.clone();
        return Ok(GcReport { dry_run, pending, freed: GcFreed::default(), before, after });
    }
    let work = jobs::collect_all(node);
    tokio::pin!(work);
    let collected = loop {
        tokio::select! {
            done = &mut work => break done?,
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                let gone = before.chunks.saturating_sub(node.chunks.usage().chunks);
                entry.progress("deleting", gone, pending.garbage_chunks, "chunks")?;
            }
        }
    };
    let after = status::data(node);
    let freed = GcFreed {
        chunks: collected.chunks,
        chunk_bytes: collected.bytes,
        segments: u64::from(after.segments_free.saturating_sub(before.segments_free)),
    };
    Ok(GcReport { dry_run, pending, freed, before, after })
}

fn pending(node: &Node) -> Result<GcPending, Failure> {
    let view = node.group.view();
    let usage = node.chunks.usage();
    let count = |class: u8| {
        let (from, to) = keys::class(class);
        view.scan(&from, &to, usize::MAX, false).map(|pairs| pairs.len() as u64).map_err(storage)
    };
    let mut pending = GcPending {
        orphans: count(b'O')?,
        unsettled_extents: count(b'U')?,
        dead_inodes: count(b'B')?,
        dead_bytes: dead(&usage),
        ..GcPending::default()
    };
    for shard in 0..node.cluster.shard_count {
        let garbage = read::garbage(&view, ShardId(shard as u16), usize::MAX).map_err(storage)?;
        pending.garbage_chunks += garbage.len() as u64;
        let stored = garbage.iter().filter_map(|hash| node.chunks.stored_len(hash));
        pending.garbage_bytes += stored.map(u64::from).sum::<u64>();
    }
    Ok(pending)
}

/// Bytes of closed segments that no live record uses. What lives in open ones is not known apart: it is taken
/// from the closed ones, so that this is not too much.
fn dead(usage: &Usage) -> u64 {
    let segments = usage.segments_free + usage.segments_open + usage.segments_closed;
    let segment = usage.total.checked_div(u64::from(segments)).unwrap_or(0);
    (u64::from(usage.segments_closed) * segment).saturating_sub(usage.live)
}
