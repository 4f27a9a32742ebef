//! The plain data that the metadata group agrees on: ids, inodes, extents, commands and replies.
//!
//! Nothing here reads a clock, opens a file or decides anything. `raftmeta` applies these commands,
//! `fsd-rpc` carries them, `fuse` builds them.
//!
//! | module | what |
//! |---|---|
//! | [`ids`] | newtypes: [`Ino`], [`ShardId`], [`Epoch`], [`SessionId`], [`ChunkHash`], … |
//! | [`inode`] | [`Inode`], [`FileKind`], [`Time`] |
//! | [`extent`] | [`Extent`]: what backs a range of a file |
//! | [`command`] | [`Command`]: everything that changes the namespace or the cluster map |
//! | [`reply`] | [`Reply`]: what a command answers |
//! | [`lock`] | byte-range and whole-file locks |
//! | [`cluster`] | nodes, shards, tokens, certificates |
//! | [`error`] | [`MetaError`]: the ways a command or a read can be refused |

#![forbid(unsafe_code)]

pub mod cluster;
pub mod command;
pub mod error;
pub mod extent;
pub mod ids;
pub mod inode;
pub mod lock;
pub mod reply;

pub use command::{Command, Envelope};
pub use error::{MetaError, MetaResult};
pub use extent::{Extent, ExtentData};
pub use ids::{ChunkHash, Epoch, Ino, NodeId, SessionId, ShardId, Version};
pub use inode::{FileKind, Inode, Time};
pub use reply::Reply;

/// Longest name of a directory entry, in bytes (POSIX `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes, as Linux has it (`PATH_MAX` - 1).
pub const SYMLINK_MAX: usize = 4095;
/// Longest name of an extended attribute, in bytes (Linux `XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Largest value of one extended attribute, in bytes (Linux `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Most hard links to one inode (ext4 has 65000; beyond is EMLINK).
pub const LINK_MAX: u32 = 65000;
/// Largest file size in bytes (`i64::MAX`, what `off_t` can say).
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;
/// Most bytes of inline data that one [`command::Write`] may carry; larger goes through chunks.
pub const INLINE_WRITE_MAX: usize = 128 * 1024;
/// Largest plaintext of one chunk, in bytes.
pub const CHUNK_MAX: usize = 1024 * 1024;
