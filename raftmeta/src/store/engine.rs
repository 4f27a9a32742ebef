//! The few things that the store needs of fjall; in a simulation a map in memory does them.

use std::io;
use std::path::Path;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::Write;
use crate::kv::{KvError, Pair};
#[cfg(test)]
use crate::sim::disk::{self, Memory, Still};

/// Bytes of fjall's block cache.
const CACHE_BYTES: u64 = 64 << 20;
/// Bytes in memory before fjall writes a table. A scan passes every old version of its keys that is in memory, where
/// [`super::recent`] does not answer it; tables keep the newest only.
const MEMTABLE_BYTES: u64 = 8 << 20;

/// Ordered records that change by atomic commits. What was committed survives the process; once it was persisted, a
/// power cut too.
pub(super) enum Engine {
    Fjall {
        db: Database,
        records: Keyspace,
    },
    #[cfg(test)]
    Memory(Memory),
}

/// The records at one moment.
pub(super) enum Snapshot {
    Fjall {
        snapshot: fjall::Snapshot,
        records: Keyspace,
    },
    #[cfg(test)]
    Memory(Still),
}

fn storage(error: impl std::fmt::Display) -> KvError {
    KvError::Storage(error.to_string())
}

impl Engine {
    pub fn open(path: &Path) -> Result<Engine, fjall::Error> {
        #[cfg(test)]
        if let Some(disk) = disk::of(path) {
            return Ok(Engine::Memory(disk.store(path)));
        }
        let db = Database::builder(path).cache_size(CACHE_BYTES).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let records = db.keyspace("records", options)?;
        Ok(Engine::Fjall { db, records })
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self {
            Engine::Fjall { records, .. } => {
                Ok(records.get(key).map_err(storage)?.map(|value| value.to_vec()))
            }
            #[cfg(test)]
            Engine::Memory(store) => Ok(store.snapshot().map_err(storage)?.get(key)),
        }
    }

    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError> {
        match self {
            Engine::Fjall { records, .. } => collect(records.range(from..to), limit, reverse),
            #[cfg(test)]
            Engine::Memory(store) => {
                Ok(store.snapshot().map_err(storage)?.range(from, to, limit, reverse))
            }
        }
    }

    /// The first keys there are.
    pub fn keys(&self, limit: usize) -> io::Result<Vec<Vec<u8>>> {
        match self {
            Engine::Fjall { records, .. } => {
                let key = |guard: Guard| Ok(guard.key().map_err(io::Error::other)?.to_vec());
                records.iter().take(limit).map(key).collect()
            }
            #[cfg(test)]
            Engine::Memory(store) => Ok(store.snapshot()?.keys(limit)),
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        match self {
            Engine::Fjall { db, records } => {
                Snapshot::Fjall { snapshot: db.snapshot(), records: records.clone() }
            }
            #[cfg(test)]
            Engine::Memory(store) => Snapshot::Memory(store.last()),
        }
    }

    /// All of it or nothing.
    pub fn commit<'w>(&self, writes: impl Iterator<Item = Put<'w>>) -> io::Result<()> {
        match self {
            Engine::Fjall { db, records } => {
                let mut batch = db.batch();
                for (key, value) in writes {
                    match value {
                        Some(value) => batch.insert(records, key, value),
                        None => batch.remove(records, key),
                    }
                }
                batch.commit().map_err(io::Error::other)
            }
            #[cfg(test)]
            Engine::Memory(store) => {
                let owned = |(key, value): Put<'_>| (key.to_vec(), value.map(<[u8]>::to_vec));
                store.commit(writes.map(owned).collect())
            }
        }
    }

    pub fn persist(&self) -> io::Result<()> {
        match self {
            Engine::Fjall { db, .. } => db.persist(PersistMode::SyncAll).map_err(io::Error::other),
            #[cfg(test)]
            Engine::Memory(store) => store.persist(),
        }
    }

    /// Puts what is in memory into tables.
    #[cfg(test)]
    pub fn flush(&self) {
        if let Engine::Fjall { records, .. } = self {
            records.rotate_memtable_and_wait().unwrap();
        }
    }
}

/// A key with its new value, or `None` where it is removed.
pub(super) type Put<'w> = (&'w [u8], Option<&'w [u8]>);

/// See [`Put`].
pub(super) fn put((key, value): &Write) -> Put<'_> {
    (key, value.as_deref())
}

impl Snapshot {
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self {
            Snapshot::Fjall { snapshot, records } => {
                Ok(snapshot.get(records, key).map_err(storage)?.map(|value| value.to_vec()))
            }
            #[cfg(test)]
            Snapshot::Memory(still) => Ok(still.get(key)),
        }
    }

    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError> {
        match self {
            Snapshot::Fjall { snapshot, records } => {
                collect(snapshot.range(records, from..to), limit, reverse)
            }
            #[cfg(test)]
            Snapshot::Memory(still) => Ok(still.range(from, to, limit, reverse)),
        }
    }
}

fn collect(range: fjall::Iter, limit: usize, reverse: bool) -> Result<Vec<Pair>, KvError> {
    let pair = |guard: Guard| {
        let (key, value) = guard.into_inner().map_err(storage)?;
        Ok((key.to_vec(), value.to_vec()))
    };
    if reverse {
        range.rev().take(limit).map(pair).collect()
    } else {
        range.take(limit).map(pair).collect()
    }
}
