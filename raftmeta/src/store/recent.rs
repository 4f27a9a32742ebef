//! Records that were read or written lately, in front of fjall: a hit costs a tenth of a read there.
//!
//! ```text
//!   commit n:   begun = n │ fjall's batch │ every written key: replaced here, since = n │ done = n
//!   view:       done = n, snapshot, begun still n  ⇒  the snapshot is exactly the state after commit n
//! ```
//! An entry is the key's value from commit `since` on, up to now: a commit that changes the key replaces it.
//! So a view of commit `n` may use every entry with `since <= n`; and what a view of commit `n` read from its
//! snapshot may be kept if no commit after `n` has touched the key's shard. A view that was taken in the
//! middle of a commit does not know its `n` and goes without.
//!
//! Absent keys are kept too: most names that are looked up before a create are not there. What hangs on an
//! inode is kept as ordered lists, for scans: [`lists`].

mod lists;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::kv::{KvError, Pair};
use lists::{Limits, Lists};
pub(super) use lists::{Range, Read};

/// Number of a commit since the store was opened.
pub(super) type Commit = u64;

const SHARDS: usize = 64;
/// Most bytes of keys and values, with what the maps need around them.
const BYTES_MAX: usize = 64 << 20;
/// What a map needs around an entry, roughly.
const ENTRY_OVERHEAD: usize = 96;
/// Larger values are not kept.
const VALUE_MAX: usize = 4096;

#[derive(Debug)]
struct Entry {
    value: Option<Vec<u8>>,
    since: Commit,
}

/// Two generations: a hit in the old one moves the entry to the young one; when that is full it becomes
/// the old one, and what nobody asked for meanwhile is gone.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Vec<u8>, Entry>,
    old: HashMap<Vec<u8>, Entry>,
    young_bytes: usize,
    /// Last commit that wrote any key of this shard.
    written: Commit,
}

impl Shard {
    /// Returns what the key had before, if that was known.
    fn insert(&mut self, key: Vec<u8>, entry: Entry) -> Option<Entry> {
        let size = key.len() + entry.value.as_ref().map_or(0, Vec::len) + ENTRY_OVERHEAD;
        let old = self.old.remove(&key);
        let young = self.young.insert(key, entry);
        if young.is_none() {
            self.young_bytes += size;
        }
        if self.young_bytes > BYTES_MAX / SHARDS / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        young.or(old)
    }
}

#[derive(Debug)]
pub(super) struct Recent {
    shards: Vec<Mutex<Shard>>,
    lists: Lists,
    begun: AtomicU64,
    done: AtomicU64,
}

/// Whether keys of this class are read one by one, so that keeping them pays.
fn is_hot(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'I' | b'D' | b'S' | b's' | b'M' | b'P' | b'R' | b'O' | b'L'))
}

impl Recent {
    pub fn new() -> Recent {
        Recent::with(Limits::DEFAULT)
    }

    fn with(limits: Limits) -> Recent {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let lists = Lists::new(limits);
        Recent { shards, lists, begun: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, key);
        &self.shards[sum as usize % SHARDS]
    }

    /// The last commit that is whole.
    pub fn done(&self) -> Commit {
        self.done.load(Ordering::Acquire)
    }

    /// Takes a snapshot; with the commit it stands at, if no commit was under way.
    pub fn snapshot<T>(&self, take: impl FnOnce() -> T) -> (T, Option<Commit>) {
        let done = self.done.load(Ordering::SeqCst);
        let snapshot = take();
        let begun = self.begun.load(Ordering::SeqCst);
        (snapshot, (begun == done).then_some(done))
    }

    /// `None` if it is not known here; `Some(None)` if the key is absent.
    pub fn get(&self, key: &[u8], at: Commit) -> Option<Option<Vec<u8>>> {
        if !is_hot(key) {
            return self.lists.get(key, at);
        }
        let mut shard = self.shard(key).lock();
        if let Some(entry) = shard.young.get(key) {
            return (entry.since <= at).then(|| entry.value.clone());
        }
        let (key, entry) = shard.old.remove_entry(key)?;
        let found = (entry.since <= at).then(|| entry.value.clone());
        shard.insert(key, entry);
        found
    }

    /// A scan as of commit `at`; `read` reads (from, to, limit) in fjall as of that commit. `None` if it is not for
    /// this to answer.
    pub fn scan(
        &self,
        range: Range<'_>,
        at: Commit,
        read: Read<'_>,
    ) -> Result<Option<Vec<Pair>>, KvError> {
        self.lists.scan(range, at, read)
    }

    /// Keeps what a view of commit `at` has read.
    pub fn keep(&self, key: &[u8], value: Option<&[u8]>, at: Commit) {
        if !is_hot(key) || value.is_some_and(|value| value.len() > VALUE_MAX) {
            return;
        }
        let mut shard = self.shard(key).lock();
        // An entry that is there already is at least as new.
        if shard.written <= at && !shard.young.contains_key(key) && !shard.old.contains_key(key) {
            shard.insert(key.to_vec(), Entry { value: value.map(<[u8]>::to_vec), since: at });
        }
    }

    /// Runs a commit of these writes; there is only ever one at a time.
    pub fn commit<E>(
        &self,
        writes: &[(Vec<u8>, Option<Vec<u8>>)],
        run: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        // After a failure `begun` and `done` differ for good: every view goes without.
        run()?;
        for (key, value) in writes.iter().filter(|(key, _)| is_hot(key)) {
            let mut shard = self.shard(key).lock();
            shard.written = number;
            if value.as_ref().is_some_and(|value| value.len() > VALUE_MAX) {
                shard.young.remove(key);
                shard.old.remove(key);
                continue;
            }
            let before = shard.insert(key.clone(), Entry { value: value.clone(), since: number });
            let absent = matches!(before, Some(Entry { value: None, .. }));
            if key.first() == Some(&b'I') && value.is_some() && absent {
                self.lists.created(key, number);
            }
        }
        for (key, value) in writes {
            self.lists.write(key, value.as_deref(), number);
        }
        self.done.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Forgets everything, after a change that did not come through [`Recent::commit`].
    pub fn clear(&self) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        for shard in &self.shards {
            let mut shard = shard.lock();
            *shard = Shard { written: number, ..Shard::default() };
        }
        self.lists.clear(number);
        self.done.store(number, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
