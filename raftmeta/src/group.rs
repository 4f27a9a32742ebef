//! A replica of the metadata group: log, store and consensus behind one handle.
//!
//! ```text
//!   propose ──▶ openraft ──▶ LogStore (files)      view ──▶ Store (fjall)
//!                  └── committed ──▶ Store::apply ──▶ reply
//! ```
//! While this replica is the only one, everything right of `propose` happens on the thread that proposes, see [`home`].
//!
//! | module | what |
//! |---|---|
//! | [`open`] | from a directory to a running replica |
//! | [`home`] | the runtime, and who drives it |
//! | [`leadership`] | who leads, and until when a leader may answer from its own state |
//! | [`members`] | voters and learners, and changes of them |
//! | [`receive`] | messages of other replicas |
//! | [`replace`] | a leader whose connections end |
//! | [`checkpoints`] | when one is written |

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, RaftError};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, RaftMetrics};
use raftmeta_types::{Envelope, MetaResult, Reply, Time};
use serde::{Deserialize, Serialize};

use crate::log_store::{COMMAND_MAX, LogStore};
use crate::network::Transport;
use crate::network::inbox::Inbox;
use crate::runtime;
use crate::store::{Store, View};
use home::Home;
use leadership::Leader;
pub use leadership::Leadership;
pub use members::Member;
use replace::Parting;

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
        AsyncRuntime = crate::runtime::Runtime,
);

/// How to open a replica.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Directory of log, store and checkpoints; made if missing.
    pub dir: PathBuf,
    /// Never given to another replica again, nor to one whose directory was lost: it would have forgotten what it
    /// promised.
    pub node_id: u64,
    /// Makes a group of one voter if the directory is blank. Without it a blank replica waits until a leader adds it.
    pub bootstrap: bool,
    /// Entries after which a checkpoint is written and the log before it dropped. One is written after
    /// 64 MiB of log, too.
    pub checkpoint_entries: u64,
    /// Where other replicas reach this one, as it stands in a membership that this one makes.
    pub address: String,
    /// The way to other replicas. Without it this replica stays alone.
    pub transport: Option<Arc<dyn Transport>>,
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
    /// Nothing was proposed; the leader has to be asked, if it is known.
    #[error("this replica does not lead the metadata group{}", leader_hint(leader))]
    NotLeader { leader: Option<(u64, String)> },
    /// The replica lost the leadership meanwhile: the command may have been done, or may still be done. Proposed
    /// again under the same session, slot and number it is done once.
    #[error(
        "the leadership of the metadata group changed, a command may or may not be done{}",
        leader_hint(leader)
    )]
    Unknown { leader: Option<(u64, String)> },
    /// The membership stays as it is.
    #[error("the members of the metadata group cannot be changed so: {reason}")]
    Membership { reason: String },
    /// The replica itself has failed, or it does not do what it should.
    #[error("metadata group, {during}: {reason}")]
    Raft { during: &'static str, reason: String },
}

fn leader_hint(leader: &Option<(u64, String)>) -> String {
    match leader {
        Some((id, address)) => format!(": replica {id} at {address} leads it"),
        None => ": no leader is known, try again".to_owned(),
    }
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub term: u64,
    pub last_log: Option<u64>,
    /// As far as this replica knows what a quorum holds.
    pub committed: Option<u64>,
    pub applied: Option<u64>,
    pub leader: Option<u64>,
    pub log_bytes: u64,
}

type Metrics = WatchReceiverOf<Types, RaftMetrics<Types>>;

struct Inner {
    node_id: u64,
    raft: Raft<Types, Store>,
    /// What openraft says about itself; one receiver, so that a look takes no copy.
    metrics: Metrics,
    log: LogStore,
    store: Store,
    inbox: Inbox,
    leader: Leader,
    parting: Parting,
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

fn known_leader(forward: ForwardToLeader<Types>) -> Option<(u64, String)> {
    Some((forward.leader_id?, forward.leader_node?.addr))
}

fn write_error(
    during: &'static str,
    error: RaftError<Types, ClientWriteError<Types>>,
) -> GroupError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            GroupError::NotLeader { leader: known_leader(forward) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(forward)) => {
            GroupError::Unknown { leader: known_leader(forward) }
        }
        RaftError::APIError(
            error @ (ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)),
        ) => GroupError::Membership { reason: error.to_string() },
        RaftError::Fatal(error) => GroupError::Raft { during, reason: error.to_string() },
    }
}

impl Group {
    /// Runs a command. With `durable` the answer means that it and all before it survive a power cut;
    /// else it survives the death of the process and reaches stable storage within a second. With several voters
    /// every answer means that a quorum has it on stable storage.
    ///
    /// If the caller gives up waiting the command may still be done.
    pub async fn propose(
        &self,
        mut envelope: Envelope,
        durable: bool,
    ) -> Result<MetaResult<Reply>, GroupError> {
        let now = runtime::wall_clock();
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
            let answer = self.while_leading(write).await?;
            let answer = answer.map_err(|e| write_error("propose", e))?;
            match answer.data.0 {
                // Each step makes progress, so this ends.
                Some(Ok(Reply::More)) => {}
                Some(answer) => return Ok(answer),
                None => return Err(error("it was answered as Raft's own entry".to_owned())),
            }
        }
    }

    /// Runs what only a leader can do. What nobody answers any more because the leadership is lost ends with it: a
    /// leader that is cut off would wait for ever.
    async fn while_leading<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, GroupError> {
        if !self.0.home.is_driven() {
            return Ok(home::drive(&self.0.home, work).await?);
        }
        let mut leadership = self.leadership();
        if let Leadership::Following { leader } = &*leadership.borrow_and_update() {
            return Err(GroupError::NotLeader { leader: leader.clone() });
        }
        let lost = async {
            match leadership
                .wait_for(|now| matches!(now, Leadership::Following { .. }))
                .await
                .as_deref()
            {
                Ok(Leadership::Following { leader }) => leader.clone(),
                _ => None,
            }
        };
        tokio::select! {
            biased;
            answer = home::drive(&self.0.home, work) => Ok(answer?),
            leader = lost => Err(GroupError::Unknown { leader }),
        }
    }

    /// Everything answered so far is on stable storage when this returns: here if this replica is the only voter,
    /// else it has been on that of a quorum before it was answered.
    pub async fn sync(&self) -> Result<(), GroupError> {
        Ok(home::blocking(|| self.0.log.sync())?)
    }

    /// The applied state at this moment; it contains every command answered here before. Whether it contains what
    /// another leader has answered is for [`Group::lease_valid`] to say.
    pub fn view(&self) -> View {
        self.0.store.view()
    }

    pub fn status(&self) -> Status {
        let m = self.0.metrics.borrow_watched();
        Status {
            term: m.current_term,
            last_log: m.last_log_index,
            committed: m.cluster_committed.map(|id| id.index),
            applied: m.last_applied.map(|id| id.index),
            leader: m.current_leader,
            log_bytes: self.0.log.used_bytes(),
        }
    }

    /// Ends when more, or less, than this is applied, or when the replica stops.
    pub async fn applied_beyond(&self, known: Option<u64>) {
        let mut metrics = self.0.metrics.clone();
        while metrics.borrow_watched().last_applied.map(|id| id.index) == known {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// Why the replica stopped by itself, if it did: its log or store failed. It takes no more commands.
    pub fn failure(&self) -> Option<String> {
        let m = self.0.metrics.borrow_watched();
        m.running_state.as_ref().err().map(ToString::to_string)
    }

    /// Starts writing a checkpoint; the log before it is dropped afterwards.
    pub async fn checkpoint(&self) -> Result<(), GroupError> {
        let raft = self.0.raft.clone();
        let start = async move { raft.trigger().snapshot().await };
        let done = home::drive(&self.0.home, start).await?;
        done.map_err(|e| raft_error("checkpoint")(e.to_string()))
    }

    /// Drops all of the log that a checkpoint made now covers.
    #[cfg(test)]
    pub(crate) async fn forget(&self) -> Result<(), GroupError> {
        let applied = self.0.store.applied();
        self.checkpoint().await?;
        while self.0.store.checkpointed() < applied {
            Types::sleep(Duration::from_millis(10)).await;
        }
        let raft = self.0.raft.clone();
        let upto = applied.unwrap_or_default();
        let purge = async move { raft.trigger().purge_log(upto).await };
        let done = home::drive(&self.0.home, purge).await?;
        done.map_err(|e| raft_error("forget")(e.to_string()))
    }

    /// Stops the replica; everything answered is on stable storage.
    pub async fn shutdown(&self) -> Result<(), GroupError> {
        self.0.store.stop();
        let raft = self.0.raft.clone();
        let log = self.0.log.clone();
        let shutdown = async move {
            let done = raft.shutdown().await;
            while log.has_unsynced() {
                Types::sleep(Duration::from_millis(1)).await;
            }
            done
        };
        let done = home::drive(&self.0.home, shutdown).await?;
        done.map_err(|e| raft_error("shutdown")(e.to_string()))?;
        self.sync().await
    }
}

mod checkpoints;
mod home;
mod leadership;
mod members;
mod open;
mod receive;
mod replace;

pub use home::blocking;

#[cfg(test)]
mod tests;
