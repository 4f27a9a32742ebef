//! What a client and a storage node say to each other.
//!
//! A connection carries one request at a time: the client writes a request frame and reads one reply
//! frame (`frame.rs`). Concurrency comes from several connections of one session. Bulk bytes travel
//! behind the encoded message, in the frame's data part, and are described by lengths inside it.

use std::net::SocketAddr;

use bytes::Bytes;
use raftmeta_types::cluster::ClusterInfo;
use raftmeta_types::lock::Lock;
use raftmeta_types::{
    ChunkHash, Command, Epoch, Extent, FileKind, Ino, Inode, MetaError, NodeId, Reply, SessionId,
    ShardId,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::admin::{AdminReply, AdminRequest};
use crate::tls::CaFingerprint;
pub use crate::versions::{PROTOCOLS, Versions};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection.
    Hello(Hello),
    /// TLS without a client certificate may say only `Hello` with `Role::Enrol` and this.
    Enrol(Enrolment),
    /// A new certificate for a client whose present one nears its end: for the key in the request
    /// (PKCS #10, DER). Only over TLS.
    Renew {
        csr_der: Bytes,
    },

    Lookup {
        parent: Ino,
        name: Bytes,
    },
    GetAttr {
        ino: Ino,
    },
    /// Registers the session as having the inode open (until `Close`) and answers its attributes.
    /// Refused with `Stale` when the inode is gone or is unlinked and this session does not hold it.
    Open {
        ino: Ino,
    },
    /// The session closed its last handle of these inodes. No reply is needed for progress.
    Close {
        inos: Vec<Ino>,
    },
    ReadLink {
        ino: Ino,
    },
    /// Entries whose names are greater than `after` (empty: from the start), in name order.
    ReadDir {
        ino: Ino,
        after: Bytes,
        limit: u32,
    },
    GetXattr {
        ino: Ino,
        name: Bytes,
    },
    ListXattr {
        ino: Ino,
    },
    /// Extents that touch the range, and with `with_chunks` as many of their chunks as fit in
    /// `chunk_bytes_max` (whole chunks, in extent order), in the data part.
    Extents {
        ino: Ino,
        offset: u64,
        len: u64,
        with_chunks: bool,
        chunk_bytes_max: u32,
    },
    StatFs,
    /// The first lock that stands in the way of this one, for `F_GETLK`.
    GetLock(Lock),

    /// A mutation, exactly once per `(slot, seq)`. `durable`: answer only once it would survive a
    /// power cut (together with everything answered before it).
    Mutate {
        slot: u16,
        seq: u64,
        durable: bool,
        command: Command,
    },
    /// Like `Mutate` of `Command::Lock`, but waits for conflicting locks up to `wait_ms`.
    LockWait {
        slot: u16,
        seq: u64,
        lock: Lock,
        wait_ms: u32,
    },
    /// Answers once everything answered to anyone before is durable.
    Sync,

    /// Chunks to store, concatenated in the data part. Answered when durable, with their receipts.
    PutChunks {
        chunks: Vec<ChunkPut>,
    },
    /// Whole chunks, concatenated in the data part of the answer, in this order.
    GetChunks {
        hashes: Vec<ChunkHash>,
    },

    /// Keeps the session alive; every connection's traffic does too.
    Ping,
    /// Turns the connection around: the server sends `Event`s from now on.
    Subscribe,
    /// Ends the session: locks and orphans are released. The client unmounted.
    Goodbye,

    Admin(AdminRequest),

    /// A new storage node asks to be one of the cluster's: in the place of `Enrol`.
    Join(Join),
    /// Of nodes only: a message of the metadata group, encoded in the data part.
    Raft,
    /// Of nodes only.
    Node(NodeRequest),
    /// Of nodes only: from replica to replica of a shard, encoded in the data part.
    Replica,
}

/// What a storage node asks another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NodeRequest {
    /// To the leader: this is how I am called and reached, and how large I am. `instance` is drawn at every start:
    /// it tells two processes with one number apart.
    Announce { name: String, address: String, capacity_bytes: u64, instance: u64 },
    /// To the primary of their shards: store chunks, as `Request::PutChunks`.
    PutChunks { chunks: Vec<ChunkPut> },
    /// To who holds their shards: as `Request::GetChunks`.
    GetChunks { hashes: Vec<ChunkHash> },
    /// To who holds their shards: how large each chunk is, if it is there.
    Sizes { hashes: Vec<ChunkHash> },
    /// To the primary: delete what the state machine has marked under this gc epoch.
    DeleteChunks { shard: ShardId, epoch: Epoch, hashes: Vec<ChunkHash> },
    /// A sign of life: of what the node holds, and how it does; if asked for, of each shard that it leads as well.
    Usage { with_shards: bool },
    /// To the leader, from the primary of a shard: a new epoch is needed, without this replica if one is
    /// named, because it does not answer. Refused if the shard has another epoch by now.
    NewEpoch { shard: ShardId, epoch: Epoch, without: Option<NodeId> },
    /// To the leader, after a start: new epochs for all shards of which this node is the primary.
    Reclaim,
    /// To the primary: bring this node up, so that it may become in sync. Answered when it has everything.
    BringUp { shard: ShardId, epoch: Epoch, node: NodeId },
    /// To a node that holds the shard no more: what it has of it may go.
    Forget { shard: ShardId, epoch: Epoch },
    /// To the leader, from the primary of the shard: nothing has referenced these chunks for a while.
    Unreferenced { shard: ShardId, hashes: Vec<ChunkHash> },
    /// About the scrub of a node's store.
    Scrub(ScrubAsk),
    /// Copy poor segments together until it is not worth it any more. Answered at the end.
    Clean,
}

/// What a storage node that has none yet shows to get a place in the cluster.
#[derive(Clone, Serialize, Deserialize)]
pub struct Join {
    /// A token of nodes; see [`crate::token`].
    pub token: String,
    /// Name of the node; no other node of the cluster has it.
    pub name: String,
    /// `host:port` where the other nodes reach it.
    pub address: String,
    /// Its wall clock, in milliseconds since 1970: one that is far off is refused.
    pub clock_ms: i64,
    /// PKCS #10, DER. Of what it asks for only the key counts.
    pub csr_der: Bytes,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join")
            .field("name", &self.name)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What a new node needs to be one. `Debug` shows no key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Joined {
    pub node: NodeId,
    pub cluster: ClusterInfo,
    pub certificate_pem: String,
    pub ca_pem: String,
    /// Opens the keys below and the authority's; 32 bytes.
    pub master_key: Vec<u8>,
    /// The cluster's key for chunks, wrapped.
    pub cluster_key: Bytes,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.master_key.zeroize();
    }
}

/// What a client without a certificate shows to get one.
#[derive(Clone, Serialize, Deserialize)]
pub struct Enrolment {
    /// See [`crate::token`].
    pub token: String,
    /// Host name of the client: the certificate is for `client:<name>`.
    pub name: String,
    /// PKCS #10, DER. Of what it asks for only the key counts.
    pub csr_der: Bytes,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolment").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// This and `build` stay where they are in all versions.
    pub protocols: Versions,
    /// Version of the program, for `client list` and error messages.
    pub build: String,
    pub role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Role {
    /// First connection of a mount: opens a session. `client` is shown to administrators.
    NewSession {
        client: String,
    },
    /// Further connections, and reconnections after a server restart.
    Session {
        session: SessionId,
        secret: [u8; 16],
        /// As of a new one, which it becomes if the session is over.
        client: String,
        /// Inodes that the client has open. They travel in the frame's data part, 8 bytes each,
        /// little-endian.
        #[serde(skip)]
        open: Vec<Ino>,
    },
    /// An administrator's command: no session.
    Admin,
    Enrol,
    /// Another node of the cluster, known by its certificate: no session.
    Node {
        id: NodeId,
    },
    /// A connection of somebody else that a node passes on to the leader, with who that is and what he said.
    Relayed {
        from: Origin,
        hello: Box<Hello>,
    },
}

/// Who is at the far end of a connection that a node passes on; that node has verified it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    Unix { uid: u32, gid: u32 },
    Tls { subject: String, serial: u64, expires_secs: i64, address: SocketAddr },
    Anonymous { address: SocketAddr },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkPut {
    pub hash: ChunkHash,
    pub len: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    Welcome(Welcome),
    /// Answers `Enrol` and `Renew`.
    Enrolled {
        certificate_pem: String,
        ca_pem: String,
        cluster_uuid: uuid::Uuid,
        cluster_name: String,
    },
    Inode(Inode),
    Target(Bytes),
    Entries {
        entries: Vec<DirEntry>,
        end: bool,
    },
    Xattr(Bytes),
    Xattrs(Vec<Bytes>),
    /// `inode` as of the same moment. The answer covers the file from the offset asked for up to `end`;
    /// what was asked for beyond has to be asked for again, for extents are many or large. `chunks` lie
    /// in the data part, each whole.
    Extents {
        inode: Inode,
        extents: Vec<Extent>,
        end: u64,
        chunks: Vec<ChunkPut>,
    },
    StatFs(StatFs),
    Lock(Option<Lock>),
    Reply(Reply),
    Receipts(Vec<Epoch>),
    Chunks(Vec<ChunkPut>),
    Done,
    Admin(AdminReply),
    Failed(Failure),
    Joined(Box<Joined>),
    /// The answer to `Request::Raft`, encoded in the data part.
    Raft,
    Usage(NodeUsage),
    /// Answers `NodeRequest::Sizes`, in the order of the hashes.
    Sizes(Vec<Option<ChunkSize>>),
    /// Answers `NodeRequest::Reclaim`: the epochs of all shards.
    Epochs(Vec<(ShardId, Epoch)>),
    /// The answer to `Request::Replica`, encoded in the data part.
    Replica,
    Scrub(ScrubState),
    /// Answers `NodeRequest::DeleteChunks`: what they took.
    Deleted {
        bytes: u64,
    },
}

/// What a chunk is, and what it takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSize {
    pub plain: u32,
    pub stored: u32,
}

/// What a node is to do about its scrub; it answers with the state afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScrubAsk {
    Look,
    /// Begin a new pass, as fast as may be.
    Hurry,
    /// Take your time.
    Relax,
}

/// How far the scrub of a node's store is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubState {
    /// Number of the pass; each that begins has a greater one.
    pub pass: u64,
    /// When it began, in milliseconds since 1970.
    pub begun_ms: i64,
    /// Somebody waits for it.
    pub hurried: bool,
    /// It is over; the next one has not begun.
    pub done: bool,
    pub next_shard: u32,
    /// Bytes of the node's segments, and how many of them this pass has yet to read.
    pub total_bytes: u64,
    pub left_bytes: u64,
    /// When it will have done so, from now, in milliseconds; nothing while that is not known.
    pub eta_ms: Option<u64>,
    /// Verified in this pass since the node was started.
    pub segments: u64,
    pub bytes: u64,
    /// Segments of them that were not whole, and how many are now.
    pub damaged: u64,
    pub mended: u64,
}

/// Space of one node's chunk store, in bytes, and how it does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUsage {
    pub total_bytes: u64,
    /// In segments that hold something, and of records of chunks that exist.
    pub used_bytes: u64,
    pub live_bytes: u64,
    /// For those who write: free or to be gained by cleaning, without the reserve.
    pub available_bytes: u64,
    pub reserve_bytes: u64,
    /// In free segments outside the reserve.
    pub free_bytes: u64,
    pub segments_free: u32,
    pub segments_open: u32,
    pub segments_closed: u32,
    pub chunks: u64,
    /// Chunks that are known to be damaged there.
    pub damaged_chunks: u64,
    /// For how long its device has not ended what was written, in milliseconds.
    pub stalled_ms: u64,
    /// Why its block daemon does not run, if so.
    pub blockd_down: Option<String>,
    /// Some, if many.
    pub devices: Vec<Device>,
    /// Shards that it has something of and, as far as it knows, does not hold in sync.
    pub strays: Vec<ShardId>,
    /// Its wall clock, in milliseconds since 1970.
    pub clock_ms: i64,
    /// See `NodeRequest::Announce`.
    pub instance: u64,
    /// The steps in the replacement of authorities that it has taken.
    pub authority_step: u64,
    pub scrub: ScrubState,
    /// Of the shards of which it is the primary; none unless asked for.
    pub shards: Vec<ShardUsage>,
}

/// A device of a block daemon that is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub path: String,
    pub why: String,
    /// It serves nothing any more.
    pub has_failed: bool,
}

/// What a shard is on its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardUsage {
    pub shard: ShardId,
    /// What a copy of it takes.
    pub bytes: u64,
    /// Of records of chunks that exist.
    pub live_bytes: u64,
    pub chunks: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from now on; the server half fills it in.
    pub protocol: u32,
    pub build: String,
    pub cluster_uuid: uuid::Uuid,
    pub cluster_name: String,
    pub session: SessionId,
    pub secret: [u8; 16],
    /// Whether the session existed before (reconnect) or had to be made anew.
    pub resumed: bool,
    pub limits: Limits,
    /// `host:port` of the nodes that are up, for clients of the network.
    pub servers: Vec<String>,
    /// Of the authority that signs certificates of clients now: one of another authority should be renewed.
    pub signer: Option<CaFingerprint>,
    /// No other authority is trusted: who still trusts one should not any more.
    pub signs_alone: bool,
}

/// What the cluster's configuration tells its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub shard_count: u32,
    pub chunk_min: u32,
    pub chunk_avg: u32,
    pub chunk_max: u32,
    /// Largest flush, in bytes, that travels inline in its command.
    pub inline_max: u32,
    pub lease_ms: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DirEntry {
    pub name: Bytes,
    pub ino: Ino,
    pub kind: FileKind,
    pub inode: Inode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFs {
    pub block_size: u32,
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// Free to ordinary writers: without the reserve.
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Pushed to subscribers when another session changed something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// Attributes, and with `data` the content, of the inode changed.
    Inode { ino: Ino, data: bool },
    /// The entry was made, removed or replaced.
    Entry { parent: Ino, name: Bytes },
    /// More happened than the server kept for this client: drop every cache.
    Overflow,
    /// The node is stopping in order; reconnect with backoff.
    Stopping,
}

/// Why a request failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// The flash is full and the request needs space.
    #[error("no space left on the cluster")]
    NoSpace,
    /// A chunk could not be read back as it was written: never data, always this.
    #[error("chunk {hash} is damaged: {reason}")]
    Damaged { hash: ChunkHash, reason: String },
    #[error("chunk {0} is not stored here")]
    NoChunk(ChunkHash),
    /// The device under the chunk store or the log failed.
    #[error("storage failed: {0}")]
    Storage(String),
    /// Not the leader, or starting: try again (elsewhere).
    #[error("node not ready: {0}")]
    NotReady(String),
    #[error("refused: {0}")]
    Refused(String),
    /// The request makes no sense: the connection ends after it.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// A wait ran out.
    #[error("timed out")]
    Timeout,
    #[error("{what}: {why}")]
    Admin { code: String, what: String, why: String, next: String },
}
