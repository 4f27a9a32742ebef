//! What can go wrong with chunks. Callers branch on the kind; the context is for the operator.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller can react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// No segment is free outside the reserve: delete and clean, or add devices.
    NoSpace,
    /// What is stored is not what was written: take another copy.
    Damaged,
    /// No chunk of this name is stored here.
    NotFound,
    /// The bytes do not have the name they came with.
    HashMismatch,
    /// Longer than a segment can hold, or a parameter that makes no sense.
    Invalid,
    /// The volume belongs to another cluster.
    Foreign,
    /// The volume was written by a newer version.
    NewerFormat,
    /// The volume was written by a version whose format is no longer read.
    OlderFormat,
    /// The volume was never formatted, or both of its headers are damaged.
    BadHeader,
    /// A key does not fit or a key file cannot be used.
    Key,
    /// A flush failed before: restart, which recovers; nothing is retried.
    Poisoned,
    /// This store is not the primary of the shard: the map says which one is.
    NotPrimary,
    /// Not all in-sync replicas have it: it may become durable, but nothing is promised. Ask again.
    NotReplicated,
    /// The shard has a newer epoch than the caller knows.
    StaleEpoch,
    /// The volume failed the operation.
    Io,
}

/// A failed operation. Cheap to clone: one failed flush ends many puts.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    context: String,
}

impl Error {
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into() }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {}

impl From<blockd_ipc::Error> for Error {
    fn from(error: blockd_ipc::Error) -> Error {
        let kind = match error.kind() {
            blockd_ipc::Kind::Poisoned => Kind::Poisoned,
            _ => Kind::Io,
        };
        Error::new(kind, format!("chunk volume: {error}"))
    }
}
