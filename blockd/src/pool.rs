//! A pool: one device, its superblocks, and the volumes carved out of it.
//!
//! Changes are made one after the other, under a lock, and write metadata synchronously; a change is visible only
//! after it is durable. A metadata write that fails stops all further changes: the state on the device is unknown.
//!
//! A device may hang in such a write. So whoever only looks ([`Pool::volumes`], [`Pool::connect`], [`Pool::status`],
//! [`Pool::poison`]) reads what was true after the last change and waits for nobody, and reactors, which may not wait
//! either, have extents allocated by a thread of the pool's own ([`Mapper`]).

pub mod format;
mod mapper;
mod state;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::engine::{Action, Device, Queue, run};
use crate::error::{Error, FormatError, Result};
use crate::volume::Volume;
use format::{EXTENT_BYTES, NAME_BYTES_MAX, Owner, SUPERBLOCK_BYTES, Superblock, VOLUMES_MAX};
pub use mapper::{Job, Mapper, Want};
use state::{Before, Closed, State, attach, extents_of, is_name, load, newest, read, write};

/// See the module.
pub struct Pool {
    path: String,
    device: Arc<dyn Device>,
    data_start: u64,
    poisoned: Arc<AtomicBool>,
    view: Mutex<View>,
    state: Mutex<State>,
}

/// The pool after its last change. Its lock is held for moments only.
#[derive(Clone, Debug)]
struct View {
    uuid: Uuid,
    generation: u64,
    device_bytes: u64,
    extents: u64,
    extents_free: u64,
    volumes: Vec<Arc<Volume>>,
    closed: Option<Closed>,
}

/// A change: whoever has it is alone with the state; others see what it did when it is over.
struct Change<'a> {
    pool: &'a Pool,
    state: MutexGuard<'a, State>,
}

impl std::ops::Deref for Change<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        *self.pool.view() = self.state.view();
    }
}

/// Volumes without users that are about to go; they stay unless it is kept to the end.
struct Claimed(Vec<Arc<Volume>>);

impl Claimed {
    /// `Err` with the first that is used.
    fn all(volumes: &[Arc<Volume>]) -> std::result::Result<Claimed, Arc<Volume>> {
        let mut claimed = Claimed(Vec::with_capacity(volumes.len()));
        for volume in volumes {
            if !volume.claim() {
                return Err(Arc::clone(volume));
            }
            claimed.0.push(Arc::clone(volume));
        }
        Ok(claimed)
    }

    /// They are gone.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.iter().for_each(|volume| volume.unclaim());
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("path", &self.path).finish_non_exhaustive()
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
        let poisoned = Arc::default();
        let volumes = attach(&volumes, &owners, &poisoned).ok_or(refused(FormatError::Metadata))?;
        let data_start = superblock.data_start;
        let mut state = State { queue, superblock, owners, volumes, closed: None, first_free: 0 };
        if !in_step {
            // New, or a power cut came between the two superblocks: write both again.
            state.commit().map_err(|e| failed(path, "writing the superblocks", e))?;
        }
        let view = Mutex::new(state.view());
        let state = Mutex::new(state);
        Ok(Pool { path: path.to_owned(), device, data_start, poisoned, view, state })
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
        attach(&volumes, &owners, &Arc::default()).ok_or(refused(FormatError::Metadata))?;
        let free = owners.iter().filter(|o| o.volume == 0).count() as u64;
        Ok((superblock, volumes.into_iter().map(|v| v.name).collect(), free))
    }

    fn change(&self) -> Change<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Change { pool: self, state }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.view().volumes.clone()
    }

    /// The volume, counted as used until [`Volume::leave`].
    pub fn connect(&self, name: &str) -> Result<Arc<Volume>> {
        let found = self.view().volumes.iter().find(|v| v.name == name).cloned();
        let volume = found.ok_or_else(|| Error::NoVolume(name.to_owned()))?;
        if volume.join() { Ok(volume) } else { Err(Error::VolumeBusy(name.to_owned())) }
    }

    /// A flush of the device failed: what it covered may be lost, of whichever volume it was.
    pub fn poison(&self) {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            let path = &self.path;
            tracing::error!(path, "a flush failed; its volumes serve nothing until a restart");
        }
    }

    /// Numbers for the operator.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let view = self.view().clone();
        PoolStatus {
            path: self.path.clone(),
            engine: self.device.engine(),
            uuid: view.uuid,
            generation: view.generation,
            device_bytes: view.device_bytes,
            extent_bytes: EXTENT_BYTES,
            extents: view.extents,
            extents_free: view.extents_free,
            volumes: view.volumes.len(),
            metadata_failed: view.closed == Some(Closed::Failed),
            wiped: view.closed == Some(Closed::Wiped),
        }
    }

    /// Makes a volume of `bytes`, rounded up to extents. A thick one has all its space now, zeroed.
    pub fn create(&self, name: &str, bytes: u64, thin: bool) -> Result<Arc<Volume>> {
        if !is_name(name) {
            return Err(Error::Invalid(format!(
                "a volume's name is 1 to {NAME_BYTES_MAX} bytes without '/' and control characters"
            )));
        }
        let mut state = self.change();
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
        let mut state = self.change();
        let old = state.find(name)?;
        let claimed = claim(&old)?;
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
        claimed.keep();
        self.punch(&mut state, &freed);
        Ok(volume)
    }

    /// Removes a volume and all it holds. Refused while somebody is connected.
    pub fn delete(&self, name: &str) -> Result<()> {
        let mut state = self.change();
        let volume = state.find(name)?;
        let claimed = claim(&volume)?;
        let before = state.remember();
        state.volumes.retain(|v| v.id != volume.id);
        let freed = state.disown(|owner| owner.volume == volume.id);
        self.commit_or(&mut state, before, "deleting a volume")?;
        claimed.keep();
        self.punch(&mut state, &freed);
        Ok(())
    }

    /// Makes the pool anew: no volumes, another UUID. Refused while somebody is connected to a volume.
    pub fn format(&self) -> Result<()> {
        let mut state = self.change();
        let claimed = self.unused(&state)?;
        let before = state.remember();
        let uuid = std::mem::replace(&mut state.superblock.uuid, Uuid::new_v4());
        state.volumes.clear();
        let freed = state.disown(|_| true);
        if let Err(error) = self.commit_or(&mut state, before, "formatting") {
            state.superblock.uuid = uuid;
            return Err(error);
        }
        claimed.keep();
        self.punch(&mut state, &freed);
        Ok(())
    }

    /// Removes the pool from its device, with all that it holds; `zero` overwrites every byte. Refused while somebody
    /// is connected to a volume. Nothing can be made on it until blockd is started again.
    pub fn wipe(&self, zero: bool) -> Result<()> {
        // A queue of its own, since it may take hours, and whoever looks for a volume looks into every pool.
        let queue = self.device.queue();
        let mut queue = queue.map_err(|e| failed(&self.path, "opening a queue", e))?;
        let mut state = self.change();
        self.unused(&state)?.keep();
        state.volumes.clear();
        state.owners.fill(Owner::default());
        // Half a wipe is no pool either.
        state.closed = Some(Closed::Wiped);
        drop(state);
        erase(queue.as_mut(), self.device.bytes(), self.data_start, zero)
            .map_err(|e| failed(&self.path, "wiping", e))
    }

    fn unused(&self, state: &State) -> Result<Claimed> {
        Claimed::all(&state.volumes).map_err(|volume| Error::DeviceBusy {
            path: self.path.clone(),
            by: format!("volume {:?} is connected or exported", volume.name),
        })
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
        let (name, bytes) = (name.to_owned(), extents * EXTENT_BYTES);
        Ok(Arc::new(Volume::new(id, name, bytes, thin, map, Arc::clone(&self.poisoned))))
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

fn claim(volume: &Arc<Volume>) -> Result<Claimed> {
    let one = std::slice::from_ref(volume);
    Claimed::all(one).map_err(|volume| Error::VolumeBusy(volume.name.clone()))
}

fn failed(path: &str, doing: &'static str, source: io::Error) -> Error {
    Error::Device { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests;
