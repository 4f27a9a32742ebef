//! Epochs of a shard: roles, and how a new primary and its replicas become equal before it takes puts.
//!
//! ```text
//! new primary: begin_epoch ── (number, len, sealed, digest) of all segments ──> replica: settle
//!              <── what is missing or differs there, what only it has ──────────────┘
//!              the better copies go where the others are (install_segment), both ways
//!              follow(live sum) ──> replica: the index has what the primary's has; op 1 may come
//!              set_role(Primary)
//! ```
//!
//! Nothing that an in-sync replica has is dropped here: what the new primary lacks may be unacknowledged or
//! freed, then it is garbage, or damaged, then it is precious.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use raftmeta_types::{Epoch, ShardId};
use serde::{Deserialize, Serialize};

use super::error::{Error, Kind};
use super::format::SegmentId;
use super::replica::Stream;
use super::replicate::{OpNumber, SegmentNumber};
use super::segments::SegmentInfo;
use super::shards::{LiveSum, Role, Standing};
use super::{ChunkStore, Inner};

/// What a new primary has of the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    pub segments: Vec<SegmentInfo>,
    pub live: LiveSum,
}

/// In what a replica differs from the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Segments of the primary that are not here.
    pub missing: Vec<SegmentInfo>,
    /// Segments that are here and not the same: as they are here.
    pub differing: Vec<SegmentInfo>,
    /// Segments that the primary does not have.
    pub extra: Vec<SegmentInfo>,
}

impl Settled {
    pub fn is_equal(&self) -> bool {
        self.missing.is_empty() && self.differing.is_empty() && self.extra.is_empty()
    }
}

impl<V: Volume> ChunkStore<V> {
    /// What this store is to the shard from now on, as the map says. Puts that are under way for a shard
    /// whose primary it no longer is fail.
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: a store that was anything else in this life becomes primary only of an epoch
    /// that it began, see [`ChunkStore::begin_epoch`].
    pub fn set_role(&self, shard: ShardId, role: Role) -> Result<(), Error> {
        self.inner.check_shard(shard)?;
        let mut index = self.inner.index.lock();
        let standing = index.shard(shard).standing;
        let next = match role {
            Role::None => Standing::Unassigned,
            Role::Replica { epoch } => {
                index.shard_mut(shard).hear(epoch)?;
                match standing {
                    Standing::Replica { epoch: now, .. } if now == epoch => return Ok(()),
                    Standing::Replica { .. }
                    | Standing::Unassigned
                    | Standing::Beginning { .. }
                    | Standing::Primary { .. }
                    | Standing::Suspended { .. } => Standing::Replica { epoch, next: None },
                }
            }
            Role::Primary { epoch, gc_epoch } => {
                index.shard_mut(shard).hear(epoch)?;
                match standing {
                    Standing::Primary { epoch: now, .. } if now == epoch => return Ok(()),
                    Standing::Beginning { epoch: now } if now == epoch => {}
                    Standing::Unassigned => {}
                    Standing::Beginning { .. }
                    | Standing::Replica { .. }
                    | Standing::Primary { .. }
                    | Standing::Suspended { .. } => {
                        let why = format!("epoch {epoch} of shard {shard} has to be begun first");
                        return Err(Error::new(Kind::Invalid, why));
                    }
                }
                let own = &mut index.shard_mut(shard).gc_epoch;
                *own = gc_epoch.max(*own);
                index.shard_mut(shard).whole = true;
                Standing::Primary { epoch, next: OpNumber::FIRST }
            }
        };
        index.shard_mut(shard).standing = next;
        index.close_shard(shard);
        Ok(())
    }

    /// Makes this store the one whose segments the others are made equal to: its own open ones are closed,
    /// and its stream starts anew. It takes no puts before [`ChunkStore::set_role`] makes it primary.
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: this store did something under that epoch already, so it takes a newer one.
    /// `Io`.
    pub async fn begin_epoch(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
    ) -> Result<Begun, Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let mut stream = inner.streams[usize::from(shard.0)].lock().await;
        {
            let mut index = inner.index.lock();
            index.shard_mut(shard).hear(epoch)?;
            let used = match index.shard(shard).standing {
                Standing::Primary { epoch: of, .. } | Standing::Suspended { epoch: of } => of,
                Standing::Replica { epoch: of, next: Some(_) } => of,
                Standing::Replica { next: None, .. }
                | Standing::Beginning { .. }
                | Standing::Unassigned => Epoch(0),
            };
            if used == epoch {
                let why = format!("epoch {epoch} of shard {shard} was used: begin a newer one");
                return Err(Error::new(Kind::Invalid, why));
            }
            let own = &mut index.shard_mut(shard).gc_epoch;
            *own = gc_epoch.max(*own);
        }
        inner.stop(shard, Standing::Beginning { epoch }, &mut stream).await?;
        let segments = inner.segments(shard).await?;
        let live = inner.index.lock().shard(shard).live;
        Ok(Begun { segments, live })
    }

    /// Whether this store has everything that was acknowledged of a shard, if the map says that it is in sync. After a
    /// start it does not know before it has been compared with another.
    pub fn is_whole(&self, shard: ShardId) -> bool {
        self.inner.check_shard(shard).is_ok() && self.inner.index.lock().shard(shard).whole
    }

    /// The segments again, after some of the others' were installed.
    ///
    /// # Errors
    /// `Invalid` unless the epoch is being begun, `Io`.
    pub async fn begun(&self, shard: ShardId, epoch: Epoch) -> Result<Begun, Error> {
        self.inner.check_shard(shard)?;
        let segments = self.inner.segments(shard).await?;
        let index = self.inner.index.lock();
        match index.shard(shard).standing {
            Standing::Beginning { epoch: now } if now == epoch => {
                Ok(Begun { segments, live: index.shard(shard).live })
            }
            Standing::Beginning { .. }
            | Standing::Replica { .. }
            | Standing::Unassigned
            | Standing::Primary { .. }
            | Standing::Suspended { .. } => {
                let why = format!("epoch {epoch} of shard {shard} is not being begun");
                Err(Error::new(Kind::Invalid, why))
            }
        }
    }

    /// Compares with what the new primary has, on a replica that was in sync. Nothing is changed. May be
    /// asked again until [`ChunkStore::follow`].
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: ops of that epoch were applied already, so the primary takes a newer one.
    /// `Io`.
    pub async fn settle(
        &self,
        shard: ShardId,
        epoch: Epoch,
        theirs: &[SegmentInfo],
    ) -> Result<Settled, Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let mut stream = inner.streams[usize::from(shard.0)].lock().await;
        inner.check_unused(shard, epoch)?;
        inner.stop(shard, Standing::Replica { epoch, next: None }, &mut stream).await?;
        let mut settled = Settled::default();
        let mut ours: BTreeMap<SegmentNumber, SegmentInfo> =
            inner.segments(shard).await?.into_iter().map(|our| (our.number, our)).collect();
        for their in theirs {
            match ours.remove(&their.number) {
                None => settled.missing.push(*their),
                Some(our) if our == *their => {}
                Some(our) => settled.differing.push(our),
            }
        }
        settled.extra = ours.into_values().collect();
        Ok(settled)
    }

    /// Takes ops of the epoch from the first one on. The index has what the primary's has, which `live`
    /// tells without naming it.
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: ops were applied already, or it did not settle. `Io`.
    pub async fn follow(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let _stream = inner.streams[usize::from(shard.0)].lock().await;
        inner.check_unused(shard, epoch)?;
        let differs = inner.index.lock().shard(shard).live != live;
        if differs {
            inner.reindex(shard).await?;
        }
        let mut index = inner.index.lock();
        let shard = index.shard_mut(shard);
        match shard.standing {
            Standing::Replica { epoch: now, .. } if now == epoch => {
                shard.standing = Standing::Replica { epoch, next: Some(OpNumber::FIRST) };
                shard.gc_epoch = gc_epoch.max(shard.gc_epoch);
                shard.whole = true;
                Ok(())
            }
            Standing::Replica { .. }
            | Standing::Unassigned
            | Standing::Beginning { .. }
            | Standing::Primary { .. }
            | Standing::Suspended { .. } => {
                Err(Error::new(Kind::Invalid, "a replica settles before it follows"))
            }
        }
    }
}

impl<V: Volume> Inner<V> {
    /// Whether a replica may still be settled in that epoch.
    pub(super) fn check_unused(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        let mut index = self.index.lock();
        index.shard_mut(shard).hear(epoch)?;
        let why = match index.shard(shard).standing {
            Standing::Replica { epoch: of, next: Some(next) }
                if of == epoch && next > OpNumber::FIRST =>
            {
                "ops of it were applied"
            }
            Standing::Primary { epoch: of, .. }
            | Standing::Beginning { epoch: of }
            | Standing::Suspended { epoch: of }
                if of == epoch =>
            {
                "this store is its primary"
            }
            Standing::Replica { .. }
            | Standing::Unassigned
            | Standing::Primary { .. }
            | Standing::Beginning { .. }
            | Standing::Suspended { .. } => return Ok(()),
        };
        Err(Error::new(Kind::Invalid, format!("settling epoch {epoch} of shard {shard}: {why}")))
    }

    /// Ends whatever was written to the shard's segments, and forgets those that nobody acknowledged.
    pub(super) async fn stop(
        self: &Arc<Self>,
        shard: ShardId,
        standing: Standing,
        stream: &mut Stream,
    ) -> Result<(), Error> {
        {
            let mut index = self.index.lock();
            index.shard_mut(shard).standing = standing;
            index.close_shard(shard);
        }
        *stream = Stream::default();
        // What a group of the old epoch writes now is the last.
        drop(self.writing.lock().await);
        let unborn: Vec<SegmentId> = {
            let index = self.index.lock();
            let empty = |&(_, slot): &(_, u32)| index.slot(slot).len == 0;
            let unborn = index.segments_of(shard).filter(empty);
            unborn.map(|(number, _)| SegmentId { shard, number }).collect()
        };
        self.drop_segments(&unborn).await.map(|_| ())
    }
}
