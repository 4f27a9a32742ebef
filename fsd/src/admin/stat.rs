//! `Stat`: one file, its extents and where its chunks are.

use std::collections::HashMap;
use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, Backing, ExtentStat, FileStat, STAT_EXTENTS_MAX, Target};
use fsd_rpc::message::{ChunkSize, Failure};
use raftmeta::KvRead;
use raftmeta::read;
use raftmeta_types::{ChunkHash, Extent, ExtentData, FileKind, Inode};

use super::path::resolve;
use crate::node::Node;
use crate::service::storage;

pub(super) async fn stat(
    node: &Arc<Node>,
    target: &Target,
    from_offset_bytes: u64,
    extents_max: u32,
) -> Result<AdminReply, Failure> {
    let (inode, found, next_offset_bytes) = {
        let view = node.group.view();
        let inode = resolve(&view, target)?;
        let limit = extents_max.clamp(1, STAT_EXTENTS_MAX) as usize;
        let mut found = read::extents(&view, inode.ino, from_offset_bytes, u64::MAX, limit + 1)
            .map_err(storage)?;
        let next = found.get(limit).map(|extent| extent.offset);
        found.truncate(limit);
        (inode, found, next)
    };
    let hashes: Vec<ChunkHash> = found.iter().filter_map(chunk).collect();
    // A node that does not answer does not keep the rest from being shown.
    let sizes = node.sizes(&hashes).await.unwrap_or_else(|_| vec![None; hashes.len()]);
    let sizes: HashMap<ChunkHash, Option<ChunkSize>> = hashes.into_iter().zip(sizes).collect();
    let view = node.group.view();
    let extents = found
        .into_iter()
        .map(|extent| shown(node, &view, extent, &sizes))
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(AdminReply::Stat(Box::new(attributes(inode, extents, next_offset_bytes))))
}

fn chunk(extent: &Extent) -> Option<ChunkHash> {
    match extent.data {
        ExtentData::Chunk { hash, .. } => Some(hash),
        ExtentData::Inline(_) | ExtentData::Zero => None,
    }
}

fn attributes(inode: Inode, extents: Vec<ExtentStat>, next: Option<u64>) -> FileStat {
    FileStat {
        ino: inode.ino.0,
        kind: kind(inode.kind).to_owned(),
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        links: inode.nlink,
        size_bytes: inode.size,
        allocated_bytes: inode.allocated,
        modified: inode.mtime.into(),
        changed: inode.ctime.into(),
        created: inode.btime.into(),
        version: inode.version.0,
        data_version: inode.data_version.0,
        extents,
        next_offset_bytes: next,
    }
}

fn shown(
    node: &Node,
    view: &impl KvRead,
    extent: Extent,
    sizes: &HashMap<ChunkHash, Option<ChunkSize>>,
) -> Result<ExtentStat, Failure> {
    let size = chunk(&extent).and_then(|hash| sizes.get(&hash).copied().flatten());
    let backing = match extent.data {
        ExtentData::Inline(_) => Backing::Inline,
        ExtentData::Zero => Backing::Zero,
        ExtentData::Chunk { hash, chunk_offset } => Backing::Chunk {
            hash: hash.to_string(),
            shard: hash.shard(node.cluster.shard_count).0,
            offset_in_chunk_bytes: chunk_offset,
            references: read::references(view, &hash).map_err(storage)?,
            plain_bytes: size.map(|size| size.plain),
            stored_bytes: size.map(|size| size.stored),
        },
    };
    Ok(ExtentStat {
        offset_bytes: extent.offset,
        len_bytes: extent.len,
        version: extent.version.0,
        backing,
    })
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char-device",
        FileKind::BlockDevice => "block-device",
    }
}
