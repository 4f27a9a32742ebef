//! A replica that was away becomes equal while the shard goes on.
//!
//! ```text
//! primary: snapshot ── (op k, segments as of k) ──> compare: drops what is not there, knows what to fetch
//!          stream, from op k on ──────────────────> apply
//!          copy_segment ──────────────────────────> install_segment, one after the other
//!                                                   caught_up: the index has all of it
//! ```
//!
//! Positions are fixed, so the stream and the fetching need no order between them: what the stream adds to
//! a segment that is not there yet waits for it in memory.

use std::collections::BTreeMap;

use blockd_ipc::volume::Volume;
use raftmeta_types::{Epoch, ShardId};
use serde::{Deserialize, Serialize};

use super::append::not_primary;
use super::error::{Error, Kind};
use super::format::{self, SegmentId};
use super::replica::{Coming, Tail};
use super::replicate::{OpNumber, SegmentNumber};
use super::segments::SegmentInfo;
use super::shards::Standing;
use super::{ChunkStore, Inner};

/// A shard on its primary, between two ops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub epoch: Epoch,
    pub gc_epoch: Epoch,
    /// The first op that is not in it.
    pub next: OpNumber,
    pub segments: Vec<SegmentInfo>,
}

/// What a replica that catches up has done, and has to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The primary does not have them: they are gone.
    pub dropped: Vec<SegmentNumber>,
    /// To be read from the primary and installed; open ones first.
    pub fetch: Vec<Fetch>,
}

/// A segment that is not here, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    pub number: SegmentNumber,
    /// Bytes of its beginning that are here.
    pub have: u32,
}

impl<V: Volume> ChunkStore<V> {
    /// The shard as of one place in its stream. Whoever catches up has to be in the replicator's audience
    /// before, and gets the ops from `next` on. Of an epoch that is being begun it is the place before the first.
    ///
    /// # Errors
    /// `NotPrimary`, `Io`.
    pub async fn snapshot(&self, shard: ShardId) -> Result<Snapshot, Error> {
        self.inner.check_shard(shard)?;
        self.inner.submit_snapshot(shard).await
    }

    /// Compares with the primary, on a replica that is not in sync: drops the segments that the primary does
    /// not have, and takes ops from the snapshot's place on.
    ///
    /// # Errors
    /// `StaleEpoch`, `Io`; `Invalid`: this store is the primary.
    pub async fn compare(&self, shard: ShardId, theirs: &Snapshot) -> Result<Plan, Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let epoch = theirs.epoch;
        let mut stream = inner.streams[usize::from(shard.0)].lock().await;
        {
            let mut index = inner.index.lock();
            index.shard_mut(shard).hear(epoch)?;
            if index.shard(shard).primary() == Some(epoch) {
                return Err(Error::new(Kind::Invalid, "a primary does not catch up with itself"));
            }
        }
        inner.stop(shard, Standing::Replica { epoch, next: None }, &mut stream).await?;
        let mut plan = Plan::default();
        let mut ours: BTreeMap<SegmentNumber, SegmentInfo> =
            inner.segments(shard).await?.into_iter().map(|our| (our.number, our)).collect();
        let (open, sealed): (Vec<&SegmentInfo>, Vec<&SegmentInfo>) =
            theirs.segments.iter().partition(|their| !their.sealed);
        for their in open.into_iter().chain(sealed) {
            let our = ours.remove(&their.number);
            if our != Some(*their) {
                let have = our.map_or(0, |our| our.beginning_of(their));
                stream.coming.insert(their.number, Coming::default());
                plan.fetch.push(Fetch { number: their.number, have });
            } else if !their.sealed && format::epoch_of(their.number) == epoch {
                let id = SegmentId { shard, number: their.number };
                let extent = inner.extent(id)?;
                let entries = inner.entries(extent).await?;
                stream.tails.insert(id.number, Tail::new(extent.slot, extent.len, entries));
                inner.index.lock().reopen(extent.slot);
            }
        }
        plan.dropped = ours.into_keys().collect();
        let gone: Vec<SegmentId> =
            plan.dropped.iter().map(|&number| SegmentId { shard, number }).collect();
        inner.drop_segments(&gone).await?;
        let mut index = inner.index.lock();
        let shard = index.shard_mut(shard);
        shard.hear(epoch)?;
        shard.gc_epoch = theirs.gc_epoch.max(shard.gc_epoch);
        shard.standing = Standing::Replica { epoch, next: Some(theirs.next) };
        shard.whole = false;
        Ok(plan)
    }

    /// Drops all of a shard that this store holds no more as of that epoch.
    ///
    /// # Errors
    /// `StaleEpoch`: the store is something to the shard in that epoch or a later one; `Io`.
    pub async fn forget(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        // Whoever compares waits, and finds nothing here.
        let mut stream = inner.streams[usize::from(shard.0)].lock().await;
        {
            let index = inner.index.lock();
            let busy = match index.shard(shard).standing {
                Standing::Replica { epoch: of, .. }
                | Standing::Beginning { epoch: of }
                | Standing::Primary { epoch: of, .. }
                | Standing::Suspended { epoch: of } => of >= epoch,
                Standing::Unassigned => false,
            };
            if busy {
                let why = format!("shard {shard} is held here in epoch {epoch} or later");
                return Err(Error::new(Kind::StaleEpoch, why));
            }
        }
        inner.stop(shard, Standing::Unassigned, &mut stream).await?;
        let ours = inner.segments(shard).await?;
        let gone: Vec<SegmentId> =
            ours.iter().map(|our| SegmentId { shard, number: our.number }).collect();
        inner.drop_segments(&gone).await.map(|_| ())
    }

    /// The end of catching up: everything that was to be fetched is here, or was freed meanwhile.
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: something is missing still. `Io`.
    pub async fn caught_up(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let mut stream = inner.streams[usize::from(shard.0)].lock().await;
        {
            let mut index = inner.index.lock();
            index.shard_mut(shard).hear(epoch)?;
            let follows = match index.shard(shard).standing {
                Standing::Replica { epoch: now, next: Some(_) } => now == epoch,
                Standing::Replica { next: None, .. }
                | Standing::Unassigned
                | Standing::Beginning { .. }
                | Standing::Primary { .. }
                | Standing::Suspended { .. } => false,
            };
            if !follows || !stream.coming.is_empty() {
                let missing = stream.coming.len();
                let why = format!("shard {shard} is not caught up: {missing} segments are missing");
                return Err(Error::new(Kind::Invalid, why));
            }
        }
        stream.freed.clear();
        // The primary may know chunks that were deleted here before.
        inner.reindex(shard).await?;
        inner.index.lock().shard_mut(shard).whole = true;
        Ok(())
    }
}

impl<V: Volume> Inner<V> {
    /// The committer's part of a snapshot: no op is under way.
    pub(super) async fn snapshot_now(&self, shard: ShardId) -> Result<Snapshot, Error> {
        let segments = self.segments(shard).await?;
        let index = self.index.lock();
        let state = index.shard(shard);
        match state.standing {
            Standing::Primary { epoch, next } => {
                Ok(Snapshot { epoch, gc_epoch: state.gc_epoch, next, segments })
            }
            Standing::Beginning { epoch } => {
                let next = OpNumber::FIRST;
                Ok(Snapshot { epoch, gc_epoch: state.gc_epoch, next, segments })
            }
            Standing::Unassigned | Standing::Replica { .. } | Standing::Suspended { .. } => {
                Err(not_primary(shard))
            }
        }
    }
}
