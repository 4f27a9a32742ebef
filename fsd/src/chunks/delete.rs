//! Deletes, and giving back the space of segments in which nothing lives.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use raftmeta_types::{ChunkHash, Epoch, ShardId};

use super::all::all;
use super::device::Device;
use super::error::{Error, Kind};
use super::format::BLOCK;
use super::pack::stopped;
use super::{ChunkStore, Inner};

/// Slots whose headers are written, or whose blocks are discarded, at the same time.
const SLOTS_AT_ONCE: usize = 32;

impl<V: Volume> ChunkStore<V> {
    /// Deletes chunks of a shard and adopts the epoch, in one step. An epoch that the shard has
    /// reached already does nothing: its deletion was done.
    ///
    /// # Errors
    /// `Invalid` for a hash of another shard. I/O errors concern the giving back of space only.
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
        {
            let mut index = self.inner.index.lock();
            if index.epochs[usize::from(shard.0)] >= epoch {
                return Ok(());
            }
            hashes.iter().for_each(|hash| index.remove(hash));
            index.epochs[usize::from(shard.0)] = epoch;
        }
        self.inner.free_dead().await.map(|_| ())
    }
}

impl<V: Volume> Inner<V> {
    /// Frees closed segments in which nothing lives, and says how many. A task of its own, so a
    /// caller that goes away leaves no slot half freed.
    pub(super) async fn free_dead(self: &Arc<Self>) -> Result<u32, Error> {
        self.check_poison()?;
        let dead = self.index.lock().take_dead();
        if dead.is_empty() {
            return Ok(0);
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move { inner.free(dead).await }).await.map_err(|_| stopped())?
    }

    /// The headers go first and durably, so that no recovery believes in records whose blocks are
    /// already gone or belong to the next segment.
    async fn free(&self, dead: Vec<u32>) -> Result<u32, Error> {
        let zeroed = match each_slot(&dead, |slot| self.device.forget(slot)).await {
            Ok(()) => self.flush().await,
            Err(error) => Err(error),
        };
        // A failed discard keeps blocks allocated below, it does not make the slot any less free.
        let discarded = match zeroed {
            Ok(()) => each_slot(&dead, |slot| self.device.discard(slot)).await,
            Err(_) => Ok(()),
        };
        let mut index = self.index.lock();
        dead.iter().for_each(|&slot| index.freed(slot, zeroed.is_ok()));
        zeroed.and(discarded).map(|()| dead.len() as u32)
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
