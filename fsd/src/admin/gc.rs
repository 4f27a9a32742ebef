//! `gc`: what is pending, or all of it collected now. Of chunks the bytes of each are counted once, as a holder of
//! its shard knows them; of space those of all nodes together.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{DataStatus, GcFreed, GcPending, GcReport};
use fsd_rpc::message::Failure;
use raftmeta::{KvRead, keys, read};
use raftmeta_types::{ChunkHash, ShardId};

use super::jobs::{Entry, blocking};
use super::status;
use crate::jobs;
use crate::node::Node;
use crate::service::storage;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Chunks whose sizes are asked for at once.
const SIZES_AT_ONCE: usize = 1024;

pub(super) async fn gc(
    node: &Arc<Node>,
    entry: &Arc<Entry>,
    dry_run: bool,
) -> Result<GcReport, Failure> {
    entry.progress("looking for garbage", 0, 0, "")?;
    let stores = stores(node).await?;
    let before = status::sum(stores.iter());
    let mut pending = pending(node).await?;
    pending.dead_bytes = stores.iter().map(dead).sum();
    weigh(node, entry, &mut pending).await?;
    if dry_run {
        let after = before.clone();
        return Ok(GcReport { dry_run, pending, freed: GcFreed::default(), before, after });
    }
    let deleted_before = node.upkeep.deleted();
    let work = jobs::collect_all(node);
    tokio::pin!(work);
    let collected = loop {
        tokio::select! {
            done = &mut work => break done?,
            () = tokio::time::sleep(PROGRESS_EVERY) => {
                let gone = node.upkeep.deleted() - deleted_before;
                let (phase, gone) = match gone < pending.garbage_chunks {
                    true => ("deleting", gone),
                    false => ("cleaning", pending.garbage_chunks),
                };
                entry.progress(phase, gone, pending.garbage_chunks, "chunks")?;
            }
        }
    };
    let after = status::sum(self::stores(node).await?.iter());
    let freed = GcFreed {
        chunks: collected.chunks,
        chunk_bytes: collected.bytes,
        segments: u64::from(after.segments_free.saturating_sub(before.segments_free)),
    };
    Ok(GcReport { dry_run, pending, freed, before, after })
}

/// Of each node that answers.
async fn stores(node: &Arc<Node>) -> Result<Vec<DataStatus>, Failure> {
    let asked = node.ask_usages().await?;
    Ok(asked.iter().map(|(_, usage)| status::data(usage)).collect())
}

/// What the metadata knows of.
async fn pending(node: &Arc<Node>) -> Result<GcPending, Failure> {
    let view = node.group.view();
    blocking(move || {
        let count = |class: u8| {
            let (from, to) = keys::class(class);
            let pairs = view.scan(&from, &to, usize::MAX, false).map_err(storage)?;
            Ok::<u64, Failure>(pairs.len() as u64)
        };
        Ok(GcPending {
            orphans: count(b'O')?,
            unsettled_extents: count(b'U')?,
            dead_inodes: count(b'B')?,
            ..GcPending::default()
        })
    })
    .await
}

/// Adds the chunks that nothing references, and what they take.
async fn weigh(
    node: &Arc<Node>,
    entry: &Arc<Entry>,
    pending: &mut GcPending,
) -> Result<(), Failure> {
    for shard in 0..node.cluster.shard_count {
        let view = node.group.view();
        let garbage: Vec<ChunkHash> = blocking(move || {
            read::garbage(&view, ShardId(shard as u16), usize::MAX).map_err(storage)
        })
        .await?;
        pending.garbage_chunks += garbage.len() as u64;
        for some in garbage.chunks(SIZES_AT_ONCE) {
            entry.progress("weighing garbage", pending.garbage_chunks, 0, "chunks")?;
            let sizes = node.sizes(some).await?;
            pending.garbage_bytes +=
                sizes.into_iter().flatten().map(|size| u64::from(size.stored)).sum::<u64>();
        }
    }
    Ok(())
}

/// Bytes of closed segments of a node that no live record uses. What lives in open ones is not known apart: it is
/// taken from the closed ones, so that this is not too much.
fn dead(data: &DataStatus) -> u64 {
    let segments = data.segments_free + data.segments_open + data.segments_closed;
    let segment = data.total_bytes.checked_div(u64::from(segments)).unwrap_or(0);
    (u64::from(data.segments_closed) * segment).saturating_sub(data.live_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_bytes_are_those_of_closed_segments_that_do_not_live() {
        let data = DataStatus {
            total_bytes: 1000,
            live_bytes: 150,
            segments_free: 6,
            segments_open: 1,
            segments_closed: 3,
            ..DataStatus::default()
        };
        assert_eq!(dead(&data), 150);
        assert_eq!(dead(&DataStatus { live_bytes: 350, ..data }), 0);
        assert_eq!(dead(&DataStatus::default()), 0);
    }
}
