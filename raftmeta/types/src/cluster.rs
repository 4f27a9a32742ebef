//! Nodes, shards, enrolment tokens and certificates: the cluster map's plain data.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, NodeId, SessionId, ShardId};
use crate::inode::Time;

/// What is fixed when a cluster is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Identity of the cluster; volumes and data directories carry it.
    pub uuid: uuid::Uuid,
    pub name: String,
    /// 1..=15; the first four bits of every inode number made here.
    pub site: u8,
    /// Power of two, 1..=65536.
    pub shard_count: u32,
    pub created: Time,
}

/// States of a node, in the order of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Known, not yet serving.
    Joining,
    Up,
    /// Takes no new data; its shards are moving away.
    Draining,
    /// Empty: safe to power off.
    Drained,
    Down,
    Removed,
}

impl std::fmt::Display for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeState::Joining => "joining",
            NodeState::Up => "up",
            NodeState::Draining => "draining",
            NodeState::Drained => "drained",
            NodeState::Down => "down",
            NodeState::Removed => "removed",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: NodeId,
    pub name: String,
    /// `host:port` of its RPC door.
    pub address: String,
    pub state: NodeState,
    /// Bytes of its data volume.
    pub capacity_bytes: u64,
}

/// Placement of one shard and its garbage epoch (DESIGN.md §5, §6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    pub id: ShardId,
    /// Placement epoch.
    pub epoch: Epoch,
    /// Epoch of the last `BeginDelete`; receipts older than it count only for referenced chunks.
    pub gc_epoch: Epoch,
    pub primary: NodeId,
    pub in_sync: Vec<NodeId>,
}

/// How often data is kept, and with how few copies writes still go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Copies of each chunk, 1 to 7, each on a node of its own.
    pub replicas: u8,
    /// Replicas in sync that a shard needs to go on without one that fails; with fewer it waits for that one and
    /// acknowledges nothing. 1 to `replicas`.
    pub in_sync_min: u8,
}

impl Protection {
    /// One copy: what a cluster of one node has.
    pub const SINGLE: Protection = Protection::of(1);

    /// Where nothing else is said half of the copies, rounded up, go on: of two one, of three two.
    pub const fn of(replicas: u8) -> Protection {
        Protection { replicas, in_sync_min: replicas.div_ceil(2) }
    }
}

/// A new placement of one shard, for the placement epoch that its author knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardChange {
    pub id: ShardId,
    /// The change is refused if the shard has another placement epoch by now.
    pub expected: Epoch,
    /// One that was in sync before.
    pub primary: NodeId,
    /// With the primary, each once.
    pub in_sync: Vec<NodeId>,
}

/// A one-time enrolment token as the state machine keeps it: the hash, never the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// BLAKE3 or SHA-256 of the token, as `fsd-rpc` defines.
    pub hash: [u8; 32],
    pub created: Time,
    pub expires: Time,
    pub uses_left: u32,
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum TokenRefusal {
    #[error("unknown: it was never issued by this cluster")]
    Unknown,
    #[error("expired: create a new one with `cfs admin token create`")]
    Expired,
    #[error("used up: create a new one with `cfs admin token create`")]
    Used,
}

/// A certificate that the cluster CA issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// Serial number, as in the certificate.
    pub serial: u64,
    /// Subject common name: `client:<name>` or `node:<id>`.
    pub subject: String,
    pub expires: Time,
    pub revoked: bool,
}

/// How far the replacement of the certificate authority has come, in the order of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotationStage {
    /// Every node is to trust the new authority beside the old one, which still signs everything.
    Introduced,
    /// The new one signs for clients. Nodes show certificates of the old one, for clients that know only that.
    Issuing,
    /// Nodes show certificates of the new one; when all do, the old one is dropped.
    Showing,
}

/// A replacement of the certificate authority that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    pub stage: RotationStage,
    pub begun: Time,
    /// The new authority, sealed like the old one.
    pub sealed: Bytes,
    /// Clients with certificates of the old one are not waited for.
    pub finish: bool,
}

/// A client session as administrators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub session: SessionId,
    /// Host name and mountpoint that the client gave.
    pub client: String,
    /// Peer credentials (`uid=0`) or certificate subject.
    pub identity: String,
    pub opened: Time,
    /// Secret that further connections of the session must show.
    pub secret: [u8; 16],
}
