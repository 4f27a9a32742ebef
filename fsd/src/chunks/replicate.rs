//! What a primary tells the replicas of a shard, and the seam through which it does.
//!
//! ```text
//! primary: group ─┬─ own device: write, flush ─────────────┬─ index, receipts
//!                 └─ Replicator ── ops (shard, epoch, 1..) ─┘
//!                        replica: check, write, flush, index, answer
//! ```
//!
//! The ops of a shard and epoch are numbered from 1 on without gaps, in the order in which the primary did
//! them. A number is used once: a primary that cannot say what it sent before begins a new epoch.

use std::fmt;
use std::pin::Pin;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use serde::{Deserialize, Serialize};

use super::Inner;
use super::append::Failed;
use super::error::{Error, Kind};
use super::format::SegmentId;

/// Number of a segment in its shard; never used again. See [`super::format::number`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SegmentNumber(pub u64);

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Place of an op in the stream of its shard and epoch; the first one is 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OpNumber(pub u64);

impl OpNumber {
    pub const FIRST: OpNumber = OpNumber(1);

    pub fn next(self) -> OpNumber {
        OpNumber(self.0 + 1)
    }
}

/// One step of a shard, the same on all its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Bytes of a segment, whole blocks. Those at offset 0 begin with the segment's header and open it.
    Append {
        segment: SegmentNumber,
        offset: u32,
        bytes: Bytes,
        /// Cleaning moves records: it may take from the reserve.
        reserve: bool,
    },
    /// The segment is full, and this is its end. The records were durable before.
    Seal { segment: SegmentNumber, footer: Bytes },
    /// These chunks are gone, and the shard has a new gc epoch.
    Delete { gc_epoch: Epoch, hashes: Vec<ChunkHash> },
    /// Nothing in the segment lives any more.
    Free { segment: SegmentNumber },
}

/// An op with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardOp {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub number: OpNumber,
    pub op: Op,
}

/// Why the ops of a shard are not on all its in-sync replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationError {
    /// A replica knows this newer epoch: somebody else may be the primary.
    Deposed(Epoch),
    /// A replica does not answer, and the set of replicas could not be changed in time.
    NotNow,
    /// A replica has no free segment.
    NoSpace,
}

/// The shards of which not all ops arrived; empty is well.
pub type Replicated = Pin<Box<dyn Future<Output = Vec<(ShardId, ReplicationError)>> + Send>>;

/// The way to the other replicas. The order of calls is the order of the ops: whatever a call does before
/// its future is polled first decides it.
pub trait Replicator: Send + Sync + 'static {
    /// Whether the shard has other replicas, in sync or catching up. Without any no bytes are gathered;
    /// the ops are counted all the same. Asked at the beginning of each group.
    fn has_audience(&self, shard: ShardId) -> bool;

    /// Whether all in-sync replicas of the shard can begin a segment, as far as is known.
    fn has_room(&self, shard: ShardId) -> bool;

    /// Ends when every in-sync replica of each shard has its ops durable, with the shards for which that
    /// failed. It ends in bounded time, as nothing else of this store is committed meanwhile.
    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated;
}

/// The replicator of a store that is alone.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Replicator for Alone {
    fn has_audience(&self, _: ShardId) -> bool {
        false
    }

    fn has_room(&self, _: ShardId) -> bool {
        true
    }

    fn replicate(&self, _: Vec<ShardOp>) -> Replicated {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// What an op is about.
#[derive(Clone, Copy)]
pub(super) enum Concerns {
    Chunks,
    /// A segment that takes records in that slot, still.
    Open {
        slot: u32,
        id: SegmentId,
    },
    /// A segment that is not here. A new epoch may have brought it back before the others heard that it was freed.
    Freed(SegmentId),
}

impl<V: Volume> Inner<V> {
    /// Gives an op of this primary its number, if what it `concerns` is as it says at that moment; the op itself
    /// if anybody is to hear of it.
    pub(super) fn numbered(
        &self,
        shard: ShardId,
        concerns: Concerns,
        op: impl FnOnce() -> Op,
    ) -> Option<ShardOp> {
        let (epoch, number) = {
            let mut index = self.index.lock();
            let counts = match concerns {
                Concerns::Chunks => true,
                Concerns::Open { slot, id } => index.is_open(slot, id),
                Concerns::Freed(id) => !index.segments.contains_key(&id),
            };
            if !counts {
                return None;
            }
            index.shard_mut(shard).take_op()?
        };
        let heard = self.replicator.has_audience(shard);
        heard.then(|| ShardOp { shard, epoch, number, op: op() })
    }

    /// Tells the others, and suspends the shards of which not all could be told.
    pub(super) async fn replicate(&self, ops: Vec<ShardOp>) -> Failed {
        if ops.is_empty() {
            return Failed::new();
        }
        let epochs: Vec<_> = ops.iter().map(|op| (op.shard, op.epoch)).collect();
        let refused = self.replicator.replicate(ops).await;
        let mut index = self.index.lock();
        let failed = refused.into_iter().map(|(shard, why)| {
            let sent = epochs.iter().filter(|sent| sent.0 == shard);
            sent.for_each(|&(shard, epoch)| index.suspend(shard, epoch));
            let (kind, why) = match why {
                ReplicationError::NoSpace => (
                    Kind::NoSpace,
                    format!("a replica of shard {shard} is full: delete, or add devices"),
                ),
                ReplicationError::Deposed(epoch) => {
                    let known = &mut index.shard_mut(shard).known;
                    *known = epoch.max(*known);
                    let why = format!("shard {shard} has a newer epoch, {epoch}: ask its primary");
                    (Kind::NotReplicated, why)
                }
                ReplicationError::NotNow => {
                    let why =
                        format!("the replicas of shard {shard} cannot all be reached: ask again");
                    (Kind::NotReplicated, why)
                }
            };
            (shard, Error::new(kind, why))
        });
        failed.collect()
    }
}
