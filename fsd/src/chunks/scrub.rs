//! Scrubbing: every byte of a segment against its checksums, and single records put right.

use blockd_ipc::volume::Volume;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use serde::{Deserialize, Serialize};

use super::error::{Error, Kind};
use super::format::{self, BLOCK, RecordHeader, SegmentId};
use super::index::Location;
use super::replicate::SegmentNumber;
use super::segments::{SegmentInfo, check_whole};
use super::{ChunkStore, Inner};

/// What a scrub of a segment found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub info: SegmentInfo,
    /// Everything is as it was written.
    pub whole: bool,
    /// Chunks that are named here and cannot be read.
    pub bad: Vec<ChunkHash>,
}

/// Where a chunk's record lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub number: SegmentNumber,
    pub offset: u32,
    /// Bytes of the record, with its header and its end.
    pub len: u32,
}

impl<V: Volume> ChunkStore<V> {
    /// Reads a segment again. Chunks that turn out damaged are known to be so from now on.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Io`.
    pub async fn verify_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
    ) -> Result<Verified, Error> {
        let inner = &self.inner;
        inner.check_shard(shard)?;
        let extent = inner.extent(SegmentId { shard, number })?;
        let content = inner.content(extent, 0, inner.device.segment_bytes()).await?;
        let sealed = extent.sealed.is_some();
        let whole = check_whole(&content, extent.id, sealed, &inner.device.header).is_ok();
        let info = inner.info(extent).await?;
        let mut bad = Vec::new();
        if !whole {
            let mut index = inner.index.lock();
            let lines = index.table.iter().filter(|line| line.1.slot == extent.slot);
            let is_bad = |line: &&(ChunkHash, Location)| {
                let record = content.get(line.1.offset as usize..).unwrap_or_default();
                RecordHeader::decode(record, number).is_none_or(|(head, _)| head.hash != line.0)
            };
            bad = lines.filter(is_bad).map(|line| line.0).collect();
            index.damaged.extend(&bad);
        }
        bad.sort_unstable();
        Ok(Verified { info, whole, bad })
    }

    /// Chunks that are known to be damaged here, so many at most.
    pub fn damaged(&self, most: usize) -> Vec<ChunkHash> {
        self.inner.index.lock().damaged.iter().take(most).copied().collect()
    }

    pub fn damaged_count(&self) -> usize {
        self.inner.index.lock().damaged.len()
    }

    /// Numbers of the segments of a shard, in their order.
    pub fn segment_numbers(&self, shard: ShardId) -> Vec<SegmentNumber> {
        self.inner.index.lock().segments_of(shard).map(|(number, _)| number).collect()
    }

    /// Shards of which anything is here.
    pub fn held_shards(&self) -> Vec<ShardId> {
        let index = self.inner.index.lock();
        let mut shards: Vec<ShardId> = index.segments.keys().map(|id| id.shard).collect();
        shards.dedup();
        shards
    }

    /// Where a chunk lies, here as on every replica.
    pub fn place_of(&self, hash: &ChunkHash) -> Option<Place> {
        let index = self.inner.index.lock();
        let at = index.table.get(hash)?;
        let number = index.slot(at.slot).number;
        let len = format::record_bytes(at.stored_len) as u32;
        Some(Place { number, offset: at.offset, len })
    }

    /// The record of a chunk, byte by byte, for a replica whose own is damaged.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub async fn read_record(&self, hash: &ChunkHash) -> Result<Vec<u8>, Error> {
        let inner = &self.inner;
        let missing = || Error::new(Kind::NotFound, format!("no chunk {hash} here"));
        let (at, number) = inner.locate_record(hash).ok_or_else(missing)?;
        let (start, blocks) = inner.read_blocks(&at).await?;
        let from = at.offset as usize - start;
        let record = &blocks[from..from + format::record_bytes(at.stored_len)];
        match RecordHeader::decode(record, number) {
            Some((head, _)) if head.hash == *hash => Ok(record.to_vec()),
            Some(_) | None => Err(Error::new(Kind::Damaged, format!("chunk {hash} is damaged"))),
        }
    }

    /// Writes a good record over the damaged one, the same bytes at the same place.
    ///
    /// # Errors
    /// `StaleEpoch`; `NotFound`; `Invalid`: the bytes are not the record that belongs there. `Io`,
    /// `Poisoned`.
    pub async fn repair(&self, hash: &ChunkHash, epoch: Epoch, record: &[u8]) -> Result<(), Error> {
        let inner = &self.inner;
        inner.check_poison()?;
        let shard = hash.shard(self.shard_count());
        let _stream = inner.streams[usize::from(shard.0)].lock().await;
        inner.index.lock().shard_mut(shard).hear(epoch)?;
        let missing = || Error::new(Kind::NotFound, format!("no chunk {hash} here"));
        let (at, number) = inner.locate_record(hash).ok_or_else(missing)?;
        let fits = RecordHeader::decode(record, number).is_some_and(|(head, _)| {
            let lens = (head.stored_len, head.plain_len) == (at.stored_len, at.plain_len);
            head.hash == *hash && lens && record.len() == format::record_bytes(at.stored_len)
        });
        if !fits {
            let why = format!("repairing chunk {hash}: this is not the record at its place");
            return Err(Error::new(Kind::Invalid, why));
        }
        let _pin = inner.pin(hash, at).ok_or_else(missing)?;
        let (start, mut blocks) = inner.read_blocks(&at).await?;
        let from = at.offset as usize - start;
        blocks[from..from + record.len()].copy_from_slice(record);
        let place = inner.device.slot_start(at.slot) + start as u64;
        inner.device.write(place, &[&blocks]).await?;
        inner.flush().await?;
        let mut index = inner.index.lock();
        if index.table.get(hash) == Some(at) {
            index.damaged.remove(hash);
            index.change(at.slot, |slot| slot.stuck = false);
        }
        Ok(())
    }
}

/// Keeps a slot from being freed.
struct Pinned<'a, V: Volume> {
    inner: &'a Inner<V>,
    slot: u32,
}

impl<V: Volume> Drop for Pinned<'_, V> {
    fn drop(&mut self) {
        self.inner.index.lock().change(self.slot, |slot| slot.pinned = false);
    }
}

impl<V: Volume> Inner<V> {
    fn locate_record(&self, hash: &ChunkHash) -> Option<(Location, SegmentNumber)> {
        let index = self.index.lock();
        let at = index.table.get(hash)?;
        Some((at, index.slot(at.slot).number))
    }

    /// While the chunk is there. The stream's lock sees to it that only one is pinned in a shard.
    fn pin(&self, hash: &ChunkHash, at: Location) -> Option<Pinned<'_, V>> {
        let mut index = self.index.lock();
        (index.table.get(hash) == Some(at)).then(|| {
            index.change(at.slot, |slot| slot.pinned = true);
            Pinned { inner: self, slot: at.slot }
        })
    }

    /// The blocks in which a record lies, and where in the segment they begin.
    async fn read_blocks(&self, at: &Location) -> Result<(usize, Vec<u8>), Error> {
        let start = at.offset as usize / BLOCK * BLOCK;
        let end =
            (at.offset as usize + format::record_bytes(at.stored_len)).next_multiple_of(BLOCK);
        let place = self.device.slot_start(at.slot) + start as u64;
        Ok((start, self.device.read(place, end - start).await?))
    }
}
