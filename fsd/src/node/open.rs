//! From a configuration to a node.
//!
//! ```text
//!   lock the directory ─ identity (creating) ─ blockd, volume ─ keys ─ group ┐
//!   ┌────────────────────────────────────────────────────────────────────────┘
//!   └ blank volume: format ─ InitCluster, SetNode, durable ─ chunk store ─ identity (ready)
//! ```
//! Each step of a first start can be done twice, so a crash in between is made good by the next start. A
//! volume is formatted only while no cluster exists and only if its first blocks say nothing.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use blockd_ipc::RemoteVolume;
use blockd_ipc::volume::Volume;
use parking_lot::Mutex;
use raftmeta::group::{Group, GroupConfig};
use raftmeta::read;
use raftmeta_types::cluster::{ClusterInfo, NodeInfo, NodeState, ShardInfo};
use raftmeta_types::{Command, Envelope, NodeId, SessionId, Time};
use tokio::sync::watch;

use super::identity::{Identity, Stage};
use super::{Node, NodeError, blocks, now};
use crate::authority::Authority;
use crate::chunks::{ChunkStore, FormatParams, Keys, Kind, OpenParams};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::jobs::Upkeep;
use crate::metrics::Metrics;
use crate::service::Order;
use crate::sessions::Sessions;
use crate::supervise::Supervisor;

/// Log entries after which the group writes a checkpoint by itself.
const CHECKPOINT_ENTRIES: u64 = 250_000;
const SEGMENT_BYTES: u32 = 2 << 20;
/// Number of the only site there is so far.
const SITE: u8 = 1;
/// Blocks that tell whether a volume was ever formatted: both copies of its header.
const HEAD_BYTES: usize = 2 * 4096;
/// Files in the data directory.
const MASTER_KEY: &str = "master.key";
const CLUSTER_KEY: &str = "cluster.key";

impl Node {
    /// Starts everything below the doors, for the first time or again.
    pub async fn open(config: Config) -> Result<Node, NodeError> {
        let directory = DataDir::lock(&config.node.data_dir)?;
        let mut identity = Identity::load_or_create(&directory)?;
        let creating = identity.state == Stage::Creating;
        let (supervisor, volume) = blocks::start(&config, creating).await?;
        match assemble(config, directory, &mut identity, volume, supervisor.as_ref()).await {
            Ok(node) => {
                *node.supervisor.lock() = supervisor;
                Ok(node)
            }
            Err(error) => {
                if let Some(supervisor) = supervisor {
                    supervisor.stop().await;
                }
                Err(error)
            }
        }
    }

    /// Stops what [`Node::open`] started, after the doors and jobs have ended.
    pub(super) async fn close(self: Arc<Node>) {
        if let Err(error) = self.group.shutdown().await {
            tracing::error!(%error, "stopping the metadata group");
        }
        let supervisor = self.supervisor.lock().take();
        let directory = self.directory.path().display().to_string();
        // Hangs up before blockd does.
        drop(self);
        if let Some(supervisor) = supervisor {
            supervisor.stop().await;
        }
        tracing::info!(directory, "stopped");
    }
}

async fn assemble(
    config: Config,
    directory: DataDir,
    identity: &mut Identity,
    volume: RemoteVolume,
    supervisor: Option<&Supervisor>,
) -> Result<Node, NodeError> {
    let creating = identity.state == Stage::Creating;
    let at = |name: &str| directory.path().join(name);
    let keys = keys(&at(MASTER_KEY), &at(CLUSTER_KEY), identity)?;
    if creating {
        check_ours_or_blank(&volume, identity).await?;
    }
    let group = Group::open(GroupConfig {
        dir: at("meta"),
        node_id: identity.node,
        bootstrap: creating,
        checkpoint_entries: CHECKPOINT_ENTRIES,
        address: String::new(),
        transport: None,
    })
    .await?;
    let opened = data(&config, identity, &at(MASTER_KEY), &group, volume, keys).await;
    let (cluster, chunks) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // The first error is the one to tell.
            let _ = group.shutdown().await;
            return Err(error);
        }
    };
    if creating {
        identity.state = Stage::Ready;
        identity.save(directory.path())?;
    }
    let sealed = read::authority(&group.view())?.unwrap_or_default();
    let authority = Authority::open(&sealed, &at(MASTER_KEY), identity.cluster)?;
    let known = read::sessions(&group.view())?.into_iter().map(|info| info.session);
    let sessions = Sessions::restarted(known, Duration::ZERO);
    let upkeep = Upkeep::new(cluster.shard_count);
    let node = Node {
        id: identity.node_id(),
        cluster,
        group,
        chunks,
        sessions: Mutex::new(sessions),
        order: Order::default(),
        events: Events::default(),
        metrics: Metrics::new().map_err(|error| NodeError::Metrics(error.to_string()))?,
        upkeep,
        authority,
        admin: Default::default(),
        doors: OnceLock::new(),
        started: Instant::now(),
        damaged: Default::default(),
        blockd: supervisor.map(Supervisor::state),
        metadata_failure: Mutex::new(None),
        devices: Mutex::default(),
        stopping: watch::channel(false).0,
        fatal: watch::channel(None).0,
        supervisor: Mutex::new(None),
        directory,
        config,
    };
    end_interrupted_deletions(&node).await?;
    Ok(node)
}

fn keys(master: &Path, wrapped: &Path, identity: &Identity) -> Result<Keys, NodeError> {
    match identity.state {
        Stage::Creating => Ok(Keys::load_or_create(master, wrapped, identity.cluster)?),
        Stage::Ready => Ok(Keys::load(master, wrapped, identity.cluster)?),
    }
}

/// Before anything is made on it: whose volume is this?
async fn check_ours_or_blank(volume: &RemoteVolume, identity: &Identity) -> Result<(), NodeError> {
    match crate::chunks::owner(volume).await {
        Ok(cluster) if cluster == identity.cluster => Ok(()),
        Ok(cluster) => Err(crate::chunks::Error::new(
            Kind::Foreign,
            format!("it belongs to cluster {cluster}, and this node makes {}", identity.cluster),
        )
        .into()),
        Err(error) if error.kind() == Kind::BadHeader => {
            let mut buffer = volume.buffer(HEAD_BYTES).await?;
            buffer.set_len(HEAD_BYTES);
            let head = volume.read(0, buffer).await?;
            // The second copy is written last: while it is blank no format was ever done.
            let blank = head[HEAD_BYTES / 2..].iter().all(|byte| *byte == 0);
            if blank { Ok(()) } else { Err(NodeError::PoolNotBlank) }
        }
        Err(error) => Err(error.into()),
    }
}

/// The cluster's records and the chunk store, made if the node is being created.
async fn data(
    config: &Config,
    identity: &Identity,
    master: &Path,
    group: &Group,
    volume: RemoteVolume,
    keys: Keys,
) -> Result<(ClusterInfo, ChunkStore<RemoteVolume>), NodeError> {
    let creating = identity.state == Stage::Creating;
    let mut cluster = read::cluster(&group.view())?;
    if cluster.is_none() && creating {
        let params = FormatParams {
            cluster_uuid: identity.cluster,
            shard_count: config.cluster.shard_count,
            segment_bytes: SEGMENT_BYTES,
        };
        ChunkStore::format(&volume, params).await?;
        init_cluster(config, identity, master, group).await?;
        cluster = read::cluster(&group.view())?;
    }
    let cluster = cluster.ok_or(NodeError::Identity {
        path: config.node.data_dir.join("meta"),
        why: "the metadata knows no cluster, although one was made: parts of it are lost".into(),
    })?;
    if cluster.uuid != identity.cluster {
        let (found, expected) = (cluster.uuid, identity.cluster);
        return Err(NodeError::ForeignMetadata { found, expected });
    }
    let capacity = volume.geometry().blocks * u64::from(volume.geometry().block_size);
    let shards = read::shards(&group.view())?;
    let epochs = shards.iter().map(|shard: &ShardInfo| (shard.id, shard.gc_epoch)).collect();
    let params = OpenParams { cluster_uuid: identity.cluster, keys, epochs };
    let chunks = ChunkStore::open(volume, params).await?;
    set_node(config, identity.node_id(), capacity, group).await?;
    Ok((cluster, chunks))
}

async fn command(
    group: &Group,
    doing: &'static str,
    command: Command,
    durable: bool,
) -> Result<(), NodeError> {
    let session = SessionId::SERVER;
    let envelope = Envelope { session, slot: 0, seq: 0, time: Time::default(), command };
    match group.propose(envelope, durable).await? {
        Ok(_) => Ok(()),
        Err(source) => Err(NodeError::Refused { doing, source }),
    }
}

async fn init_cluster(
    config: &Config,
    identity: &Identity,
    master: &Path,
    group: &Group,
) -> Result<(), NodeError> {
    let authority = Authority::create(identity.cluster, &config.cluster.name, now())?;
    let sealed_ca = authority.seal(master, identity.cluster)?;
    let cluster = ClusterInfo {
        uuid: identity.cluster,
        name: config.cluster.name.clone(),
        site: SITE,
        shard_count: config.cluster.shard_count,
        created: now(),
    };
    let init = Command::InitCluster { cluster, sealed_ca };
    command(group, "making the cluster", init, true).await
}

/// Says that this node is up, and how large; only if that is news.
async fn set_node(
    config: &Config,
    id: NodeId,
    capacity_bytes: u64,
    group: &Group,
) -> Result<(), NodeError> {
    let door = &config.door;
    let tcp = || door.tcp.map(|address| address.to_string());
    let node = NodeInfo {
        id,
        name: config.node.name.clone(),
        address: door.advertise.clone().or_else(tcp).unwrap_or_default(),
        state: NodeState::Up,
        capacity_bytes,
    };
    if read::node(&group.view(), id)?.as_ref() == Some(&node) {
        return Ok(());
    }
    command(group, "entering the node", Command::SetNode(node), true).await
}

/// A deletion under way at a crash may or may not have been carried out; it is ended, not repeated
/// (docs/decisions.md, D7).
async fn end_interrupted_deletions(node: &Node) -> Result<(), NodeError> {
    for (shard, pending) in read::pending_deletes(&node.group.view())? {
        let end = Command::EndDelete { shard, epoch: pending.epoch };
        command(&node.group, "ending a deletion", end, false).await?;
        tracing::info!(%shard, epoch = %pending.epoch, "a deletion that was interrupted is ended");
    }
    Ok(())
}
