//! From a directory to a running replica.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Config, Raft, SnapshotPolicy};

use super::home::Home;
use super::leadership::{self, Leader};
use super::replace::Parting;
use super::{Group, GroupConfig, GroupError, Inner, Types, checkpoints, raft_error};
use crate::fs::{self, File};
use crate::log_store::LogStore;
use crate::network::inbox::Inbox;
use crate::network::link::Links;
use crate::store::Store;

/// Longest wait for a replica to replay its log and become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// Time between two heartbeats, in milliseconds. Raft's clock ticks five times in it, also while there is nothing to
/// do: at the default of 50 that alone costs more than a percent of a core.
const HEARTBEAT_MS: u64 = 500;
/// Once the lease has passed, a follower without a leader waits for a time from here on ...
const ELECTION_MIN_MS: u64 = 1300;
/// ... to here, at random. This is the lease, too: how long a follower that heard from a leader gives no vote to others.
/// So a dead leader is replaced at the latest after twice as long and an election, well below 5 s; and it takes three
/// lost heartbeats to lose one that lives.
pub(super) const LEASE_MS: u64 = 1800;
/// Entries that stay in the log behind a checkpoint, if there are others that may lack them: an absence that is
/// shorter costs no transfer of the whole state.
const KEEP_ENTRIES: u64 = 10_000;
/// The same for a replica that is alone.
const KEEP_ENTRIES_ALONE: u64 = 1_000;

impl Group {
    /// Opens the replica. If it is the only voter this returns once it has replayed its log and leads; else at once,
    /// and [`Group::leadership`] tells what comes of it.
    pub async fn open(config: GroupConfig) -> Result<Group, GroupError> {
        #[cfg(test)]
        if let Some(home) = Home::simulated() {
            return Group::open_at(&home, config).await;
        }
        let opened = tokio::task::spawn_blocking(move || {
            let home = Home::make()?;
            home.drive(Group::open_at(&home, config))
        });
        opened.await.map_err(io::Error::other)?
    }

    async fn open_at(home: &Arc<Home>, config: GroupConfig) -> Result<Group, GroupError> {
        fs::create_dir_all(&config.dir)?;
        let lock = File::create(config.dir.join("lock"))?;
        if lock.try_lock().is_err() {
            return Err(GroupError::InUse { path: config.dir.display().to_string() });
        }
        let lock = Arc::new(lock);
        let store = Store::open(&config.dir, Arc::clone(&lock))?;
        let me = config.node_id;
        let log = LogStore::open(&config.dir.join("log"), me, store.clone(), lock)?;
        // After a power cut the store may be ahead of the log, whose gap is then purged; and a log that
        // starts after the checkpoint could not make a lost store anew. So it has to reach there.
        let gap = log.last() < store.applied();
        if gap || log.purged() > store.checkpointed() {
            store.write_checkpoint()?;
        }
        let alone = log.is_sole_voter();
        let error = raft_error("open");
        let options = options(&config, alone);
        let options = Arc::new(options.validate().map_err(|e| error(e.to_string()))?);
        let links = Links {
            transport: config.transport.clone(),
            book: Default::default(),
            silence: Default::default(),
        };
        let raft = Raft::new(me, options, links.clone(), log.clone(), store.clone())
            .await
            .map_err(|e| error(e.to_string()))?;
        let blank = !raft.is_initialized().await.map_err(|e| error(e.to_string()))?;
        let bootstrap = blank && config.bootstrap;
        if bootstrap {
            let node = BasicNode { addr: config.address.clone() };
            let members = BTreeMap::from([(me, node)]);
            raft.initialize(members).await.map_err(|e| error(e.to_string()))?;
        }
        if !blank && alone {
            // Nobody else could lead: no need to wait for an election timeout.
            raft.trigger().elect(false).await.map_err(|e| error(e.to_string()))?;
        }
        if alone || bootstrap {
            lead(&raft, me).await?;
        }
        let inbox = Inbox::new(store.checkpoints());
        let home = Arc::clone(home);
        let metrics = raft.metrics();
        let term = metrics.borrow_watched().current_term;
        let leader = Leader::new((alone || bootstrap).then_some(term));
        let parting = Parting::new();
        let inner = Inner { node_id: me, raft, metrics, log, store, inbox, leader, parting, home };
        let group = Group(Arc::new(inner));
        checkpoints::by_bytes(&group);
        if config.transport.is_some() {
            leadership::watch(&group, links);
        }
        Ok(group)
    }
}

fn options(config: &GroupConfig, alone: bool) -> Config {
    let keep = if config.transport.is_some() { KEEP_ENTRIES } else { KEEP_ENTRIES_ALONE };
    Config {
        cluster_name: "claudefs".to_owned(),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.checkpoint_entries),
        max_in_snapshot_log_to_keep: keep,
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: LEASE_MS,
        enable_pre_vote: Some(true),
        // Until the lease has passed that this replica may have given before it was restarted.
        enable_elect: alone,
        // Others may have elected a leader meanwhile, whose entries this one does not know.
        enable_leader_restore: Some(alone),
        // A follower that lost its log must not take the leader with it.
        allow_log_reversion: Some(true),
        ..Config::default()
    }
}

/// Waits until the only voter leads and has replayed its log.
async fn lead(raft: &Raft<Types, Store>, me: u64) -> Result<(), GroupError> {
    raft.runtime_config().elect(true);
    raft.wait(Some(READY_TIMEOUT))
        .metrics(
            |m| {
                m.current_leader == Some(me)
                    && m.last_applied.map(|id| id.index) == m.last_log_index
            },
            "the log is replayed",
        )
        .await
        .map_err(|e| raft_error("open")(e.to_string()))?;
    Ok(())
}
