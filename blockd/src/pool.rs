//! A pool: one device, its superblocks, and the volumes carved out of it.
//!
//! Control operations and allocation take the pool's lock and write metadata synchronously; a change is visible only
//! after it is durable. A metadata write that fails stops all further changes: the state on the device is unknown.

pub mod format;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::engine::{Action, Device, Memory, Queue, run};
use crate::error::{Error, FormatError, Result};
use crate::volume::Volume;
use format::{
    EXTENT_BYTES, GENERATION_MAX, NAME_BYTES_MAX, Owner, SUPERBLOCK_BYTES, Superblock, VOLUMES_MAX,
    VolumeRecord,
};

/// Most bytes that the volumes of a pool promise together: this, or so many times what the device holds. Each extent
/// of a volume takes 8 bytes of memory, allocated or not; what goes beyond is refused.
const PROMISED_BYTES_MAX: u64 = 16 << 40;
const PROMISED_TIMES_MAX: u64 = 16;

/// See the module.
pub struct Pool {
    path: String,
    device: Arc<dyn Device>,
    data_start: u64,
    state: Mutex<State>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("path", &self.path).finish_non_exhaustive()
    }
}

struct State {
    queue: Box<dyn Queue>,
    superblock: Superblock,
    owners: Vec<Owner>,
    volumes: Vec<Arc<Volume>>,
    // Why nothing may be changed any more.
    closed: Option<Closed>,
    // No extent below it is free.
    first_free: usize,
}

/// Why a pool takes no more changes, until blockd is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
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

/// Numbers for the operator.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PoolStatus {
    pub path: String,
    pub engine: &'static str,
    pub uuid: Uuid,
    pub generation: u64,
    pub device_bytes: u64,
    pub extent_bytes: u64,
    pub extents: u64,
    pub extents_free: u64,
    pub volumes: usize,
    pub metadata_failed: bool,
    pub wiped: bool,
}

impl Pool {
    /// Opens the pool on a device, or with `create` makes one if the device is blank.
    pub fn open(path: &str, device: Arc<dyn Device>, create: bool) -> Result<Pool> {
        let mut queue = device.queue().map_err(|e| failed(path, "opening a queue", e))?;
        let refused = |reason| Error::Format { path: path.to_owned(), reason };
        let bytes = device.bytes();
        if bytes < 2 * SUPERBLOCK_BYTES as u64 {
            return Err(refused(FormatError::TooSmall(bytes)));
        }
        let both = read(queue.as_mut(), 0, 2 * SUPERBLOCK_BYTES)
            .map_err(|e| failed(path, "reading the superblocks", e))?;
        let a = Superblock::decode(&both[..SUPERBLOCK_BYTES]);
        let b = Superblock::decode(&both[SUPERBLOCK_BYTES..]);
        let in_step = matches!((&a, &b), (Ok(a), Ok(b)) if a == b);
        let (superblock, volumes, owners) = match newest(a, b) {
            Ok(superblock) => {
                let (volumes, owners) = load(path, queue.as_mut(), &superblock, bytes)?;
                (superblock, volumes, owners)
            }
            Err(FormatError::Blank) if create => {
                let superblock = Superblock::for_device(bytes, Uuid::new_v4()).map_err(refused)?;
                let owners = vec![Owner::default(); superblock.extents as usize];
                (superblock, Vec::new(), owners)
            }
            Err(reason) => return Err(refused(reason)),
        };
        let volumes = attach(&volumes, &owners).ok_or(refused(FormatError::Metadata))?;
        let data_start = superblock.data_start;
        let mut state = State { queue, superblock, owners, volumes, closed: None, first_free: 0 };
        if !in_step {
            // New, or a power cut came between the two superblocks: write both again.
            state.commit().map_err(|e| failed(path, "writing the superblocks", e))?;
        }
        Ok(Pool { path: path.to_owned(), device, data_start, state: Mutex::new(state) })
    }

    /// What a pool on the device says of itself: its superblock, the volumes' names, free extents. Writes nothing.
    pub fn look(path: &str, device: &Arc<dyn Device>) -> Result<(Superblock, Vec<String>, u64)> {
        let mut queue = device.queue().map_err(|e| failed(path, "opening a queue", e))?;
        let both = read(queue.as_mut(), 0, 2 * SUPERBLOCK_BYTES)
            .map_err(|e| failed(path, "reading the superblocks", e))?;
        let (a, b) = both.split_at(SUPERBLOCK_BYTES);
        let refused = |reason| Error::Format { path: path.to_owned(), reason };
        let superblock = newest(Superblock::decode(a), Superblock::decode(b)).map_err(refused)?;
        let (volumes, owners) = load(path, queue.as_mut(), &superblock, device.bytes())?;
        attach(&volumes, &owners).ok_or(refused(FormatError::Metadata))?;
        let free = owners.iter().filter(|o| o.volume == 0).count() as u64;
        Ok((superblock, volumes.into_iter().map(|v| v.name).collect(), free))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device it lies on.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Where a physical extent starts on the device, in bytes.
    #[must_use]
    pub fn extent_offset(&self, physical: u64) -> u64 {
        self.data_start + physical * EXTENT_BYTES
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.lock().volumes.clone()
    }

    /// The volume, counted as used until [`Volume::leave`].
    pub fn connect(&self, name: &str) -> Result<Arc<Volume>> {
        let state = self.lock();
        let volume = state.find(name)?;
        volume.join();
        Ok(volume)
    }

    /// A flush of the device failed: what it covered may be lost, of whichever volume it was.
    pub fn poison(&self) {
        tracing::error!(
            path = self.path,
            "a flush failed; its volumes serve nothing until a restart"
        );
        for volume in &self.lock().volumes {
            volume.poison();
        }
    }

    /// Numbers for the operator.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let state = self.lock();
        PoolStatus {
            path: self.path.clone(),
            engine: self.device.engine(),
            uuid: state.superblock.uuid,
            generation: state.superblock.generation,
            device_bytes: state.superblock.device_bytes,
            extent_bytes: EXTENT_BYTES,
            extents: state.superblock.extents,
            extents_free: state.free(),
            volumes: state.volumes.len(),
            metadata_failed: state.closed == Some(Closed::Failed),
            wiped: state.closed == Some(Closed::Wiped),
        }
    }

    /// Makes a volume of `bytes`, rounded up to extents. A thick one has all its space now, zeroed.
    pub fn create(&self, name: &str, bytes: u64, thin: bool) -> Result<Arc<Volume>> {
        if !is_name(name) {
            return Err(Error::Invalid(format!(
                "a volume's name is 1 to {NAME_BYTES_MAX} bytes without '/' and control characters"
            )));
        }
        let mut state = self.lock();
        if state.find(name).is_ok() {
            return Err(Error::Exists(name.to_owned()));
        }
        if state.volumes.len() == VOLUMES_MAX {
            return Err(Error::Invalid(format!("a pool has at most {VOLUMES_MAX} volumes")));
        }
        let extents = extents_of(bytes)?;
        state.check_promise(extents)?;
        let before = state.remember();
        let id = (1..).find(|id| state.volumes.iter().all(|v| v.id != *id)).expect("1024 ids");
        let volume =
            self.build(&mut state, id, name, extents, thin, vec![None; extents as usize])?;
        state.volumes.push(Arc::clone(&volume));
        self.commit_or(&mut state, before, "creating a volume")?;
        Ok(volume)
    }

    /// Gives a volume another size. What is cut off is lost. Refused while somebody is connected.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<Arc<Volume>> {
        let mut state = self.lock();
        let old = state.find(name)?;
        if old.users() > 0 {
            return Err(Error::VolumeBusy(name.to_owned()));
        }
        let extents = extents_of(bytes)?;
        state.check_promise(extents.saturating_sub(old.extents()))?;
        let before = state.remember();
        let mut map = vec![None; extents as usize];
        for (physical, owner) in state.owners.iter().enumerate().filter(|(_, o)| o.volume == old.id)
        {
            if let Some(entry) = map.get_mut(owner.index as usize) {
                *entry = Some(physical as u64);
            }
        }
        let volume = self.build(&mut state, old.id, name, extents, old.thin, map)?;
        let cut_off = |owner: &Owner| u64::from(owner.index) >= extents;
        let freed = state.disown(|owner| owner.volume == old.id && cut_off(owner));
        for slot in &mut state.volumes {
            if slot.id == old.id {
                *slot = Arc::clone(&volume);
            }
        }
        self.commit_or(&mut state, before, "resizing a volume")?;
        self.punch(&mut state, &freed);
        Ok(volume)
    }

    /// Removes a volume and all it holds. Refused while somebody is connected.
    pub fn delete(&self, name: &str) -> Result<()> {
        let mut state = self.lock();
        let volume = state.find(name)?;
        if volume.users() > 0 {
            return Err(Error::VolumeBusy(name.to_owned()));
        }
        let before = state.remember();
        state.volumes.retain(|v| v.id != volume.id);
        let freed = state.disown(|owner| owner.volume == volume.id);
        self.commit_or(&mut state, before, "deleting a volume")?;
        self.punch(&mut state, &freed);
        Ok(())
    }

    /// Makes the pool anew: no volumes, another UUID. Refused while somebody is connected to a volume.
    pub fn format(&self) -> Result<()> {
        let mut state = self.lock();
        self.unused(&state)?;
        let before = state.remember();
        let uuid = std::mem::replace(&mut state.superblock.uuid, Uuid::new_v4());
        state.volumes.clear();
        let freed = state.disown(|_| true);
        if let Err(error) = self.commit_or(&mut state, before, "formatting") {
            state.superblock.uuid = uuid;
            return Err(error);
        }
        self.punch(&mut state, &freed);
        Ok(())
    }

    /// Removes the pool from its device, with all that it holds; `zero` overwrites every byte. Refused while somebody
    /// is connected to a volume. Nothing can be made on it until blockd is started again.
    pub fn wipe(&self, zero: bool) -> Result<()> {
        // A queue of its own, since it may take hours, and whoever looks for a volume looks into every pool.
        let queue = self.device.queue();
        let mut queue = queue.map_err(|e| failed(&self.path, "opening a queue", e))?;
        let mut state = self.lock();
        self.unused(&state)?;
        state.volumes.clear();
        state.owners.fill(Owner::default());
        // Half a wipe is no pool either.
        state.closed = Some(Closed::Wiped);
        drop(state);
        erase(queue.as_mut(), self.device.bytes(), self.data_start, zero)
            .map_err(|e| failed(&self.path, "wiping", e))
    }

    fn unused(&self, state: &State) -> Result<()> {
        match state.volumes.iter().find(|v| v.users() > 0) {
            None => Ok(()),
            Some(volume) => Err(Error::DeviceBusy {
                path: self.path.clone(),
                by: format!("volume {:?} is connected or exported", volume.name),
            }),
        }
    }

    /// Gives an extent of a thin volume its space, zeroed; durable on return. Nothing to do if it has it.
    pub fn allocate(&self, volume: &Volume, index: u64) -> Result<()> {
        let mut state = self.lock();
        if volume.pin(index).is_some() {
            volume.unpin(index);
            return Ok(());
        }
        let physical = self.claim(&mut state, volume.id, index)?;
        self.commit(&mut state, "allocating an extent")?;
        volume.set(index, physical);
        Ok(())
    }

    /// Gives extents of a thin volume back, those that no operation uses. The rest stays as it is.
    pub fn release(&self, volume: &Volume, indexes: std::ops::Range<u64>) -> Result<()> {
        let mut state = self.lock();
        let freed: Vec<u64> = indexes.filter_map(|index| volume.take(index)).collect();
        if freed.is_empty() {
            return Ok(());
        }
        for physical in &freed {
            state.owners[*physical as usize] = Owner::default();
        }
        self.commit(&mut state, "giving extents back")?;
        self.punch(&mut state, &freed);
        Ok(())
    }

    fn build(
        &self,
        state: &mut State,
        id: u32,
        name: &str,
        extents: u64,
        thin: bool,
        mut map: Vec<Option<u64>>,
    ) -> Result<Arc<Volume>> {
        let wanted = map.iter().filter(|p| p.is_none()).count() as u64;
        if !thin && wanted > state.free() {
            return Err(Error::NoSpace { wanted, free: state.free() });
        }
        if !thin {
            let missing: Vec<usize> = (0..map.len()).filter(|i| map[*i].is_none()).collect();
            let before = state.owners.clone();
            for index in missing {
                match self.claim(state, id, index as u64) {
                    Ok(physical) => map[index] = Some(physical),
                    Err(error) => {
                        state.owners = before;
                        state.first_free = 0;
                        return Err(error);
                    }
                }
            }
        }
        Ok(Arc::new(Volume::new(id, name.to_owned(), extents * EXTENT_BYTES, thin, map)))
    }

    fn claim(&self, state: &mut State, volume: u32, index: u64) -> Result<u64> {
        let beyond = &state.owners[state.first_free..];
        let position = beyond.iter().position(|o| o.volume == 0);
        let found = state.first_free + position.ok_or(Error::NoSpace { wanted: 1, free: 0 })?;
        state.first_free = found;
        let physical = found as u64;
        // What another volume left there must not be read through this one.
        let action = Action::Zero { offset: self.extent_offset(physical), len: EXTENT_BYTES };
        run(state.queue.as_mut(), action)
            .map_err(|e| failed(&self.path, "zeroing a new extent", e))?;
        state.owners[physical as usize] = Owner { volume, index: index as u32 };
        Ok(physical)
    }

    fn punch(&self, state: &mut State, freed: &[u64]) {
        for physical in freed {
            let offset = self.extent_offset(*physical);
            let action = Action::Deallocate { offset, len: EXTENT_BYTES };
            if let Err(error) = run(state.queue.as_mut(), action) {
                // Only space is lost, and only until the extent is used again.
                tracing::warn!(path = self.path, offset, %error, "punching a hole failed");
            }
        }
    }

    fn commit(&self, state: &mut State, doing: &'static str) -> Result<()> {
        state.commit().map_err(|e| failed(&self.path, doing, e))
    }

    /// A change that did not become durable is not seen either: nobody may write to what a restart does not know.
    fn commit_or(&self, state: &mut State, before: Before, doing: &'static str) -> Result<()> {
        self.commit(state, doing).inspect_err(|_| {
            (state.volumes, state.owners) = before;
            state.first_free = 0;
        })
    }
}

/// Volumes and owners as they were before a change.
type Before = (Vec<Arc<Volume>>, Vec<Owner>);

/// Clears a device: its head, which says what it is, is overwritten, the rest is given back, or overwritten as well.
pub(crate) fn erase(
    queue: &mut dyn Queue,
    bytes: u64,
    head_bytes: u64,
    zero: bool,
) -> io::Result<()> {
    const STEP_BYTES: u64 = 4 << 20;
    if zero {
        for offset in (0..bytes).step_by(STEP_BYTES as usize) {
            run(queue, Action::Zero { offset, len: STEP_BYTES.min(bytes - offset) })?;
        }
    } else {
        run(queue, Action::Deallocate { offset: 0, len: bytes })?;
    }
    // What was given back may still read as it was; partition tables have a second copy at the end.
    let head = head_bytes.clamp(1 << 20, bytes.max(1 << 20)).min(bytes);
    let tail = (bytes - head).min(1 << 20);
    for (mut at, end) in [(0, head), (bytes - tail, bytes)] {
        while at < end {
            let len = STEP_BYTES.min(end - at);
            write(queue, at, &vec![0; len as usize])?;
            at += len;
        }
    }
    run(queue, Action::Flush)
}

impl State {
    fn find(&self, name: &str) -> Result<Arc<Volume>> {
        let found = self.volumes.iter().find(|v| v.name == name);
        found.cloned().ok_or_else(|| Error::NoVolume(name.to_owned()))
    }

    /// Whether the volumes may have so many extents more.
    fn check_promise(&self, more: u64) -> Result<()> {
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

    fn free(&self) -> u64 {
        self.owners.iter().filter(|o| o.volume == 0).count() as u64
    }

    fn remember(&self) -> Before {
        (self.volumes.clone(), self.owners.clone())
    }

    /// Takes extents from their owners. Those that had one.
    fn disown(&mut self, which: impl Fn(&Owner) -> bool) -> Vec<u64> {
        let mut freed = Vec::new();
        for (physical, owner) in self.owners.iter_mut().enumerate() {
            if owner.volume != 0 && which(owner) {
                *owner = Owner::default();
                freed.push(physical as u64);
            }
        }
        freed
    }

    fn commit(&mut self) -> io::Result<()> {
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

type Decoded = std::result::Result<Superblock, FormatError>;

/// The superblock to believe, or the better of two reasons for none. One of a newer format refuses the device even
/// when the other is readable.
fn newest(a: Decoded, b: Decoded) -> Decoded {
    use FormatError::{Blank, Checksum, NewerVersion};
    match (a, b) {
        (Err(NewerVersion(v)), _) | (_, Err(NewerVersion(v))) => Err(NewerVersion(v)),
        (Ok(a), Ok(b)) => Ok(if b.generation > a.generation { b } else { a }),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(Blank), Err(Blank)) => Err(Blank),
        (Err(Checksum), _) | (_, Err(Checksum)) => Err(Checksum),
        (Err(Blank), Err(other)) | (Err(other), Err(_)) => Err(other),
    }
}

fn load(
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
fn attach(records: &[VolumeRecord], owners: &[Owner]) -> Option<Vec<Arc<Volume>>> {
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
        let name = record.name.clone();
        volumes.push(Arc::new(Volume::new(record.id, name, record.bytes, record.thin, map)));
    }
    (mapped == owners.iter().filter(|o| o.volume != 0).count()).then_some(volumes)
}

/// Most extents that the volumes of a pool have together.
fn promised_max(extents: u64) -> u64 {
    (PROMISED_BYTES_MAX / EXTENT_BYTES).max(extents * PROMISED_TIMES_MAX)
}

fn is_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    fits && !name.chars().any(|c| c.is_control() || c == '/')
}

fn extents_of(bytes: u64) -> Result<u64> {
    let extents = bytes.div_ceil(EXTENT_BYTES);
    if extents == 0 || extents > 1 << 28 {
        return Err(Error::Invalid(format!("a volume has 1 byte to 1 PiB, not {bytes} bytes")));
    }
    Ok(extents)
}

fn read(queue: &mut dyn Queue, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let memory = Memory::zeroed(len);
    run(queue, Action::Read { offset, memory: memory.clone() })?;
    Ok(memory.to_vec())
}

fn write(queue: &mut dyn Queue, offset: u64, bytes: &[u8]) -> io::Result<()> {
    run(queue, Action::Write { offset, memory: Memory::copy_of(bytes), fua: false })
}

fn failed(path: &str, doing: &'static str, source: io::Error) -> Error {
    Error::Device { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests;
