//! The Raft log: files of our own, with group commit.
//!
//! ```text
//!   append ──▶ Writer (one pwrite) ──▶ durable? ──▶ fdatasync here and now ──▶ acknowledged
//!                                        ├─ other voters: the syncer's fdatasync, while openraft sends ──▶ acknowledged
//!                                        └─ no: acknowledged; the keeper syncs within a second
//! ```
//! With nobody to send to, the sync starts in the thread that appended, in the same breath: a hop to another thread costs as
//! much as a tenth of it. While it runs openraft gathers what is proposed meanwhile, and the next append and
//! its one sync cover all of that. With other voters a leader's sync runs beside its messages and
//! those of the others (decisions, D41), and one sync covers all appends that came during the one before. Segments are made of zeros ahead of their use, so that a sync writes data
//! and no metadata of the file system (docs/formats/log.md).
//!
//! While this replica is the only voter, a batch in which nothing is durable is acknowledged once it is in the page cache. An
//! acknowledgement stands for all before it; appends come one after the other, so nothing overtakes.
//!
//! A failed write or sync is never retried: from then on everything is refused until the log is opened anew.

pub(crate) mod format;
mod keeper;
pub(crate) mod recover;
mod segment;
#[cfg(test)]
mod simulated;
mod syncer;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::{EntryPayload, LogState, RaftLogReader};
use parking_lot::Mutex;

use crate::fs::{self, File};
use crate::group::Types;
use crate::network::message::APPEND_BYTES;
use crate::store::Store;
use recover::Location;
use syncer::Unsynced;
use writer::{Found, Writer};

/// Largest command, encoded: what one record of the log takes, with room for its frame.
pub(crate) const COMMAND_MAX: usize = format::RECORD_MAX - 4096;

struct Shared {
    path: PathBuf,
    store: Store,
    writer: Mutex<Writer>,
    /// Held during an fdatasync: who waits for it is usually covered by the one before.
    syncing: Mutex<()>,
    /// Records below it are on stable storage.
    stable: AtomicU64,
    /// This replica.
    node_id: u64,
    /// This replica is the only voter, now and in the membership to come: nobody else relies on what it says is
    /// there.
    sole_voter: AtomicBool,
    /// Bytes appended since the log was opened.
    appended: AtomicU64,
    /// Wakes the keeper.
    wake: Sender<()>,
    /// Appends that wait for the syncer, and how many.
    unsynced: Sender<Unsynced>,
    unsynced_count: Arc<AtomicUsize>,
    /// Wakes keeper and syncer where they are tasks.
    #[cfg(test)]
    simulated: simulated::Nudges,
    /// Held for its lock on the directory.
    _lock: Arc<File>,
}

/// The log of one group; clones share it.
#[derive(Clone)]
pub struct LogStore(Arc<Shared>);

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Shared {
    fn stable(&self) -> u64 {
        self.stable.load(Ordering::Acquire)
    }

    /// Waits until every record below `sequence` is on stable storage.
    fn sync_to(&self, sequence: u64) -> io::Result<()> {
        if self.stable() >= sequence {
            return self.writer.lock().check();
        }
        let _turn = self.syncing.lock();
        let target = self.writer.lock().target()?;
        if self.stable() >= sequence {
            return Ok(());
        }
        let result = target.file.sync_data();
        #[cfg(test)]
        let result = match std::mem::take(&mut self.writer.lock().fail_next_sync) {
            true => Err(io::Error::other("injected")),
            false => result,
        };
        match result {
            Ok(()) => {
                self.stable.fetch_max(target.sequence, Ordering::AcqRel);
                Ok(())
            }
            Err(error) => Err(self.writer.lock().fail("a sync", &error)),
        }
    }

    /// Everything written so far is on stable storage when this returns.
    fn sync(&self) -> io::Result<()> {
        let sequence = {
            let mut writer = self.writer.lock();
            writer.dirty = false;
            writer.sequence()
        };
        self.sync_to(sequence)
    }

    /// Takes the voters from the newest membership there is: in the log, or in the store if a checkpoint went past the
    /// log.
    fn learn_voters(&self, writer: &Writer) {
        let stored = self.store.membership();
        let sole = match writer.voters() {
            Some((index, sole)) if Some(index) >= stored.log_id().map(|id| id.index) => sole,
            _ => recover::sole_voter(stored.membership()),
        };
        self.sole_voter.store(sole == Some(self.node_id), Ordering::Release);
    }

    /// Runs `write` and syncs what it wrote.
    fn write_synced(
        &self,
        write: impl FnOnce(&mut Writer, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let sequence = {
            let mut writer = self.writer.lock();
            write(&mut writer, self.stable())?;
            writer.sequence()
        };
        self.sync_to(sequence)
    }

    /// Syncs, and says so in the log, so that damage to it is told from a torn tail later.
    fn sync_and_mark(&self) -> io::Result<()> {
        self.sync()?;
        let mut writer = self.writer.lock();
        let stable = self.stable();
        if !writer.marked && writer.sequence() == stable {
            writer.mark(stable)?;
        }
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let closed = self.sync_and_mark().and_then(|()| self.sync());
        if let Err(error) = closed {
            tracing::error!(path = %self.path.display(), %error, "closing the metadata log");
        }
    }
}

impl LogStore {
    /// Opens or makes the log in `dir`. Errors name the file.
    pub(crate) fn open(
        dir: &Path,
        node_id: u64,
        store: Store,
        lock: Arc<File>,
    ) -> io::Result<LogStore> {
        fs::create_dir_all(dir)?;
        let writer = Writer::open(dir)?;
        let purged = writer.purged().map(|id| id.index);
        let applied = store.applied();
        if purged > applied {
            return Err(io::Error::other(format!(
                "metadata log {}: it starts after entry {purged:?} and the store ends at {applied:?}: \
                 restore the whole metadata directory from a copy",
                dir.display()
            )));
        }
        let (wake, inbox) = std::sync::mpsc::channel();
        let (unsynced, to_sync) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared {
            path: dir.to_path_buf(),
            stable: AtomicU64::new(writer.sequence()),
            node_id,
            sole_voter: AtomicBool::new(false),
            appended: AtomicU64::new(0),
            store,
            writer: Mutex::new(writer),
            syncing: Mutex::new(()),
            wake,
            unsynced,
            unsynced_count: Arc::default(),
            #[cfg(test)]
            simulated: Default::default(),
            _lock: lock,
        });
        shared.learn_voters(&shared.writer.lock());
        keeper::start(&shared, inbox)?;
        syncer::start(&shared, to_sync)?;
        Ok(LogStore(shared))
    }

    /// Everything appended before this call is on stable storage when it returns.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    /// Whether the syncer has anything to do: it keeps the log open until it is done.
    pub(crate) fn has_unsynced(&self) -> bool {
        self.0.unsynced_count.load(Ordering::Acquire) > 0
    }

    /// Bytes of log records in use.
    pub fn used_bytes(&self) -> u64 {
        self.0.writer.lock().used_bytes()
    }

    /// Whether this replica is the only voter of the newest membership.
    pub(crate) fn is_sole_voter(&self) -> bool {
        self.0.sole_voter.load(Ordering::Acquire)
    }

    /// Index of the last entry.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.writer.lock().last().map(|id| id.index)
    }

    /// Index up to which entries have left the log.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.0.writer.lock().purged().map(|id| id.index)
    }

    /// Bytes appended since the log was opened.
    pub(crate) fn appended_bytes(&self) -> u64 {
        self.0.appended.load(Ordering::Relaxed)
    }

    /// File of the last segment, and where its records end.
    #[cfg(test)]
    pub(crate) fn end(&self) -> (PathBuf, u64) {
        self.0.writer.lock().end()
    }

    #[cfg(test)]
    pub(crate) fn all_entries(&self) -> io::Result<Vec<EntryOf<Types>>> {
        self.entries(0, u64::MAX)
    }

    #[cfg(test)]
    pub(crate) fn fail_next_sync(&self) {
        self.0.writer.lock().fail_next_sync = true;
    }

    fn entries(&self, from: u64, to: u64) -> io::Result<Vec<EntryOf<Types>>> {
        let found = self.0.writer.lock().find(from, to);
        match found {
            Found::Entries(entries) => Ok(entries),
            Found::Located(located) => {
                located.iter().map(|(at, file, path)| read_entry(at, file, path)).collect()
            }
        }
    }
}

fn read_entry(location: &Location, file: &File, path: &Path) -> io::Result<EntryOf<Types>> {
    let damaged = |what: &dyn std::fmt::Display| {
        let at = location.offset;
        io::Error::other(format!("metadata log {}: entry at byte {at}: {what}", path.display()))
    };
    let mut bytes = vec![0; location.len as usize];
    file.read_exact_at(&mut bytes, location.offset).map_err(|e| damaged(&e))?;
    if format::crc(&bytes) != location.crc {
        return Err(damaged(&"its checksum is wrong"));
    }
    postcard::from_bytes(&bytes).map_err(|e| damaged(&e))
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
        self.entries(from, to)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let end = self.0.writer.lock().fitting(start, end, APPEND_BYTES);
        self.entries(start, end)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.0.writer.lock().vote())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let writer = self.0.writer.lock();
        Ok(LogState { last_purged_log_id: writer.purged(), last_log_id: writer.last() })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        self.0.write_synced(|writer, stable| writer.save_vote(vote, stable))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + Send,
        I::IntoIter: Send,
    {
        let shared = &self.0;
        let entries: Vec<_> = entries.into_iter().collect();
        let durable = |entry: &EntryOf<Types>| match &entry.payload {
            EntryPayload::Normal(payload) => payload.durable,
            EntryPayload::Membership(_) => true,
            EntryPayload::Blank => false,
        };
        // What is acknowledged at once stands for all before it: nothing may be left to the syncer then.
        let alone = shared.sole_voter.load(Ordering::Acquire) && !self.has_unsynced();
        let wait = !alone || entries.iter().any(durable);
        let changed =
            entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
        let (sequence, woken) = {
            let mut writer = shared.writer.lock();
            writer.append(entries, shared.stable())?;
            if changed {
                shared.learn_voters(&writer);
            }
            shared.appended.store(writer.appended, Ordering::Relaxed);
            let was_dirty = std::mem::replace(&mut writer.dirty, true);
            (writer.sequence(), !was_dirty)
        };
        if woken {
            // The keeper lives as long as the log.
            let _ = shared.wake.send(());
            #[cfg(test)]
            shared.simulated.keeper.notify_one();
        }
        if wait && !alone {
            // The syncer lives as long as the log. Openraft takes these answers late and in any order.
            shared.unsynced_count.fetch_add(1, Ordering::AcqRel);
            let _ = shared.unsynced.send(Unsynced { sequence, callback });
            #[cfg(test)]
            shared.simulated.syncer.notify_one();
            return Ok(());
        }
        if wait {
            shared.sync_to(sequence)?;
        }
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        self.0.write_synced(|writer, stable| {
            writer.truncate(last, stable)?;
            self.0.learn_voters(writer);
            Ok(())
        })
    }

    async fn purge(&mut self, log_id: LogIdOf<Types>) -> Result<(), io::Error> {
        // What leaves the log must be in the store for good.
        self.0.store.persist(log_id.index)?;
        self.0.write_synced(|writer, stable| {
            writer.purge(log_id, stable)?;
            self.0.learn_voters(writer);
            Ok(())
        })?;
        self.0.writer.lock().drop_segments()
    }
}

#[cfg(test)]
mod tests;
