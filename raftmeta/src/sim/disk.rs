//! Disks that tell what is written from what is synced, and lose the rest when the power goes.
//!
//! ```text
//!   write ─▶ contents, with what each sector held at the last sync        power cut: each sector is new or old
//!   create, rename, remove ─▶ names, with the changes since the last       …: some of the last changes never were
//!                             sync of a directory
//!   commits of the store ─▶ its records, with those since it was persisted …: some of the last commits never were
//! ```
//! A sector is written as a whole. Who dies without a power cut leaves everything. The store is the counterpart of fjall:
//! atomic commits, of which a crash leaves a prefix.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::executor;
use crate::kv::Pair;

const SECTOR: usize = 512;
/// Everything below it is simulated: machine, then what is on its disk.
const ROOT: &str = "/simulated";
/// What a sync takes, mostly.
pub(super) const SYNC_MAX: Duration = Duration::from_millis(3);

thread_local! {
    static DISKS: RefCell<BTreeMap<u64, Arc<Disk>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Where the group of a machine lives.
pub(super) fn dir(machine: u64) -> PathBuf {
    Path::new(ROOT).join(machine.to_string()).join("meta")
}

/// The disk on which a path is, if it is simulated.
pub(crate) fn of(path: &Path) -> Option<Arc<Disk>> {
    let machine = path.strip_prefix(ROOT).ok()?.iter().next()?.to_str()?.parse().ok()?;
    Some(of_machine(machine))
}

/// The disk of a machine; a blank one if it is new.
pub(super) fn of_machine(machine: u64) -> Arc<Disk> {
    DISKS.with(|disks| Arc::clone(disks.borrow_mut().entry(machine).or_default()))
}

/// Nobody can use what he has opened any more.
pub(super) fn off() {
    let disks: Vec<_> = DISKS.with(|disks| disks.borrow().values().cloned().collect());
    disks.iter().for_each(|disk| disk.0.lock().generation += 1);
}

/// No machine has a disk any more.
pub(super) fn clear() {
    let disks = DISKS.with(|disks| std::mem::take(&mut *disks.borrow_mut()));
    drop(disks);
}

#[derive(Default)]
pub(crate) struct Disk(Mutex<State>);

type Shared = Arc<Mutex<Inode>>;
type Records = BTreeMap<Vec<u8>, Vec<u8>>;
/// A key with its new value, or `None` where it is removed.
type Write = (Vec<u8>, Option<Vec<u8>>);

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    /// Length at the last sync.
    synced: usize,
    /// What sectors below that held then.
    before: BTreeMap<usize, Vec<u8>>,
}

/// What a change of a name has to be undone with: the name had this file, or none.
struct Renamed {
    path: PathBuf,
    before: Option<Shared>,
}

#[derive(Default)]
struct Kv {
    records: Arc<Records>,
    persisted: Arc<Records>,
    /// Commits since then.
    since: Vec<Vec<Write>>,
}

#[derive(Default)]
struct State {
    /// Who has opened something before it changed is dead.
    generation: u64,
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Shared>,
    /// Each step changes some names at once.
    names: Vec<Vec<Renamed>>,
    stores: BTreeMap<PathBuf, Kv>,
    sync_max: Option<Duration>,
    fail_next_sync: bool,
}

fn dead() -> io::Error {
    io::Error::other("the machine is off")
}

impl Disk {
    /// Whoever uses the disk is dead; with the power goes what was not synced.
    pub(super) fn cut(&self, power: bool) {
        let mut state = self.0.lock();
        state.generation += 1;
        state.fail_next_sync = false;
        if !power {
            return;
        }
        let kept = executor::roll(|dice| dice.below(state.names.len() as u64 + 1)) as usize;
        for change in state.names.split_off(kept).into_iter().rev().flatten() {
            match change.before {
                Some(file) => state.files.insert(change.path, file),
                None => state.files.remove(&change.path),
            };
        }
        state.names.clear();
        for file in state.files.values() {
            file.lock().cut();
        }
        for store in state.stores.values_mut() {
            let kept = executor::roll(|dice| dice.below(store.since.len() as u64 + 1)) as usize;
            let mut records = Records::clone(&store.persisted);
            store.since.drain(..kept).flatten().for_each(|write| put(&mut records, write));
            store.since.clear();
            store.records = Arc::new(records);
            store.persisted = Arc::clone(&store.records);
        }
    }

    /// From now on a sync takes up to so long.
    pub(super) fn slow(&self, sync_max: Option<Duration>) {
        self.0.lock().sync_max = sync_max;
    }

    pub(super) fn fail_next_sync(&self) {
        self.0.lock().fail_next_sync = true;
    }

    /// What a sync takes now.
    pub fn latency(&self) -> Duration {
        let most = self.0.lock().sync_max.unwrap_or(SYNC_MAX);
        executor::roll(|dice| dice.up_to(most))
    }

    pub fn open(self: &Arc<Disk>, path: &Path, create: bool, truncate: bool) -> io::Result<Handle> {
        let mut state = self.0.lock();
        let is_dir = state.dirs.contains(path);
        let inode = match state.files.get(path) {
            Some(file) => Arc::clone(file),
            None if is_dir => Shared::default(),
            None if create => {
                let file = Shared::default();
                state.files.insert(path.to_path_buf(), Arc::clone(&file));
                state.names.push(vec![Renamed { path: path.to_path_buf(), before: None }]);
                file
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if truncate {
            *inode.lock() = Inode::default();
        }
        let generation = state.generation;
        drop(state);
        Ok(Handle { disk: Arc::clone(self), generation, inode, is_dir, at: AtomicU64::new(0) })
    }

    pub fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.lock().dirs.insert(dir.to_path_buf());
        Ok(())
    }

    pub fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let state = self.0.lock();
        Ok(state.files.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    pub fn exists(&self, path: &Path) -> bool {
        let state = self.0.lock();
        state.files.contains_key(path) || state.dirs.contains(path)
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        let replaced = state.files.insert(to.to_path_buf(), Arc::clone(&file));
        state.names.push(vec![
            Renamed { path: from.to_path_buf(), before: Some(file) },
            Renamed { path: to.to_path_buf(), before: replaced },
        ]);
        Ok(())
    }

    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let before = Some(state.files.remove(path).ok_or(io::ErrorKind::NotFound)?);
        state.names.push(vec![Renamed { path: path.to_path_buf(), before }]);
        Ok(())
    }

    /// The store in this directory; a blank one if it is new.
    pub fn store(self: &Arc<Disk>, path: &Path) -> Memory {
        let mut state = self.0.lock();
        state.stores.entry(path.to_path_buf()).or_default();
        let generation = state.generation;
        drop(state);
        Memory { disk: Arc::clone(self), generation, path: path.to_path_buf() }
    }
}

impl Inode {
    fn cut(&mut self) {
        if self.bytes.len() > self.synced && executor::roll(|dice| dice.one_in(2)) {
            self.bytes.truncate(self.synced);
        }
        // All, none, or any of them.
        let kind = executor::roll(|dice| dice.below(3));
        for (sector, before) in std::mem::take(&mut self.before) {
            if kind == 0 || (kind == 1 && executor::roll(|dice| dice.one_in(2))) {
                self.bytes[sector * SECTOR..][..before.len()].copy_from_slice(&before);
            }
        }
        self.synced = self.bytes.len();
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        let first = offset / SECTOR;
        for sector in (first..).take_while(|sector| sector * SECTOR < end.min(self.synced)) {
            let old = &self.bytes[sector * SECTOR..self.synced.min((sector + 1) * SECTOR)];
            self.before.entry(sector).or_insert_with(|| old.to_vec());
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }
}

/// A file that is open, or a directory.
#[allow(missing_debug_implementations, reason = "for tests")]
pub struct Handle {
    disk: Arc<Disk>,
    generation: u64,
    inode: Shared,
    is_dir: bool,
    /// Where the next read or write is.
    at: AtomicU64,
}

impl Handle {
    fn check(&self) -> io::Result<()> {
        if self.disk.0.lock().generation == self.generation { Ok(()) } else { Err(dead()) }
    }

    pub fn len(&self) -> io::Result<u64> {
        self.check()?;
        Ok(self.inode.lock().bytes.len() as u64)
    }

    pub fn sync(&self) -> io::Result<()> {
        self.check()?;
        executor::stall_here(self.disk.latency());
        let mut state = self.disk.0.lock();
        if std::mem::take(&mut state.fail_next_sync) {
            return Err(io::Error::other("the disk failed"));
        }
        if self.is_dir {
            state.names.clear();
        }
        let mut inode = self.inode.lock();
        inode.synced = inode.bytes.len();
        inode.before.clear();
        Ok(())
    }

    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check()?;
        let inode = self.inode.lock();
        let there = inode.bytes.get(offset as usize..).unwrap_or_default();
        let len = there.len().min(bytes.len());
        bytes[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.check()?;
        self.inode.lock().write(bytes, offset as usize);
        Ok(bytes.len())
    }

    pub fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.read_at(bytes, self.at.load(Ordering::Relaxed))?;
        self.at.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.write_at(bytes, self.at.load(Ordering::Relaxed))?;
        self.at.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

fn put(records: &mut Records, (key, value): Write) {
    match value {
        Some(value) => records.insert(key, value),
        None => records.remove(&key),
    };
}

/// The store of a replica.
#[derive(Clone)]
pub(crate) struct Memory {
    disk: Arc<Disk>,
    generation: u64,
    path: PathBuf,
}

impl Memory {
    fn with<T>(&self, look: impl FnOnce(&mut Kv) -> T) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.generation != self.generation {
            return Err(dead());
        }
        Ok(look(state.stores.entry(self.path.clone()).or_default()))
    }

    pub fn snapshot(&self) -> io::Result<Still> {
        self.with(|store| Still(Arc::clone(&store.records)))
    }

    /// As it is, or as it was when its replica died.
    pub fn last(&self) -> Still {
        let state = self.disk.0.lock();
        let store = state.stores.get(&self.path);
        Still(store.map(|store| Arc::clone(&store.records)).unwrap_or_default())
    }

    pub fn commit(&self, writes: Vec<Write>) -> io::Result<()> {
        self.with(|store| {
            let records = Arc::make_mut(&mut store.records);
            writes.iter().for_each(|write| put(records, write.clone()));
            store.since.push(writes);
        })
    }

    pub fn persist(&self) -> io::Result<()> {
        executor::stall_here(self.disk.latency());
        self.with(|store| {
            store.persisted = Arc::clone(&store.records);
            store.since.clear();
        })
    }
}

/// The store at one moment.
pub(crate) struct Still(Arc<Records>);

impl Still {
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }

    pub fn range(&self, from: &[u8], to: &[u8], limit: usize, reverse: bool) -> Vec<Pair> {
        let range = self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        match reverse {
            true => range.rev().take(limit).map(pair).collect(),
            false => range.take(limit).map(pair).collect(),
        }
    }

    /// The first keys there are.
    pub fn keys(&self, limit: usize) -> Vec<Vec<u8>> {
        self.0.keys().take(limit).cloned().collect()
    }
}
