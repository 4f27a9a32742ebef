//! Reading: what is dirty here, over what the server has, with read-ahead for who reads in order.
//!
//! ```text
//!   known extents? ──no──▶ Extents with their chunks, in one call     (of the range, or further ahead)
//!        │ yes                    │
//!        ▼                        ▼
//!   chunks in the cache? ──no──▶ GetChunks of what is missing, in one call
//!        │ yes
//!        ▼
//!   copied, then what was dirty when the read began is laid over
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::message::{ChunkPut, Failure, Request, Response};
use raftmeta_types::{CHUNK_MAX, ChunkHash, Extent, ExtentData};
use rustix::io::Errno;

use super::{Core, File, Handle, Result, State, unexpected};
use crate::{BackendError, errno};

/// Bytes that one read-ahead request asks for.
const AHEAD_BYTES: u64 = 1 << 20;
/// How far the reading of a file runs ahead at most.
const AHEAD_MAX: u64 = 8 << 20;
/// Chunk bytes in one answer.
const CHUNKS_BYTES_MAX: u32 = 4 << 20;
/// How often chunks are looked for again that garbage collection took away, because the file was
/// overwritten meanwhile.
const STALE_TRIES_MAX: usize = 16;

/// How a handle has been read so far.
#[derive(Default)]
pub(super) struct Pattern {
    /// End of the last read.
    next: u64,
    /// Reads in a row that went on, roughly, where the last one ended.
    in_order: u32,
    /// Up to where read-ahead was asked for.
    ahead: u64,
}

/// Bytes that lay over the file when a read began.
type Patch = (u64, Vec<u8>);

impl Core {
    pub(crate) fn read(&self, fh: u64, offset: u64, len: u32) -> Result<Vec<u8>> {
        let handle = self.handle(fh)?;
        let file = &handle.file;
        self.note_dropped(&handle);
        let wanted = offset..offset.saturating_add(u64::from(len));
        let ahead = handle.pattern.lock().next(&wanted, self.cache_bytes);
        let (patches, size) = {
            let mut state = file.state.lock();
            if !handle.keeps_atime && !self.read_only {
                state.note_access();
            }
            (state.patches(&wanted), state.size())
        };
        let range = offset..wanted.end.min(size);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        self.read_ahead(&handle, &ahead, size);
        let mut buffer = vec![0; (range.end - range.start) as usize];
        let covered = patches
            .first()
            .is_some_and(|(at, bytes)| *at <= range.start && at + bytes.len() as u64 >= range.end);
        if !covered {
            self.fill(file, &range, &mut buffer)?;
        }
        for (at, bytes) in patches {
            let from = (at - offset) as usize;
            let to = (from + bytes.len()).min(buffer.len());
            if from < to {
                buffer[from..to].copy_from_slice(&bytes[..to - from]);
            }
        }
        Ok(buffer)
    }

    /// Puts what the server has of the range into `buffer`.
    fn fill(&self, file: &Arc<File>, range: &Range<u64>, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..STALE_TRIES_MAX {
            let pieces = self.find(file, range)?;
            let chunks = match self.chunks_of(&pieces, range) {
                Ok(chunks) => chunks,
                // The file was overwritten since its extents were asked for: ask again.
                Err(BackendError::Failed(Failure::NoChunk(_))) => {
                    file.state.lock().forget_layout();
                    continue;
                }
                Err(error) => return Err(errno::of(&error)),
            };
            let mut extents = pieces.iter().flat_map(|extents| extents.iter());
            return extents.try_for_each(|extent| copy(extent, &chunks, range, buffer));
        }
        Err(Errno::IO)
    }

    /// The extents of the range: known, being fetched by another, or asked for now.
    fn find(&self, file: &Arc<File>, range: &Range<u64>) -> Result<Vec<Arc<[Extent]>>> {
        let mut state = file.state.lock();
        loop {
            if let Some(pieces) = state.layout.get(range) {
                return Ok(pieces);
            }
            let under_way =
                |loading: &Range<u64>| loading.start < range.end && range.start < loading.end;
            if !state.loading.iter().any(under_way) {
                break;
            }
            file.loaded.wait(&mut state);
        }
        drop(state);
        self.fetch(file, range)
    }

    /// Asks for extents with their chunks, and keeps both.
    fn fetch(&self, file: &File, range: &Range<u64>) -> Result<Vec<Arc<[Extent]>>> {
        file.state.lock().loading.push(range.clone());
        let mut pieces = Vec::new();
        let mut at = range.start;
        let result = loop {
            match self.fetch_part(file, &(at..range.end)) {
                Ok((_, end)) if end <= at => break unexpected(),
                Ok((extents, end)) => {
                    pieces.push(extents);
                    at = end;
                }
                Err(error) => break Err(error),
            }
            if at >= range.end {
                break Ok(pieces);
            }
        };
        let mut state = file.state.lock();
        if let Some(at) = state.loading.iter().position(|loading| loading == range) {
            state.loading.swap_remove(at);
        }
        drop(state);
        file.loaded.notify_all();
        result
    }

    /// The first part of the range, as far as one answer goes, and where that ends.
    fn fetch_part(&self, file: &File, range: &Range<u64>) -> Result<(Arc<[Extent]>, u64)> {
        let content = file.state.lock().content;
        // Both ends may lie within large chunks.
        let chunk_bytes_max = range.end - range.start + 2 * CHUNK_MAX as u64;
        let chunk_bytes_max = chunk_bytes_max.min(u64::from(CHUNKS_BYTES_MAX));
        let request = Request::Extents {
            ino: file.ino,
            offset: range.start,
            len: range.end - range.start,
            with_chunks: true,
            chunk_bytes_max: chunk_bytes_max as u32,
        };
        let (Response::Extents { inode, extents, end, chunks }, data) = self.call(&request)? else {
            return unexpected();
        };
        // What arrived damaged is missed later and asked for once more.
        self.keep(&chunks, &data);
        let extents: Arc<[Extent]> = extents.into();
        let mut state = file.state.lock();
        if state.content == content {
            state.layout.learn(
                range.start..end.min(range.end),
                inode.data_version,
                extents.clone(),
            );
        }
        Ok((extents, end))
    }

    /// The chunks that the range needs.
    fn chunks_of(
        &self,
        pieces: &[Arc<[Extent]>],
        range: &Range<u64>,
    ) -> std::result::Result<HashMap<ChunkHash, Bytes>, BackendError> {
        let mut chunks = HashMap::new();
        let mut missing = Vec::new();
        for extent in pieces.iter().flat_map(|extents| extents.iter()) {
            let end = extent.offset + u64::from(extent.len);
            let ExtentData::Chunk { hash, .. } = &extent.data else { continue };
            if extent.offset >= range.end || end <= range.start || chunks.contains_key(hash) {
                continue;
            }
            match self.chunks.get(hash) {
                Some(chunk) => _ = chunks.insert(*hash, chunk),
                None if !missing.contains(hash) => missing.push(*hash),
                None => {}
            }
        }
        // A chunk is asked for twice before it counts as damaged.
        for _ in 0..2 {
            if missing.is_empty() {
                break;
            }
            self.get_chunks(&mut missing, &mut chunks)?;
        }
        match missing.first() {
            None => Ok(chunks),
            Some(hash) => {
                let reason = "it does not have the content that its name says".to_owned();
                Err(Failure::Damaged { hash: *hash, reason }.into())
            }
        }
    }

    /// Fetches chunks; those that are what their names say go from `missing` to `chunks`.
    fn get_chunks(
        &self,
        missing: &mut Vec<ChunkHash>,
        chunks: &mut HashMap<ChunkHash, Bytes>,
    ) -> std::result::Result<(), BackendError> {
        let per_call = CHUNKS_BYTES_MAX as usize / CHUNK_MAX;
        for hashes in missing.chunks(per_call) {
            let request = Request::GetChunks { hashes: hashes.to_vec() };
            let (Response::Chunks(listed), data) = self.backend.call(&request, &[])? else {
                return Err(BackendError::Lost("unexpected answer to a get of chunks".to_owned()));
            };
            for (hash, chunk) in split(&listed, &data) {
                if self.chunks.insert_verified(hash, chunk.clone()) {
                    chunks.insert(hash, chunk);
                } else {
                    tracing::error!(%hash, "chunk arrived damaged");
                }
            }
        }
        missing.retain(|hash| !chunks.contains_key(hash));
        Ok(())
    }

    /// Keeps those of the chunks that are what their names say.
    fn keep(&self, chunks: &[ChunkPut], data: &Bytes) {
        for (hash, chunk) in split(chunks, data) {
            if self.chunks.get(&hash).is_none() && !self.chunks.insert_verified(hash, chunk) {
                tracing::error!(%hash, "chunk arrived damaged");
            }
        }
    }

    // --- read-ahead ------------------------------------------------------------------------------

    /// Hands the ranges that come next to the read-ahead threads.
    fn read_ahead(&self, handle: &Handle, ahead: &Range<u64>, size: u64) {
        let mut at = ahead.start;
        while at < ahead.end.min(size) {
            let range = at..(at + AHEAD_BYTES).min(ahead.end);
            at = range.end;
            if !self.ahead.push((handle.file.clone(), range)) {
                return;
            }
        }
    }

    /// Fetches one range of the read-ahead queue, unless it is known or under way.
    pub(crate) fn fetch_ahead(&self, file: &File, range: &Range<u64>) {
        {
            let state = file.state.lock();
            let under_way = state
                .loading
                .iter()
                .any(|loading| loading.start <= range.start && range.end <= loading.end);
            if state.dead || under_way || state.layout.get(range).is_some() {
                return;
            }
        }
        if let Err(error) = self.fetch(file, range) {
            tracing::debug!(ino = file.ino.0, %error, "read-ahead failed, left to the read");
        }
    }
}

/// Takes an answer's data apart. Each chunk is a copy of its own, so that a small one does not keep the
/// whole answer in memory.
fn split(chunks: &[ChunkPut], data: &Bytes) -> Vec<(ChunkHash, Bytes)> {
    let mut at = 0;
    let chunk = |chunk: &ChunkPut| {
        let end = at + chunk.len as usize;
        let bytes = data.get(at..end)?;
        at = end;
        Some((chunk.hash, Bytes::copy_from_slice(bytes)))
    };
    chunks.iter().map_while(chunk).collect()
}

/// Copies what the extent has of the range, which `buffer` shows.
fn copy(
    extent: &Extent,
    chunks: &HashMap<ChunkHash, Bytes>,
    range: &Range<u64>,
    buffer: &mut [u8],
) -> Result<()> {
    let from = extent.offset.max(range.start);
    let to = (extent.offset + u64::from(extent.len)).min(range.end);
    if from >= to {
        return Ok(());
    }
    let skip = (from - extent.offset) as usize;
    let target = &mut buffer[(from - range.start) as usize..(to - range.start) as usize];
    let (bytes, start) = match &extent.data {
        ExtentData::Zero => {
            target.fill(0);
            return Ok(());
        }
        ExtentData::Inline(bytes) => (bytes, skip),
        ExtentData::Chunk { hash, chunk_offset } => {
            (chunks.get(hash).ok_or(Errno::IO)?, *chunk_offset as usize + skip)
        }
    };
    let source = bytes.get(start..start + target.len()).ok_or(Errno::IO)?;
    target.copy_from_slice(source);
    Ok(())
}

impl State {
    /// Copies of what is dirty and flying in the range, oldest first.
    fn patches(&self, range: &Range<u64>) -> Vec<Patch> {
        let flying = self.flying.as_ref().map(|flying| flying.parts(range)).unwrap_or_default();
        let parts = flying.into_iter().chain(self.dirty.parts(range));
        parts.map(|(at, bytes)| (at, bytes.to_vec())).collect()
    }
}

impl Pattern {
    /// Notes a read; answers the range to fetch ahead, behind it.
    fn next(&mut self, read: &Range<u64>, cache_bytes: u64) -> Range<u64> {
        // The kernel's own read-ahead may swap neighbours.
        let slack = AHEAD_BYTES / 2;
        let goes_on = read.start.abs_diff(self.next) <= slack;
        self.next = read.end.max(if goes_on { self.next } else { 0 });
        if !goes_on {
            self.in_order = u32::from(read.start == 0);
            self.ahead = 0;
            return read.end..read.end;
        }
        self.in_order = self.in_order.saturating_add(1);
        if self.in_order < 2 {
            return read.end..read.end;
        }
        let far = (AHEAD_BYTES << self.in_order.min(8)).min(AHEAD_MAX).min(cache_bytes / 4);
        let from = self.ahead.max(read.end);
        let to = (self.next + far) / AHEAD_BYTES * AHEAD_BYTES;
        // Not a few bytes at a time.
        if to < from + AHEAD_BYTES {
            return read.end..read.end;
        }
        self.ahead = to;
        from..to
    }
}
