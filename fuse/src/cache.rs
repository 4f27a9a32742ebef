//! Chunks that this client fetched and verified, bounded in bytes.

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use raftmeta_types::ChunkHash;

/// Share of the cache for chunks that were asked for again. The rest has to hold what was read ahead until
/// it is asked for at all: the default leaves it three percent, in which reading ahead is for nothing.
const HOT: f64 = 0.5;

#[derive(Clone)]
struct Weight;

impl Weighter<ChunkHash, Bytes> for Weight {
    fn weight(&self, _: &ChunkHash, chunk: &Bytes) -> u64 {
        chunk.len() as u64 + 96
    }
}

pub(crate) struct ChunkCache(Cache<ChunkHash, Bytes, Weight>);

impl ChunkCache {
    /// Holds at most about `bytes`.
    pub(crate) fn new(bytes: u64) -> ChunkCache {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / 65_536) as usize + 16)
            .weight_capacity(bytes)
            .hot_allocation(HOT)
            .build();
        // Both numbers that it cannot do without are given.
        let options = options.expect("a capacity and a weight");
        let hasher = DefaultHashBuilder::default();
        ChunkCache(Cache::with_options(options, Weight, hasher, DefaultLifecycle::default()))
    }

    pub(crate) fn get(&self, hash: &ChunkHash) -> Option<Bytes> {
        self.0.get(hash)
    }

    /// Keeps the chunk if it is what its name says; answers whether it is.
    pub(crate) fn insert_verified(&self, hash: ChunkHash, chunk: Bytes) -> bool {
        if blake3::hash(&chunk).as_bytes() != &hash.0 {
            return false;
        }
        self.0.insert(hash, chunk);
        true
    }
}
