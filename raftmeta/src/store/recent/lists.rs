//! What hangs on an inode, in order and complete: its extents and its extended attributes.
//!
//! A scan in fjall passes every old version and every removed key that lies in the range until fjall has written
//! them into a table and merged it; the extents of a file that is overwritten are full of them. Here a scan
//! passes what is there.
//!
//! ```text
//!   part                      holds                                        as long as
//!   E <ino>, X <ino>          all pairs with that prefix                   there are few: PAIRS_MAX, BYTES_MAX
//!   E <ino> <window>          the extents that start in 4 MiB of the file  the same; where `E <ino>` is too long
//! ```
//! A part is read from fjall as a whole when somebody scans it, and changed by every commit from then on, under
//! the rules of [`super`]. A part that was too long is remembered as such. What hangs on a new inode
//! is known to be nothing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use parking_lot::Mutex;

use super::Commit;
use crate::keys;
use crate::kv::{KvError, Pair};

const SHARDS: usize = 64;
/// Class and inode.
const PREFIX: usize = 9;
/// Bytes of a file that one part covers, as a power of two.
const WINDOW_SHIFT: u32 = 22;
/// Most windows that one scan looks at.
const WINDOWS_MAX: u64 = 4;
/// What a part needs beside its pairs, and a pair beside its bytes, roughly.
const OVERHEAD: usize = 96;

/// The bounds of the lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of all lists, with what the maps need around them.
    pub bytes: usize,
    /// Pairs and bytes of one list: a larger one would be dear to read for the sake of one scan.
    pub list_pairs: usize,
    pub list_bytes: usize,
}

impl Limits {
    pub const DEFAULT: Limits = Limits { bytes: 32 << 20, list_pairs: 1024, list_bytes: 256 << 10 };
}

/// Reads (from, to, limit) in fjall, ascending.
pub type Read<'r> = &'r dyn Fn(&[u8], &[u8], usize) -> Result<Vec<Pair>, KvError>;

/// `from..to` of keys.
#[derive(Clone, Copy, Debug)]
pub struct Range<'k> {
    pub from: &'k [u8],
    pub to: &'k [u8],
    pub limit: usize,
    pub reverse: bool,
}

impl Range<'_> {
    /// The pairs of an ordered list that are asked for, as far as `found` is not full.
    fn select(&self, list: &[Pair], found: &mut Vec<Pair>) {
        let start = list.partition_point(|(key, _)| &key[..] < self.from);
        let end = list.partition_point(|(key, _)| &key[..] < self.to).max(start);
        let room = self.limit.saturating_sub(found.len());
        let pairs = &list[start..end];
        match self.reverse {
            true => found.extend(pairs.iter().rev().take(room).cloned()),
            false => found.extend(pairs.iter().take(room).cloned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Part {
    prefix: [u8; PREFIX],
    /// Number of the window; `None` is the whole.
    window: Option<u64>,
}

impl Part {
    /// First key, and the first beyond.
    fn range(&self) -> (Vec<u8>, Vec<u8>) {
        let whole = keys::prefix_range(&self.prefix);
        let Some(window) = self.window else { return whole };
        let at = |window: u64| [&self.prefix[..], &(window << WINDOW_SHIFT).to_be_bytes()].concat();
        match window == u64::MAX >> WINDOW_SHIFT {
            true => (at(window), whole.1),
            false => (at(window), at(window + 1)),
        }
    }
}

fn prefix_of(key: &[u8]) -> Option<[u8; PREFIX]> {
    matches!(key.first(), Some(b'E' | b'X')).then_some(())?;
    key.first_chunk().copied()
}

/// The window that a key of an extent lies in.
fn window_of(key: &[u8]) -> Option<u64> {
    (key.first() == Some(&b'E')).then(|| keys::second_number(key) >> WINDOW_SHIFT)
}

/// What is known of a part from commit `since` on.
#[derive(Debug)]
struct List {
    /// Ascending; `None`: too many to be kept.
    pairs: Option<Vec<Pair>>,
    bytes: usize,
    since: Commit,
}

fn size(pair: &Pair) -> usize {
    pair.0.len() + pair.1.len() + OVERHEAD
}

impl List {
    fn new(pairs: Option<Vec<Pair>>, since: Commit) -> List {
        let bytes = OVERHEAD + pairs.iter().flatten().map(size).sum::<usize>();
        List { pairs, bytes, since }
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>, at: Commit, limits: &Limits) {
        self.since = at;
        let Some(pairs) = &mut self.pairs else { return };
        match (pairs.binary_search_by(|(other, _)| other[..].cmp(key)), value) {
            (Ok(place), Some(value)) => {
                self.bytes = self.bytes - pairs[place].1.len() + value.len();
                pairs[place].1 = value.to_vec();
            }
            (Err(place), Some(value)) => {
                let pair = (key.to_vec(), value.to_vec());
                self.bytes += size(&pair);
                pairs.insert(place, pair);
            }
            (Ok(place), None) => self.bytes -= size(&pairs.remove(place)),
            (Err(_), None) => {}
        }
        if pairs.len() > limits.list_pairs || self.bytes > limits.list_bytes {
            *self = List::new(None, at);
        }
    }
}

/// Two generations, as in [`super`].
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<Part, List>,
    old: HashMap<Part, List>,
    young_bytes: usize,
    /// Last commit that wrote to any part of this shard, known or not.
    written: Commit,
}

impl Shard {
    fn insert(&mut self, part: Part, list: List, limits: &Limits) {
        self.old.remove(&part);
        self.young_bytes += list.bytes;
        if let Some(before) = self.young.insert(part, list) {
            self.young_bytes -= before.bytes;
        }
        if self.young_bytes > limits.bytes / SHARDS / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    fn touch(&mut self, part: &Part, limits: &Limits) {
        if let Some(list) = self.old.remove(part) {
            self.insert(*part, list, limits);
        }
    }

    fn get(&self, part: &Part) -> Option<&List> {
        self.young.get(part).or_else(|| self.old.get(part))
    }
}

#[derive(Debug)]
pub(super) struct Lists {
    shards: Vec<Mutex<Shard>>,
    limits: Limits,
}

/// A part as it was found.
enum Found<T> {
    Known(T),
    TooLong,
    /// Not known, or not for that commit.
    Unknown,
}

impl Lists {
    pub fn new(limits: Limits) -> Lists {
        Lists { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), limits }
    }

    fn shard(&self, part: &Part) -> &Mutex<Shard> {
        let window = part.window.map_or(0, |window| window.wrapping_add(1));
        let key = [&part.prefix[..], &window.to_be_bytes()].concat();
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &key);
        &self.shards[sum as usize % SHARDS]
    }

    fn with<T>(&self, part: &Part, at: Commit, look: impl FnOnce(&[Pair]) -> T) -> Found<T> {
        let mut shard = self.shard(part).lock();
        shard.touch(part, &self.limits);
        match shard.get(part) {
            Some(List { pairs: Some(pairs), since, .. }) if *since <= at => {
                Found::Known(look(pairs))
            }
            Some(List { pairs: None, .. }) => Found::TooLong,
            Some(_) | None => Found::Unknown,
        }
    }

    /// `None` if it is not known here.
    pub fn get(&self, key: &[u8], at: Commit) -> Option<Option<Vec<u8>>> {
        let prefix = prefix_of(key)?;
        let look = |pairs: &[Pair]| {
            let place = pairs.binary_search_by(|(other, _)| other[..].cmp(key)).ok()?;
            Some(pairs[place].1.clone())
        };
        let mut found = self.with(&Part { prefix, window: None }, at, look);
        if let (Found::TooLong, Some(window)) = (&found, window_of(key)) {
            found = self.with(&Part { prefix, window: Some(window) }, at, look);
        }
        match found {
            Found::Known(value) => Some(value),
            Found::TooLong | Found::Unknown => None,
        }
    }

    /// A scan of one inode's extents or attributes as of commit `at`; `read` reads (from, to, limit) in fjall as of
    /// that commit. `None` if it has to be made in fjall.
    pub fn scan(
        &self,
        range: Range<'_>,
        at: Commit,
        read: Read<'_>,
    ) -> Result<Option<Vec<Pair>>, KvError> {
        let Some(prefix) = prefix_of(range.from) else { return Ok(None) };
        let beyond = !range.to.starts_with(&prefix) && range.to != keys::prefix_range(&prefix).1;
        if beyond || range.from >= range.to {
            return Ok(None);
        }
        let mut found = Vec::new();
        match self.look(Part { prefix, window: None }, range, at, read, &mut found)? {
            Found::Known(()) => return Ok(Some(found)),
            Found::TooLong if prefix[0] == b'E' && range.to.starts_with(&prefix) => {}
            Found::TooLong | Found::Unknown => return Ok(None),
        }
        self.scan_windows(prefix, range, at, read)
    }

    fn scan_windows(
        &self,
        prefix: [u8; PREFIX],
        range: Range<'_>,
        at: Commit,
        read: Read<'_>,
    ) -> Result<Option<Vec<Pair>>, KvError> {
        let mut found = Vec::new();
        let first = keys::second_number(range.from) >> WINDOW_SHIFT;
        let last = keys::second_number(range.to).saturating_sub(1) >> WINDOW_SHIFT;
        let mut look = |window| {
            let part = Part { prefix, window: Some(window) };
            let known = self.look(part, range, at, read, &mut found);
            match known {
                Ok(Found::Known(())) if found.len() >= range.limit => ControlFlow::Break(Ok(true)),
                Ok(Found::Known(())) => ControlFlow::Continue(()),
                Ok(Found::TooLong | Found::Unknown) => ControlFlow::Break(Ok(false)),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        };
        let windows = first..=last;
        let whole = last.saturating_sub(first) < WINDOWS_MAX;
        let ended = match range.reverse {
            true => windows.rev().take(WINDOWS_MAX as usize).try_for_each(&mut look),
            false if whole => windows.into_iter().try_for_each(&mut look),
            false => return Ok(None),
        };
        match ended {
            ControlFlow::Break(Err(error)) => Err(error),
            ControlFlow::Break(Ok(full)) => Ok(full.then_some(found)),
            ControlFlow::Continue(()) => Ok(whole.then_some(found)),
        }
    }

    /// Adds what `range` selects of the part to `found`; reads it where it is not known.
    fn look(
        &self,
        part: Part,
        range: Range<'_>,
        at: Commit,
        read: Read<'_>,
        found: &mut Vec<Pair>,
    ) -> Result<Found<()>, KvError> {
        match self.with(&part, at, |pairs| range.select(pairs, found)) {
            Found::Unknown => {}
            other => return Ok(other),
        }
        let (from, to) = part.range();
        let pairs = read(&from, &to, self.limits.list_pairs + 1)?;
        let bytes: usize = pairs.iter().map(size).sum();
        let known = pairs.len() <= self.limits.list_pairs && bytes <= self.limits.list_bytes;
        if known {
            range.select(&pairs, found);
        }
        let mut shard = self.shard(&part).lock();
        // A list that is there already is at least as new.
        if shard.written <= at && shard.get(&part).is_none() {
            shard.insert(part, List::new(known.then_some(pairs), at), &self.limits);
        }
        Ok(if known { Found::Known(()) } else { Found::TooLong })
    }

    /// Commit `at` has made this inode: nothing hangs on it but what the same commit writes.
    pub fn created(&self, inode_key: &[u8], at: Commit) {
        for class in [b'E', b'X'] {
            let mut prefix = [class; PREFIX];
            prefix[1..].copy_from_slice(&keys::first_number(inode_key).to_be_bytes());
            let part = Part { prefix, window: None };
            let mut shard = self.shard(&part).lock();
            shard.insert(part, List::new(Some(Vec::new()), at), &self.limits);
        }
    }

    /// Commit `at` has written this.
    pub fn write(&self, key: &[u8], value: Option<&[u8]>, at: Commit) {
        let Some(prefix) = prefix_of(key) else { return };
        let window = window_of(key).map(Some);
        for window in [None].into_iter().chain(window) {
            let part = Part { prefix, window };
            let mut shard = self.shard(&part).lock();
            shard.written = at;
            let list = shard.young.remove(&part).inspect(|list| shard.young_bytes -= list.bytes);
            let Some(mut list) = list.or_else(|| shard.old.remove(&part)) else { continue };
            list.write(key, value, at, &self.limits);
            shard.insert(part, list, &self.limits);
        }
    }

    /// Forgets everything; `at` is a commit that has changed anything.
    pub fn clear(&self, at: Commit) {
        for shard in &self.shards {
            *shard.lock() = Shard { written: at, ..Shard::default() };
        }
    }
}
