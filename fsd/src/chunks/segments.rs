//! Segments as replicas see them: which there are, what is in them, and whether that is whole.
//!
//! ```text
//! content of an open or closed segment:  header | batches |              up to its length
//! content of a sealed one:               header | batches | zeros | footer   the whole slot
//! ```
//!
//! What a slot holds behind that is of earlier lives, and nobody's business.

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, ShardId};
use serde::{Deserialize, Serialize};

use super::error::{Error, Kind};
use super::format::{
    self, BLOCK, Entry, Footer, Found, RecordHeader, SegmentHeader, SegmentId, VolumeHeader,
};
use super::index::SlotState;
use super::replicate::SegmentNumber;
use super::{ChunkStore, Inner};

/// A segment of a shard. Equal on two stores when both have the same bytes, damage aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    pub number: SegmentNumber,
    /// Bytes of header and records, in whole blocks.
    pub len: u32,
    /// It is full and has its footer.
    pub sealed: bool,
    /// Of the footer, or of all bytes while there is none.
    pub digest: u64,
}

/// All of a segment, for another replica, which may have the beginning of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCopy {
    /// Bytes at the beginning that are not here, in whole blocks: whoever gets this has them.
    pub skipped: u32,
    /// Of all bytes, the skipped ones too.
    pub digest: u64,
    /// What follows, as [`ChunkStore::read_segment`] gives it.
    pub content: Bytes,
    pub sealed: bool,
    /// Not all of it is as a primary wrote it.
    pub damaged: bool,
}

impl SegmentInfo {
    /// Bytes that a replica whose copy this is need not be sent of one that reaches as far as `other`: a footer lies where
    /// records may come, so nothing of a sealed copy counts.
    pub(super) fn beginning_of(&self, other: &SegmentInfo) -> u32 {
        if self.sealed { 0 } else { self.len.min(other.len) }
    }
}

/// Where a segment lies and what of it counts.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub slot: u32,
    pub id: SegmentId,
    pub len: usize,
    pub sealed: Option<u64>,
}

impl<V: Volume> ChunkStore<V> {
    /// The segments of a shard by number. Open ones count as far as they are acknowledged.
    ///
    /// # Errors
    /// `Invalid` for a shard that there is not, `Io`.
    pub async fn segments(&self, shard: ShardId) -> Result<Vec<SegmentInfo>, Error> {
        self.inner.check_shard(shard)?;
        self.inner.segments(shard).await
    }

    /// All of a segment but its first `have` bytes, and whether it is whole. A damaged one, or one that is not as
    /// long as that, comes with its beginning.
    ///
    /// # Errors
    /// `NotFound`: not here, or freed. `Invalid`: `have` is not in whole blocks. `Io`.
    pub async fn copy_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    ) -> Result<SegmentCopy, Error> {
        self.inner.check_shard(shard)?;
        check_blocks(have)?;
        let header = &self.inner.device.header;
        let extent = self.inner.extent(SegmentId { shard, number })?;
        let content = self.inner.content(extent, 0, header.segment_bytes as usize).await?;
        let sealed = extent.sealed.is_some();
        let damaged = check_whole(&content, extent.id, sealed, header).is_err();
        let digest = format::digest(&content);
        let skipped = if damaged || have as usize > content.len() { 0 } else { have };
        let content = Bytes::from(content).slice(skipped as usize..);
        Ok(SegmentCopy { skipped, digest, content, sealed, damaged })
    }

    /// Bytes of a segment's content, shorter where that ends. `offset` and `len` are whole blocks.
    ///
    /// # Errors
    /// `NotFound`: it is not here, or was freed; `Invalid`, `Io`.
    pub async fn read_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        offset: u32,
        len: u32,
    ) -> Result<Vec<u8>, Error> {
        self.inner.check_shard(shard)?;
        check_blocks(offset)?;
        check_blocks(len)?;
        let extent = self.inner.extent(SegmentId { shard, number })?;
        self.inner.content(extent, offset as usize, len as usize).await
    }
}

impl<V: Volume> Inner<V> {
    pub(super) fn check_shard(&self, shard: ShardId) -> Result<(), Error> {
        match u32::from(shard.0) < self.device.header.shard_count {
            true => Ok(()),
            false => Err(Error::new(Kind::Invalid, format!("there is no shard {shard}"))),
        }
    }

    pub(super) fn extent(&self, id: SegmentId) -> Result<Extent, Error> {
        let index = self.index.lock();
        let slot = index.segments.get(&id).copied().filter(|&slot| {
            let entry = &index.slot(slot);
            entry.len > 0 && matches!(entry.state, SlotState::Open | SlotState::Closed)
        });
        let Some(slot) = slot else {
            let SegmentId { shard, number } = id;
            let why = format!("segment {number} of shard {shard} is not here");
            return Err(Error::new(Kind::NotFound, why));
        };
        let entry = &index.slot(slot);
        Ok(Extent { slot, id, len: entry.len as usize, sealed: entry.sealed })
    }

    /// Those that hold something acknowledged.
    pub(super) fn extents(&self, shard: ShardId) -> Vec<Extent> {
        let numbers: Vec<_> = self.index.lock().segments_of(shard).map(|(n, _)| n).collect();
        let extent = |number| self.extent(SegmentId { shard, number }).ok();
        numbers.into_iter().filter_map(extent).collect()
    }

    pub(super) async fn segments(&self, shard: ShardId) -> Result<Vec<SegmentInfo>, Error> {
        let mut infos = Vec::new();
        for extent in self.extents(shard) {
            infos.push(self.info(extent).await?);
        }
        Ok(infos)
    }

    pub(super) async fn info(&self, extent: Extent) -> Result<SegmentInfo, Error> {
        let digest = match extent.sealed {
            Some(digest) => digest,
            None => format::digest(&self.content(extent, 0, extent.len).await?),
        };
        let Extent { id, len, sealed, .. } = extent;
        Ok(SegmentInfo { number: id.number, len: len as u32, sealed: sealed.is_some(), digest })
    }

    /// Part of a segment's content, with zeros for what the device cannot read, which no segment that is whole
    /// has there. A segment that was freed while it was read is not found.
    pub(super) async fn content(
        &self,
        extent: Extent,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        let whole = self.device.segment_bytes();
        let end = match extent.sealed {
            Some(_) => whole,
            None => extent.len,
        };
        let len = len.min(end.saturating_sub(offset));
        let start = self.device.slot_start(extent.slot);
        let mut bytes = self.device.read_around(start + offset as u64, len).await?;
        if extent.sealed.is_some() && offset + len > extent.len {
            let footer = whole - self.footer_len(extent).await?;
            // Between the records and the footer lies what was there before.
            let gap = extent.len.clamp(offset, offset + len)..footer.clamp(offset, offset + len);
            bytes[gap.start - offset..gap.end - offset].fill(0);
        }
        let now = self.extent(extent.id)?;
        match now.slot == extent.slot {
            true => Ok(bytes),
            false => Err(Error::new(Kind::NotFound, "the segment moved while it was read")),
        }
    }

    async fn footer_len(&self, extent: Extent) -> Result<usize, Error> {
        let whole = self.device.segment_bytes();
        let end = self.device.slot_start(extent.slot) + whole as u64;
        let footer = match self.device.read_piece(end - BLOCK as u64, BLOCK).await {
            Ok(last) => format::decode_footer(&last, extent.id, whole),
            Err(error) if error.kind() == Kind::Io => Footer::None,
            Err(error) => return Err(error),
        };
        Ok(match footer {
            Footer::Lines(lines) => format::footer_bytes(lines.len()),
            Footer::Longer(len) => len,
            // Damaged: whatever stands there is compared and found different.
            Footer::None => whole - extent.len,
        })
    }

    /// The records of a segment as its footer or a scan tells.
    pub(super) async fn entries(&self, extent: Extent) -> Result<Vec<Entry>, Error> {
        let whole = self.device.segment_bytes();
        let start = self.device.slot_start(extent.slot);
        if extent.sealed.is_some() {
            let len = self.footer_len(extent).await?;
            let tail = self.device.read(start + (whole - len) as u64, len).await?;
            if let Footer::Lines(lines) = format::decode_footer(&tail, extent.id, whole) {
                return Ok(lines);
            }
        }
        let bytes = self.device.read(start, extent.len).await?;
        Ok(format::scan(&bytes, extent.id, self.device.header.shard_count))
    }
}

fn check_blocks(bytes: u32) -> Result<(), Error> {
    match (bytes as usize).is_multiple_of(BLOCK) {
        true => Ok(()),
        false => Err(Error::new(Kind::Invalid, "segments are read in whole blocks")),
    }
}

/// The records of a segment's content, if all of it is as a primary wrote it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_whole(
    content: &[u8],
    id: SegmentId,
    sealed: bool,
    volume: &VolumeHeader,
) -> Result<(Vec<Entry>, usize), String> {
    let VolumeHeader { cluster, shard_count, .. } = *volume;
    let segment_bytes = volume.segment_bytes as usize;
    if content.len() < 2 * BLOCK || !content.len().is_multiple_of(BLOCK) {
        return Err(format!("{} bytes are no segment", content.len()));
    }
    if SegmentHeader::decode(content) != Found::Valid(SegmentHeader { cluster, id }) {
        return Err("it has another header".to_owned());
    }
    let damaged = |at: usize| format!("it is damaged at {at}");
    if !sealed {
        if content.len() > segment_bytes {
            return Err(format!("{} bytes are more than a segment", content.len()));
        }
        let entries = format::parse(&content[BLOCK..], BLOCK, id, shard_count).map_err(damaged)?;
        return Ok((entries, content.len()));
    }
    if content.len() != segment_bytes {
        return Err(format!("{} bytes are not a whole segment", content.len()));
    }
    let Footer::Lines(lines) = format::decode_footer(content, id, segment_bytes) else {
        return Err("its footer is damaged".to_owned());
    };
    let end = lines.iter().map(Entry::end).max().unwrap_or(BLOCK).next_multiple_of(BLOCK);
    let footer = segment_bytes - format::footer_bytes(lines.len());
    if end > footer {
        return Err("its footer lies in its records".to_owned());
    }
    let entries = format::parse(&content[BLOCK..end], BLOCK, id, shard_count).map_err(damaged)?;
    if entries != lines || content[end..footer].iter().any(|&byte| byte != 0) {
        return Err("its footer lists other records".to_owned());
    }
    if content[footer..] != format::encode_footer(id, &lines) {
        return Err("its footer has more than its lines".to_owned());
    }
    Ok((entries, end))
}

/// What can be told of a segment that is not whole.
pub(super) struct Salvaged {
    /// Where records are, or have been.
    pub entries: Vec<Entry>,
    /// Those of them that cannot be read.
    pub bad: Vec<ChunkHash>,
    /// Up to where records go, in whole blocks.
    pub end: usize,
}

/// The records of a damaged segment's content: those that its footer lists, else those that are found.
///
/// # Errors
/// It cannot be a segment of this volume.
pub(super) fn salvage(
    content: &[u8],
    id: SegmentId,
    sealed: bool,
    volume: &VolumeHeader,
) -> Result<Salvaged, String> {
    let segment_bytes = volume.segment_bytes as usize;
    let fits = match sealed {
        true => content.len() == segment_bytes,
        false => (2 * BLOCK..=segment_bytes).contains(&content.len()),
    };
    if !fits || !content.len().is_multiple_of(BLOCK) {
        return Err(format!("{} bytes are no segment", content.len()));
    }
    let footer =
        if sealed { format::decode_footer(content, id, segment_bytes) } else { Footer::None };
    let (entries, most) = match footer {
        Footer::Lines(lines) => {
            let most = segment_bytes - format::footer_bytes(lines.len());
            (lines, most)
        }
        Footer::Longer(_) | Footer::None => {
            let found = format::scan(content, id, volume.shard_count);
            // What is sealed has room for its footer.
            let footer = if sealed { format::footer_bytes(found.len()) } else { 0 };
            (found, content.len() - footer)
        }
    };
    let end = match sealed {
        true => entries.iter().map(Entry::end).max().unwrap_or(BLOCK).next_multiple_of(BLOCK),
        false => content.len(),
    };
    if end > most {
        return Err("its footer lies in its records".to_owned());
    }
    let is_bad = |entry: &&Entry| {
        let record = content.get(entry.offset as usize..).unwrap_or_default();
        RecordHeader::decode(record, id.number).is_none_or(|(head, _)| head.hash != entry.hash)
    };
    let bad = entries.iter().filter(is_bad).map(|entry| entry.hash).collect();
    Ok(Salvaged { entries, bad, end })
}
