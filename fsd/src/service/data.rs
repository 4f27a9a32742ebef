//! Chunks: put, get, and the extents of a file with theirs.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::frame::DATA_LEN_MAX;
use fsd_rpc::message::{ChunkPut, Failure, Response};
use raftmeta::read;
use raftmeta_types::{CHUNK_MAX, ChunkHash, Extent, ExtentData, FileKind, Ino, MetaError};

use super::read::{ANSWER_BYTES_MAX, storage};
use super::{Answer, plain};
use crate::node::Node;

/// Most chunks in one request.
const CHUNKS_MAX: usize = 4096;
/// Most extents of one answer.
const EXTENTS_MAX: usize = 8192;
/// Encoded bytes of an extent besides its inline data, at most.
const EXTENT_BYTES: usize = 64;

/// The chunks that a request to put some brings.
pub(super) fn pieces(
    chunks: &[ChunkPut],
    data: &Bytes,
) -> Result<Vec<(ChunkHash, Bytes)>, Failure> {
    let malformed = |why: &str| Err(Failure::Protocol(format!("chunks to put: {why}")));
    if chunks.len() > CHUNKS_MAX {
        return malformed("more than 4096 of them");
    }
    let mut at = 0_usize;
    let mut pieces = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let len = chunk.len as usize;
        if len == 0 || len > CHUNK_MAX {
            return malformed("one is empty or longer than 1 MiB");
        }
        if len > data.len() - at {
            return malformed("their lengths exceed the data");
        }
        pieces.push((chunk.hash, data.slice(at..at + len)));
        at += len;
    }
    if at != data.len() {
        return malformed("the data goes on behind them");
    }
    Ok(pieces)
}

/// `Request::PutChunks`.
pub(super) async fn put(node: &Arc<Node>, chunks: &[ChunkPut], data: &Bytes) -> Answer {
    let receipts = node.put_chunks(pieces(chunks, data)?).await?;
    plain(Response::Receipts(receipts))
}

/// `Request::GetChunks`: as many of them, from the first on, as one answer takes.
pub(super) async fn get(node: &Arc<Node>, hashes: &[ChunkHash]) -> Answer {
    if hashes.len() > CHUNKS_MAX {
        return Err(Failure::Protocol("more than 4096 chunks to get".into()));
    }
    let hashes = &hashes[..node.fitting(hashes, DATA_LEN_MAX)];
    answer(hashes, node.get_chunks(hashes).await)
}

/// `NodeRequest::GetChunks`: the same from the store of this node alone.
pub(super) async fn get_here(node: &Arc<Node>, hashes: &[ChunkHash]) -> Answer {
    if hashes.len() > CHUNKS_MAX {
        return Err(Failure::Protocol("more than 4096 chunks to get".into()));
    }
    let hashes = &hashes[..node.fitting(hashes, DATA_LEN_MAX)];
    answer(hashes, node.get_here(hashes).await)
}

/// Those up to the first that is not there; if that is the first of all, what is wrong with it.
fn answer(hashes: &[ChunkHash], found: Vec<Result<Bytes, Failure>>) -> Answer {
    let mut chunks = Vec::with_capacity(hashes.len());
    let mut data = Vec::with_capacity(hashes.len());
    for (hash, found) in hashes.iter().zip(found) {
        match found {
            Ok(bytes) => {
                chunks.push(ChunkPut { hash: *hash, len: bytes.len() as u32 });
                data.push(bytes);
            }
            Err(failure) if chunks.is_empty() => return Err(failure),
            Err(_) => break,
        }
    }
    Ok((Response::Chunks(chunks), data))
}

/// `Request::Extents`.
pub(super) async fn extents(
    node: &Arc<Node>,
    ino: Ino,
    offset: u64,
    len: u64,
    chunk_bytes_max: u32,
) -> Answer {
    let to = offset.saturating_add(len);
    let (inode, extents, end) = {
        let view = node.group.view();
        let inode = read::inode(&view, ino).map_err(storage)?.ok_or(MetaError::Stale)?;
        if inode.kind == FileKind::Directory {
            return Err(MetaError::IsDirectory.into());
        }
        let found = read::extents(&view, ino, offset, to, EXTENTS_MAX).map_err(storage)?;
        let (extents, end) = cut(found, to);
        (inode, extents, end)
    };
    let mut seen = HashSet::new();
    let wanted: Vec<ChunkHash> = extents
        .iter()
        .filter_map(|extent| match &extent.data {
            ExtentData::Chunk { hash, .. } => seen.insert(*hash).then_some(*hash),
            ExtentData::Inline(_) | ExtentData::Zero => None,
        })
        .collect();
    let most = (chunk_bytes_max as usize).min(DATA_LEN_MAX);
    let wanted = &wanted[..node.fitting(&wanted, most)];
    let (mut chunks, mut data) = (Vec::new(), Vec::new());
    for (hash, found) in wanted.iter().zip(node.get_chunks(wanted).await) {
        // One that cannot be read is left out: who needs it asks for it and hears why.
        if let Ok(bytes) = found {
            chunks.push(ChunkPut { hash: *hash, len: bytes.len() as u32 });
            data.push(bytes);
        }
    }
    Ok((Response::Extents { inode, extents, end, chunks }, data))
}

/// Takes away what one answer does not hold, and says how far the rest reaches.
fn cut(mut extents: Vec<Extent>, to: u64) -> (Vec<Extent>, u64) {
    let mut bytes = 0;
    let fits = |extent: &&Extent| {
        let inline = match &extent.data {
            ExtentData::Inline(data) => data.len(),
            ExtentData::Chunk { .. } | ExtentData::Zero => 0,
        };
        bytes += EXTENT_BYTES + inline;
        bytes <= ANSWER_BYTES_MAX
    };
    // At least one: an extent is far smaller than an answer.
    let count = extents.iter().take_while(fits).count();
    let complete = count == extents.len() && count < EXTENTS_MAX;
    extents.truncate(count);
    let reached = extents.last().map(|last| last.offset + u64::from(last.len));
    let end = match (complete, reached) {
        (false, Some(reached)) => reached.min(to),
        (true, _) | (false, None) => to,
    };
    (extents, end)
}
