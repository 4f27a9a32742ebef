//! Newtypes of every number that crosses a boundary.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// Inode number: `site:4 | group:12 | sequence:48`, so that a second metadata group and a second
    /// site never collide. 0 is never an inode.
    Ino(u64)
}
id! {
    /// Unit of placement: the first bits of a chunk hash. Below the cluster's shard count.
    ShardId(u16)
}
id! {
    /// Version of the cluster map, or the gc epoch of one shard. Only ever grows.
    Epoch(u64)
}
id! {
    /// A client session, chosen by the server when the session opens. 0 is the server itself.
    SessionId(u64)
}
id! {
    /// A storage node, 1 and up, never used again after removal.
    NodeId(u64)
}
id! {
    /// Version of a record: the index of the Raft log entry that wrote it.
    Version(u64)
}

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
    /// Bits of the sequence part.
    pub const SEQUENCE_BITS: u32 = 48;
}

impl SessionId {
    /// Commands that a storage node proposes for itself (gc, settling, membership).
    pub const SERVER: SessionId = SessionId(0);
}

/// Name of a chunk: the BLAKE3 of its plaintext, and thereby its end-to-end checksum.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// The shard this chunk belongs to: the first bits of the hash.
    ///
    /// `shard_count` is the cluster's, a power of two from 1 to 65536.
    pub fn shard(&self, shard_count: u32) -> ShardId {
        assert!(shard_count.is_power_of_two() && shard_count <= 1 << 16);
        let first = u32::from(u16::from_be_bytes([self.0[0], self.0[1]]));
        ShardId((first >> (16 - shard_count.trailing_zeros())) as u16)
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
