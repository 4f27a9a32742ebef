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

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockd_ipc::RemoteVolume;
use parking_lot::Mutex;
use raftmeta::Group;
use raftmeta_types::NodeId;
use raftmeta_types::cluster::ClusterInfo;
use tokio::sync::watch;

use crate::chunks::ChunkStore;
use crate::config::Config;
use crate::health::{self, Facts, Health};
use crate::metrics::Metrics;
use crate::sessions::Sessions;
use crate::supervise;

/// See the module.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterInfo,
    pub(crate) group: Group,
    pub(crate) chunks: ChunkStore<RemoteVolume>,
    pub(crate) sessions: Mutex<Sessions>,
    pub(crate) metrics: Metrics,
    pub(crate) started: Instant,
    /// Chunks found damaged since the start.
    pub(crate) damaged: AtomicU64,
    /// The block daemon, if this node runs it.
    pub(crate) blockd: Option<watch::Receiver<supervise::State>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id).field("cluster", &self.cluster.name).finish()
    }
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

    /// What health is judged by, now.
    pub fn facts(&self) -> Facts {
        let usage = self.chunks.usage();
        let status = self.group.status();
        let blockd = self.blockd.as_ref().map(|state| state.borrow().clone());
        Facts {
            replicas_wanted: u32::from(self.config.cluster.protection.replicas),
            replicas_least: 1,
            blockd_down: blockd.and_then(|state| match state {
                supervise::State::Running { .. } => None,
                supervise::State::Waiting { why } => Some(why),
                supervise::State::Stopped => Some("it was stopped".into()),
            }),
            metadata_down: match status.leader {
                Some(leader) if leader == self.id.0 => None,
                Some(leader) => Some(format!("node {leader} leads it")),
                None => Some("it has no leader".into()),
            },
            used_bytes: usage.total.saturating_sub(usage.free + usage.reserve),
            total_bytes: usage.total.saturating_sub(usage.reserve),
            damaged_chunks: self.damaged.load(Ordering::Relaxed),
        }
    }

    pub fn health(&self) -> Health {
        health::judge(&self.facts())
    }
}



