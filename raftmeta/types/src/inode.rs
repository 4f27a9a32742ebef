//! Inodes and what they are made of.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Ino, Version};

/// A point in time: seconds since 1970-01-01 UTC (may be negative) and nanoseconds 0..1e9.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

/// Type of a file, as `S_IFMT` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// An inode as every reader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub ino: Ino,
    pub kind: FileKind,
    /// Permission bits with set-id and sticky: `07777`, never the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Hard links. For a directory 2 + its subdirectories; 0 once removed.
    pub nlink: u32,
    /// Length in bytes. For a directory the number of its entries times 32, as a hint only.
    pub size: u64,
    /// Bytes of the file that extents back (what `st_blocks` × 512 tells).
    pub allocated: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
    /// Device number of a character or block device, as `makedev` packs it; else 0.
    pub rdev: u32,
    /// Entry that last changed this record.
    pub version: Version,
    /// Entry that last changed the content (data or size): what a client's data cache is valid for.
    pub data_version: Version,
    /// For a directory its parent (what `..` names); for others 0.
    pub parent: Ino,
    /// For a symbolic link its target; else empty.
    pub target: Bytes,
    /// Whether any POSIX ACL is set, so that readers need not ask.
    pub has_acl: bool,
}
