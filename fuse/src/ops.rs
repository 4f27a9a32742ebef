//! What the operations mean, free of the kernel's protocol. One file per family.
//!
//! A file that is open here has one [`File`], whatever the number of its handles. Its locks, in the
//! order in which they are taken:
//!
//! | lock | held |
//! |---|---|
//! | `flushing` | while dirty bytes are on their way, and by whatever else changes the content on the server |
//! | `state` | for moments, never over a call |
//!
//! A flush moves what is dirty to `flying`, where readers still find it, and forgets it once the server
//! has it. A reader first takes note of what is dirty and flying in its range, then asks for the rest:
//! so it sees the file as it was when it began, or newer.

mod attributes;
mod directory;
mod flush;
mod locks;
mod names;
mod open;
mod plan;
mod read;
mod seen;
mod space;
#[cfg(test)]
mod tests;
mod write;
mod xattr;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use bytes::Bytes;
use fsd_rpc::message::{Request, Response};
use parking_lot::{Condvar, Mutex};
use raftmeta_types::command::{AttrChange, SetTime};
use raftmeta_types::{Command, Ino, Inode, Reply, Time, Version};
use rustix::io::Errno;

use crate::attrs::Attrs;
use crate::budget::Budget;
use crate::buffer::Dirty;
use crate::cache::ChunkCache;
use crate::layout::Layout;
use crate::queue::Queue;
use crate::{Backend, BackendError, MountOptions, errno};

use directory::Dir;
pub(crate) use locks::Locked;
pub(crate) use names::Place;
pub(crate) use open::Opened;
use seen::Seen;
pub(crate) use space::Seek;
pub(crate) use write::{WriteMode, Written};

pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// Largest file offset.
const OFFSET_MAX: u64 = raftmeta_types::FILE_SIZE_MAX;
/// Read-ahead requests that wait for a thread; more are dropped, the reads then fetch for themselves.
const AHEAD_QUEUE_MAX: usize = 64;
/// How often an answer that our own commits overtook is asked for again; then it is taken as it is.
const OVERTAKEN_MAX: usize = 4;

pub(crate) struct Core {
    pub(crate) backend: Arc<dyn Backend>,
    chunks: ChunkCache,
    cache_bytes: u64,
    budget: Budget,
    read_only: bool,
    files: Mutex<HashMap<Ino, Arc<File>>>,
    handles: Mutex<Handles>,
    seen: Seen,
    /// Closed here; the server has not heard of it.
    closed: Mutex<HashSet<Ino>>,
    attrs: Attrs,
    /// Who holds `fcntl` locks through this mount, so that a close of others need not ask.
    lock_owners: Mutex<HashSet<(Ino, u64)>>,
    /// Ranges that a reader will ask for soon.
    pub(crate) ahead: Queue<(Arc<File>, Range<u64>)>,
    /// Files with enough dirty bytes to send.
    pub(crate) back: Queue<Arc<File>>,
    /// Data was lost: the last handle was closed and it could not be sent.
    lost: AtomicBool,
}

#[derive(Default)]
struct Handles {
    next: u64,
    files: HashMap<u64, Arc<Handle>>,
    dirs: HashMap<u64, Arc<Mutex<Dir>>>,
}

/// An open file description.
pub(crate) struct Handle {
    file: Arc<File>,
    writable: bool,
    /// Opened with `O_NOATIME`.
    keeps_atime: bool,
    /// Number of the last failure that this handle has told of.
    heard: AtomicU64,
    pattern: Mutex<read::Pattern>,
    /// The version as of whose open the kernel drops its pages; nothing once it has, which its first use shows.
    dropping: Mutex<Option<Version>>,
}

/// An inode that has open handles.
pub(crate) struct File {
    ino: Ino,
    flushing: Mutex<()>,
    state: Mutex<State>,
    /// A range that was being fetched is there, or failed.
    loaded: Condvar,
}

#[derive(Default)]
struct State {
    /// As the server last told it.
    inode: Option<Inode>,
    opens: u64,
    /// Taken out of the table: look it up again.
    dead: bool,
    dirty: Dirty,
    /// On their way to the server.
    flying: Option<Arc<Dirty>>,
    /// When the oldest dirty byte was written.
    dirty_since: Option<Instant>,
    /// Attribute changes to commit with what is dirty; what is shown until then.
    held: AttrChange,
    /// The same of the flush under way.
    held_flying: AttrChange,
    /// When an attribute or a byte was last changed and is not committed yet.
    changed: Option<Time>,
    /// Waits in the queue for write-back.
    queued: bool,
    /// Commands for this file were answered before they were durable.
    undurable: bool,
    /// Number of failed flushes, and the errno of the last: told once to every handle.
    failures: u64,
    failure: Option<Errno>,
    layout: Layout,
    /// Ranges being fetched.
    loading: Vec<Range<u64>>,
    /// Raised by whatever makes extents stale that are being fetched at this moment.
    content: u64,
    /// The server has said that there is no `security.capability`.
    no_capability: bool,
}

fn unexpected<T>() -> Result<T> {
    tracing::error!("the storage node's answer does not fit the request");
    Err(Errno::IO)
}

impl Core {
    pub(crate) fn new(backend: Arc<dyn Backend>, options: &MountOptions) -> Core {
        Core {
            backend,
            chunks: ChunkCache::new(options.cache_bytes),
            cache_bytes: options.cache_bytes,
            budget: Budget::new(options.dirty_bytes_max),
            read_only: options.read_only,
            files: Mutex::default(),
            handles: Mutex::default(),
            seen: Seen::default(),
            closed: Mutex::default(),
            attrs: Attrs::default(),
            lock_owners: Mutex::default(),
            ahead: Queue::new(AHEAD_QUEUE_MAX),
            back: Queue::new(usize::MAX),
            lost: AtomicBool::new(false),
        }
    }

    pub(crate) fn call(&self, request: &Request) -> Result<(Response, Bytes)> {
        self.backend.call(request, &[]).map_err(|error| errno::of(&error))
    }

    pub(crate) fn mutate(&self, command: Command) -> Result<Reply> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        self.run(false, command).map_err(|error| errno::of(&error))
    }

    /// The same; the answer means that it survives a power cut.
    fn mutate_durably(&self, command: Command) -> Result<Reply> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        self.run(true, command).map_err(|error| errno::of(&error))
    }

    /// Every command goes through here: its reply tells what inodes are like now.
    fn run(&self, durable: bool, command: Command) -> std::result::Result<Reply, BackendError> {
        let reply = self.backend.mutate(durable, command)?;
        match &reply {
            Reply::Inode(inode) | Reply::Content { inode, .. } | Reply::Copied { inode, .. } => {
                self.attrs.learn(inode);
            }
            Reply::Created { inode, changed, .. } => {
                changed.iter().chain([inode]).for_each(|inode| self.attrs.learn(inode));
            }
            Reply::Unlinked { inode, changed } => {
                changed.iter().chain(inode).for_each(|inode| self.attrs.learn(inode));
            }
            _ => {}
        }
        Ok(reply)
    }

    fn open_file(&self, ino: Ino) -> Option<Arc<File>> {
        self.files.lock().get(&ino).cloned()
    }

    fn open_files(&self) -> Vec<Arc<File>> {
        self.files.lock().values().cloned().collect()
    }

    /// The inode with what is changed here and not committed.
    fn local(&self, mut inode: Inode) -> Inode {
        if let Some(file) = self.open_file(inode.ino) {
            let mut state = file.state.lock();
            state.adopt(&inode);
            // What is committed here meanwhile is newer than an answer that was under way: its size
            // would cut the file off in the kernel.
            if let Some(known) = &state.inode {
                inode = known.clone();
            }
            state.show(&mut inode);
        }
        inode
    }

    /// Asks for an inode; an answer that a commit of ours overtook is asked for again.
    fn inode_of(&self, request: &Request) -> Result<Inode> {
        for _ in 0..OVERTAKEN_MAX {
            match self.call(request)?.0 {
                Response::Inode(inode) if self.seen.is_overtaken(&inode) => {}
                Response::Inode(inode) => return Ok(self.local(inode)),
                _ => return unexpected(),
            }
        }
        match self.call(request)?.0 {
            Response::Inode(inode) => Ok(self.local(inode)),
            _ => unexpected(),
        }
    }

    /// Asks the server for an inode, whatever is cached here.
    fn inode_now(&self, ino: Ino) -> Result<Inode> {
        self.inode_of(&Request::GetAttr { ino })
    }

    fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles.lock().files.get(&fh).cloned().ok_or(Errno::BADF)
    }

    pub(crate) fn forget(&self, ino: Ino) {
        self.seen.forget(ino);
    }

    /// The kernel has dropped the pages of the inode; the server had this version of the content before it did.
    pub(crate) fn dropped(&self, ino: Ino, version: Version) {
        self.seen.dropped(ino, version);
    }

    /// The kernel uses a handle once it is done with the open: it has dropped what it had to.
    fn note_dropped(&self, handle: &Handle) {
        if let Some(version) = handle.dropping.lock().take() {
            self.dropped(handle.file.ino, version);
        }
    }

    pub(crate) fn open_inodes(&self) -> Vec<Ino> {
        self.files.lock().keys().copied().collect()
    }

    /// Another session changed the inode. What is asked for from now on is asked of the server.
    pub(crate) fn invalidate(&self, ino: Ino, data: bool) {
        self.attrs.forget(ino);
        if data {
            self.seen.stale(ino);
        }
        if let Some(file) = self.open_file(ino) {
            let mut state = file.state.lock();
            state.no_capability = false;
            if data {
                state.forget_layout();
            }
        }
    }

    pub(crate) fn invalidate_all(&self) -> Vec<Ino> {
        self.attrs.forget_all();
        let files = self.open_files();
        files.iter().for_each(|file| {
            let mut state = file.state.lock();
            state.no_capability = false;
            state.forget_layout();
        });
        self.seen.clear()
    }
}

impl State {
    fn forget_layout(&mut self) {
        self.layout.clear();
        self.content += 1;
    }

    fn adopt(&mut self, inode: &Inode) {
        if self.inode.as_ref().is_some_and(|mine| mine.version > inode.version) {
            return;
        }
        if self.inode.as_ref().is_none_or(|mine| mine.data_version != inode.data_version) {
            self.layout.now(inode.data_version);
            self.content += 1;
        }
        self.inode = Some(inode.clone());
    }

    fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flying.is_none()
    }

    /// Size with what is not committed.
    fn size(&self) -> u64 {
        let known = self.inode.as_ref().map_or(0, |inode| inode.size);
        known.max(self.dirty.end()).max(self.flying.as_ref().map_or(0, |flying| flying.end()))
    }

    /// Lays what is changed here over what the server knows.
    fn show(&self, inode: &mut Inode) {
        inode.size = inode.size.max(self.dirty.end());
        if let Some(flying) = &self.flying {
            inode.size = inode.size.max(flying.end());
        }
        for held in [&self.held_flying, &self.held] {
            show_change(held, inode);
        }
        if let Some(changed) = self.changed {
            inode.ctime = inode.ctime.max(changed);
        }
    }

    fn note_failure(&mut self, errno: Errno) {
        self.failures += 1;
        self.failure = Some(errno);
    }
}

fn show_change(change: &AttrChange, inode: &mut Inode) {
    inode.mode = change.mode.unwrap_or(inode.mode);
    inode.uid = change.uid.unwrap_or(inode.uid);
    inode.gid = change.gid.unwrap_or(inode.gid);
    if let Some(SetTime::At(time)) = change.atime {
        inode.atime = time;
    }
    if let Some(SetTime::At(time)) = change.mtime {
        inode.mtime = time;
    }
}

/// Takes over what `newer` sets.
fn merge_change(older: AttrChange, newer: AttrChange) -> AttrChange {
    AttrChange {
        mode: newer.mode.or(older.mode),
        uid: newer.uid.or(older.uid),
        gid: newer.gid.or(older.gid),
        atime: newer.atime.or(older.atime),
        mtime: newer.mtime.or(older.mtime),
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}
