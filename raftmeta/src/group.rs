//! A replica of the metadata group: log, store and consensus behind one handle.
//!
//! ```text
//!   propose ──▶ openraft ──▶ LogStore (files)      view ──▶ Store (fjall)
//!                  └── committed ──▶ Store::apply ──▶ reply
//! ```
//! Everything right of `propose` happens on the thread that proposes, see `home`.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::{BasicNode, Config, Raft, SnapshotPolicy};
use raftmeta_types::{Envelope, MetaResult, Reply, Time};
use serde::{Deserialize, Serialize};

use crate::log_store::{COMMAND_MAX, LogStore};
use crate::network::Alone;
use crate::store::{Store, View};
use home::Home;

/// Longest wait for a replica to replay its log and become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// What the log holds: a command, and whether its answer waits for stable storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogPayload {
    pub envelope: Envelope,
    pub durable: bool,
}

impl fmt::Display for LogPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {:?} seq {}", self.envelope.session, self.envelope.seq)
    }
}

/// The answer to a log entry; `None` for Raft's own entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied(pub Option<MetaResult<Reply>>);

openraft::declare_raft_types!(
    /// The types of the metadata group.
    pub Types:
        D = LogPayload,
        R = Applied,
);

/// How to open a replica.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Directory of log, store and checkpoints; made if missing.
    pub dir: PathBuf,
    pub node_id: u64,
    /// Makes a group of one voter if the directory is blank.
    pub bootstrap: bool,
    /// Entries after which a checkpoint is written and the log before it dropped. One is written after
    /// 64 MiB of log, too.
    pub checkpoint_entries: u64,
}

/// Why the group could not answer.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("{path} is in use by another server")]
    InUse { path: String },
    #[error("metadata group: {0}")]
    Io(#[from] io::Error),
    /// Nothing was proposed; a smaller command has to do the same in steps.
    #[error("a command of {size} bytes, at most {COMMAND_MAX} fit the log")]
    TooLarge { size: usize },
    #[error("metadata group, {during}: {reason}")]
    Raft { during: &'static str, reason: String },
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub leader: Option<u64>,
    pub log_bytes: u64,
}

struct Inner {
    raft: Raft<Types, Store>,
    log: LogStore,
    store: Store,
    home: Arc<Home>,
}

/// A replica; clones share it.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("status", &self.status()).finish()
    }
}

fn raft_error(during: &'static str) -> impl Fn(String) -> GroupError {
    move |reason| GroupError::Raft { during, reason }
}

impl Group {
    /// Opens the replica and waits until it has replayed its log.
    pub async fn open(config: GroupConfig) -> Result<Group, GroupError> {
        let opened = tokio::task::spawn_blocking(move || {
            let home = Home::make()?;
            home.drive(Group::open_at(&home, config))
        });
        opened.await.map_err(io::Error::other)?
    }

    async fn open_at(home: &Arc<Home>, config: GroupConfig) -> Result<Group, GroupError> {
        std::fs::create_dir_all(&config.dir)?;
        let lock = File::create(config.dir.join("lock"))?;
        if lock.try_lock().is_err() {
            return Err(GroupError::InUse { path: config.dir.display().to_string() });
        }
        let lock = Arc::new(lock);
        let store = Store::open(&config.dir, Arc::clone(&lock))?;
        let log = LogStore::open(&config.dir.join("log"), store.clone(), lock)?;
        // After a power cut the store may be ahead of the log, whose gap is then purged; and a log that
        // starts after the checkpoint could not make a lost store anew. So it has to reach there.
        let gap = log.last() < store.applied();
        if gap || log.purged() > store.checkpointed() {
            store.write_checkpoint()?;
        }
        let alone = log.has_one_voter();
        let options = Config {
            cluster_name: "claudefs".to_owned(),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.checkpoint_entries),
            // Raft's clock ticks five times a heartbeat, also while there is nothing to do: at the default
            // of 50 ms that alone costs more than a percent of a core.
            heartbeat_interval: 500,
            election_timeout_min: 1500,
            election_timeout_max: 3000,
            ..Config::default()
        };
        let error = raft_error("open");
        let options = Arc::new(options.validate().map_err(|e| error(e.to_string()))?);
        let raft = Raft::new(config.node_id, options, Alone, log.clone(), store.clone())
            .await
            .map_err(|e| error(e.to_string()))?;
        let blank = !raft.is_initialized().await.map_err(|e| error(e.to_string()))?;
        if blank && config.bootstrap {
            let members =
                std::collections::BTreeMap::from([(config.node_id, BasicNode::default())]);
            raft.initialize(members).await.map_err(|e| error(e.to_string()))?;
        }
        if !blank && alone {
            // Nobody else could lead: no need to wait for an election timeout.
            raft.trigger().elect(false).await.map_err(|e| error(e.to_string()))?;
        }
        if !blank || config.bootstrap {
            let me = config.node_id;
            raft.wait(Some(READY_TIMEOUT))
                .metrics(
                    |m| {
                        m.current_leader == Some(me)
                            && m.last_applied.map(|id| id.index) == m.last_log_index
                    },
                    "the log is replayed",
                )
                .await
                .map_err(|e| error(e.to_string()))?;
        }
        let group = Group(Arc::new(Inner { raft, log, store, home: Arc::clone(home) }));
        checkpoints::by_bytes(&group);
        Ok(group)
    }

    /// Runs a command. With `durable` the answer means that it and all before it survive a power cut;
    /// else it survives the death of the process and reaches stable storage within a second.
    pub async fn propose(
        &self,
        mut envelope: Envelope,
        durable: bool,
    ) -> Result<MetaResult<Reply>, GroupError> {
        #[allow(clippy::disallowed_methods, reason = "the leader stamps the time here")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        envelope.time = Time { secs: now.as_secs() as i64, nanos: now.subsec_nanos() };
        let error = raft_error("propose");
        let payload = LogPayload { envelope, durable };
        let size = postcard::experimental::serialized_size(&payload);
        let size = size.map_err(|e| error(e.to_string()))?;
        if size > COMMAND_MAX {
            return Err(GroupError::TooLarge { size });
        }
        loop {
            let (raft, payload) = (self.0.raft.clone(), payload.clone());
            let write = async move { raft.client_write(payload).await };
            let answer = home::drive(&self.0.home, write).await?;
            let answer = answer.map_err(|e| error(e.to_string()))?;
            match answer.data.0 {
                // Each step makes progress, so this ends.
                Some(Ok(Reply::More)) => {}
                Some(answer) => return Ok(answer),
                None => return Err(error("it was answered as Raft's own entry".to_owned())),
            }
        }
    }

    /// Everything answered so far is on stable storage when this returns.
    pub async fn sync(&self) -> Result<(), GroupError> {
        Ok(home::blocking(|| self.0.log.sync())?)
    }

    /// The applied state at this moment; it contains every command answered before.
    pub fn view(&self) -> View {
        self.0.store.view()
    }

    pub fn status(&self) -> Status {
        let metrics = self.0.raft.metrics();
        let m = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        Status {
            term: m.current_term,
            last_log: m.last_log_index,
            applied: m.last_applied.map(|id| id.index),
            leader: m.current_leader,
            log_bytes: self.0.log.used_bytes(),
        }
    }

    /// Why the replica stopped by itself, if it did: its log or store failed. It takes no more commands.
    pub fn failure(&self) -> Option<String> {
        let metrics = self.0.raft.metrics();
        let m = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics);
        m.running_state.as_ref().err().map(ToString::to_string)
    }

    /// Starts writing a checkpoint; the log before it is dropped afterwards.
    pub async fn checkpoint(&self) -> Result<(), GroupError> {
        let raft = self.0.raft.clone();
        let start = async move { raft.trigger().snapshot().await };
        let done = home::drive(&self.0.home, start).await?;
        done.map_err(|e| raft_error("checkpoint")(e.to_string()))
    }

    /// Stops the replica; everything answered is on stable storage.
    pub async fn shutdown(&self) -> Result<(), GroupError> {
        self.0.store.stop();
        let raft = self.0.raft.clone();
        let done = home::drive(&self.0.home, async move { raft.shutdown().await }).await?;
        done.map_err(|e| raft_error("shutdown")(e.to_string()))?;
        self.sync().await
    }
}

mod checkpoints;
mod home;

pub use home::blocking;

#[cfg(test)]
mod tests;
