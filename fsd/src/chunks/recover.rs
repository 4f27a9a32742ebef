//! Formatting and opening: the index is rebuilt from footers, and by scanning what has none.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use raftmeta_types::{Epoch, ShardId};
use uuid::Uuid;

use super::all::all;
use super::device::Device;
use super::error::{Error, Kind};
use super::format::{
    self, BLOCK, Entry, Footer, Found, RecordHeader, SLOTS_START, SegmentHeader, SegmentId,
    VolumeHeader,
};
use super::index::Index;
use super::read::open_record;
use super::replicate::{Alone, Replicator};
use super::seal::Keys;
use super::shards::Role;
use super::{ChunkStore, FormatParams, Inner, OpenParams};
use crate::clock;

/// Slots read at once during recovery; each takes up to a segment of memory.
const PARALLEL: usize = 32;

/// Epoch of the shards of a store that is alone.
const ALONE: Epoch = Epoch(1);
/// Most segment numbers that a shard jumps over after a start.
const SKIP_MAX: u32 = 1 << 16;

/// A slot that holds a segment.
struct Loaded {
    id: SegmentId,
    entries: Vec<Entry>,
    /// It was filled up and has its footer, of which this is a digest.
    sealed: Option<u64>,
}

impl Loaded {
    /// Up to where it holds records, in whole blocks; nothing was acknowledged of one without any.
    fn len(&self) -> usize {
        self.entries.iter().map(Entry::end).max().map_or(0, |end| end.next_multiple_of(BLOCK))
    }
}

impl<V: Volume> ChunkStore<V> {
    /// Makes the volume an empty chunk store. What it held is gone.
    ///
    /// # Errors
    /// `Invalid`: parameters out of range, or a volume with less than two segments a shard and the
    /// reserve. `Io`.
    pub async fn format(volume: &V, params: FormatParams) -> Result<(), Error> {
        let geometry = volume.geometry();
        let bytes = geometry.blocks * u64::from(geometry.block_size);
        let FormatParams { cluster_uuid, shard_count, segment_bytes } = params;
        let bad = |why: String| Err(Error::new(Kind::Invalid, format!("format: {why}")));
        if let Err(why) = format::check_parameters(shard_count, segment_bytes) {
            return bad(why);
        }
        let slots = bytes.saturating_sub(SLOTS_START) / u64::from(segment_bytes);
        let least = u64::from(shard_count) * 2 + 5;
        if slots < least {
            return bad(format!(
                "the volume holds {slots} segments of {segment_bytes} bytes, {shard_count} shards \
                 need {least}: take fewer shards or shorter segments"
            ));
        }
        let slots = u32::try_from(slots).unwrap_or(u32::MAX - 1);
        let header = VolumeHeader {
            cluster: cluster_uuid,
            volume: Uuid::new_v4(),
            shard_count,
            segment_bytes,
            slots,
        };
        let end = SLOTS_START + u64::from(slots) * u64::from(segment_bytes);
        let block_size = u64::from(geometry.block_size);
        volume.deallocate(SLOTS_START / block_size, (end - SLOTS_START) / block_size).await?;
        forget_earlier_life(volume, &header).await?;
        volume.flush().await?;
        for copy in 0..2 {
            write_header(volume, copy, &header).await?;
        }
        Ok(volume.flush().await?)
    }

    /// Opens a formatted volume as the only store of its cluster: it is the primary of all shards.
    ///
    /// # Errors
    /// As [`ChunkStore::open_member`].
    pub async fn open(volume: V, params: OpenParams) -> Result<ChunkStore<V>, Error> {
        let store = ChunkStore::open_member(volume, params, Arc::new(Alone)).await?;
        for shard in 0..store.shard_count() {
            let shard = ShardId(shard as u16);
            let gc_epoch = store.shard_epoch(shard);
            store.set_role(shard, Role::Primary { epoch: ALONE, gc_epoch })?;
        }
        store.inner.free_dead().await?;
        Ok(store)
    }

    /// Opens a formatted volume as one of several. It has no role in any shard until it is told one.
    ///
    /// # Errors
    /// `Foreign`, `NewerFormat`, `OlderFormat`, `BadHeader`, `Io`: a slot that cannot be read is not taken
    /// for an empty one.
    pub async fn open_member(
        volume: V,
        params: OpenParams,
        replicator: Arc<dyn Replicator>,
    ) -> Result<ChunkStore<V>, Error> {
        let header = read_header(&volume, Some(params.cluster_uuid)).await?;
        let device = Arc::new(Device { volume, header });
        let keys = Arc::new(params.keys);
        let loaded = load_all(&device, &keys).await?;
        // What was found may be in a volatile cache only, if we were killed rather than cut off.
        device.volume.flush().await?;
        let (mut index, doubles) = build(&header, loaded);
        for (shard, epoch) in params.epochs {
            match index.shards.get_mut(usize::from(shard.0)) {
                Some(own) => own.gc_epoch = epoch,
                None => return Err(Error::new(Kind::Invalid, format!("epoch of shard {shard}"))),
            }
        }
        let inner = Arc::new(Inner::new(device, keys, index, replicator));
        inner.free(doubles).await?;
        Ok(ChunkStore { inner })
    }
}

/// Zeroes what looks like the header of a segment: giving blocks back does not promise zeros.
async fn forget_earlier_life<V: Volume>(volume: &V, header: &VolumeHeader) -> Result<(), Error> {
    let block_size = u64::from(volume.geometry().block_size);
    let forget = async |slot: u32| -> Result<(), Error> {
        let start = SLOTS_START + u64::from(slot) * u64::from(header.segment_bytes);
        let mut buffer = volume.buffer(BLOCK).await?;
        buffer.set_len(BLOCK);
        let mut buffer = volume.read(start / block_size, buffer).await?;
        if SegmentHeader::decode(&buffer) != Found::Absent {
            buffer.fill(0);
            volume.write(start / block_size, buffer, false).await?;
        }
        Ok(())
    };
    let mut slot = 0;
    while slot < header.slots {
        let end = header.slots.min(slot + PARALLEL as u32);
        all((slot..end).map(&forget)).await.into_iter().collect::<Result<(), Error>>()?;
        slot = end;
    }
    Ok(())
}

/// Cluster that a volume was formatted for.
///
/// # Errors
/// `NewerFormat`, `BadHeader`: never formatted, or both headers are damaged. `Io`.
pub async fn owner<V: Volume>(volume: &V) -> Result<Owner, Error> {
    let VolumeHeader { cluster, volume, .. } = read_header(volume, None).await?;
    Ok(Owner { cluster, volume })
}

/// What a volume says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cluster: Uuid,
    /// Its own, made when it was formatted.
    pub volume: Uuid,
}

async fn write_header<V: Volume>(
    volume: &V,
    copy: u64,
    header: &VolumeHeader,
) -> Result<(), Error> {
    let mut buffer = volume.buffer(BLOCK).await?;
    buffer.set_len(BLOCK);
    buffer.copy_from_slice(&header.encode());
    let lba = copy * (BLOCK as u64 / u64::from(volume.geometry().block_size));
    volume.write(lba, buffer, true).await?;
    Ok(())
}

/// The header of either copy, if it is of this cluster (with `None` of any); the other one is
/// repaired.
pub(super) async fn read_header<V: Volume>(
    volume: &V,
    of: Option<Uuid>,
) -> Result<VolumeHeader, Error> {
    let geometry = volume.geometry();
    let mut found = Vec::new();
    let mut failed = None;
    for copy in 0..2 {
        let mut buffer = volume.buffer(BLOCK).await?;
        buffer.set_len(BLOCK);
        match volume.read(copy * (BLOCK as u64 / u64::from(geometry.block_size)), buffer).await {
            Ok(buffer) => found.push(VolumeHeader::decode(&buffer)),
            Err(error) => {
                failed = Some(error);
                found.push(Found::Damaged);
            }
        }
    }
    let bad = |kind, why: String| Err(Error::new(kind, format!("chunk volume: {why}")));
    for copy in &found {
        match copy {
            Found::Valid(header) if of.is_some_and(|cluster| cluster != header.cluster) => {
                let (other, cluster) = (header.cluster, of.unwrap_or_default());
                return bad(Kind::Foreign, format!("it is of cluster {other}, not {cluster}"));
            }
            Found::Newer(version) => {
                return bad(Kind::NewerFormat, newer(*version));
            }
            Found::Older(version) => {
                return bad(
                    Kind::OlderFormat,
                    format!(
                        "format {version} is not read any more: copy the files out with the version \
                         that wrote it, and make the node anew"
                    ),
                );
            }
            Found::Valid(_) | Found::Damaged | Found::Absent => {}
        }
    }
    let valid = found.iter().find_map(|copy| match copy {
        Found::Valid(header) => Some(*header),
        Found::Newer(_) | Found::Older(_) | Found::Damaged | Found::Absent => None,
    });
    let Some(header) = valid else {
        return match failed {
            Some(error) => Err(error.into()),
            None => bad(
                Kind::BadHeader,
                "no valid header: it was never formatted, or both are damaged".to_owned(),
            ),
        };
    };
    let bytes = geometry.blocks * u64::from(geometry.block_size);
    let end = SLOTS_START + u64::from(header.slots) * u64::from(header.segment_bytes);
    if let Err(why) = format::check_parameters(header.shard_count, header.segment_bytes) {
        return bad(Kind::BadHeader, why);
    }
    if end > bytes {
        return bad(Kind::BadHeader, format!("it was formatted for {end} bytes, it has {bytes}"));
    }
    for (copy, _) in (0..).zip(&found).filter(|(_, copy)| **copy != Found::Valid(header)) {
        tracing::warn!(copy, "a header of the chunk volume is damaged: repaired from the other");
        write_header(volume, copy, &header).await?;
    }
    Ok(header)
}

fn newer(version: u32) -> String {
    let reads = format::VERSION;
    format!("format {version} is newer than {reads}, the newest that this fsd reads: upgrade it")
}

async fn load_all<V: Volume>(
    device: &Arc<Device<V>>,
    keys: &Arc<Keys>,
) -> Result<Vec<Option<Loaded>>, Error> {
    let mut loaded: Vec<Option<Loaded>> = Vec::new();
    loaded.resize_with(device.header.slots as usize, || None);
    let mut tasks = tokio::task::JoinSet::new();
    let mut next = 0;
    loop {
        while next < device.header.slots && tasks.len() < PARALLEL {
            let (device, keys) = (Arc::clone(device), Arc::clone(keys));
            let slot = next;
            tasks.spawn(async move { (slot, load(&device, &keys, slot).await) });
            next += 1;
        }
        let Some(done) = tasks.join_next().await else { return Ok(loaded) };
        let (slot, segment) =
            done.map_err(|_| Error::new(Kind::Io, "recovery of the chunk store was stopped"))?;
        loaded[slot as usize] = segment?;
    }
}

async fn load<V: Volume>(
    device: &Device<V>,
    keys: &Keys,
    slot: u32,
) -> Result<Option<Loaded>, Error> {
    let start = device.slot_start(slot);
    let segment_bytes = device.segment_bytes();
    let VolumeHeader { cluster, shard_count, .. } = device.header;
    let id = match SegmentHeader::decode(&device.read_piece(start, BLOCK).await?) {
        Found::Valid(head)
            if head.cluster == cluster && u32::from(head.id.shard.0) < shard_count =>
        {
            head.id
        }
        Found::Newer(version) => {
            let why = format!("the segment in slot {slot}: {}", newer(version));
            return Err(Error::new(Kind::NewerFormat, why));
        }
        Found::Damaged if holds_records(device, start).await? => {
            let loaded = salvage(&device.read(start, segment_bytes).await?, shard_count, keys);
            if let Some(Loaded { id, .. }) = loaded {
                tracing::warn!(slot, "a segment's header is damaged: written anew");
                device.write(start, &[&SegmentHeader { cluster, id }.encode()]).await?;
            }
            return Ok(loaded);
        }
        // Formatting leaves no older one behind.
        Found::Damaged | Found::Valid(_) | Found::Older(_) | Found::Absent => return Ok(None),
    };
    let mut len = BLOCK;
    loop {
        let tail = device.read(start + (segment_bytes - len) as u64, len).await?;
        match format::decode_footer(&tail, id, segment_bytes) {
            Footer::Lines(entries) => {
                let sealed = Some(seal_of(id, &entries));
                return Ok(Some(Loaded { id, entries, sealed }));
            }
            Footer::Longer(needed) if needed > len => len = needed,
            Footer::Longer(_) | Footer::None => break,
        }
    }
    let bytes = device.read(start, segment_bytes).await?;
    Ok(Some(Loaded { id, entries: format::scan(&bytes, id, shard_count), sealed: None }))
}

/// Whether a slot with a damaged header looks like a segment at its first record or its footer.
/// Anything else never was one, and reading all of a strange disk would take hours.
async fn holds_records<V: Volume>(device: &Device<V>, start: u64) -> Result<bool, Error> {
    let first = device.read_piece(start + BLOCK as u64, BLOCK).await?;
    let last = start + (device.segment_bytes() - BLOCK) as u64;
    Ok(RecordHeader::decode_head(&first).is_some()
        || format::has_footer(&device.read_piece(last, BLOCK).await?))
}

/// Digest of the footer as it was written: what fills its first block is not covered by its checksum.
fn seal_of(id: SegmentId, lines: &[Entry]) -> u64 {
    format::digest(&format::encode_footer(id, lines))
}

/// A segment whose header is damaged, or bytes that never were one of this store: only records that
/// our key opens are believed, and the footer of a segment that has one.
fn salvage(bytes: &[u8], shard_count: u32, keys: &Keys) -> Option<Loaded> {
    let id = format::recognise(bytes, shard_count)?;
    let mut entries = format::scan(bytes, id, shard_count);
    entries.retain(|entry| {
        RecordHeader::decode(&bytes[entry.offset as usize..], id.number)
            .and_then(|(head, stored)| open_record(keys, &head, stored))
            .is_some()
    });
    if entries.is_empty() {
        return None;
    }
    Some(match format::decode_footer(bytes, id, bytes.len()) {
        // It names what is damaged, too: whoever compares footers would take this for a copy like the others.
        Footer::Lines(lines) => Loaded { id, sealed: Some(seal_of(id, &lines)), entries: lines },
        Footer::Longer(_) | Footer::None => Loaded { id, entries, sealed: None },
    })
}

/// The index of what was found, and slots whose segment lies in another one, too: a crash came between
/// the installation of a good copy and the forgetting of the bad one.
fn build(header: &VolumeHeader, loaded: Vec<Option<Loaded>>) -> (Index, Vec<u32>) {
    let mut index = Index::new(loaded.len(), header.shard_count, header.segment_bytes);
    let mut doubles = Vec::new();
    // By number, so that older ones are older.
    let mut found: BTreeMap<(u64, ShardId), (u32, Loaded)> = BTreeMap::new();
    for (slot, segment) in (0..).zip(loaded) {
        let Some(segment) = segment else {
            index.free.push(slot);
            continue;
        };
        let key = (segment.id.number.0, segment.id.shard);
        let id = segment.id;
        let worth = |segment: &Loaded| (segment.entries.len(), segment.sealed.is_some());
        let worse = match found.remove(&key) {
            Some(other) if worth(&other.1) >= worth(&segment) => {
                found.insert(key, other);
                Some(slot)
            }
            other => {
                found.insert(key, (slot, segment));
                other.map(|(slot, _)| slot)
            }
        };
        if let Some(worse) = worse {
            index.double(worse, id);
            doubles.push(worse);
        }
    }
    let slots: Vec<u32> = found.values().map(|(slot, _)| *slot).collect();
    for (slot, segment) in found.into_values() {
        index.found(slot, segment.id);
        let len = segment.len();
        if segment.sealed.is_some() {
            let end = segment.entries.iter().map(Entry::end).max().unwrap_or(BLOCK);
            index.full(slot, header.segment_bytes as usize - (end - BLOCK));
        }
        index.change(slot, |entry| (entry.len, entry.sealed) = (len as u32, segment.sealed));
        for entry in &segment.entries {
            index.insert_found(slot, entry);
        }
    }
    slots.into_iter().for_each(|slot| index.close(slot));
    for shard in &mut index.shards {
        shard.skip = u64::from(clock::chance() % SKIP_MAX);
    }
    // Lowest slots first.
    index.free.reverse();
    (index, doubles)
}

/// Shards are below the count of the header; a constant of the type keeps the conversion honest.
const _: () = assert!(size_of::<ShardId>() == 2);
