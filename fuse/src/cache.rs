//! Chunks that this client fetched and verified, bounded in bytes.

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use raftmeta_types::ChunkHash;

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
        ChunkCache(Cache::with_weighter((bytes / 65_536) as usize + 16, bytes, Weight))
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
