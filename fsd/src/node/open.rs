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
use std::time::Instant;

use blockd_ipc::RemoteVolume;
use blockd_ipc::volume::Volume;
use parking_lot::Mutex;
use raftmeta::group::{Group, GroupConfig, Leadership};
use raftmeta::network::Transport;
use raftmeta::read;
use raftmeta_types::cluster::{ClusterInfo, NodeInfo, NodeState, ShardInfo};
use raftmeta_types::{Command, Envelope, NodeId, SessionId, Time};
use tokio::sync::watch;
use uuid::Uuid;

use super::identity::{FORMAT, Identity, Stage};
use super::peers::Peers;
use super::swim::Membership;
use super::trust::Trust;
use super::{Node, NodeError, blocks, join, now};
use crate::authority::{Authorities, Authority};
use crate::chunks::seal::random;
use crate::chunks::{ChunkStore, FormatParams, Keys, Kind, OpenParams, Replicator, Role};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::events::Events;
use crate::jobs::Upkeep;
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::replication::Courier;
use crate::service::Order;
use crate::supervise::Supervisor;

/// Log entries after which the group writes a checkpoint by itself.
pub(super) const CHECKPOINT_ENTRIES: u64 = 250_000;
const SEGMENT_BYTES: u32 = 2 << 20;
/// Number of the only site there is so far.
const SITE: u8 = 1;
/// Blocks that tell whether a volume was ever formatted: both copies of its header.
const HEAD_BYTES: usize = 2 * 4096;
/// Files in the data directory.
pub(super) const MASTER_KEY: &str = "master.key";
pub(super) const CLUSTER_KEY: &str = "cluster.key";

impl Node {
    /// Starts everything below the doors, for the first time or again.
    pub async fn open(config: Config) -> Result<Node, NodeError> {
        let directory = DataDir::lock(&config.node.data_dir)?;
        let mut identity = Identity::load_or_create(&directory)?;
        if identity.state == Stage::Joining {
            join::catch_up(&config, &directory, &identity).await?;
        }
        let creating = identity.state != Stage::Ready;
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
        self.leave().await;
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
    let at = |name: &str| directory.path().join(name);
    let keys = keys(&at(MASTER_KEY), &at(CLUSTER_KEY), identity)?;
    let ours = match identity.state {
        Stage::Creating | Stage::Joining => is_ours_or_blank(&volume, identity).await?,
        Stage::Ready => {
            is_own(&volume, identity).await?;
            true
        }
    };
    let peers = Arc::new(Peers::new(identity.node_id()));
    let transport = config.door.tcp.map(|_| Arc::clone(&peers) as Arc<dyn Transport>);
    let group = Group::open(GroupConfig {
        dir: at("meta"),
        node_id: identity.node,
        bootstrap: identity.state == Stage::Creating,
        checkpoint_entries: CHECKPOINT_ENTRIES,
        address: Node::door_address(&config),
        transport,
    })
    .await?;
    let courier = Courier::new();
    let opened =
        data(&config, identity, &at(MASTER_KEY), &group, Data { volume, keys, ours }, &courier)
            .await;
    let (cluster, chunks, pool) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // The first error is the one to tell.
            let _ = group.shutdown().await;
            return Err(error);
        }
    };
    identity.volume = Some(pool);
    let starts = started(identity, &directory)?;
    let authorities = Authorities::open(&group.view(), &at(MASTER_KEY), identity.cluster)?;
    peers.show(&authorities.node_identity(identity.node_id(), now())?)?;
    let keys = authorities.membership_keys();
    let membership = Membership::new(starts, &keys, identity.cluster);
    let metrics = Metrics::new().map_err(|error| NodeError::Metrics(error.to_string()))?;
    let upkeep = Upkeep::new(cluster.shard_count, directory.path());
    let node = Node {
        id: identity.node_id(),
        cluster,
        group,
        peers,
        courier,
        director: Default::default(),
        leads: watch::channel(None).0,
        membership,
        refusals: Refusals::new(metrics.clone()),
        beats: Default::default(),
        alarm: Default::default(),
        chunks,
        sessions: Mutex::default(),
        order: Order::default(),
        events: Events::default(),
        metrics,
        upkeep,
        trust: Trust::new(authorities),
        instance: u64::from_le_bytes(random()),
        admin: Default::default(),
        doors: OnceLock::new(),
        started: Instant::now(),
        blockd: supervisor.map(Supervisor::state),
        metadata_failure: Mutex::new(None),
        devices: Mutex::default(),
        stopping: watch::channel(false).0,
        fatal: watch::channel(None).0,
        supervisor: Mutex::new(None),
        directory,
        config,
    };
    if let Leadership::Leading { term } = node.group.leadership().borrow().clone() {
        node.take_over(term).await?;
    }
    Ok(node)
}

/// Counts this start, and notes that the node is complete.
fn started(identity: &mut Identity, directory: &DataDir) -> Result<u32, NodeError> {
    let first = identity.state != Stage::Ready;
    (identity.state, identity.format) = (Stage::Ready, FORMAT);
    identity.starts = identity.starts.wrapping_add(1);
    identity.save(directory.path())?;
    if first {
        join::forget(directory)?;
    }
    Ok(identity.starts)
}

fn keys(master: &Path, wrapped: &Path, identity: &Identity) -> Result<Keys, NodeError> {
    match identity.state {
        Stage::Creating => Ok(Keys::load_or_create(master, wrapped, identity.cluster)?),
        Stage::Joining | Stage::Ready => Ok(Keys::load(master, wrapped, identity.cluster)?),
    }
}

/// Before anything is made on it: whose volume is this? True if it has been formatted for this cluster.
async fn is_ours_or_blank(volume: &RemoteVolume, identity: &Identity) -> Result<bool, NodeError> {
    match crate::chunks::owner(volume).await.map(|owner| owner.cluster) {
        Ok(cluster) if cluster == identity.cluster => Ok(true),
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
            if blank { Ok(false) } else { Err(NodeError::PoolNotBlank) }
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses the volume of another node of the cluster, whose shards would be taken for this one's. What else may be wrong
/// with it is found when it is opened.
async fn is_own(volume: &RemoteVolume, identity: &Identity) -> Result<(), NodeError> {
    let (Ok(owner), Some(expected)) = (crate::chunks::owner(volume).await, identity.volume) else {
        return Ok(());
    };
    if owner.cluster == identity.cluster && owner.volume != expected {
        return Err(NodeError::WrongPool { found: owner.volume, expected });
    }
    Ok(())
}

/// What the chunk store is made of.
struct Data {
    volume: RemoteVolume,
    keys: Keys,
    /// It has been formatted for this cluster.
    ours: bool,
}

/// The cluster's records, the chunk store, made if the node is being created, and the name of the volume below it.
async fn data(
    config: &Config,
    identity: &Identity,
    master: &Path,
    group: &Group,
    Data { volume, keys, ours }: Data,
    courier: &Arc<Courier>,
) -> Result<(ClusterInfo, ChunkStore<RemoteVolume>, Uuid), NodeError> {
    let creating = identity.state == Stage::Creating;
    let mut cluster = read::cluster(&group.view())?;
    if cluster.is_none() && creating {
        format(&volume, identity, config.cluster.shard_count).await?;
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
    if identity.state == Stage::Joining && !ours {
        format(&volume, identity, cluster.shard_count).await?;
    }
    let capacity = volume.geometry().blocks * u64::from(volume.geometry().block_size);
    let shards = read::shards(&group.view())?;
    let epochs = shards.iter().map(|shard: &ShardInfo| (shard.id, shard.gc_epoch)).collect();
    let params = OpenParams { cluster_uuid: identity.cluster, keys, epochs };
    let replicator = Arc::clone(courier) as Arc<dyn Replicator>;
    let pool = crate::chunks::owner(&volume).await?.volume;
    let chunks = ChunkStore::open_member(volume, params, replicator).await?;
    let own = identity.node_id();
    // Nobody else can have taken them over meanwhile. In a larger cluster all are begun anew, see `replication`.
    // One of several voters may see the cluster as it was before it grew.
    let voters = group.members().iter().filter(|member| member.voter).count();
    let alone = voters < 2 && read::nodes(&group.view())?.len() < 2;
    let sole = |shard: &&ShardInfo| alone && shard.primary == own && shard.in_sync == [own];
    for ShardInfo { id, epoch, gc_epoch, .. } in shards.iter().filter(sole).cloned() {
        courier.begin(id, epoch, &[]);
        chunks.set_role(id, Role::Primary { epoch, gc_epoch })?;
    }
    if creating {
        let own = node_info(config, identity.node_id(), capacity);
        command(group, "entering the node", Command::SetNode(own), true).await?;
    }
    Ok((cluster, chunks, pool))
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
    command(group, "making the cluster", init, true).await?;
    let protection = config.cluster.protected();
    command(group, "setting the protection", Command::SetProtection(protection), true).await
}

/// This node as the cluster shall know it.
pub(super) fn node_info(config: &Config, id: NodeId, capacity_bytes: u64) -> NodeInfo {
    let (name, address) = (config.node.name.clone(), Node::door_address(config));
    NodeInfo { id, name, address, state: NodeState::Up, capacity_bytes }
}

async fn format(
    volume: &RemoteVolume,
    identity: &Identity,
    shard_count: u32,
) -> Result<(), NodeError> {
    let cluster_uuid = identity.cluster;
    let params = FormatParams { cluster_uuid, shard_count, segment_bytes: SEGMENT_BYTES };
    Ok(ChunkStore::format(volume, params).await?)
}
