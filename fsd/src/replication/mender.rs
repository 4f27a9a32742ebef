//! Puts right what is damaged in this node's store, from the other replicas of the shard.
//!
//! ```text
//!   a segment ─ whole at another replica? ─ yes ─▶ installed in place of the damaged one
//!      no, or it takes records now ─▶ its damaged chunks, one by one:
//!          another replica has the record at the same place ─▶ written over the damaged one
//!          it has the chunk elsewhere, and this node is the primary ─▶ put again
//! ```
//! Everything is checked against its checksums and name before it is written; nothing is taken out.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::message::Failure;
use fsd_rpc::nodes::Target;
use raftmeta::read;
use raftmeta_types::cluster::ShardInfo;
use raftmeta_types::{ChunkHash, MetaError, NodeId, ShardId};

use super::remote::ask;
use super::wire::{Ask, Told};
use crate::chunks::{Kind, Verified};
use crate::node::Node;
use crate::service::storage;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What has become of a damaged chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mended {
    /// Another replica had it, and it is good now.
    Repaired,
    /// It was deleted, or is not named any more.
    Gone,
    /// Nobody who answers has it whole.
    Not,
}

/// The shard, and who else has it in sync.
struct Others {
    shard: ShardInfo,
    targets: Vec<Target>,
}

impl Others {
    fn of(node: &Node, shard: ShardId) -> Result<Others, Failure> {
        let shard = read::shard(&node.group.view(), shard).map_err(storage)?;
        let shard = shard.ok_or(Failure::Meta(MetaError::NotFound))?;
        let others = shard.in_sync.iter().filter(|id| **id != node.id);
        let targets = others.map(|id| node.target_of(*id)).collect::<Result<_, _>>()?;
        Ok(Others { shard, targets })
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.targets.iter().map(|target| target.node)
    }
}

/// A chunk that is known to be damaged here.
pub(crate) async fn mend_chunk(node: &Arc<Node>, hash: &ChunkHash) -> Result<Mended, Failure> {
    let others = Others::of(node, hash.shard(node.cluster.shard_count))?;
    for target in &others.targets {
        let asked = ask(&**node, target, &Ask::Record { hash: *hash }, ANSWER_WITHIN).await;
        let Ok(Told::Record(record)) = asked else { continue };
        match node.chunks.repair(hash, others.shard.epoch, &record).await {
            Ok(()) => {
                tracing::info!(%hash, from = %target.node, "a damaged chunk is repaired");
                return Ok(Mended::Repaired);
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(Mended::Gone),
            Err(error) => tracing::debug!(%hash, %error, "repairing a chunk by its record"),
        }
    }
    if others.shard.primary != node.id {
        return Ok(Mended::Not);
    }
    for id in others.ids() {
        let Some(Ok(plain)) = node.get_from(id, &[*hash]).await.pop() else { continue };
        match node.chunks.put(vec![(*hash, plain)]).await {
            Ok(_) => {
                tracing::info!(%hash, from = %id, "a damaged chunk is put again");
                return Ok(Mended::Repaired);
            }
            Err(error) => tracing::debug!(%hash, %error, "putting a damaged chunk again"),
        }
    }
    Ok(Mended::Not)
}

/// A segment that is not whole here. Whether everything in it is good now.
pub(crate) async fn mend_segment(
    node: &Arc<Node>,
    shard: ShardId,
    found: &Verified,
) -> Result<bool, Failure> {
    let others = Others::of(node, shard)?;
    let number = found.info.number;
    for target in &others.targets {
        let wanted = Ask::Segment { shard, number, have: 0 };
        let asked = ask(&**node, target, &wanted, ANSWER_WITHIN).await;
        let Ok(Told::Segment(copy)) = asked else { continue };
        // One that ends earlier lacks what somebody was answered.
        let ends_earlier = copy.content.len() < found.info.len as usize;
        if copy.damaged || !copy.sealed && (found.info.sealed || ends_earlier) {
            continue;
        }
        let installed = node.chunks.install_segment(shard, others.shard.epoch, number, copy).await;
        match installed {
            Ok(()) => {
                tracing::info!(%shard, %number, from = %target.node, "a damaged segment is replaced");
                return Ok(true);
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(true),
            Err(error) => tracing::debug!(%shard, %number, %error, "replacing a damaged segment"),
        }
    }
    let mut all = !found.bad.is_empty();
    for hash in &found.bad {
        all &= mend_chunk(node, hash).await? != Mended::Not;
    }
    Ok(all)
}
