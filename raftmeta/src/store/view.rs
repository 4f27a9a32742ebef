//! Reading the store: views for queries, and the present state for the state machine.

use std::fmt::{self, Debug};
use std::sync::Arc;

use fjall::{Guard, Readable};

use super::recent::{Commit, Range};
use super::{Shared, storage};
use crate::kv::{KvError, KvRead, Pair};

/// A consistent view of the applied state at one moment.
pub struct View {
    snapshot: fjall::Snapshot,
    /// The commit it stands at, if that is known.
    at: Option<Commit>,
    shared: Arc<Shared>,
}

impl Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("at", &self.at).finish_non_exhaustive()
    }
}

impl View {
    pub(super) fn new(shared: &Arc<Shared>) -> View {
        let (snapshot, at) = shared.recent.snapshot(|| shared.db.snapshot());
        View { snapshot, at, shared: Arc::clone(shared) }
    }

    pub(super) fn snapshot(&self) -> &fjall::Snapshot {
        &self.snapshot
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

impl KvRead for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if let Some(found) = self.at.and_then(|at| self.shared.recent.get(key, at)) {
            return Ok(found);
        }
        let value = self.snapshot.get(&self.shared.records, key).map_err(storage)?;
        if let Some(at) = self.at {
            self.shared.recent.keep(key, value.as_deref(), at);
        }
        Ok(value.map(|value| value.to_vec()))
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
        let records = &self.shared.records;
        if let Some(at) = self.at {
            let range = Range { from, to, limit, reverse };
            let read = |from: &[u8], to: &[u8], limit: usize| {
                collect(self.snapshot.range(records, from..to), limit, false)
            };
            if let Some(found) = self.shared.recent.scan(range, at, &read)? {
                return Ok(found);
            }
        }
        collect(self.snapshot.range(records, from..to), limit, reverse)
    }
}

/// The present state, for the state machine: while it reads nobody else writes.
pub(super) struct Present<'s>(pub &'s Shared);

impl KvRead for Present<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let at = self.0.recent.done();
        if let Some(found) = self.0.recent.get(key, at) {
            return Ok(found);
        }
        let value = self.0.records.get(key).map_err(storage)?;
        self.0.recent.keep(key, value.as_deref(), at);
        Ok(value.map(|value| value.to_vec()))
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
        let records = &self.0.records;
        let range = Range { from, to, limit, reverse };
        let read =
            |from: &[u8], to: &[u8], limit: usize| collect(records.range(from..to), limit, false);
        match self.0.recent.scan(range, self.0.recent.done(), &read)? {
            Some(found) => Ok(found),
            None => collect(records.range(from..to), limit, reverse),
        }
    }
}
