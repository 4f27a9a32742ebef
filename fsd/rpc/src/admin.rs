//! What administrators ask a storage node (`cfs admin …`), and what it answers.
//!
//! ```text
//! short   Status, NodeList, ClientList, Token…, Cert…, Stat     one request, one reply
//! long    du, fsck, gc, scrub  JobStart ─▶ id;  JobPoll(id) ─▶ progress … ─▶ report;  JobCancel(id)
//! ```
//! A long job runs on the node, on a view of one moment, and is polled: every reply comes within
//! [`POLL_WAIT_MS_MAX`], and a job that nobody polls for [`JOB_ABANDONED_SECS`] is cancelled.
//!
//! Everything here is plain data with units in the names. Encoded for the wire it is compact, encoded for
//! people (JSON, YAML) times are RFC 3339 in UTC ([`Timestamp`]) and bytes are integers.

mod timestamp;

use bytes::Bytes;
use raftmeta_types::{Ino, SessionId};
use serde::{Deserialize, Serialize};

pub use timestamp::Timestamp;

/// Longest wait of one `JobPoll`, in milliseconds; longer ones are cut to this.
pub const POLL_WAIT_MS_MAX: u32 = 2000;
/// A job that nobody polled for this long, in seconds, is cancelled and forgotten.
pub const JOB_ABANDONED_SECS: u64 = 60;
/// Jobs of administrators under way at once; a further one is refused.
pub const JOBS_MAX: usize = 4;
/// Most findings that a report lists; the others are counted.
pub const FINDINGS_MAX: usize = 1000;
/// Most extents in one `Stat` reply.
pub const STAT_EXTENTS_MAX: u32 = 1024;
/// Longest life of an enrolment token: a week.
pub const TOKEN_TTL_SECS_MAX: u64 = 7 * 24 * 3600;
/// Most uses of one enrolment token.
pub const TOKEN_USES_MAX: u32 = 10_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    Status,
    NodeList {
        with_shards: bool,
    },
    /// Moves everything off a node, so that it may be switched off.
    NodeDrain {
        /// `n3`, `3` or a name.
        node: String,
        /// Only says what would be moved.
        dry_run: bool,
    },
    /// Takes a drain back.
    NodeUndrain {
        node: String,
    },
    /// Forgets a node that is drained, or down and holds nothing.
    NodeRemove {
        node: String,
    },
    /// Makes good what a node that is down held, from the other replicas.
    NodeRecover {
        node: String,
    },
    ClientList,
    /// Ends a client's session: its locks go, its calls fail.
    ClientRevoke {
        session: SessionId,
    },
    CertList,
    /// Refuses the certificate from now on, and ends the connections that showed it.
    CertRevoke {
        serial: u64,
    },
    /// At most [`TOKEN_TTL_SECS_MAX`] and [`TOKEN_USES_MAX`], neither 0.
    TokenCreate {
        ttl_secs: u64,
        uses: u32,
        purpose: TokenPurpose,
    },
    TokenList,
    /// The certificate authority, and its replacement.
    CaStatus,
    /// Begins to replace the authority; with `finish` one that is under way waits for clients no more.
    CaRotate {
        finish: bool,
    },
    /// Attributes and storage of one file; extents from this offset on.
    Stat {
        target: Target,
        from_offset_bytes: u64,
        extents_max: u32,
    },
    /// Writes a checkpoint of the metadata and drops the log before it.
    Checkpoint,
    JobStart(Job),
    /// Answers when the job ended, after `wait_ms` at the latest. May be asked again.
    JobPoll {
        job: u64,
        wait_ms: u32,
    },
    JobCancel {
        job: u64,
    },
    /// Takes a node out of the cluster whose disks are gone for good. Without `confirm` only says what it would lead to.
    NodeRemoveLost {
        node: String,
        confirm: bool,
        /// Shards of which no copy is left begin anew.
        accept_data_loss: bool,
    },
    /// How often data is kept; what is named is changed first.
    Protection {
        replicas: Option<u8>,
        in_sync_min: Option<u8>,
    },
}

/// A file, as an administrator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Absolute in the cluster, `/`-separated. The last component is not followed if it is a symbolic
    /// link; no other may be one.
    Path(Bytes),
    Ino(Ino),
}

/// Long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    Du {
        target: Target,
    },
    Fsck(FsckOptions),
    /// With `dry_run` only says what is pending.
    Gc {
        dry_run: bool,
    },
    /// Every node reads what it holds, and what is damaged is put right.
    Scrub,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckOptions {
    pub repair: bool,
    /// Read and verify every chunk, too.
    pub read_data: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminReply {
    Done,
    Status(Box<Status>),
    Nodes(Vec<Node>),
    NodeMoved(NodeMoved),
    Clients(Vec<Client>),
    Certs(Vec<Cert>),
    /// The token itself is said only here; the cluster keeps its hash.
    TokenCreated {
        token: Secret,
        expires: Timestamp,
        uses: u32,
    },
    Tokens(Vec<Token>),
    Ca(Box<CaStatus>),
    Stat(Box<FileStat>),
    JobStarted {
        job: u64,
    },
    Job(Box<JobState>),
    NodeLost(NodeLost),
    Protection(Protection),
}

/// Text that no log may show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Worse is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    #[serde(rename = "HEALTH_OK")]
    Ok,
    #[serde(rename = "HEALTH_WARN")]
    Warn,
    #[serde(rename = "HEALTH_ERR")]
    Err,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Ok => "HEALTH_OK",
            Level::Warn => "HEALTH_WARN",
            Level::Err => "HEALTH_ERR",
        })
    }
}

/// A named check that has something to say. With [`Level::Ok`] it is a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub level: Level,
    pub detail: String,
    /// What to do about it; empty for a note.
    pub next: String,
}

/// The health word is the worst level of any check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub word: Level,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub cluster_name: String,
    pub cluster_uuid: uuid::Uuid,
    /// Node that answered.
    pub node: String,
    /// Version of its program.
    pub build: String,
    pub time: Timestamp,
    pub uptime_ms: u64,
    pub health: Health,
    pub nodes_up: u32,
    pub nodes: u32,
    pub protection: Protection,
    pub metadata: MetadataStatus,
    /// Of all nodes that are there, added up: what is kept twice counts twice.
    pub data: DataStatus,
    /// Of each of them.
    pub stores: Vec<Store>,
    /// Of the node that answered.
    pub blockd: BlockdStatus,
    pub clients: u32,
    pub jobs: Vec<JobSummary>,
}

/// How often data is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Copies of everything.
    pub replicas: u8,
    /// Copies in sync that a shard needs to acknowledge writes when others fail.
    pub in_sync_min: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataStatus {
    pub term: u64,
    pub leader: Option<u64>,
    pub last_log: Option<u64>,
    pub applied: Option<u64>,
    pub log_bytes: u64,
    pub inodes: u64,
    /// Sum of the sizes of all regular files.
    pub logical_bytes: u64,
}

/// The chunk store of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub node: u64,
    pub name: String,
    pub data: DataStatus,
}

/// The space of a chunk store, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataStatus {
    /// Nodes whose stores are counted here.
    pub nodes: u32,
    /// Each as often as it is kept.
    pub chunks: u64,
    /// Capacity of the volume for segments.
    pub total_bytes: u64,
    /// In segments that hold something.
    pub used_bytes: u64,
    /// Of records of chunks that exist.
    pub live_bytes: u64,
    /// Kept for cleaning and deleting.
    pub reserve_bytes: u64,
    /// In free segments outside the reserve.
    pub free_bytes: u64,
    pub segments_free: u32,
    pub segments_open: u32,
    pub segments_closed: u32,
    /// Chunks that are known to be damaged.
    pub damaged_chunks: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockdStatus {
    /// `running`, or why not.
    pub state: String,
    /// Unless something else runs it.
    pub pid: Option<u32>,
    pub restarts: u64,
    /// Pages behind the buffers that node and blockd share: `hugetlb 2 MiB`, `transparent 2 MiB`, `4 KiB`, or how
    /// much of which.
    pub memory: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    pub job: u64,
    /// `du /src`, `fsck`, `gc`, …
    pub name: String,
    /// Name of the node that does this by itself and for itself; nothing for what concerns the cluster.
    pub node: Option<String>,
    pub started: Timestamp,
    pub progress: Progress,
    /// Of the whole, rounded down. Nothing while the whole is not known.
    pub percent: Option<u8>,
    /// Bytes that are left; nothing where something else is counted.
    pub bytes_left: Option<u64>,
    /// How long the rest takes at the rate of the last minute, in milliseconds; nothing while that is not known.
    pub eta_ms: Option<u64>,
}

/// How far a job is. `total` is 0 while it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, in few words.
    pub phase: String,
    pub done: u64,
    pub total: u64,
    /// What is counted: `inodes`, `chunks`, `bytes`.
    pub unit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    Running(Progress),
    Finished(JobReport),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobReport {
    Du(DuReport),
    Fsck(FsckReport),
    Gc(GcReport),
    Scrub(ScrubReport),
}

/// What a verb about a node leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMoved {
    pub node: u64,
    pub name: String,
    /// As [`Node::state`].
    pub state: String,
    /// Shards that are to get another holder.
    pub shards: u32,
    /// What is to be copied of them.
    pub bytes: u64,
}

/// What the loss of a node leads to, or would lead to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLost {
    pub node: u64,
    pub name: String,
    /// It is out of the cluster; else nothing was changed.
    pub done: bool,
    /// Copies of everything that the cluster wants.
    pub copies_wanted: u32,
    /// Shards that counted on it and go on, by how many copies in sync they have left; fewest first.
    pub left: Vec<CopiesLeft>,
    /// Numbers of the shards of which no copy in sync is left.
    pub lost_shards: Vec<u16>,
    /// Voters of the metadata that are left.
    pub voters: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiesLeft {
    pub copies: u32,
    pub shards: u32,
    /// Those of them whose copies are all on nodes that do not answer either.
    pub shards_waiting: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: u64,
    pub name: String,
    pub address: String,
    /// `joining`, `up`, `draining`, `drained`, `down` or `removed`.
    pub state: String,
    pub capacity_bytes: u64,
    /// What it has said last; nothing of one that is not there.
    pub data: Option<DataStatus>,
    /// As the node that answers sees it by SWIM: `alive`, `suspect`, `down`, `unknown`, or `self`.
    pub seen: String,
    /// Of the metadata group: `leader`, `voter`, `learner`, or empty for one that is not in it.
    pub role: String,
    /// Shards of which it is the primary.
    pub shards_primary: u32,
    /// Empty unless asked for.
    pub shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub id: u16,
    pub epoch: u64,
    pub gc_epoch: u64,
    pub primary: u64,
    pub in_sync: Vec<u64>,
    /// Chunks and their stored bytes, as the primary has said; nothing if it does not answer.
    pub chunks: Option<u64>,
    pub stored_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub session: u64,
    /// Host and mountpoint, as the client said.
    pub client: String,
    /// Peer credentials or certificate subject, as the node saw.
    pub identity: String,
    pub opened: Timestamp,
    /// Since its last sign of life. Nothing while it is awaited after a restart of the node.
    pub idle_ms: Option<u64>,
    pub open_files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cert {
    pub serial: u64,
    /// `client:<name>` or `node:<id>`.
    pub subject: String,
    pub expires: Timestamp,
    pub revoked: bool,
}

/// The certificate authority of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStatus {
    /// Of the one that signs for nodes and is in tokens: the first half of its SHA-256, in hexadecimal digits.
    pub fingerprint: String,
    pub rotation: Option<CaRotation>,
}

/// A replacement that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaRotation {
    /// `introduced`, `issuing` or `showing`.
    pub stage: String,
    pub begun: Timestamp,
    /// Of the new authority; absent until the node that answers has taken it on.
    pub fingerprint: Option<String>,
    /// Clients with old certificates are not waited for.
    pub finish: bool,
    /// Names of nodes that have not taken the last step.
    pub nodes_waited_for: Vec<String>,
    /// Certificates of clients that the old authority has signed.
    pub clients_waited_for: Vec<Cert>,
}

/// Whom a token lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPurpose {
    Client,
    Node,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub purpose: TokenPurpose,
    /// First bytes of its hash in hexadecimal: enough to tell tokens apart.
    pub id: String,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub uses_left: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    pub ino: u64,
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `char-device` or `block-device`.
    pub kind: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub size_bytes: u64,
    /// Backed by extents.
    pub allocated_bytes: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub created: Timestamp,
    /// Log entry that last changed the record, and the content.
    pub version: u64,
    pub data_version: u64,
    pub extents: Vec<ExtentStat>,
    /// Where to ask on when there are more.
    pub next_offset_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentStat {
    pub offset_bytes: u64,
    pub len_bytes: u32,
    /// Log entry that wrote it.
    pub version: u64,
    pub backing: Backing,
}

/// What backs an extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// The bytes are in the metadata, for good or until they are settled into a chunk.
    Inline,
    /// Allocated and never written.
    Zero,
    Chunk {
        /// BLAKE3 of the plaintext, hexadecimal.
        hash: String,
        shard: u16,
        offset_in_chunk_bytes: u32,
        /// Extents that reference it, in the whole cluster.
        references: u64,
        /// Plain and stored length. Nothing when the chunk is missing.
        plain_bytes: Option<u32>,
        stored_bytes: Option<u32>,
    },
}

/// What a subtree takes. Hard links and chunks are counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuReport {
    pub files: u64,
    pub directories: u64,
    pub others: u64,
    /// Sum of the file sizes.
    pub logical_bytes: u64,
    /// Backed by extents: without the holes. The sum of the next three.
    pub allocated_bytes: u64,
    /// Kept in the metadata.
    pub inline_bytes: u64,
    /// Allocated and never written.
    pub zero_bytes: u64,
    /// Backed by chunks.
    pub chunked_bytes: u64,
    /// Distinct chunks, and their length before and after compression and sealing.
    pub chunks: u64,
    pub plain_bytes: u64,
    pub stored_bytes: u64,
    /// Part of `stored_bytes` that nothing outside of the subtree references: what deleting it frees.
    pub unique_bytes: u64,
    /// Part of `stored_bytes` that something outside references, too.
    pub shared_bytes: u64,
    /// Chunks that should be stored and are not.
    pub missing_chunks: u64,
    /// Stored bytes of all chunks of the cluster, each counted once, to compare with.
    pub pool_live_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckReport {
    pub inodes: u64,
    pub chunks: u64,
    /// Read and verified; 0 without `read_data`.
    pub chunks_read: u64,
    pub found: u64,
    pub repaired: u64,
    /// At most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Chunks that nothing references: garbage, not damage. With `repair` they are given back.
    pub unreferenced_chunks: u64,
    pub unreferenced_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `NAMESPACE`, `COUNTERS`, `REFERENCES`, `ORPHAN`, `CHUNK_MISSING`, `CHUNK_DAMAGED`, …
    pub code: String,
    pub detail: String,
    pub repaired: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    pub nodes: Vec<NodeScrub>,
}

/// What the scrub of one node found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeScrub {
    pub node: u64,
    pub name: String,
    /// Segments that were read, and their bytes.
    pub segments: u64,
    pub bytes: u64,
    /// Segments that were not as they were written, and how many of them are again.
    pub damaged: u64,
    pub repaired: u64,
    /// Why it is not known to the end.
    pub failed: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    pub dry_run: bool,
    /// Before.
    pub pending: GcPending,
    /// What was done; zeros in a dry run.
    pub freed: GcFreed,
    /// Of all nodes that answer, added up.
    pub before: DataStatus,
    pub after: DataStatus,
}

/// What gc would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPending {
    /// Unlinked files that clients hold open: they wait for their close.
    pub orphans: u64,
    /// Inline extents that wait to be put into chunks.
    pub unsettled_extents: u64,
    /// Deleted files whose extents are not freed yet.
    pub dead_inodes: u64,
    /// Chunks that nothing references any more, and their stored bytes; each counted once, however often it is kept.
    pub garbage_chunks: u64,
    pub garbage_bytes: u64,
    /// Bytes in segments that no live record uses, to be gained by cleaning, on all nodes.
    pub dead_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcFreed {
    pub chunks: u64,
    /// Bytes of their records; each counted once.
    pub chunk_bytes: u64,
    /// Segments that are free now and were not before, on all nodes.
    pub segments: u64,
}
