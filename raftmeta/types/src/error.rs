//! The ways a command or a read of the metadata can be refused.
//!
//! Which errno each becomes is decided in `fuse` (`fuse/src/errno.rs`), nowhere else.

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHash, Epoch};

pub type MetaResult<T> = Result<T, MetaError>;

/// Refusals that are part of the state machine's answer: every replica computes the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MetaError {
    #[error("no such file or directory")]
    NotFound,
    #[error("file exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name longer than 255 bytes")]
    NameTooLong,
    #[error("invalid argument: {0}")]
    Invalid(String),
    #[error("too many links")]
    TooManyLinks,
    #[error("file too large")]
    FileTooLarge,
    #[error("no such extended attribute")]
    NoXattr,
    #[error("extended attributes too large")]
    XattrTooLarge,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("permission denied")]
    AccessDenied,
    #[error("operation not supported: {0}")]
    Unsupported(String),
    /// The inode is gone: unlinked, and no session holds it open.
    #[error("stale inode")]
    Stale,
    /// A lock is held by another owner.
    #[error("lock held by another owner")]
    WouldBlock,
    /// These chunks may be under deletion: put them again and commit with the new receipts.
    #[error("put {} chunks again", .0.len())]
    RetryPut(Vec<ChunkHash>),
    /// A settling or gc command that came too late; nothing was changed.
    #[error("superseded")]
    Superseded,
    /// The session ended (its lease ran out, or an administrator ended it).
    #[error("session expired")]
    SessionExpired,
    /// A retry of a command whose reply is no longer kept: the client reused a slot out of order.
    #[error("request out of sequence")]
    OutOfSequence,
    /// The command names an epoch that the state machine has left behind.
    #[error("stale epoch, current is {0}")]
    StaleEpoch(Epoch),
    #[error("no space left")]
    NoSpace,
    #[error("token is {0}")]
    Token(crate::cluster::TokenRefusal),
    /// The node is in another state than the command expects.
    #[error("the node is {0}")]
    NodeIs(crate::cluster::NodeState),
    #[error("another node of the cluster is called `{0}`")]
    NameTaken(String),
}
