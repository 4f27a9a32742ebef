//! Deletes, and giving back the space of segments in which nothing lives.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use raftmeta_types::{ChunkHash, Epoch, ShardId};

use super::all::all;
use super::append::not_primary;
use super::device::Device;
use super::error::{Error, Kind};
use super::format::{BLOCK, SegmentId};
use super::pack::stopped;
use super::replicate::{Concerns, Op};
use super::{ChunkStore, Inner};

/// Slots whose headers are written, or whose blocks are discarded, at the same time.
const SLOTS_AT_ONCE: usize = 32;

impl<V: Volume> ChunkStore<V> {
    /// Deletes chunks of a shard and adopts the epoch, in one step, here and on all in-sync replicas. An
    /// epoch that the shard has reached already does nothing: its deletion was done.
    ///
    /// # Errors
    /// `Invalid` for a hash of another shard. `NotPrimary`, `NotReplicated`: whether the others deleted is
    /// not known, and this store did not. I/O errors concern the giving back of space only.
    pub async fn delete(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<(), Error> {
        let count = self.shard_count();
        if u32::from(shard.0) >= count || hashes.iter().any(|hash| hash.shard(count) != shard) {
            return Err(Error::new(Kind::Invalid, format!("delete of foreign chunks in {shard}")));
        }
        self.inner.submit_delete(shard, epoch, hashes.to_vec()).await?;
        self.inner.free_dead().await.map(|_| ())
    }
}

impl<V: Volume> Inner<V> {
    /// The committer's part of a deletion: it has its place between the groups of appends, on every replica
    /// the same.
    pub(super) async fn delete_now(
        &self,
        shard: ShardId,
        gc_epoch: Epoch,
        hashes: Vec<ChunkHash>,
    ) -> Result<(), Error> {
        let epoch = {
            let index = self.index.lock();
            let epoch = index.shard(shard).primary().ok_or_else(|| not_primary(shard))?;
            if index.shard(shard).gc_epoch >= gc_epoch {
                return Ok(());
            }
            epoch
        };
        let op = self
            .numbered(shard, Concerns::Chunks, || Op::Delete { gc_epoch, hashes: hashes.clone() });
        if let Some(error) = self.replicate(op.into_iter().collect()).await.remove(&shard) {
            return Err(error);
        }
        let mut index = self.index.lock();
        if index.shard(shard).primary() != Some(epoch) {
            return Err(not_primary(shard));
        }
        hashes.iter().for_each(|hash| index.remove(hash));
        index.shard_mut(shard).gc_epoch = gc_epoch;
        Ok(())
    }

    /// Frees closed segments in which nothing lives, and says how many. A task of its own, so a
    /// caller that goes away leaves no slot half freed.
    pub(super) async fn free_dead(self: &Arc<Self>) -> Result<u32, Error> {
        self.check_poison()?;
        let dead = self.index.lock().take_dead();
        self.free(dead).await
    }

    /// Frees slots that are marked so, see [`super::index::Index::start_freeing`].
    pub(super) async fn free(self: &Arc<Self>, slots: Vec<u32>) -> Result<u32, Error> {
        if slots.is_empty() {
            return Ok(0);
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move { inner.free_now(slots).await }).await.map_err(|_| stopped())?
    }

    /// The headers go first and durably, so that no recovery believes in records whose blocks are
    /// already gone or belong to the next segment.
    async fn free_now(self: &Arc<Self>, dead: Vec<u32>) -> Result<u32, Error> {
        let zeroed = match each_slot(&dead, |slot| self.device.forget(slot)).await {
            Ok(()) => self.flush().await,
            Err(error) => Err(error),
        };
        // A failed discard keeps blocks allocated below, it does not make the slot any less free.
        let discarded = match zeroed {
            Ok(()) => each_slot(&dead, |slot| self.device.discard(slot)).await,
            Err(_) => Ok(()),
        };
        let freed: Vec<SegmentId> = {
            let mut index = self.index.lock();
            dead.iter().filter_map(|&slot| index.freed(slot, zeroed.is_ok())).collect()
        };
        let heard = |id: &SegmentId| self.replicator.has_audience(id.shard);
        self.announce_freed(freed.into_iter().filter(heard).collect());
        zeroed.and(discarded).map(|()| dead.len() as u32)
    }

    /// The committer's part: of shards that are no longer this store's to clean the new primary finds out.
    pub(super) async fn tell_freed(&self, freed: Vec<SegmentId>) {
        let op = |id: SegmentId| {
            self.numbered(id.shard, Concerns::Freed(id), || Op::Free { segment: id.number })
        };
        self.replicate(freed.into_iter().filter_map(op).collect()).await;
    }
}

impl<V: Volume> Device<V> {
    async fn forget(&self, slot: u32) -> Result<(), Error> {
        self.write(self.slot_start(slot), &[&[0; BLOCK]]).await
    }

    async fn discard(&self, slot: u32) -> Result<(), Error> {
        self.deallocate(self.slot_start(slot), self.segment_bytes() as u64).await
    }
}

/// Does it to the slots, many at once; gives the first error after all of them.
async fn each_slot<F>(slots: &[u32], what: impl Fn(u32) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut result = Ok(());
    for some in slots.chunks(SLOTS_AT_ONCE) {
        for done in all(some.iter().map(|&slot| what(slot))).await {
            result = result.and(done);
        }
    }
    result
}
