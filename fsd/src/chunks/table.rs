//! The hash table of the index, made to grow without a pause and with little spare room.
//!
//! Linear hashing: `2^level + split` buckets, and an insertion that makes them too full splits the
//! one bucket at `split`. A bucket is a vector that grows by a few lines at a time.
//!
//! ```text
//! line 48 B + spare room of a bucket ~6 B + its vector and allocation ~6 B  =  below 64 B a chunk
//! ```

use std::hash::{BuildHasher, RandomState};

use raftmeta_types::ChunkHash;

use super::index::Location;

/// Lines of a bucket on average, beyond which one is split.
const BUCKET_LINES: usize = 14;
/// A full bucket grows by this, and a sparse one shrinks to leave this.
const SPARE_LINES: usize = 4;

type Line = (ChunkHash, Location);

const _: () = assert!(size_of::<Line>() == 48);

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Table {
    buckets: Vec<Vec<Line>>,
    /// Buckets at the start of this round, a power of two.
    round: usize,
    len: usize,
    /// Keyed by chance: names that a client makes up do not pile up in one bucket.
    hasher: RandomState,
}

impl Default for Table {
    fn default() -> Table {
        Table { buckets: vec![Vec::new()], round: 1, len: 0, hasher: RandomState::new() }
    }
}

impl Table {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, hash: &ChunkHash) -> Option<Location> {
        let bucket = &self.buckets[self.bucket(hash)];
        bucket.iter().find(|line| line.0 == *hash).map(|line| line.1)
    }

    /// Adds a line, or gives the place that it replaces.
    pub fn insert(&mut self, hash: ChunkHash, at: Location) -> Option<Location> {
        let place = self.bucket(&hash);
        let bucket = &mut self.buckets[place];
        if let Some(line) = bucket.iter_mut().find(|line| line.0 == hash) {
            return Some(std::mem::replace(&mut line.1, at));
        }
        push(bucket, (hash, at));
        self.len += 1;
        if self.len > self.buckets.len() * BUCKET_LINES {
            self.split();
        }
        None
    }

    pub fn remove(&mut self, hash: &ChunkHash) -> Option<Location> {
        let place = self.bucket(hash);
        let bucket = &mut self.buckets[place];
        let line = bucket.iter().position(|line| line.0 == *hash)?;
        let (_, at) = bucket.swap_remove(line);
        if bucket.capacity() - bucket.len() > 2 * SPARE_LINES {
            bucket.shrink_to(bucket.len() + SPARE_LINES);
        }
        self.len -= 1;
        Some(at)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Line> {
        self.buckets.iter().flatten()
    }

    fn bucket(&self, hash: &ChunkHash) -> usize {
        // Buckets below the split have been split into this round's upper half already.
        let value = self.hasher.hash_one(hash.0) as usize;
        let place = value & (2 * self.round - 1);
        if place < self.buckets.len() { place } else { value & (self.round - 1) }
    }

    fn split(&mut self) {
        let low = self.buckets.len() - self.round;
        let lines = std::mem::take(&mut self.buckets[low]);
        self.buckets.push(Vec::new());
        for line in lines {
            let place = self.bucket(&line.0);
            push(&mut self.buckets[place], line);
        }
        if self.buckets.len() == 2 * self.round {
            self.round *= 2;
        }
    }

    /// Bytes that the table takes from the allocator, which adds 16 to each bucket.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let lines: usize = self.buckets.iter().map(Vec::capacity).sum();
        let buckets = self.buckets.capacity() * size_of::<Vec<Line>>();
        lines * size_of::<Line>() + buckets + self.buckets.len() * 16
    }
}

fn push(bucket: &mut Vec<Line>, line: Line) {
    if bucket.len() == bucket.capacity() {
        bucket.reserve_exact(SPARE_LINES);
    }
    bucket.push(line);
}

#[cfg(test)]
mod tests;
