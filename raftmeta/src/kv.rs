//! The ordered key-value store that the state machine lives in.
//!
//! The state machine sees only these two traits, so that it runs alike over the node's store, over a
//! map in a test, and over an [`Overlay`] that holds the writes of one command until it is known
//! whether the command is refused.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// The store failed or holds bytes that this version cannot read. Fatal for the replica: it must
/// stop rather than apply a command to a state that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// The storage below failed.
    #[error("metadata store: {0}")]
    Storage(String),
    /// A record that does not decode; the key tells which.
    #[error("metadata record {key} is damaged: {reason}")]
    Damaged { key: String, reason: String },
}

/// Reads of an ordered key-value store.
pub trait KvRead {
    /// The value of `key`, if there is one.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// At most `limit` pairs with `from <= key < to`, ascending, or descending from the end of the
    /// range if `reverse`.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError>;
}

/// A store that can be written.
pub trait Kv: KvRead {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError>;
    /// Removes `key`; nothing happens if it is not there.
    fn delete(&mut self, key: &[u8]) -> Result<(), KvError>;
}

/// A store in memory, for tests and models.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemKv(BTreeMap<Vec<u8>, Vec<u8>>);

impl MemKv {
    pub fn new() -> MemKv {
        MemKv::default()
    }

    /// Every pair in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

impl KvRead for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let range = self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        Ok(if reverse {
            range.rev().take(limit).map(pair).collect()
        } else {
            range.take(limit).map(pair).collect()
        })
    }
}

impl Kv for MemKv {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.0.remove(key);
        Ok(())
    }
}

/// Writes that are not yet in the store below; reads see them merged with it.
#[derive(Debug)]
pub struct Overlay<'a, K: KvRead + ?Sized> {
    below: &'a K,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a, K: KvRead + ?Sized> Overlay<'a, K> {
    pub fn new(below: &'a K) -> Overlay<'a, K> {
        Overlay { below, writes: BTreeMap::new() }
    }

    /// What was written, in key order; `None` is a deletion.
    pub fn into_writes(self) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        self.writes
    }

    /// How many keys were written or deleted.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl<K: KvRead + ?Sized> KvRead for Overlay<'_, K> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(key),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let pending = self.writes.range::<[u8], _>(bounds);
        // Each deletion can hide one pair of the store below, so this many are enough.
        let hidden = pending.clone().filter(|(_, value)| value.is_none()).count();
        let below = self.below.scan(from, to, limit.saturating_add(hidden), reverse)?;
        // If the store below was cut by its limit, pending keys past the cut are beyond the limit.
        let mut merged: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            below.into_iter().map(|(key, value)| (key, Some(value))).collect();
        for (key, value) in pending {
            merged.insert(key.clone(), value.clone());
        }
        let live = merged.into_iter().filter_map(|(key, value)| value.map(|value| (key, value)));
        Ok(if reverse { live.rev().take(limit).collect() } else { live.take(limit).collect() })
    }
}

impl<K: KvRead + ?Sized> Kv for Overlay<'_, K> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.writes.insert(key.to_vec(), Some(value.to_vec()));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.writes.insert(key.to_vec(), None);
        Ok(())
    }
}
