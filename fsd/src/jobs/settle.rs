//! Puts inline data into chunks some time after it was written (docs/decisions.md, D3).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fsd_rpc::message::Failure;
use raftmeta::read::{self, Unsettled};
use raftmeta::store::View;
use raftmeta_types::command::Settle;
use raftmeta_types::{ChunkHash, Command, Epoch, ExtentData, Ino, MetaError, Version};

use super::Found;
use crate::node::Node;
use crate::service::storage;

/// Younger extents may yet be overwritten, deleted or joined.
pub(super) const AGE: Duration = Duration::from_secs(10);
/// Extents looked at in one round.
const LOOKED_AT_MAX: usize = 4096;
/// Extents, and bytes, settled by one command.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 4 << 20;
/// A put that is refused again and again because its shard deletes is left to the next round.
const TRIES: usize = 4;

/// Where the last round stopped looking, and what it knows.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    after: Option<(Ino, u64)>,
    /// The oldest that was too young, since the start.
    oldest: Option<Version>,
    /// Everything was looked at, and nothing is ripe before this is. What came later is younger.
    ripe_next: Option<Version>,
}

impl Cursor {
    /// Notes what was looked at; at the end it begins from the start again.
    fn advance(&mut self, found: &[Unsettled], old: Option<u64>) {
        let is_young = |version: &Version| old.is_none_or(|old| *version > Version(old));
        let young = found.iter().map(|unsettled| unsettled.version).filter(is_young).min();
        self.oldest = self.oldest.into_iter().chain(young).min();
        if found.len() == LOOKED_AT_MAX {
            self.after = found.last().map(|last| (last.ino, last.offset));
        } else {
            *self = Cursor { ripe_next: self.oldest, ..Cursor::default() };
        }
    }
}

struct Item {
    unsettled: Unsettled,
    hash: ChunkHash,
    data: Bytes,
}

/// Settles what was written before entry `old` of the log, and rests half of the time while it does.
pub(super) async fn settle(
    node: &Arc<Node>,
    cursor: &mut Cursor,
    old: Option<u64>,
) -> Result<Found, Failure> {
    let is_young = |version: Version| old.is_none_or(|old| version > Version(old));
    if cursor.ripe_next.is_some_and(is_young) {
        return Ok(Found::Something);
    }
    let from_start = cursor.after.is_none();
    let found =
        read::unsettled(&node.group.view(), cursor.after, LOOKED_AT_MAX).map_err(storage)?;
    cursor.advance(&found, old);
    if found.is_empty() {
        return Ok(if from_start { Found::Nothing } else { Found::Something });
    }
    let full = found.len() == LOOKED_AT_MAX;
    let Some(old) = old else { return Ok(Found::Something) };
    let mut ripe = found.into_iter().filter(|unsettled| unsettled.version <= Version(old));
    let mut any = false;
    loop {
        let since = Instant::now();
        let batch = gather(node, &mut ripe)?;
        if batch.is_empty() {
            return Ok(if any && full { Found::More } else { Found::Something });
        }
        store(node, &batch).await?;
        any = true;
        tokio::time::sleep(since.elapsed()).await;
    }
}

fn gather(node: &Node, ripe: &mut impl Iterator<Item = Unsettled>) -> Result<Vec<Item>, Failure> {
    let view = node.group.view();
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH && bytes < BATCH_BYTES {
        let Some(unsettled) = ripe.next() else { break };
        if let Some(data) = inline(&view, &unsettled)? {
            bytes += data.len();
            let hash = ChunkHash(*blake3::hash(&data).as_bytes());
            batch.push(Item { unsettled, hash, data });
        }
    }
    Ok(batch)
}

/// The data of the extent, unless it was replaced meanwhile.
fn inline(view: &View, unsettled: &Unsettled) -> Result<Option<Bytes>, Failure> {
    let Unsettled { ino, offset, version } = *unsettled;
    let found = read::extents(view, ino, offset, offset + 1, 1).map_err(storage)?;
    Ok(found.into_iter().find_map(|extent| match extent.data {
        ExtentData::Inline(data) if extent.offset == offset && extent.version == version => {
            Some(data)
        }
        ExtentData::Inline(_) | ExtentData::Chunk { .. } | ExtentData::Zero => None,
    }))
}

async fn store(node: &Arc<Node>, batch: &[Item]) -> Result<(), Failure> {
    for _ in 0..TRIES {
        let chunks = batch.iter().map(|item| (item.hash, item.data.clone())).collect();
        let receipts = node.put_chunks(chunks).await?;
        let item = |(item, receipt): (&Item, Epoch)| Settle {
            ino: item.unsettled.ino,
            offset: item.unsettled.offset,
            len: item.data.len() as u32,
            version: item.unsettled.version,
            hash: item.hash,
            chunk_offset: 0,
            receipt,
        };
        let items = batch.iter().zip(receipts).map(item).collect();
        match node.command(Command::Settle(items), false).await {
            Err(Failure::Meta(MetaError::RetryPut(hashes))) => {
                node.upkeep.hold_deletions(&hashes, node.cluster.shard_count);
                node.lift(&hashes).await;
            }
            answer => return answer.map(drop),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsettled(count: usize, version: u64) -> Vec<Unsettled> {
        let one = |n| Unsettled { ino: Ino(n as u64 + 2), offset: 0, version: Version(version) };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_oldest_of_all_that_are_young_is_waited_for() {
        let mut cursor = Cursor::default();
        cursor.advance(&unsettled(LOOKED_AT_MAX, 70), Some(50));
        assert_eq!(cursor.after, Some((Ino(LOOKED_AT_MAX as u64 + 1), 0)));
        assert_eq!(cursor.ripe_next, None, "there is more to look at");
        cursor.advance(&unsettled(3, 60), Some(50));
        assert_eq!((cursor.after, cursor.ripe_next), (None, Some(Version(60))));
        // What is ripe is settled, and waited for no longer.
        cursor.advance(&unsettled(3, 60), Some(60));
        assert_eq!(cursor.ripe_next, None);
        cursor.advance(&unsettled(1, 60), None);
        assert_eq!(cursor.ripe_next, Some(Version(60)), "while no age is known all are young");
    }
}
