//! What the operations mean, free of the kernel's protocol.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::message::{ChunkPut, DirEntry, Failure, Request, Response};
use parking_lot::Mutex;
use raftmeta_types::command::{AttrChange, Create, NewExtent, SetAttr, Write};
use raftmeta_types::*;
use rustix::io::Errno;

use crate::buffer::Dirty;
use crate::cache::ChunkCache;
use crate::{Backend, BackendError, errno};

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// A file's unsent bytes are sent once there are this many.
const FLUSH_BYTES: usize = 8 << 20;
const PUT_BATCH: usize = 2 << 20;
const READ_AHEAD: u64 = 1 << 20;
/// Largest file offset.
const OFFSET_MAX: u64 = i64::MAX as u64;

pub(crate) struct Core {
    pub(crate) backend: Arc<dyn Backend>,
    chunks: ChunkCache,
    files: Mutex<HashMap<Ino, Arc<File>>>,
    handles: Mutex<Handles>,
    /// Content version that the kernel's page cache may hold.
    seen: Mutex<HashMap<Ino, Version>>,
}

#[derive(Default)]
struct Handles {
    next: u64,
    files: HashMap<u64, (Arc<File>, u64)>,
    dirs: HashMap<u64, Arc<Mutex<Dir>>>,
}

/// A directory being listed.
#[derive(Default)]
pub(crate) struct Dir {
    pub(crate) entries: Vec<DirEntry>,
    end: bool,
}

/// An inode that has open handles.
pub(crate) struct File {
    ino: Ino,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inode: Option<Inode>,
    opens: u64,
    /// Taken out of the table: look it up again.
    dead: bool,
    dirty: Dirty,
    /// Commands for this file were answered before they were durable.
    undurable: bool,
    /// Last failed flush: its number and errno, told once to every handle.
    failures: u64,
    failure: Option<Errno>,
    /// Extents known for a range of the file, as of `data_version` of `inode`.
    extents: Option<(u64, u64, Vec<Extent>)>,
}

fn unexpected<T>() -> Result<T> {
    Err(Errno::IO)
}

impl Core {
    pub(crate) fn new(backend: Arc<dyn Backend>, cache_bytes: u64) -> Core {
        Core {
            backend,
            chunks: ChunkCache::new(cache_bytes),
            files: Mutex::default(),
            handles: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    pub(crate) fn call(&self, request: &Request) -> Result<(Response, Bytes)> {
        self.backend.call(request, &[]).map_err(|error| errno::of(&error))
    }

    pub(crate) fn mutate(&self, command: Command) -> Result<Reply> {
        self.backend.mutate(false, command).map_err(|error| errno::of(&error))
    }

    fn inode_of(&self, request: &Request) -> Result<Inode> {
        match self.call(request)?.0 {
            Response::Inode(inode) => Ok(self.local(inode)),
            _ => unexpected(),
        }
    }

    /// The inode with what is dirty here.
    fn local(&self, mut inode: Inode) -> Inode {
        let file = self.files.lock().get(&inode.ino).cloned();
        if let Some(file) = file {
            let mut state = file.state.lock();
            if state.dirty.is_empty() {
                state.adopt(inode.clone());
            } else if let Some(mine) = &state.inode {
                inode.size = mine.size.max(inode.size);
                inode.mtime = mine.mtime;
            }
        }
        inode
    }

    pub(crate) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        match name {
            b"." => self.getattr(parent),
            b".." => {
                let up = self.getattr(parent)?.parent;
                self.getattr(if up == Ino(0) { Ino::ROOT } else { up })
            }
            _ => self.inode_of(&Request::Lookup { parent, name: Bytes::copy_from_slice(name) }),
        }
    }

    pub(crate) fn forget(&self, ino: Ino) {
        self.seen.lock().remove(&ino);
    }

    pub(crate) fn getattr(&self, ino: Ino) -> Result<Inode> {
        self.inode_of(&Request::GetAttr { ino })
    }

    pub(crate) fn setattr(&self, set: SetAttr) -> Result<Inode> {
        let file = self.files.lock().get(&set.ino).cloned();
        let mut state = file.as_ref().map(|file| file.state.lock());
        if let Some(state) = &mut state {
            if let Some(size) = set.size {
                state.dirty.cut(size, u64::MAX);
            }
            // Later commits would stamp their own time over the one set here.
            self.flush_state(set.ino, state, false)?;
        }
        let resized = set.size.is_some();
        match self.mutate(Command::SetAttr(set))? {
            Reply::Inode(inode) => {
                if let Some(state) = &mut state {
                    state.undurable = true;
                    if resized {
                        state.extents = None;
                    }
                    state.adopt(inode.clone());
                }
                Ok(inode)
            }
            _ => unexpected(),
        }
    }

    pub(crate) fn create(&self, create: Create) -> Result<(Inode, bool)> {
        match self.mutate(Command::Create(create))? {
            Reply::Created { inode, new } => Ok((inode, new)),
            _ => unexpected(),
        }
    }

    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Inode> {
        match self.mutate(Command::Link { ino, parent, name: Bytes::copy_from_slice(name) })? {
            Reply::Inode(inode) => Ok(self.local(inode)),
            _ => unexpected(),
        }
    }

    fn file(&self, ino: Ino) -> Arc<File> {
        let new = || Arc::new(File { ino, state: Mutex::default() });
        self.files.lock().entry(ino).or_insert_with(new).clone()
    }

    /// Opens a file; answers its handle and whether the kernel's pages are still good. `fresh`: the
    /// caller has just made it.
    pub(crate) fn open(&self, ino: Ino, truncate: bool, fresh: bool) -> Result<(u64, bool)> {
        let (file, keep, failures) = loop {
            let file = self.file(ino);
            let mut state = file.state.lock();
            if state.dead {
                continue;
            }
            let opened = self.call(&Request::Open { ino });
            let inode = match opened {
                Ok((Response::Inode(inode), _)) => inode,
                other => {
                    self.retire(ino, &mut state);
                    return other.and_then(|_| unexpected());
                }
            };
            let keep = self.seen.lock().insert(ino, inode.data_version) == Some(inode.data_version);
            if state.dirty.is_empty() {
                state.adopt(inode);
            }
            state.opens += 1;
            state.undurable |= fresh;
            let failures = state.failures;
            drop(state);
            break (file, keep, failures);
        };
        let mut handles = self.handles.lock();
        handles.next += 1;
        let fh = handles.next;
        handles.files.insert(fh, (file, failures));
        drop(handles);
        if truncate {
            let set = SetAttr { ino, change: AttrChange::default(), size: Some(0) };
            if let Err(error) = self.setattr(set) {
                self.release(fh);
                return Err(error);
            }
        }
        Ok((fh, keep && !truncate))
    }

    fn retire(&self, ino: Ino, state: &mut State) {
        if state.opens == 0 {
            state.dead = true;
            self.files.lock().remove(&ino);
        }
    }

    pub(crate) fn release(&self, fh: u64) {
        let Some((file, _)) = self.handles.lock().files.remove(&fh) else { return };
        let mut state = file.state.lock();
        state.opens -= 1;
        if state.opens > 0 {
            return;
        }
        if let Err(error) = self.flush_state(file.ino, &mut state, true) {
            tracing::error!(ino = file.ino.0, %error, "written data lost: no handle is left to retry");
        }
        if let Err(error) = self.call(&Request::Close { inos: vec![file.ino] }) {
            tracing::warn!(ino = file.ino.0, %error, "close not reported");
        }
        self.retire(file.ino, &mut state);
    }

    pub(crate) fn open_inodes(&self) -> Vec<Ino> {
        self.files.lock().keys().copied().collect()
    }

    fn handle(&self, fh: u64) -> Result<(Arc<File>, u64)> {
        self.handles.lock().files.get(&fh).cloned().ok_or(Errno::BADF)
    }

    /// Commits what is dirty, durably, and tells this handle of a failure it has not heard of.
    pub(crate) fn sync(&self, fh: u64) -> Result<()> {
        let (file, heard) = self.handle(fh)?;
        let mut state = file.state.lock();
        let result = self.flush_state(file.ino, &mut state, true);
        if let Some((_, heard)) = self.handles.lock().files.get_mut(&fh) {
            *heard = state.failures;
        }
        result?;
        match state.failure {
            Some(error) if state.failures > heard => Err(error),
            _ => Ok(()),
        }
    }

    /// Everything answered so far becomes durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.commit_all()?;
        self.call(&Request::Sync).map(drop)
    }

    fn commit_all(&self) -> Result<()> {
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        files.iter().try_for_each(|file| self.flush_state(file.ino, &mut file.state.lock(), false))
    }

    /// Commits what is dirty of one inode, so that others (and the server's own work on it) see it.
    pub(crate) fn commit(&self, ino: Ino) -> Result<()> {
        let file = self.files.lock().get(&ino).cloned();
        file.map_or(Ok(()), |file| self.flush_state(ino, &mut file.state.lock(), false))
    }

    /// Forgets what is known of the content; the next read asks the server.
    pub(crate) fn invalidate(&self, ino: Ino) {
        self.seen.lock().remove(&ino);
        let file = self.files.lock().get(&ino).cloned();
        if let Some(file) = file {
            file.state.lock().extents = None;
        }
    }

    pub(crate) fn invalidate_all(&self) {
        self.seen.lock().clear();
        let files: Vec<_> = self.files.lock().values().cloned().collect();
        files.iter().for_each(|file| file.state.lock().extents = None);
    }

    fn flush_state(&self, ino: Ino, state: &mut State, durable: bool) -> Result<()> {
        let result = if !state.dirty.is_empty() {
            self.commit_dirty(ino, state, durable)
        } else if durable && state.undurable {
            self.backend.call(&Request::Sync, &[]).map(|_| state.undurable = false)
        } else {
            Ok(())
        };
        result.map_err(|error| {
            let number = errno::of(&error);
            tracing::warn!(ino = ino.0, %error, "flush failed");
            state.failures += 1;
            state.failure = Some(number);
            number
        })
    }

    fn commit_dirty(
        &self,
        ino: Ino,
        state: &mut State,
        durable: bool,
    ) -> std::result::Result<(), BackendError> {
        let mut attempts = 0;
        loop {
            let extents = self.store(&state.dirty)?;
            let write = Write { ino, extents, change: AttrChange::default() };
            match self.backend.mutate(durable, Command::Write(write)) {
                Ok(Reply::Inode(inode)) => {
                    state.dirty.clear();
                    state.extents = None;
                    state.undurable = !durable;
                    self.seen.lock().insert(ino, inode.data_version);
                    state.inode = Some(inode);
                    return Ok(());
                }
                Ok(_) => return Err(BackendError::Lost("unexpected reply".to_owned())),
                // The chunks were about to be deleted: put them again under the new epoch.
                Err(BackendError::Failed(Failure::Meta(MetaError::RetryPut(_))))
                    if attempts < 8 =>
                {
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Brings dirty bytes where a commit can name them: inline, or in chunks.
    fn store(&self, dirty: &Dirty) -> std::result::Result<Vec<NewExtent>, BackendError> {
        let limits = self.backend.limits();
        if dirty.bytes() <= limits.inline_max as usize {
            return Ok(dirty
                .ranges()
                .map(|(offset, data)| NewExtent {
                    offset,
                    len: data.len() as u32,
                    data: ExtentData::Inline(Bytes::copy_from_slice(data)),
                    receipt: Epoch(0),
                })
                .collect());
        }
        let mut pieces: Vec<(u64, ChunkHash, &[u8])> = Vec::new();
        for (offset, data) in dirty.ranges() {
            let (min, avg, max) = (limits.chunk_min, limits.chunk_avg, limits.chunk_max);
            for cut in fastcdc::v2020::FastCDC::new(data, min as _, avg as _, max as _) {
                let piece = &data[cut.offset..cut.offset + cut.length];
                let hash = ChunkHash(*blake3::hash(piece).as_bytes());
                pieces.push((offset + cut.offset as u64, hash, piece));
            }
        }
        let mut extents = Vec::with_capacity(pieces.len());
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|piece| {
                bytes += piece.2.len();
                bytes <= PUT_BATCH
            });
            let (batch, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let chunks = batch
                .iter()
                .map(|(_, hash, piece)| ChunkPut { hash: *hash, len: piece.len() as u32 })
                .collect();
            let data: Vec<&[u8]> = batch.iter().map(|piece| piece.2).collect();
            let receipts = match self.backend.call(&Request::PutChunks { chunks }, &data)?.0 {
                Response::Receipts(receipts) if receipts.len() == batch.len() => receipts,
                _ => return Err(BackendError::Lost("unexpected answer to a put".to_owned())),
            };
            for ((offset, hash, piece), receipt) in batch.iter().zip(receipts) {
                extents.push(NewExtent {
                    offset: *offset,
                    len: piece.len() as u32,
                    data: ExtentData::Chunk { hash: *hash, chunk_offset: 0 },
                    receipt,
                });
            }
        }
        Ok(extents)
    }

    /// Buffers a write. `append`: at the end, wherever the kernel believes it is. `sync`: `O_SYNC`.
    pub(crate) fn write(
        &self,
        fh: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        sync: bool,
    ) -> Result<()> {
        let (file, _) = self.handle(fh)?;
        let mut state = file.state.lock();
        let size = state.inode.as_ref().map_or(0, |inode| inode.size);
        let offset = if append { size } else { offset };
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= OFFSET_MAX);
        let end = end.ok_or(Errno::FBIG)?;
        if state.dirty.bytes() + data.len() > FLUSH_BYTES {
            self.flush_state(file.ino, &mut state, false)?;
        }
        state.dirty.write(offset, data);
        if let Some(inode) = &mut state.inode {
            inode.size = inode.size.max(end);
            inode.mtime = now();
        }
        if sync { self.flush_state(file.ino, &mut state, true) } else { Ok(()) }
    }

    pub(crate) fn read(&self, fh: u64, offset: u64, len: u32) -> Result<Vec<u8>> {
        let (file, _) = self.handle(fh)?;
        let mut state = file.state.lock();
        let end = offset.saturating_add(u64::from(len));
        let known = matches!(&state.extents, Some((from, to, _)) if *from <= offset && end <= *to);
        if !known {
            let request = Request::Extents {
                ino: file.ino,
                offset,
                len: u64::from(len).max(READ_AHEAD),
                with_chunks: true,
                chunk_bytes_max: 2 << 20,
            };
            let (Response::Extents { inode, extents, chunks, .. }, data) = self.call(&request)?
            else {
                return unexpected();
            };
            // A damaged one is missed below and fetched again.
            self.keep(&chunks, &data);
            if state.dirty.is_empty() {
                state.inode = Some(inode);
            }
            state.extents = Some((offset, offset + u64::from(len).max(READ_AHEAD), extents));
        }
        let size = state.inode.as_ref().map_or(0, |inode| inode.size);
        let end = end.min(size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; (end - offset) as usize];
        if let Some((_, _, extents)) = &state.extents {
            self.fill(extents, offset, &mut buffer)?;
        }
        state.dirty.overlay(offset, &mut buffer);
        Ok(buffer)
    }

    fn fill(&self, extents: &[Extent], offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        for extent in extents {
            let from = extent.offset.max(offset);
            let to = (extent.offset + u64::from(extent.len)).min(end);
            if from >= to {
                continue;
            }
            let skip = (from - extent.offset) as usize;
            let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            let (bytes, start) = match &extent.data {
                ExtentData::Zero => continue,
                ExtentData::Inline(bytes) => (bytes.clone(), skip),
                ExtentData::Chunk { hash, chunk_offset } => {
                    (self.chunk(hash)?, *chunk_offset as usize + skip)
                }
            };
            let source = bytes.get(start..start + target.len()).ok_or(Errno::IO)?;
            target.copy_from_slice(source);
        }
        Ok(())
    }

    /// Keeps those of the chunks that are what their names say.
    fn keep(&self, chunks: &[ChunkPut], data: &Bytes) {
        let mut at = 0;
        for chunk in chunks {
            let end = at + chunk.len as usize;
            if end > data.len() {
                return;
            }
            // Copied, so that a small chunk does not keep the whole answer in memory.
            let bytes = Bytes::copy_from_slice(&data[at..end]);
            if !self.chunks.insert_verified(chunk.hash, bytes) {
                tracing::error!(hash = %chunk.hash, "chunk arrived damaged");
            }
            at = end;
        }
    }

    fn chunk(&self, hash: &ChunkHash) -> Result<Bytes> {
        if let Some(chunk) = self.chunks.get(hash) {
            return Ok(chunk);
        }
        for _ in 0..2 {
            let (_, data) = self.call(&Request::GetChunks { hashes: vec![*hash] })?;
            if self.chunks.insert_verified(*hash, data.clone()) {
                return Ok(data);
            }
            tracing::error!(%hash, "chunk arrived damaged");
        }
        Err(Errno::IO)
    }

    /// `SEEK_DATA` (`data`) or `SEEK_HOLE` from `offset`.
    pub(crate) fn seek(&self, ino: Ino, offset: u64, data: bool) -> Result<u64> {
        self.commit(ino)?;
        let request = Request::Extents {
            ino,
            offset,
            len: OFFSET_MAX - offset.min(OFFSET_MAX),
            with_chunks: false,
            chunk_bytes_max: 0,
        };
        let (Response::Extents { inode, extents, .. }, _) = self.call(&request)? else {
            return unexpected();
        };
        if offset >= inode.size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        for extent in extents.iter().filter(|extent| extent.data != ExtentData::Zero) {
            if extent.offset > at && !data {
                return Ok(at);
            }
            if data && extent.offset < inode.size {
                return Ok(at.max(extent.offset));
            }
            at = at.max(extent.offset + u64::from(extent.len));
        }
        if data { Err(Errno::NXIO) } else { Ok(at.min(inode.size)) }
    }

    /// Runs a command that changes content on the server, after what is dirty here.
    pub(crate) fn change(&self, ino: Ino, command: Command) -> Result<Reply> {
        self.commit(ino)?;
        let reply = self.mutate(command)?;
        let file = self.files.lock().get(&ino).cloned();
        if let (Some(file), Reply::Inode(inode) | Reply::Copied { inode, .. }) = (file, &reply) {
            let mut state = file.state.lock();
            state.undurable = true;
            state.extents = None;
            if state.dirty.is_empty() {
                state.adopt(inode.clone());
            }
        }
        Ok(reply)
    }

    pub(crate) fn opendir(&self) -> u64 {
        let mut handles = self.handles.lock();
        handles.next += 1;
        let fh = handles.next;
        handles.dirs.insert(fh, Arc::default());
        fh
    }

    pub(crate) fn releasedir(&self, fh: u64) {
        self.handles.lock().dirs.remove(&fh);
    }

    /// Calls `each` with entry number `from` (0 is the first after `..`) and on, until it says stop.
    pub(crate) fn readdir(
        &self,
        ino: Ino,
        fh: u64,
        from: usize,
        mut each: impl FnMut(usize, &DirEntry) -> bool,
    ) -> Result<()> {
        let dir = self.handles.lock().dirs.get(&fh).cloned().ok_or(Errno::BADF)?;
        let mut dir = dir.lock();
        let mut at = from;
        loop {
            while let Some(entry) = dir.entries.get(at) {
                if !each(at, entry) {
                    return Ok(());
                }
                at += 1;
            }
            if dir.end {
                return Ok(());
            }
            let after = dir.entries.last().map_or_else(Bytes::new, |entry| entry.name.clone());
            match self.call(&Request::ReadDir { ino, after, limit: 512 })?.0 {
                Response::Entries { entries, end } => {
                    dir.end = end || entries.is_empty();
                    dir.entries.extend(entries);
                }
                _ => return unexpected(),
            }
        }
    }

    /// Forgets what was listed, for `rewinddir`.
    pub(crate) fn rewind(&self, fh: u64) {
        let dir = self.handles.lock().dirs.get(&fh).cloned();
        if let Some(dir) = dir {
            *dir.lock() = Dir::default();
        }
    }
}

impl State {
    fn adopt(&mut self, inode: Inode) {
        if self.inode.as_ref().is_some_and(|mine| mine.version > inode.version) {
            return;
        }
        if self.inode.as_ref().is_none_or(|mine| mine.data_version != inode.data_version) {
            self.extents = None;
        }
        self.inode = Some(inode);
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}
