//! A storage node: everything that one server process holds, joined.
//!
//! ```text
//!   doors ──▶ service (one file per family of requests) ──▶ Node
//!                                                            ├── group     metadata: propose and view
//!   jobs  ──▶ expiry, reap, settle, gc, clean, checkpoint ──▶├── chunks    data, on a volume of blockd
//!                                                            ├── sessions  who has what open
//!   admin ──▶ status, fsck, du, … ─────────────────────────▶ ├── events    who hears of changes
//!                                                            └── metrics
//! ```
//!
//! | module | what |
//! |---|---|
//! | `identity` | who the node is, and how far its first start has come |
//! | `blocks` | the block daemon below, and the volume of it that chunks live on |
//! | `join` | a new node of a cluster that exists |
//! | `skew` | the clocks of the nodes, compared |
//! | `open` | from a configuration to a node, also for the first time |
//! | `data` | chunks, wherever their shards are |
//! | `peers` | the way to the other nodes |
//! | `lead` | what changes when this node begins or ceases to lead |
//! | `measure` | what Prometheus is told |
//! | `members` | what the leader does about nodes: voters, who is up, who is down |
//! | `space` | what the nodes hold, and how their stores do |
//! | `swim` | who is alive, as the nodes find out among themselves |
//! | `trust` | authorities and certificates, and their replacement |
//! | `run` | doors, jobs, signals, the end |

mod blocks;
mod data;
mod devices;
mod error;
mod host;
mod identity;
mod join;
mod lead;
mod measure;
pub(crate) mod members;
mod open;
mod peers;
mod run;
pub(crate) mod skew;
mod space;
mod swim;
pub(crate) mod trust;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blockd_ipc::RemoteVolume;
use parking_lot::Mutex;
use raftmeta::group::{Group, GroupError};
use raftmeta::read;
use raftmeta_types::cluster::{ClusterInfo, NodeInfo, NodeState, Protection};
use raftmeta_types::{Command, Envelope, MetaError, NodeId, Reply, SessionId, Time};
use tokio::sync::{Notify, watch};

use fsd_rpc::message::{Device, Failure, NodeUsage};
use fsd_rpc::server::Control;

pub use blocks::VOLUME;
pub use error::NodeError;
pub use join::join;
pub(crate) use join::{address, raft};
pub use run::{Ready, log_to_stderr, serve};

use crate::chunks::{ChunkStore, Kind};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::health::{self, Facts, Health, Redundancy};
use crate::jobs::Upkeep;
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::replication::{Courier, Director};
use crate::service::Order;
use crate::sessions::Sessions;
use crate::supervise::{self, Supervisor};
pub(crate) use peers::Peers;
pub(crate) use space::is_asked;
pub(crate) use swim::Liveness;

/// See the module. Shared as an `Arc`.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterInfo,
    pub(crate) group: Group,
    pub(crate) peers: Arc<Peers>,
    pub(crate) courier: Arc<Courier>,
    /// What the leader has under way about shards.
    pub(crate) director: Mutex<Director>,
    /// The term in which this node leads and serves clients; none while another one does.
    leads: watch::Sender<Option<u64>>,
    /// Who is alive, as the nodes find out among themselves.
    pub(crate) membership: swim::Membership,
    /// What was refused at the doors.
    pub(crate) refusals: Refusals,
    /// What the leader knows of the other nodes.
    pub(crate) beats: Mutex<members::Beats>,
    /// A node may be gone: the leader is to look at once.
    alarm: Notify,
    pub(crate) chunks: ChunkStore<RemoteVolume>,
    pub(crate) sessions: Mutex<Sessions>,
    /// Who waits for whom among the requests under way.
    pub(crate) order: Order,
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    /// What the background work knows.
    pub(crate) upkeep: Upkeep,
    /// Authorities, and the certificate of this node.
    trust: trust::Trust,
    /// Drawn at this start: tells two processes with one number apart.
    pub(crate) instance: u64,
    /// What administrators have under way.
    pub(crate) admin: crate::admin::Jobs,
    /// Steers the doors while they are open.
    pub(crate) doors: OnceLock<Control>,
    pub(crate) started: Instant,
    /// The block daemon, if this node runs it.
    pub(crate) blockd: Option<watch::Receiver<supervise::State>>,
    /// Why the metadata group failed last, if its last command did.
    metadata_failure: Mutex<Option<String>>,
    /// Devices of the block daemon that are not well.
    devices: Mutex<Vec<Device>>,
    /// Turns true when the node stops; every wait ends then.
    stopping: watch::Sender<bool>,
    /// Says why the node cannot go on.
    fatal: watch::Sender<Option<String>>,
    supervisor: Mutex<Option<Supervisor>>,
    directory: DataDir,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("cluster", &self.cluster.name)
            .finish_non_exhaustive()
    }
}

/// The wall clock, as records carry it.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

impl Node {
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn cluster(&self) -> &ClusterInfo {
        &self.cluster
    }

    /// Time since the start: the clock of [`Sessions`].
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Turns true when the node stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// The node cannot go on: it stops in order, and its process fails with the reason.
    pub(crate) fn fail(&self, why: String) {
        tracing::error!(why, "the node stops");
        self.fatal.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                *reason = Some(why);
            }
            first
        });
    }

    /// Runs a command of the node itself.
    pub(crate) async fn command(&self, command: Command, durable: bool) -> Result<Reply, Failure> {
        self.propose(SessionId::SERVER, 0, 0, command, durable).await
    }

    /// Runs a command of a session, exactly once for its slot and number.
    pub(crate) async fn propose(
        &self,
        session: SessionId,
        slot: u16,
        seq: u64,
        command: Command,
        durable: bool,
    ) -> Result<Reply, Failure> {
        let envelope = Envelope { session, slot, seq, time: Time::default(), command };
        match self.group.propose(envelope, durable).await {
            Ok(answer) => {
                if self.metadata_failure.lock().take().is_some() {
                    tracing::info!("the metadata group takes commands again");
                }
                answer.map_err(Failure::Meta)
            }
            Err(error @ GroupError::TooLarge { .. }) => Err(Failure::Refused(error.to_string())),
            Err(error @ (GroupError::NotLeader { .. } | GroupError::Unknown { .. })) => {
                Err(Failure::NotReady(error.to_string()))
            }
            Err(error) if *self.stopping.borrow() => {
                Err(Failure::NotReady(format!("the node is stopping: {error}")))
            }
            Err(error) => {
                tracing::error!(%error, "a command failed");
                *self.metadata_failure.lock() = Some(error.to_string());
                Err(Failure::Storage(error.to_string()))
            }
        }
    }

    /// What a client hears of a failure of the chunk store.
    pub(crate) fn chunk_failure(
        &self,
        error: &crate::chunks::Error,
        hash: Option<raftmeta_types::ChunkHash>,
    ) -> Failure {
        match (error.kind(), hash) {
            (Kind::NoSpace, _) => Failure::NoSpace,
            (Kind::NotFound, Some(hash)) => Failure::NoChunk(hash),
            (Kind::Damaged, Some(hash)) => {
                tracing::error!(%error, "damaged data");
                self.upkeep.scrub.note_found(hash);
                Failure::Damaged { hash, reason: error.to_string() }
            }
            (Kind::HashMismatch | Kind::Invalid, _) => Failure::Refused(error.to_string()),
            (Kind::NotPrimary | Kind::NotReplicated | Kind::StaleEpoch, _) => {
                Failure::NotReady(error.to_string())
            }
            (Kind::Poisoned, _) => {
                self.fail(format!("{error}: what was written since is not known, restart"));
                Failure::Storage(error.to_string())
            }
            (
                Kind::NotFound
                | Kind::Damaged
                | Kind::Foreign
                | Kind::NewerFormat
                | Kind::OlderFormat
                | Kind::BadHeader
                | Kind::Key
                | Kind::Io,
                _,
            ) => {
                tracing::error!(%error, "the chunk store failed");
                Failure::Storage(error.to_string())
            }
        }
    }

    /// Ends a session: its locks go and so do the unlinked files that only it held.
    pub(crate) async fn end_session(&self, session: SessionId) -> Result<(), Failure> {
        self.command(Command::CloseSession { session }, false).await?;
        self.sessions.lock().end(session);
        self.events.end_session(session);
        self.order.locks.wake_all();
        self.upkeep.kick();
        Ok(())
    }

    /// After a revocation: connections whose certificate is good no more end.
    pub(crate) fn recheck_certificates(&self) {
        if let Some(doors) = self.doors.get() {
            doors.recheck();
        }
    }

    /// What a node that joins needs to open what is sealed: the master key, and the cluster's key wrapped by it.
    pub(crate) fn keys(&self) -> Result<(zeroize::Zeroizing<[u8; 32]>, bytes::Bytes), Failure> {
        let failed = |why: String| Failure::Storage(format!("the keys of this node: {why}"));
        let path = self.directory.path();
        let master = crate::chunks::seal::read_master(&path.join(open::MASTER_KEY));
        let wrapped = std::fs::read(path.join(open::CLUSTER_KEY));
        Ok((
            master.map_err(|error| failed(error.to_string()))?,
            wrapped.map_err(|error| failed(error.to_string()))?.into(),
        ))
    }

    /// What health is judged by, now.
    pub fn facts(&self) -> Facts {
        let view = self.group.view();
        let shards = read::shards(&view).unwrap_or_default();
        let nodes = read::nodes(&view).unwrap_or_default();
        let protection = read::protection(&view).unwrap_or(Protection::SINGLE);
        let down = self.down(&nodes);
        let heard = self.heard(&nodes);
        let trouble = |(info, usage): &(&NodeInfo, NodeUsage)| {
            Some((info.name.clone(), usage.blockd_down.clone()?))
        };
        let devices = |(info, usage): &(&NodeInfo, NodeUsage)| {
            let name = info.name.clone();
            usage.devices.clone().into_iter().map(move |device| (name.clone(), device))
        };
        let leader = self.group.status().leader;
        let metadata = self.metadata_failure.lock().clone();
        Facts {
            redundancy: Redundancy::of(&shards, protection, &down),
            blockd_down: heard.iter().filter_map(trouble).collect(),
            devices: heard.iter().flat_map(devices).collect(),
            flash: heard.iter().map(|(info, usage)| space::flash(info, usage)).collect(),
            metadata_down: metadata.or(match leader {
                Some(_) => None,
                None => Some("it has no leader".into()),
            }),
            nodes_down: down.into_values().collect(),
            nodes_without_datagrams: {
                let beats = self.beats.lock();
                let silent = |id| beats.get(&id).is_some_and(members::Beat::lacks_datagrams);
                let named = nodes.iter().filter(|node| node.state != NodeState::Removed);
                named.filter(|node| silent(node.id)).map(|node| node.name.clone()).collect()
            },
            clocks_off: self.clocks_off(&nodes),
            rotation: read::rotation(&view).ok().flatten().map(|rotation| rotation.stage),
            log_failed: self.group.failure(),
            damaged_chunks: self.damaged_chunks(),
        }
    }

    pub fn health(&self) -> Health {
        health::judge(&self.facts())
    }

    /// A session that was superseded or a command that came too late is no failure of the node.
    pub(crate) fn is_passing(failure: &Failure) -> bool {
        matches!(
            failure,
            Failure::Meta(
                MetaError::Superseded | MetaError::StaleEpoch(_) | MetaError::RetryPut(_)
            ) | Failure::NotReady(_)
        )
    }
}
