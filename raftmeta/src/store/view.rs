//! Reading the store: views for queries, and the present state for the state machine.

use std::fmt::{self, Debug};
use std::sync::Arc;

use super::Shared;
use super::engine::Snapshot;
use super::recent::{Commit, Range};
use crate::kv::{KvError, KvRead, Pair};

/// A consistent view of the applied state at one moment.
pub struct View {
    snapshot: Snapshot,
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
        let (snapshot, at) = shared.recent.snapshot(|| shared.engine.snapshot());
        View { snapshot, at, shared: Arc::clone(shared) }
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl KvRead for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        if let Some(found) = self.at.and_then(|at| self.shared.recent.get(key, at)) {
            return Ok(found);
        }
        let value = self.snapshot.get(key)?;
        if let Some(at) = self.at {
            self.shared.recent.keep(key, value.as_deref(), at);
        }
        Ok(value)
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
        if let Some(at) = self.at {
            let range = Range { from, to, limit, reverse };
            let read =
                |from: &[u8], to: &[u8], limit: usize| self.snapshot.range(from, to, limit, false);
            if let Some(found) = self.shared.recent.scan(range, at, &read)? {
                return Ok(found);
            }
        }
        self.snapshot.range(from, to, limit, reverse)
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
        let value = self.0.engine.get(key)?;
        self.0.recent.keep(key, value.as_deref(), at);
        Ok(value)
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
        let engine = &self.0.engine;
        let range = Range { from, to, limit, reverse };
        let read = |from: &[u8], to: &[u8], limit: usize| engine.range(from, to, limit, false);
        match self.0.recent.scan(range, self.0.recent.done(), &read)? {
            Some(found) => Ok(found),
            None => engine.range(from, to, limit, reverse),
        }
    }
}
