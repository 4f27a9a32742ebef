//! The applied state in fjall, and the state machine as openraft drives it.
//!
//! A batch of commands becomes one atomic fjall batch together with the applied log id, the
//! membership and the time of the last command, so that the store always stands between two
//! commands. fjall is not synced per command: after a power cut the log replays from `applied`.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{EntryPayload, RaftSnapshotBuilder, Snapshot};
use parking_lot::Mutex;
use raftmeta_types::{Time, Version};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::group::{Applied, Types};
use crate::kv::{KvError, KvRead, Overlay, Pair};

const STATE: &[u8] = b"state";
/// Most entries applied in one fjall batch.
const BATCH_ENTRIES: usize = 64;

/// Where the state machine stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) applied: Option<LogIdOf<Types>>,
    pub(crate) membership: StoredMembershipOf<Types>,
    pub(crate) time: Time,
}

struct Shared {
    db: Database,
    records: Keyspace,
    raft: Keyspace,
    checkpoints: PathBuf,
    state: Mutex<State>,
}

/// The node's store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

impl Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.0.checkpoints).finish_non_exhaustive()
    }
}

/// A consistent view of the applied state at one moment.
pub struct View {
    snapshot: fjall::Snapshot,
    records: Keyspace,
}

impl Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

fn storage(error: fjall::Error) -> KvError {
    KvError::Storage(error.to_string())
}

impl KvRead for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let value = self.snapshot.get(&self.records, key).map_err(storage)?;
        Ok(value.map(|value| value.to_vec()))
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
        let range = self.snapshot.range(&self.records, from..to);
        let pair = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(storage)?;
            Ok((key.to_vec(), value.to_vec()))
        };
        if reverse {
            range.rev().take(limit).map(pair).collect()
        } else {
            range.take(limit).map(pair).collect()
        }
    }
}

impl Store {
    /// Opens or makes the store in `dir/kv`; checkpoints are in `dir/checkpoints`.
    pub fn open(dir: &Path) -> io::Result<Store> {
        let path = dir.join("kv");
        let named = |e: &dyn std::fmt::Display| {
            io::Error::other(format!("metadata store {}: {e}", path.display()))
        };
        let db = Database::builder(&path).open().map_err(|e| named(&e))?;
        let options = KeyspaceCreateOptions::default;
        let records = db.keyspace("records", options).map_err(|e| named(&e))?;
        let raft = db.keyspace("raft", options).map_err(|e| named(&e))?;
        let state = match raft.get(STATE).map_err(|e| named(&e))? {
            Some(bytes) => postcard::from_bytes(&bytes).map_err(|e| named(&e))?,
            None => State::default(),
        };
        let checkpoints = dir.join("checkpoints");
        std::fs::create_dir_all(&checkpoints)?;
        let state = Mutex::new(state);
        Ok(Store(Arc::new(Shared { db, records, raft, checkpoints, state })))
    }

    /// What every command acknowledged so far has made of the state.
    pub fn view(&self) -> View {
        View { snapshot: self.0.db.snapshot(), records: self.0.records.clone() }
    }

    /// Index of the last entry applied.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.0.state.lock().applied.map(|id| id.index)
    }

    pub(crate) fn voters(&self) -> usize {
        self.0.state.lock().membership.membership().voter_ids().count()
    }

    /// Puts the store on stable storage; an error if it has not applied `index` yet.
    pub(crate) fn persist(&self, index: u64) -> io::Result<()> {
        let applied = self.applied();
        if applied < Some(index) {
            return Err(io::Error::other(format!(
                "the log cannot be purged to {index}: only {applied:?} is applied"
            )));
        }
        self.0.db.persist(PersistMode::SyncAll).map_err(io::Error::other)
    }

    fn commit(
        &self,
        writes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
        state: State,
    ) -> io::Result<()> {
        let mut batch = self.0.db.batch();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(&self.0.records, key, value),
                None => batch.remove(&self.0.records, key),
            }
        }
        let bytes = postcard::to_stdvec(&state).map_err(io::Error::other)?;
        batch.insert(&self.0.raft, STATE, bytes);
        batch.commit().map_err(io::Error::other)?;
        *self.0.state.lock() = state;
        Ok(())
    }

    fn meta(state: &State) -> SnapshotMetaOf<Types> {
        SnapshotMetaOf::<Types> {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        }
    }
}

impl RaftSnapshotBuilder<Types> for Store {
    type SnapshotData = PathBuf;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, PathBuf>, io::Error> {
        let view = self.view();
        let bytes = view.snapshot.get(&self.0.raft, STATE).map_err(io::Error::other)?;
        let state: State = match bytes {
            Some(bytes) => postcard::from_bytes(&bytes).map_err(io::Error::other)?,
            None => State::default(),
        };
        let path = self.0.checkpoints.join("current");
        checkpoint::write(&path, &state, &view)?;
        Ok(Snapshot { meta: Store::meta(&state), snapshot: path })
    }
}

impl RaftStateMachine<Types> for Store {
    type SnapshotData = PathBuf;
    type SnapshotBuilder = Store;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let state = self.0.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let mut answers = Vec::with_capacity(chunk.len());
            let mut state = self.0.state.lock().clone();
            let view = self.view();
            let mut overlay = Overlay::new(&view);
            for item in chunk {
                let (entry, responder) = item?;
                state.applied = Some(entry.log_id);
                let answer = match entry.payload {
                    EntryPayload::Blank => Applied(None),
                    EntryPayload::Membership(membership) => {
                        state.membership =
                            StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                        Applied(None)
                    }
                    EntryPayload::Normal(mut payload) => {
                        // Proposals may be stamped in another order than they are logged in.
                        state.time = state.time.max(payload.envelope.time);
                        payload.envelope.time = state.time;
                        let index = Version(entry.log_id.index);
                        let reply = crate::apply(&mut overlay, index, &payload.envelope);
                        Applied(Some(reply.map_err(io::Error::other)?))
                    }
                };
                answers.push((responder, answer));
            }
            let writes = overlay.into_writes();
            self.commit(writes, state)?;
            for (responder, answer) in answers {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Store {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: PathBuf,
    ) -> Result<(), io::Error> {
        let (state, records) = checkpoint::read(&snapshot)?;
        if state.applied != meta.last_log_id {
            return Err(io::Error::other(format!(
                "checkpoint {} is not the one announced",
                snapshot.display()
            )));
        }
        let old = self.view();
        let mut writes = std::collections::BTreeMap::new();
        for guard in old.snapshot.iter(&old.records) {
            writes.insert(guard.key().map_err(io::Error::other)?.to_vec(), None);
        }
        writes.extend(records.into_iter().map(|(key, value)| (key, Some(value))));
        self.commit(writes, state)?;
        self.0.db.persist(PersistMode::SyncAll).map_err(io::Error::other)
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, PathBuf>>, io::Error> {
        let path = self.0.checkpoints.join("current");
        if !path.exists() {
            return Ok(None);
        }
        let state = checkpoint::read(&path)?.0;
        Ok(Some(Snapshot { meta: Store::meta(&state), snapshot: path }))
    }
}
