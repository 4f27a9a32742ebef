//! Everything that changes the namespace or the cluster map.
//!
//! A command is applied by every replica with the same result: time and any randomness are stamped
//! into the [`Envelope`] before it is proposed, numbers such as inode numbers come from counters in
//! the state machine.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::{
    CertificateInfo, ClusterInfo, NodeInfo, NodeState, Protection, RotationStage, SessionInfo,
    ShardChange, TokenInfo,
};
use crate::extent::ExtentData;
use crate::ids::{ChunkHash, Epoch, Ino, NodeId, SessionId, ShardId, Version};
use crate::inode::{FileKind, Time};
use crate::lock::Lock;

/// A command with what makes it exactly-once and deterministic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Who asks; [`SessionId::SERVER`] is not deduplicated.
    pub session: SessionId,
    /// Slot of the session (as in NFSv4.1): a client has one command under way per slot.
    pub slot: u16,
    /// Number of the command in its slot, from 1. The same number again returns the stored reply.
    pub seq: u64,
    /// Stamped by the leader; never before the previous command's.
    pub time: Time,
    pub command: Command,
}

/// Most slots of a session.
pub const SLOTS_MAX: u16 = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    // --- namespace ---------------------------------------------------------------------------
    Create(Create),
    Link {
        ino: Ino,
        parent: Ino,
        name: Bytes,
    },
    Unlink(Unlink),
    Rename(Rename),
    SetAttr(SetAttr),
    SetXattr {
        ino: Ino,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
    },
    RemoveXattr {
        ino: Ino,
        name: Bytes,
    },
    // --- file content ------------------------------------------------------------------------
    Write(Write),
    Allocate(Allocate),
    CopyRange(CopyRange),
    /// Replaces inline extents by chunks that now hold the same bytes.
    Settle(Vec<Settle>),
    // --- locks and sessions ------------------------------------------------------------------
    Lock(Lock),
    /// Drops every lock of this owner on the inode (close of a descriptor, end of an open file).
    UnlockOwner {
        ino: Ino,
        owner: u64,
    },
    OpenSession(SessionInfo),
    /// Drops locks, orphan holds and stored replies of the session.
    CloseSession {
        session: SessionId,
    },
    /// The session no longer has these unlinked files open.
    ReleaseOrphans {
        session: SessionId,
        inos: Vec<Ino>,
    },
    /// Frees what unlinked files left behind, at most `limit` extents; repeated until none is left.
    Reap {
        limit: u32,
    },
    /// Corrects what fsck found.
    Repair(Vec<Repair>),
    // --- chunk garbage (DESIGN.md §5) --------------------------------------------------------
    /// Raises the shard's gc epoch to `epoch` and marks those of `hashes` that nothing references.
    BeginDelete {
        shard: ShardId,
        epoch: Epoch,
        hashes: Vec<ChunkHash>,
    },
    /// The shard has deleted what `BeginDelete` marked under `epoch`.
    EndDelete {
        shard: ShardId,
        epoch: Epoch,
    },
    // --- cluster -----------------------------------------------------------------------------
    InitCluster {
        cluster: ClusterInfo,
        sealed_ca: Bytes,
    },
    SetNode(NodeInfo),
    CreateToken(TokenInfo),
    /// Takes one use of a token and records the certificate issued for it.
    UseToken {
        token_hash: [u8; 32],
        certificate: CertificateInfo,
    },
    RevokeCertificate {
        serial: u64,
    },
    /// A certificate that was issued without a token: a renewal.
    RecordCertificate {
        certificate: CertificateInfo,
    },
    /// A token with which a storage node joins; those of `CreateToken` are for clients.
    CreateNodeToken(TokenInfo),
    /// Takes one use of a node's token, records its certificate and enters it as `Joining`.
    JoinNode {
        token_hash: [u8; 32],
        certificate: CertificateInfo,
        node: NodeInfo,
    },
    /// Takes a node from one state to the next; refused if it is in another one by now.
    SetNodeState {
        node: NodeId,
        from: NodeState,
        to: NodeState,
    },
    SetProtection(Protection),
    /// All of the changes or none.
    SetShards(Vec<ShardChange>),
    /// A step of the replacement of the certificate authority.
    Rotate(RotateStep),
    /// A certificate in the place of an earlier one of the same client.
    RenewCertificate {
        replaced: u64,
        certificate: CertificateInfo,
    },
    /// Takes a node out of the cluster whose disks are gone for good, and out of all shards. `Invalid` if one of them
    /// has no other replica in sync and is not among the `heirs`.
    RemoveLost {
        node: NodeId,
        /// Nodes that are up and begin shards anew of which nothing is left.
        heirs: Vec<(ShardId, NodeId)>,
    },
}

/// See [`Command::Rotate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotateStep {
    /// `Exists` while another one is under way.
    Begin {
        /// The new authority.
        sealed: Bytes,
    },
    /// Clients with old certificates are not waited for.
    Finish,
    /// `Superseded` if it is in another stage by now.
    Advance { from: RotationStage },
}

/// Makes an inode, and an entry for it unless `name` is empty (`O_TMPFILE`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    pub parent: Ino,
    /// Empty for `O_TMPFILE`: the inode starts as an orphan held by the session.
    pub name: Bytes,
    pub kind: FileKind,
    /// Permission bits asked for, before umask or default ACL.
    pub mode: u32,
    /// Applied unless the parent has a default ACL.
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Target of a symbolic link; else empty.
    pub target: Bytes,
    /// With `false` an existing regular file is returned instead of [`crate::MetaError::Exists`].
    pub exclusive: bool,
    /// The session has what it makes open from then on. Who has what open is not replicated: this is for
    /// the node that it asks.
    pub open: bool,
}

/// Removes an entry; the inode goes with its last link unless a session holds it open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlink {
    pub parent: Ino,
    pub name: Bytes,
    /// `rmdir` rather than `unlink`.
    pub directory: bool,
    /// Sessions that have the inode open, stamped by the leader: `(inode, sessions)`.
    pub open_by: Vec<(Ino, Vec<SessionId>)>,
}

/// `renameat2`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    pub parent: Ino,
    pub name: Bytes,
    pub new_parent: Ino,
    pub new_name: Bytes,
    pub mode: RenameMode,
    /// Sessions that have the replaced inode open, stamped by the leader.
    pub open_by: Vec<(Ino, Vec<SessionId>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The command's time.
    Now,
    At(Time),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// `chmod`, `chown`, `utimensat`, `truncate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    pub ino: Ino,
    pub change: AttrChange,
    /// New size: cuts extents beyond it, or leaves a hole up to it.
    pub size: Option<u64>,
}

/// `setxattr` flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    Set,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

/// Commits written data: the moment a write becomes visible to other mounts.
///
/// All of it is applied or none. Chunk references carry the receipt of their put; the whole write is
/// refused with [`crate::MetaError::RetryPut`] if one may be under deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub ino: Ino,
    /// Ascending, not overlapping. Replaces whatever the ranges held.
    pub extents: Vec<NewExtent>,
    /// Attribute changes that the client held back while it had the file dirty.
    pub change: AttrChange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewExtent {
    pub offset: u64,
    pub len: u32,
    pub data: ExtentData,
    /// For chunk data the shard's gc epoch at the put; else 0.
    pub receipt: Epoch,
}

/// `fallocate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocate {
    pub ino: Ino,
    pub mode: AllocateMode,
    pub offset: u64,
    pub len: u64,
    /// `FALLOC_FL_KEEP_SIZE`
    pub keep_size: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateMode {
    /// Backs holes with [`ExtentData::Zero`].
    Reserve,
    /// `FALLOC_FL_PUNCH_HOLE`
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`
    ZeroRange,
    /// `FALLOC_FL_COLLAPSE_RANGE`
    Collapse,
    /// `FALLOC_FL_INSERT_RANGE`
    Insert,
}

/// `copy_file_range` as a copy of references; both inodes may be the same, ranges must not overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRange {
    pub source: Ino,
    pub source_offset: u64,
    pub target: Ino,
    pub target_offset: u64,
    pub len: u64,
}

/// One inline extent that the chunk store holds by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    pub ino: Ino,
    pub offset: u64,
    pub len: u32,
    /// Version of the inline extent; a newer one is left alone.
    pub version: Version,
    pub hash: ChunkHash,
    pub chunk_offset: u32,
    pub receipt: Epoch,
}

/// One correction of what is kept twice. Numbers are what is to be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Repair {
    Counters {
        inodes: i64,
        logical_bytes: i64,
    },
    /// References of a chunk; at 0 it becomes garbage.
    References {
        hash: ChunkHash,
        by: i64,
    },
    /// Fields of an inode that count something else; `directory_size` in bytes.
    Inode {
        ino: Ino,
        links: i32,
        allocated: i64,
        directory_size: i64,
    },
    /// The mark that an inode has ACLs.
    AclMark {
        ino: Ino,
    },
    /// The entry of an extent in the index of inline data that waits to be settled.
    Unsettled {
        ino: Ino,
        offset: u64,
    },
    /// An unlinked inode that no live session holds, or a record of one that holds nothing.
    Orphan {
        ino: Ino,
    },
    /// What hangs on an inode that does not exist.
    Leftovers {
        ino: Ino,
    },
}
