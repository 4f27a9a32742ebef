//! Formatting and opening: the index is rebuilt from footers, and by scanning what has none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use parking_lot::Mutex;
use raftmeta_types::{Epoch, ShardId};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::append::{Appender, Queue};
use super::error::{Error, Kind};
use super::format::{self, BLOCK, Entry, Found, SLOTS_START, SegmentHeader, VolumeHeader};
use super::{
    ChunkStore, Device, FormatParams, Index, Inner, Location, OpenParams, Slot, SlotState,
};

/// Slots read at once during recovery.
const PARALLEL: usize = 16;

/// A slot that holds a segment.
struct Loaded {
    sequence: u64,
    entries: Vec<Entry>,
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
        if !shard_count.is_power_of_two() || shard_count > 1 << 16 {
            return bad(format!("{shard_count} shards are not a power of two up to 65536"));
        }
        if !segment_bytes.is_multiple_of(BLOCK as u32)
            || !(64 << 10..=64 << 20).contains(&segment_bytes)
        {
            return bad(format!("segments of {segment_bytes} bytes"));
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
        for copy in 0..2 {
            let mut buffer = volume.buffer(BLOCK).await?;
            buffer.set_len(BLOCK);
            buffer.copy_from_slice(&header.encode());
            volume
                .write(copy * (BLOCK as u64 / u64::from(geometry.block_size)), buffer, true)
                .await?;
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
        let loaded = load_all(&device).await?;
        // All tasks are done, so this is the last handle.
        let device = Arc::into_inner(device).expect("the tasks have ended");
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
            keys: Arc::new(params.keys),
            index: Mutex::new(index),
            queue: Mutex::new(Queue::default()),
            appender: tokio::sync::Mutex::new(Appender::default()),
            in_flight: Semaphore::new(super::IN_FLIGHT_BYTES_MAX),
        });
        inner.free_dead(&mut *inner.appender.lock().await).await?;
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

/// The header, if it is of this cluster; with `None` of any.
async fn read_header<V: Volume>(volume: &V, of: Option<Uuid>) -> Result<VolumeHeader, Error> {
    let block_size = u64::from(volume.geometry().block_size);
    let mut found = Vec::new();
    for copy in 0..2 {
        let mut buffer = volume.buffer(BLOCK).await?;
        buffer.set_len(BLOCK);
        let buffer = volume.read(copy * (BLOCK as u64 / block_size), buffer).await?;
        found.push(VolumeHeader::decode(&buffer));
    }
    let bad = |kind, why: String| Err(Error::new(kind, format!("chunk volume: {why}")));
    for copy in &found {
        match copy {
            Found::Valid(header) => match of {
                Some(cluster) if cluster != header.cluster => {
                    let other = header.cluster;
                    return bad(Kind::Foreign, format!("it is of cluster {other}, not {cluster}"));
                }
                Some(_) | None => return Ok(*header),
            },
            Found::Newer(version) => {
                return bad(Kind::NewerFormat, format!("format {version} is newer than this fsd"));
            }
            Found::Damaged | Found::Absent => {}
        }
    }
    bad(Kind::BadHeader, "no valid header: it was never formatted, or both are damaged".to_owned())
}

async fn load_all<V: Volume>(device: &Arc<Device<V>>) -> Result<Vec<Option<Loaded>>, Error> {
    let mut loaded: Vec<Option<Loaded>> = Vec::new();
    loaded.resize_with(device.header.slots as usize, || None);
    let mut tasks = tokio::task::JoinSet::new();
    let mut next = 0;
    loop {
        while next < device.header.slots && tasks.len() < PARALLEL {
            let device = Arc::clone(device);
            let slot = next;
            tasks.spawn(async move { (slot, load(&device, slot).await) });
            next += 1;
        }
        let Some(done) = tasks.join_next().await else { return Ok(loaded) };
        let (slot, segment) =
            done.map_err(|_| Error::new(Kind::Io, "recovery of the chunk store was stopped"))?;
        loaded[slot as usize] = segment?;
    }
}

async fn load<V: Volume>(device: &Device<V>, slot: u32) -> Result<Option<Loaded>, Error> {
    let start = device.slot_start(slot);
    let segment_bytes = device.header.segment_bytes as usize;
    let sequence = match SegmentHeader::decode(&device.read(start, BLOCK).await?) {
        Found::Valid(head) if head.volume == device.header.volume => head.sequence,
        Found::Newer(version) => {
            let why = format!("the segment in slot {slot} has the newer format {version}");
            return Err(Error::new(Kind::NewerFormat, why));
        }
        Found::Damaged => return salvage(&device.read(start, segment_bytes).await?),
        Found::Valid(_) | Found::Absent => return Ok(None),
    };
    let last = device.read(start + (segment_bytes - BLOCK) as u64, BLOCK).await?;
    if let Some(count) = format::footer_count(&last, sequence) {
        let len = format::footer_bytes(count);
        if len < segment_bytes {
            let end = device.read(start + (segment_bytes - len) as u64, len).await?;
            if let Some(entries) = format::decode_footer(&end, sequence) {
                return Ok(Some(Loaded { sequence, entries }));
            }
        }
    }
    let bytes = device.read(start, segment_bytes).await?;
    Ok(Some(Loaded { sequence, entries: format::scan(&bytes, sequence) }))
}

/// A segment whose header is damaged, or bytes that never were one: its records tell.
fn salvage(bytes: &[u8]) -> Result<Option<Loaded>, Error> {
    let Some(sequence) = format::sequence_of_first(bytes) else { return Ok(None) };
    let entries = format::scan(bytes, sequence);
    Ok((!entries.is_empty()).then_some(Loaded { sequence, entries }))
}

fn build(header: &VolumeHeader, loaded: Vec<Option<Loaded>>) -> Index {
    let newest = loaded.iter().flatten().map(|segment| segment.sequence).max().unwrap_or(0);
    // A segment whose header a power cut took had a number too: jump over what may be left of it.
    let jump = u64::from(Uuid::new_v4().as_fields().0 % (1 << 20));
    let empty = Slot { state: SlotState::Free, sequence: 0, live_bytes: 0, stuck: false };
    let mut index = Index {
        map: HashMap::new(),
        slots: vec![empty; loaded.len()],
        free: Vec::new(),
        epochs: vec![Epoch(0); header.shard_count as usize],
        damaged: HashSet::new(),
        sequence: newest + 1 + jump,
    };
    for (slot, segment) in (0..).zip(loaded) {
        let Some(Loaded { sequence, entries }) = segment else {
            index.free.push(slot);
            continue;
        };
        let closed = Slot { state: SlotState::Closed, sequence, live_bytes: 0, stuck: false };
        index.slots[slot as usize] = closed;
        for Entry { hash, offset, stored_len, plain_len } in entries {
            let newer = |at: &Location| index.slots[at.slot as usize].sequence > sequence;
            if !index.map.get(&hash).is_some_and(newer) {
                index.insert(hash, Location { slot, offset, stored_len, plain_len });
            }
        }
    }
    // Lowest slots first.
    index.free.reverse();
    index
}

/// Shards are below the count of the header; a constant of the type keeps the conversion honest.
const _: () = assert!(size_of::<ShardId>() == 2);
