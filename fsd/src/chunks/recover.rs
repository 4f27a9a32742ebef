//! Formatting and opening: the index is rebuilt from footers, and by scanning what has none.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockd_ipc::volume::Volume;
use parking_lot::Mutex;
use raftmeta_types::ShardId;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::append::{Appender, Queue};
use super::device::Device;
use super::error::{Error, Kind};
use super::format::{
    self, BLOCK, Entry, Footer, Found, RecordHeader, SEQUENCE_MAX, SLOTS_START, SegmentHeader,
    VolumeHeader,
};
use super::index::{Index, Location};
use super::pack::Packer;
use super::read::open_record;
use super::seal::Keys;
use super::{ChunkStore, FormatParams, Inner, OpenParams};

/// Slots read at once during recovery; each takes up to a segment of memory.
const PARALLEL: usize = 32;

/// A slot that holds a segment.
struct Loaded {
    sequence: u64,
    entries: Vec<Entry>,
    /// It was filled up and has its footer.
    full: bool,
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
        for copy in 0..2 {
            write_header(volume, copy, &header).await?;
        }
        Ok(volume.flush().await?)
    }

    /// Opens a formatted volume.
    ///
    /// # Errors
    /// `Foreign`, `NewerFormat`, `BadHeader`, `Io`: a slot that cannot be read is not taken for an
    /// empty one.
    pub async fn open(volume: V, params: OpenParams) -> Result<ChunkStore<V>, Error> {
        let header = read_header(&volume, Some(params.cluster_uuid)).await?;
        let device = Arc::new(Device { volume, header });
        let keys = Arc::new(params.keys);
        let loaded = load_all(&device, &keys).await?;
        // What was found may be in a volatile cache only, if we were killed rather than cut off.
        device.volume.flush().await?;
        let mut index = build(&header, loaded);
        for (shard, epoch) in params.epochs {
            match index.epochs.get_mut(usize::from(shard.0)) {
                Some(own) => *own = epoch,
                None => return Err(Error::new(Kind::Invalid, format!("epoch of shard {shard}"))),
            }
        }
        let inner = Arc::new(Inner {
            device,
            packer: Packer::new(Arc::clone(&keys)),
            keys,
            index: Mutex::new(index),
            queue: Mutex::new(Queue::default()),
            appender: tokio::sync::Mutex::new(Appender::default()),
            cleaning: tokio::sync::Mutex::new(()),
            in_flight: Semaphore::new(super::IN_FLIGHT_BYTES_MAX),
            poisoned: AtomicBool::new(false),
        });
        inner.free_dead().await?;
        Ok(ChunkStore { inner })
    }
}

/// Cluster that a volume was formatted for.
///
/// # Errors
/// `NewerFormat`, `BadHeader`: never formatted, or both headers are damaged. `Io`.
pub async fn owner<V: Volume>(volume: &V) -> Result<Uuid, Error> {
    Ok(read_header(volume, None).await?.cluster)
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
                return bad(Kind::NewerFormat, format!("format {version} is newer than this fsd"));
            }
            Found::Valid(_) | Found::Damaged | Found::Absent => {}
        }
    }
    let valid = found.iter().find_map(|copy| match copy {
        Found::Valid(header) => Some(*header),
        Found::Newer(_) | Found::Damaged | Found::Absent => None,
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
    let sequence = match SegmentHeader::decode(&device.read_piece(start, BLOCK).await?) {
        Found::Valid(head) if head.volume == device.header.volume => head.sequence,
        Found::Newer(version) => {
            let why = format!("the segment in slot {slot} has the newer format {version}");
            return Err(Error::new(Kind::NewerFormat, why));
        }
        Found::Damaged if holds_records(device, start).await? => {
            return Ok(salvage(&device.read(start, segment_bytes).await?, keys));
        }
        Found::Damaged | Found::Valid(_) | Found::Absent => return Ok(None),
    };
    let mut len = BLOCK;
    loop {
        let tail = device.read(start + (segment_bytes - len) as u64, len).await?;
        match format::decode_footer(&tail, sequence, segment_bytes) {
            Footer::Lines(entries) => return Ok(Some(Loaded { sequence, entries, full: true })),
            Footer::Longer(needed) if needed > len => len = needed,
            Footer::Longer(_) | Footer::None => break,
        }
    }
    let bytes = device.read(start, segment_bytes).await?;
    Ok(Some(Loaded { sequence, entries: format::scan(&bytes, sequence), full: false }))
}

/// Whether a slot with a damaged header looks like a segment at its first record or its footer.
/// Anything else never was one, and reading all of a strange disk would take hours.
async fn holds_records<V: Volume>(device: &Device<V>, start: u64) -> Result<bool, Error> {
    let first = device.read_piece(start + BLOCK as u64, BLOCK).await?;
    let last = start + (device.segment_bytes() - BLOCK) as u64;
    Ok(RecordHeader::decode_head(&first).is_some()
        || format::has_footer(&device.read_piece(last, BLOCK).await?))
}

/// A segment whose header is damaged, or bytes that never were one of this store: only records that
/// our key opens are believed.
fn salvage(bytes: &[u8], keys: &Keys) -> Option<Loaded> {
    let sequence = format::newest_sequence(bytes)?;
    let mut entries = format::scan(bytes, sequence);
    entries.retain(|entry| {
        RecordHeader::decode(&bytes[entry.offset as usize..], sequence)
            .and_then(|(head, stored)| open_record(keys, &head, stored))
            .is_some()
    });
    (!entries.is_empty()).then_some(Loaded { sequence, entries, full: false })
}

fn build(header: &VolumeHeader, loaded: Vec<Option<Loaded>>) -> Index {
    let mut index = Index::new(loaded.len(), header.shard_count);
    let found: Vec<u32> =
        (0..).zip(&loaded).filter(|(_, segment)| segment.is_some()).map(|(slot, _)| slot).collect();
    for (slot, segment) in (0..).zip(loaded) {
        let Some(Loaded { sequence, entries, full }) = segment else {
            index.free.push(slot);
            continue;
        };
        index.found(slot, sequence);
        let end = |entry: &Entry| entry.offset as usize + format::record_bytes(entry.stored_len);
        if full && let Some(end) = entries.iter().map(end).max() {
            index.full(slot, header.segment_bytes as usize - (end - BLOCK));
        }
        for Entry { hash, offset, stored_len, plain_len } in entries {
            let newer = |at: Location| index.slots[at.slot as usize].sequence > sequence;
            if !index.table.get(&hash).is_some_and(newer) {
                index.insert(hash, Location { slot, offset, stored_len, plain_len });
            }
        }
    }
    found.into_iter().for_each(|slot| index.close(slot));
    // A segment whose header a power cut took had a number too: jump over what may be left of it.
    let jump = 1 + u64::from(Uuid::new_v4().as_fields().0 % (1 << 20));
    index.sequence = (index.sequence + jump).min(SEQUENCE_MAX);
    // Lowest slots first.
    index.free.reverse();
    index
}

/// Shards are below the count of the header; a constant of the type keeps the conversion honest.
const _: () = assert!(size_of::<ShardId>() == 2);
