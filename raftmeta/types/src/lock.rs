//! Byte-range (`fcntl`) and whole-file (`flock`) locks.

use serde::{Deserialize, Serialize};

use crate::ids::{Ino, SessionId};

/// Which of the two families of locks; they do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockFamily {
    /// `fcntl` locks, per process or (OFD) per open file.
    Posix,
    /// `flock` locks, per open file.
    Flock,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    Shared,
    Exclusive,
    Unlock,
}

/// Who holds a lock: the kernel's owner number is unique in one session only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    pub session: SessionId,
    pub owner: u64,
}

/// A lock on a range, both ends inclusive (`u64::MAX` is "to the end of the file").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub ino: Ino,
    pub family: LockFamily,
    pub owner: LockOwner,
    pub kind: LockKind,
    pub start: u64,
    pub end: u64,
    /// Process id in the client's namespace, for `F_GETLK`.
    pub pid: u32,
}
