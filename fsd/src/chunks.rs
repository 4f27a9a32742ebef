//! The chunk store: immutable, content-addressed, sealed records in segments on a volume.
//!
//! ```text
//! put ─ known? ─ verify ─ compress ─ seal ─┐                  get ─ index ─ read ─ open ─ unpack
//!       (all cores)                        ├─ queue ─ committer: a write for each shard at once,
//! clean ─ live records of a poor segment ──┘                     one flush, then the index
//! ```
//!
//! The index holds only what is durable, and lives in RAM: recovery rebuilds it from footers and
//! scans. A deleted chunk may come back at recovery; it is content-addressed, so that harms nobody.
//!
//! A store may be one of several that hold the same segments (docs/replication.md): the primary of a
//! shard tells the others what it does ([`Replicator`]), they [`ChunkStore::apply`] it. Nothing here
//! opens a socket or asks who is whose primary.

pub(crate) mod all;
mod append;
mod catch_up;
mod clean;
mod codec;
mod delete;
mod device;
mod epoch;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod index;
mod install;
mod lead;
mod pack;
mod put;
mod queue;
mod read;
mod recover;
mod replica;
mod replicate;
mod scrub;
pub(crate) mod seal;
mod segments;
mod shards;
mod table;
mod taken;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use blockd_ipc::volume::Volume;
use parking_lot::Mutex;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use catch_up::{Fetch, Plan, Snapshot};
pub use clean::Cleaned;
pub use epoch::{Begun, Settled};
pub use error::{Error, Kind};
pub use lead::{LeadError, Peer};
pub use recover::owner;
pub use replica::{Applied, ApplyError};
pub use replicate::{
    Alone, Op, OpNumber, Replicated, ReplicationError, Replicator, SegmentNumber, ShardOp,
};
pub use scrub::{Place, Verified};
pub use seal::Keys;
pub use segments::{SegmentCopy, SegmentInfo};
pub use shards::{LiveSum, Role};
pub use taken::Taken;

use append::Appender;
use device::Device;
use index::Index;
#[cfg(test)]
use index::SlotState;
use pack::Packer;
use queue::Queue;
use replica::Stream;
use tally::{Held, Tally};

use crate::clock;

/// Bytes of puts in flight at most; further ones wait.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// How a volume becomes a chunk store.
#[derive(Clone, Copy, Debug)]
pub struct FormatParams {
    pub cluster_uuid: Uuid,
    /// A power of two, at most 65536.
    pub shard_count: u32,
    /// A multiple of 4096, 64 KiB to 64 MiB; usually 2 MiB.
    pub segment_bytes: u32,
}

/// What the state machine knows when a store opens.
#[derive(Debug)]
pub struct OpenParams {
    pub cluster_uuid: Uuid,
    pub keys: Keys,
    /// Gc epoch of each shard as the state machine has it; missing ones are 0. A deletion that was
    /// under way is not executed again: it may have been, and its chunks put and committed since
    /// (docs/decisions.md, D7). The leader ends it, and the sweep finds what stayed behind.
    pub epochs: Vec<(ShardId, Epoch)>,
}

/// Space of a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub total: u64,
    /// In segments that hold something.
    pub used: u64,
    /// Of records that the index names.
    pub live: u64,
    /// Kept for cleaning.
    pub reserve: u64,
    /// In free segments outside the reserve.
    pub free: u64,
    pub chunks: u64,
    pub segments_free: u32,
    pub segments_open: u32,
    pub segments_closed: u32,
}

/// What is here of one shard, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Of its segments, as far as they are filled: what a copy of it takes, and what a scrub reads.
    pub bytes: u64,
    /// Of records that the index names.
    pub live: u64,
    pub chunks: u64,
    pub segments: u32,
}

/// Chunks on one volume. Clones are handles of the same one.
pub struct ChunkStore<V: Volume> {
    inner: Arc<Inner<V>>,
}

impl<V: Volume> Clone for ChunkStore<V> {
    fn clone(&self) -> Self {
        ChunkStore { inner: Arc::clone(&self.inner) }
    }
}

impl<V: Volume> fmt::Debug for ChunkStore<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkStore").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

struct Inner<V> {
    device: Arc<Device<V>>,
    keys: Arc<Keys>,
    packer: Packer,
    index: Mutex<Index>,
    queue: Mutex<Queue>,
    appender: tokio::sync::Mutex<Appender>,
    /// Held while a primary writes to its open segments, never while it waits for others: whoever closed
    /// segments takes it once, and knows that nothing more comes.
    writing: tokio::sync::Mutex<()>,
    replicator: Arc<dyn Replicator>,
    /// What each shard's replica is doing. Taken before `writing`.
    streams: Vec<tokio::sync::Mutex<Stream>>,
    /// One cleaning at a time.
    cleaning: tokio::sync::Mutex<()>,
    in_flight: Semaphore,
    taken: taken::Intake,
    /// A flush failed: nothing is written any more.
    poisoned: AtomicBool,
    /// When the writes of the committer began that have not ended.
    writing_since: Mutex<Option<Instant>>,
}

impl<V: Volume> Inner<V> {
    fn new(
        device: Arc<Device<V>>,
        keys: Arc<Keys>,
        index: Index,
        replicator: Arc<dyn Replicator>,
    ) -> Inner<V> {
        let streams = index.shards.iter().map(|_| tokio::sync::Mutex::default()).collect();
        Inner {
            device,
            packer: Packer::new(Arc::clone(&keys)),
            keys,
            index: Mutex::new(index),
            queue: Mutex::new(Queue::default()),
            appender: tokio::sync::Mutex::new(Appender::default()),
            writing: tokio::sync::Mutex::new(()),
            replicator,
            streams,
            cleaning: tokio::sync::Mutex::new(()),
            in_flight: Semaphore::new(IN_FLIGHT_BYTES_MAX),
            taken: taken::Intake::default(),
            poisoned: AtomicBool::new(false),
            writing_since: Mutex::new(None),
        }
    }
}

impl<V: Volume> ChunkStore<V> {
    /// The receipt epoch of a shard.
    pub fn shard_epoch(&self, shard: ShardId) -> Epoch {
        self.inner.index.lock().shard(shard).gc_epoch
    }

    /// The epoch under which this store takes puts for the shard, if it does.
    pub fn leads(&self, shard: ShardId) -> Option<Epoch> {
        let index = self.inner.index.lock();
        index.shards.get(usize::from(shard.0)).and_then(|shard| shard.primary())
    }

    pub fn shard_count(&self) -> u32 {
        self.inner.device.header.shard_count
    }

    /// Whether a flush failed, after which nothing is written any more.
    #[cfg(test)]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.inner.check_poison().is_err()
    }

    /// Whether the chunk is here and, as far as is known, whole.
    pub fn contains(&self, hash: &ChunkHash) -> bool {
        self.inner.index.lock().knows(hash)
    }

    /// Bytes that a chunk takes on the volume.
    pub fn stored_len(&self, hash: &ChunkHash) -> Option<u32> {
        let index = self.inner.index.lock();
        index.table.get(hash).map(|at| format::record_bytes(at.stored_len) as u32)
    }

    /// Bytes of a chunk's plaintext.
    pub fn plain_len(&self, hash: &ChunkHash) -> Option<u32> {
        self.inner.index.lock().table.get(hash).map(|at| at.plain_len)
    }

    /// Bytes of the volume.
    pub fn capacity_bytes(&self) -> u64 {
        let geometry = self.inner.device.volume.geometry();
        geometry.blocks * u64::from(geometry.block_size)
    }

    /// The volume below, for status.
    pub fn volume(&self) -> &V {
        &self.inner.device.volume
    }

    /// Names of all chunks, or of one shard, in no order; for the gc sweep.
    pub fn iter_hashes(&self, shard: Option<ShardId>) -> Vec<ChunkHash> {
        let count = self.shard_count();
        let index = self.inner.index.lock();
        let wanted = |hash: &&ChunkHash| shard.is_none_or(|shard| hash.shard(count) == shard);
        index.table.iter().map(|line| &line.0).filter(wanted).copied().collect()
    }

    /// For how long the volume has not ended what was written to it.
    pub fn stalled(&self) -> Duration {
        self.inner.writing_since.lock().map_or(Duration::ZERO, clock::elapsed)
    }

    /// Whether a segment is free outside the reserve.
    pub fn has_room(&self) -> bool {
        self.inner.index.lock().has_room()
    }

    pub fn usage(&self) -> Usage {
        let index = self.inner.index.lock();
        let segment = u64::from(self.inner.device.header.segment_bytes);
        let Tally { free, open, closed, live, .. } = *index.tally();
        let reserve = index.reserve() as u64;
        Usage {
            total: (free + open + closed) * segment,
            used: (open + closed) * segment,
            live,
            reserve: reserve * segment,
            free: free.saturating_sub(reserve) * segment,
            chunks: index.table.len() as u64,
            segments_free: free as u32,
            segments_open: open as u32,
            segments_closed: closed as u32,
        }
    }

    /// What puts have brought since the start.
    pub fn taken(&self) -> Taken {
        self.inner.taken.so_far()
    }

    /// Bytes of a full segment.
    pub fn segment_bytes(&self) -> u32 {
        self.inner.device.header.segment_bytes
    }

    /// What is here of each shard, in their order.
    pub fn shares(&self) -> Vec<Share> {
        let index = self.inner.index.lock();
        let share = |(id, shard): (u16, &shards::Shard)| {
            let Held { bytes, live, segments } = index.tally().of(ShardId(id));
            Share { bytes, live, chunks: shard.live.chunks, segments: segments as u32 }
        };
        (0..=u16::MAX).zip(&index.shards).map(share).collect()
    }
}

#[cfg(test)]
mod tests;
