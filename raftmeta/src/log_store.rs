//! The Raft log in raft-engine, with group commit.
//!
//! With one voter, a batch in which nothing is durable is acknowledged once it is in the page cache;
//! a thread syncs it within a second. All else waits for that thread, which covers everything that
//! waits by one fsync and completes callbacks in order. An acknowledgement stands for all before it,
//! so nothing overtakes a callback that waits.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::{EntryPayload, LogState, RaftLogReader};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt};
use serde::de::DeserializeOwned;

use crate::group::Types;
use crate::store::Store;

/// The one group of this log.
const REGION: u64 = 1;
/// Longest time that an acknowledged, not durable entry waits for its fsync.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
/// Last log id after a truncation that no append has followed yet.
const LAST: &[u8] = b"last";

/// raft-engine wants protobuf messages: index (8 bytes, little-endian), then the entry in postcard.
#[derive(Debug)]
struct Record;

impl MessageExt for Record {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().map_or(0, |head| u64::from_le_bytes(*head))
    }
}

struct Shared {
    engine: Engine,
    path: String,
    store: Store,
    one_voter: AtomicBool,
    /// Callbacks that wait for the log thread.
    waiting: AtomicUsize,
}

/// The log of one group; clones share it.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    sync: Sender<Option<IOFlushed<Types>>>,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Shared {
    fn error(&self, what: &str, error: impl std::fmt::Display) -> io::Error {
        io::Error::other(format!("metadata log {}: {what}: {error}", self.path))
    }

    fn record<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let Some(bytes) = self.engine.get(REGION, key) else { return Ok(None) };
        if bytes.is_empty() {
            return Ok(None);
        }
        postcard::from_bytes(&bytes).map(Some).map_err(|e| self.error("a record is damaged", e))
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> io::Result<()> {
        self.engine.write(batch, sync).map(|_| ()).map_err(|e| self.error("write", e))
    }

    fn entries(&self, from: u64, to: u64) -> io::Result<Vec<EntryOf<Types>>> {
        let first = self.engine.first_index(REGION).unwrap_or(0);
        let end = match self.record::<LogIdOf<Types>>(LAST)? {
            Some(last) => Some(last.index),
            None => self.engine.last_index(REGION),
        };
        let Some(end) = end else { return Ok(Vec::new()) };
        let (from, to) = (from.max(first), to.min(end.saturating_add(1)));
        if from >= to {
            return Ok(Vec::new());
        }
        let mut records = Vec::new();
        self.engine
            .fetch_entries_to::<Record>(REGION, from, to, None, &mut records)
            .map_err(|e| self.error("read", e))?;
        let decode = |record: BytesValue| {
            let bytes = record.value.get(8..).unwrap_or_default();
            postcard::from_bytes(bytes).map_err(|e| self.error("an entry is damaged", e))
        };
        records.into_iter().map(decode).collect()
    }
}

impl LogStore {
    /// Opens or makes the log in `dir`. Errors name the directory.
    pub fn open(dir: &Path, store: Store) -> io::Result<LogStore> {
        let path = dir.display().to_string();
        let config = Config { dir: path.clone(), ..Config::default() };
        let engine = Engine::open(config)
            .map_err(|e| io::Error::other(format!("metadata log {path}: open: {e}")))?;
        let shared = Arc::new(Shared {
            engine,
            path,
            one_voter: AtomicBool::new(store.voters() == 1),
            store,
            waiting: AtomicUsize::new(0),
        });
        let purged = shared.record::<LogIdOf<Types>>(PURGED)?.map(|id| id.index);
        let applied = shared.store.applied();
        if purged > applied {
            let reason = format!("it starts after {purged:?}, the store ends at {applied:?}");
            return Err(shared.error("the log does not reach back to the store", reason));
        }
        for entry in shared.entries(0, u64::MAX)? {
            note_membership(&shared, &entry);
        }
        let (sync, inbox) = channel();
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("raftmeta-log".to_owned())
            .spawn(move || sync_thread(&theirs, &inbox))?;
        Ok(LogStore { shared, sync })
    }

    /// Everything appended before this call is on stable storage when it returns.
    pub fn sync(&self) -> io::Result<()> {
        self.shared.engine.sync().map_err(|e| self.shared.error("sync", e))
    }

    /// Bytes of log files in use.
    pub fn used_bytes(&self) -> u64 {
        self.shared.engine.get_used_size() as u64
    }
}

fn note_membership(shared: &Shared, entry: &EntryOf<Types>) -> bool {
    let EntryPayload::Membership(membership) = &entry.payload else { return false };
    shared.one_voter.store(membership.voter_ids().count() == 1, Ordering::Release);
    true
}

#[allow(clippy::disallowed_methods, reason = "paces fsync, outside the state machine")]
fn sync_thread(shared: &Shared, inbox: &Receiver<Option<IOFlushed<Types>>>) {
    let mut dirty: Option<Instant> = None;
    loop {
        let mut callbacks = Vec::new();
        let left = dirty.map_or(SYNC_INTERVAL, |at| SYNC_INTERVAL.saturating_sub(at.elapsed()));
        match inbox.recv_timeout(left) {
            Ok(Some(callback)) => callbacks.push(callback),
            // Not durable: the sync comes at the end of the interval.
            Ok(None) if dirty.is_none_or(|at| at.elapsed() < SYNC_INTERVAL) => {
                dirty.get_or_insert_with(Instant::now);
                continue;
            }
            Ok(None) => {}
            Err(RecvTimeoutError::Timeout) if dirty.is_none() => continue,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(error) = shared.engine.sync() {
                    tracing::error!(path = shared.path, %error, "the last sync of the log failed");
                }
                return;
            }
        }
        callbacks.extend(inbox.try_iter().flatten());
        let result = shared.engine.sync().map_err(|e| shared.error("sync", e).to_string());
        dirty = None;
        if let Err(error) = &result {
            tracing::error!(error, "a failed sync is never retried");
        }
        let count = callbacks.len();
        for callback in callbacks {
            callback.io_completed(result.clone().map_err(io::Error::other));
        }
        shared.waiting.fetch_sub(count, Ordering::AcqRel);
        if result.is_err() {
            return;
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.shared.entries(from, to)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        self.shared.record(VOTE)
    }
}

fn encode<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged: Option<LogIdOf<Types>> = self.shared.record(PURGED)?;
        let last = match self.shared.engine.last_index(REGION) {
            Some(_) if self.shared.engine.get(REGION, LAST).is_some() => {
                self.shared.record(LAST)?
            }
            Some(last) => self.shared.entries(last, last + 1)?.pop().map(|entry| entry.log_id),
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.max(purged) })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        let mut batch = LogBatch::default();
        let value = encode(vote)?;
        batch.put(REGION, VOTE.to_vec(), value).map_err(|e| self.shared.error("vote", e))?;
        self.shared.write(&mut batch, true)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + Send,
        I::IntoIter: Send,
    {
        let shared = &self.shared;
        let mut wait = !shared.one_voter.load(Ordering::Acquire);
        let mut records = Vec::new();
        for entry in entries {
            wait |= note_membership(shared, &entry);
            wait |= matches!(&entry.payload, EntryPayload::Normal(payload) if payload.durable);
            let mut record = BytesValue::new();
            record.value = postcard::to_extend(&entry, entry.log_id.index.to_le_bytes().to_vec())
                .map_err(io::Error::other)?;
            records.push(record);
        }
        let mut batch = LogBatch::default();
        if shared.engine.get(REGION, LAST).is_some() {
            batch.delete(REGION, LAST.to_vec());
        }
        batch.add_entries::<Record>(REGION, &records).map_err(|e| shared.error("append", e))?;
        shared.write(&mut batch, false)?;
        let gone = |_| io::Error::other("the log thread has stopped after a failed sync");
        if wait || shared.waiting.load(Ordering::Acquire) > 0 {
            shared.waiting.fetch_add(1, Ordering::AcqRel);
            self.sync.send(Some(callback)).map_err(gone)
        } else {
            self.sync.send(None).map_err(gone)?;
            callback.io_completed(Ok(()));
            Ok(())
        }
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut batch = LogBatch::default();
        match last {
            Some(last) => batch
                .put(REGION, LAST.to_vec(), encode(&last)?)
                .map_err(|e| self.shared.error("truncate", e))?,
            None => {
                let end = self.shared.engine.last_index(REGION).map_or(0, |last| last + 1);
                batch.add_command(REGION, Command::Compact { index: end });
            }
        }
        self.shared.write(&mut batch, true)
    }

    async fn purge(&mut self, log_id: LogIdOf<Types>) -> Result<(), io::Error> {
        // What leaves the log must be in the store for good.
        self.shared.store.persist(log_id.index)?;
        let mut batch = LogBatch::default();
        batch
            .put(REGION, PURGED.to_vec(), encode(&log_id)?)
            .map_err(|e| self.shared.error("purge", e))?;
        batch.add_command(REGION, Command::Compact { index: log_id.index + 1 });
        self.shared.write(&mut batch, true)?;
        self.shared.engine.purge_expired_files().map_err(|e| self.shared.error("purge", e))?;
        Ok(())
    }
}
