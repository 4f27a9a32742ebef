//! Extents: the one mutable link between metadata and data.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{ChunkHash, Version};

/// A range of a file and what backs it. Extents of a file never overlap; what none covers is a hole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u32,
    pub data: ExtentData,
    /// Entry that wrote it. A settling command names it, so that it never undoes a newer write.
    pub version: Version,
}

/// What backs an extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentData {
    /// The bytes themselves: a small write that travelled in its command. `len` bytes.
    Inline(Bytes),
    /// `len` bytes of a chunk from `chunk_offset` on.
    Chunk { hash: ChunkHash, chunk_offset: u32 },
    /// Allocated by `fallocate` and not written yet: reads as zeros, counts as allocated.
    Zero,
}
