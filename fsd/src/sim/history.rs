//! The state of the metadata group as it was after each entry of the log: what a replica that is behind sees.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use raftmeta::kv::Pair;
use raftmeta::{Kv, KvError, KvRead};

/// Number of entries that were applied.
pub(super) type Applied = u64;

/// Each key with its values, and after how many entries it had them. `None`: it was deleted.
type Keys = BTreeMap<Vec<u8>, Vec<(Applied, Option<Vec<u8>>)>>;

#[derive(Clone, Default)]
pub(super) struct History(Arc<RwLock<Keys>>);

/// The state after some entry. Written to, it is the entry that is being applied.
pub(super) struct Moment {
    history: History,
    at: Applied,
}

impl History {
    pub fn at(&self, at: Applied) -> Moment {
        Moment { history: self.clone(), at }
    }
}

impl Moment {
    fn value<'a>(&self, versions: &'a [(Applied, Option<Vec<u8>>)]) -> Option<&'a Vec<u8>> {
        let known = versions.partition_point(|(since, _)| *since <= self.at);
        versions.get(known.checked_sub(1)?)?.1.as_ref()
    }

    fn set(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let mut keys = self.history.0.write();
        let versions = keys.entry(key.to_vec()).or_default();
        match versions.last_mut() {
            Some((since, last)) if *since == self.at => *last = value,
            Some((since, _)) => {
                assert!(*since < self.at, "the past is not written to");
                versions.push((self.at, value));
            }
            None => versions.push((self.at, value)),
        }
    }
}

impl KvRead for Moment {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let keys = self.history.0.read();
        Ok(keys.get(key).and_then(|versions| self.value(versions)).cloned())
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
        let keys = self.history.0.read();
        let range = keys.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let present = range.filter_map(|(key, versions)| {
            self.value(versions).map(|value| (key.clone(), value.clone()))
        });
        Ok(match reverse {
            true => present.rev().take(limit).collect(),
            false => present.take(limit).collect(),
        })
    }
}

impl Kv for Moment {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        self.set(key, Some(value.to_vec()));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), KvError> {
        self.set(key, None);
        Ok(())
    }
}
