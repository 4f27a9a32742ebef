//! What a pool's metadata says, in memory, and how a change of it becomes durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::format::{
    self, EXTENT_BYTES, GENERATION_MAX, NAME_BYTES_MAX, Owner, SUPERBLOCK_BYTES, Superblock,
    VolumeRecord,
};
use super::{View, failed};
use crate::engine::{Action, Memory, Queue, run};
use crate::error::{Error, FormatError, Result};
use crate::volume::Volume;

/// Most bytes that the volumes of a pool promise together: this, or so many times what the device holds. Each extent
/// of a volume takes 8 bytes of memory, allocated or not; what goes beyond is refused.
const PROMISED_BYTES_MAX: u64 = 16 << 40;
const PROMISED_TIMES_MAX: u64 = 16;

/// See the module.
pub struct State {
    pub queue: Box<dyn Queue>,
    pub superblock: Superblock,
    pub owners: Vec<Owner>,
    pub volumes: Vec<Arc<Volume>>,
    /// Why nothing may be changed any more.
    pub closed: Option<Closed>,
    /// No extent below it is free.
    pub first_free: usize,
}

/// Why a pool takes no more changes, until blockd is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// A metadata write failed, or is under way: what is on the device is not known.
    Failed,
    /// There is no pool on the device any more.
    Wiped,
}

impl Closed {
    fn error(self) -> io::Error {
        io::Error::other(match self {
            Closed::Failed => "an earlier metadata write failed; restart blockd",
            Closed::Wiped => "the device was wiped; restart blockd to make a pool on it again",
        })
    }
}

impl State {
    /// What whoever only looks is shown.
    pub fn view(&self) -> View {
        View {
            uuid: self.superblock.uuid,
            generation: self.superblock.generation,
            device_bytes: self.superblock.device_bytes,
            extents: self.superblock.extents,
            extents_free: self.free(),
            volumes: self.volumes.clone(),
            closed: self.closed,
        }
    }

    pub fn find(&self, name: &str) -> Result<Arc<Volume>> {
        let found = self.volumes.iter().find(|v| v.name == name);
        found.cloned().ok_or_else(|| Error::NoVolume(name.to_owned()))
    }

    /// Whether the volumes may have so many extents more.
    pub fn check_promise(&self, more: u64) -> Result<()> {
        let promised: u64 = self.volumes.iter().map(|volume| volume.extents()).sum();
        let most = promised_max(self.superblock.extents);
        if more > most.saturating_sub(promised) {
            let gib = |extents| (extents * EXTENT_BYTES) >> 30;
            return Err(Error::Invalid(format!(
                "the volumes of this pool may have {} GiB together and have {} GiB: take a smaller size, or another \
                 device",
                gib(most),
                gib(promised)
            )));
        }
        Ok(())
    }

    pub fn free(&self) -> u64 {
        self.owners.iter().filter(|o| o.volume == 0).count() as u64
    }

    pub fn remember(&self) -> Before {
        (self.volumes.clone(), self.owners.clone())
    }

    /// Takes extents from their owners. Those that had one.
    pub fn disown(&mut self, which: impl Fn(&Owner) -> bool) -> Vec<u64> {
        let mut freed = Vec::new();
        for (physical, owner) in self.owners.iter_mut().enumerate() {
            if owner.volume != 0 && which(owner) {
                *owner = Owner::default();
                freed.push(physical as u64);
            }
        }
        freed
    }

    /// Makes what is here durable.
    pub fn commit(&mut self) -> io::Result<()> {
        if let Some(closed) = self.closed {
            return Err(closed.error());
        }
        if self.superblock.generation >= GENERATION_MAX {
            return Err(io::Error::other(
                "the superblock's generation is forged; make the pool anew",
            ));
        }
        self.first_free = 0;
        // Set until the end: whatever returns early leaves it set.
        self.closed = Some(Closed::Failed);
        let records: Vec<VolumeRecord> = self
            .volumes
            .iter()
            .map(|v| VolumeRecord { id: v.id, thin: v.thin, bytes: v.bytes, name: v.name.clone() })
            .collect();
        let mut meta = format::encode_metadata(&records, &self.owners);
        let mut next = self.superblock.clone();
        next.generation += 1;
        next.meta_slot = 1 - next.meta_slot;
        next.meta_len = meta.len() as u32;
        next.meta_crc = crc_fast::crc32_iscsi(&meta);
        meta.resize(meta.len().div_ceil(4096) * 4096, 0);
        assert!(meta.len() as u64 <= next.area_bytes, "the area holds all volumes and extents");
        let queue = self.queue.as_mut();
        write(queue, next.area_offset(next.meta_slot), &meta)?;
        run(queue, Action::Flush)?;
        let bytes = next.encode();
        for copy in 0..2 {
            write(queue, copy * SUPERBLOCK_BYTES as u64, &bytes)?;
            run(queue, Action::Flush)?;
        }
        self.superblock = next;
        self.closed = None;
        Ok(())
    }
}

/// Volumes and owners as they were before a change.
pub type Before = (Vec<Arc<Volume>>, Vec<Owner>);

type Decoded = std::result::Result<Superblock, FormatError>;

/// The superblock to believe, or the better of two reasons for none. One of another format refuses the device even
/// when the other is readable.
pub fn newest(a: Decoded, b: Decoded) -> Decoded {
    use FormatError::{Blank, Checksum, OtherVersion};
    match (a, b) {
        (Err(OtherVersion(v)), _) | (_, Err(OtherVersion(v))) => Err(OtherVersion(v)),
        (Ok(a), Ok(b)) => Ok(if b.generation > a.generation { b } else { a }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(Blank), Err(Blank)) => Err(Blank),
        (Err(Checksum), _) | (_, Err(Checksum)) => Err(Checksum),
        (Err(Blank), Err(other)) | (Err(other), Err(_)) => Err(other),
    }
}

pub fn load(
    path: &str,
    queue: &mut dyn Queue,
    superblock: &Superblock,
    device: u64,
) -> Result<(Vec<VolumeRecord>, Vec<Owner>)> {
    let refused = |reason| Error::Format { path: path.to_owned(), reason };
    if device < superblock.device_bytes {
        let expected = superblock.device_bytes;
        return Err(refused(FormatError::Shorter { device, expected }));
    }
    let len = (superblock.meta_len as usize).div_ceil(4096).max(1) * 4096;
    let mut meta = read(queue, superblock.area_offset(superblock.meta_slot), len)
        .map_err(|e| failed(path, "reading the metadata", e))?;
    meta.truncate(superblock.meta_len as usize);
    if crc_fast::crc32_iscsi(&meta) != superblock.meta_crc {
        return Err(refused(FormatError::Metadata));
    }
    format::decode_metadata(&meta, superblock.extents).map_err(refused)
}

/// Volumes with their maps; `None` if the table has what [`Pool::create`] would not make, or the map names what the
/// table does not have.
pub fn attach(
    records: &[VolumeRecord],
    owners: &[Owner],
    poisoned: &Arc<AtomicBool>,
) -> Option<Vec<Arc<Volume>>> {
    let mut volumes = Vec::with_capacity(records.len());
    let (mut mapped, mut promised) = (0, 0);
    for (at, record) in records.iter().enumerate() {
        let extents = extents_of(record.bytes).ok()?;
        promised += extents;
        let is_twice = |other: &VolumeRecord| other.id == record.id || other.name == record.name;
        let is_whole = record.bytes.is_multiple_of(EXTENT_BYTES) && is_name(&record.name);
        if !is_whole
            || records[..at].iter().any(is_twice)
            || promised > promised_max(owners.len() as u64)
        {
            return None;
        }
        let mut map = vec![None; extents as usize];
        for (physical, owner) in owners.iter().enumerate().filter(|(_, o)| o.volume == record.id) {
            let entry = map.get_mut(owner.index as usize)?;
            if entry.replace(physical as u64).is_some() {
                return None;
            }
            mapped += 1;
        }
        if record.id == 0 || (!record.thin && map.contains(&None)) {
            return None;
        }
        let (name, poisoned) = (record.name.clone(), Arc::clone(poisoned));
        let volume = Volume::new(record.id, name, record.bytes, record.thin, map, poisoned);
        volumes.push(Arc::new(volume));
    }
    (mapped == owners.iter().filter(|o| o.volume != 0).count()).then_some(volumes)
}

/// Most extents that the volumes of a pool have together.
fn promised_max(extents: u64) -> u64 {
    (PROMISED_BYTES_MAX / EXTENT_BYTES).max(extents * PROMISED_TIMES_MAX)
}

pub fn is_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    fits && !name.chars().any(|c| c.is_control() || c == '/')
}

pub fn extents_of(bytes: u64) -> Result<u64> {
    let extents = bytes.div_ceil(EXTENT_BYTES);
    if extents == 0 || extents > 1 << 28 {
        return Err(Error::Invalid(format!("a volume has 1 byte to 1 PiB, not {bytes} bytes")));
    }
    Ok(extents)
}

pub fn read(queue: &mut dyn Queue, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let memory = Memory::zeroed(len);
    run(queue, Action::Read { offset, memory: memory.clone() })?;
    Ok(memory.to_vec())
}

pub fn write(queue: &mut dyn Queue, offset: u64, bytes: &[u8]) -> io::Result<()> {
    run(queue, Action::Write { offset, memory: Memory::copy_of(bytes), fua: false })
}
