//! Sending what is dirty: chunks first, in batches under way together, then the extents that name them.
//!
//! ```text
//!   dirty ──▶ flying ──▶ pieces (plan.rs) ──▶ put, put, put, put ──▶ Write (≤ 1024 extents, ≤ 16 MiB)
//!     ▲                                            ▲                    │ RetryPut: only those again
//!     └── what a failure left, under newer bytes   └────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fsd_rpc::message::{ChunkPut, Failure, Request, Response};
use parking_lot::{Mutex, MutexGuard};
use raftmeta_types::command::{AttrChange, Write};
use raftmeta_types::{ChunkHash, Command, Ino, Inode, MetaError, Reply, Version};
use rustix::io::Errno;

use super::plan::{self, Cutter, Part, Piece};
use super::{Core, File, Handle, Result, State, merge_change};
use crate::buffer::Dirty;
use crate::{BackendError, errno};

/// Bytes of chunks in one request, about.
const PUT_BYTES: usize = 1 << 20;
/// Requests with chunks that one flush has under way.
const PUTS_UNDER_WAY_MAX: usize = 8;
/// How long a commit is repeated while garbage collection takes the chunks away under it.
const RETRY_PUT_MAX: Duration = Duration::from_secs(60);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How far a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// More is coming: the tail that could still become part of a larger chunk stays.
    Background,
    /// Everything is committed: other mounts and the server's own work see it.
    Commit,
    /// And survives a power cut.
    Durable,
    /// The same, with everything else that was answered before, whatever file it concerned.
    Everything,
    /// The same, and an access time that was held back: the last handle is gone.
    Last,
}

impl Depth {
    fn is_durable(self, dirty: &Dirty) -> bool {
        match self {
            Depth::Background | Depth::Commit => false,
            Depth::Durable | Depth::Everything => true,
            // An access time alone is not worth a sync.
            Depth::Last => !dirty.is_empty(),
        }
    }
}

/// How long a commit has been repeated because its chunks went.
#[derive(Default)]
struct Retry {
    since: Option<Instant>,
    pause: Duration,
}

impl Retry {
    /// Waits a little before the next attempt, or gives up.
    fn pause(&mut self, again: &[ChunkHash]) -> std::result::Result<(), BackendError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > RETRY_PUT_MAX || again.is_empty() {
            return Err(BackendError::Failed(Failure::Meta(MetaError::RetryPut(again.to_vec()))));
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), RETRY_PAUSE_MAX);
        Ok(())
    }
}

/// Why a flush failed, and what it did not bring to the server.
struct Failed<'a> {
    error: BackendError,
    left: Vec<Part<'a>>,
}

impl Core {
    pub(crate) fn flush(&self, file: &File, depth: Depth) -> Result<()> {
        let flushing = file.flushing.lock();
        self.flush_held(file, &flushing, depth)
    }

    /// Commits what is dirty of one inode, so that others (and the server's own work on it) see it.
    pub(crate) fn commit(&self, ino: Ino) -> Result<()> {
        self.open_file(ino).map_or(Ok(()), |file| self.flush(&file, Depth::Commit))
    }

    /// `close`: commits durably, and tells this handle of a failure that it has not heard of. Where
    /// nothing was changed there is nothing to wait for.
    pub(crate) fn sync(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let flushed = match handle.writable {
            true => self.flush(&handle.file, Depth::Durable),
            false => Ok(()),
        };
        let told = handle.tell_failure();
        flushed.and(told)
    }

    /// `fsync`: the same, and whatever was answered before is durable, too: a rename onto this file, say.
    pub(crate) fn fsync(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let flushed = self.flush(&handle.file, Depth::Everything);
        let told = handle.tell_failure();
        flushed.and(told)
    }

    pub(super) fn flush_held(
        &self,
        file: &File,
        _flushing: &MutexGuard<'_, ()>,
        depth: Depth,
    ) -> Result<()> {
        let mut state = file.state.lock();
        state.queued = false;
        let durable = depth.is_durable(&state.dirty);
        let only_atime = AttrChange { atime: None, ..state.held.clone() } == AttrChange::default();
        let held = state.held != AttrChange::default() && (!only_atime || depth == Depth::Last);
        if state.dirty.is_empty() && !held {
            let undurable = durable && std::mem::take(&mut state.undurable);
            drop(state);
            if !undurable && depth != Depth::Everything {
                return Ok(());
            }
            let synced = self.backend.call(&Request::Sync, &[]);
            return synced.map(drop).map_err(|error| {
                file.state.lock().undurable = true;
                self.failed(file, &error)
            });
        }
        let flying = Arc::new(std::mem::take(&mut state.dirty));
        state.held_flying = std::mem::take(&mut state.held);
        state.dirty_since = None;
        state.flying = Some(flying.clone());
        let change = state.held_flying.clone();
        let changed = state.changed;
        drop(state);

        let sent = self.send(file, &flying, &change, depth);
        let mut state = file.state.lock();
        state.flying = None;
        let before = flying.bytes() + state.dirty.bytes();
        let held_flying = std::mem::take(&mut state.held_flying);
        let (left, result) = match sent {
            Ok(tail) => (tail, Ok(())),
            Err(Failed { error, left }) => (left, Err(error)),
        };
        state.undurable = !durable || result.is_err();
        if left.is_empty() && result.is_ok() {
            // Unless something was changed meanwhile.
            state.changed = state.changed.filter(|now| Some(*now) != changed);
        } else {
            state.put_back(left, held_flying);
        }
        self.budget.changed(before, state.dirty.bytes());
        drop(state);
        result.map_err(|error| self.failed(file, &error))
    }

    /// Sends what a flush took; answers the tail that it left for later.
    fn send<'a>(
        &self,
        file: &File,
        flying: &'a Dirty,
        change: &AttrChange,
        depth: Depth,
    ) -> std::result::Result<Vec<Part<'a>>, Failed<'a>> {
        let durable = depth.is_durable(flying);
        let limits = self.backend.limits();
        let (mut pieces, tail) = if plan::is_inline(flying, &limits) {
            (plan::inline(flying), None)
        } else {
            let cutter = Cutter::new(flying, &limits, depth == Depth::Background);
            self.put_all(cutter, flying.bytes())
                .map_err(|error| Failed { error, left: flying.ranges().collect() })?
        };
        if pieces.is_empty() && tail.is_some() {
            return Ok(tail.into_iter().collect());
        }
        let mut at = 0;
        loop {
            let end = at + plan::command_len(&pieces[at..]);
            let last = end == pieces.len();
            let (pieces_now, durable) = (&mut pieces[at..end], durable && last);
            let mut retry = Retry::default();
            let sent = self.commit_pieces(file, pieces_now, change, durable, &mut retry);
            if let Err(error) = sent {
                let left = pieces[at..].iter().map(|piece| (piece.offset, piece.data));
                return Err(Failed { error, left: left.chain(tail).collect() });
            }
            if last {
                return Ok(tail.into_iter().collect());
            }
            at = end;
        }
    }

    /// Commits pieces whose chunks are stored. Those that garbage collection was about to delete are put
    /// again under the new epoch; many of them in parts, each committed at once, so that the next
    /// collection finds less to take away.
    fn commit_pieces(
        &self,
        file: &File,
        pieces: &mut [Piece<'_>],
        change: &AttrChange,
        durable: bool,
        retry: &mut Retry,
    ) -> std::result::Result<(), BackendError> {
        loop {
            let extents = pieces.iter().map(Piece::extent).collect();
            let write = Write { ino: file.ino, extents, change: change.clone() };
            let again = match self.run(durable, Command::Write(write)) {
                Ok(Reply::Inode(inode)) => {
                    self.committed(file, &inode, None);
                    return Ok(());
                }
                Ok(Reply::Content { inode, before }) => {
                    self.committed(file, &inode, Some(before));
                    return Ok(());
                }
                Ok(_) => return Err(BackendError::Lost("unexpected reply to a write".to_owned())),
                Err(BackendError::Failed(Failure::Meta(MetaError::RetryPut(again)))) => again,
                Err(error) => return Err(error),
            };
            retry.pause(&again)?;
            let named = |piece: &Piece<'_>| !piece.inline && again.contains(&piece.hash);
            let bytes: usize = pieces.iter().filter(|piece| named(piece)).map(Piece::len).sum();
            if bytes <= PUT_BYTES || pieces.len() == 1 {
                self.put_again(pieces.iter_mut().filter(|piece| named(piece)).collect())?;
                continue;
            }
            let (first, second) = pieces.split_at_mut(pieces.len() / 2);
            self.put_again(first.iter_mut().filter(|piece| named(piece)).collect())?;
            self.commit_pieces(file, first, change, false, retry)?;
            self.put_again(second.iter_mut().filter(|piece| named(piece)).collect())?;
            return self.commit_pieces(file, second, change, durable, retry);
        }
    }

    /// Takes note of what a command of ours made of a file; with the version `before` if it changed the content.
    pub(super) fn committed(&self, file: &File, inode: &Inode, before: Option<Version>) {
        // Attributes alone, such as an access time, say nothing of the pages that the kernel has: another mount may
        // have written since they were read.
        if let Some(before) = before {
            self.seen.changed(inode, before);
        }
        let mut state = file.state.lock();
        if before.is_some() {
            state.forget_layout();
        }
        state.adopt(inode);
    }

    /// Cuts and stores, several requests at a time; answers the pieces, and what was left for later.
    fn put_all<'a>(
        &self,
        cutter: Cutter<'a>,
        bytes: usize,
    ) -> std::result::Result<(Vec<Piece<'a>>, Option<Part<'a>>), BackendError> {
        let cutting = Mutex::new((0, cutter));
        let stored = Mutex::new(BTreeMap::new());
        let failure = Mutex::new(None);
        let work = || {
            while failure.lock().is_none() {
                let (number, mut batch) = {
                    let (next, cutter) = &mut *cutting.lock();
                    *next += 1;
                    (*next, cutter.batch(PUT_BYTES))
                };
                if batch.is_empty() {
                    return;
                }
                if let Err(error) = self.put_batch(&mut batch.iter_mut().collect::<Vec<_>>()) {
                    failure.lock().get_or_insert(error);
                }
                stored.lock().insert(number, batch);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..bytes.div_ceil(PUT_BYTES).min(PUTS_UNDER_WAY_MAX) {
                // Without a thread the others do its work.
                let thread = std::thread::Builder::new().name("fuse-put".to_owned());
                _ = thread.spawn_scoped(scope, work);
            }
            work();
        });
        match failure.into_inner() {
            Some(error) => Err(error),
            None => {
                let pieces = stored.into_inner().into_values().flatten().collect();
                Ok((pieces, cutting.into_inner().1.tail()))
            }
        }
    }

    /// Stores chunks again.
    fn put_again(&self, pieces: Vec<&mut Piece<'_>>) -> std::result::Result<(), BackendError> {
        let mut batches = plan::batches(pieces, PUT_BYTES);
        batches.iter_mut().try_for_each(|batch| self.put_batch(batch))
    }

    /// Stores the chunks among the pieces in one request, and notes their names and receipts.
    fn put_batch(&self, pieces: &mut [&mut Piece<'_>]) -> std::result::Result<(), BackendError> {
        let mut batch: Vec<_> = pieces.iter_mut().filter(|piece| !piece.inline).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let name = |piece: &mut &mut &mut Piece<'_>| {
            piece.hash = ChunkHash(*blake3::hash(piece.data).as_bytes());
            ChunkPut { hash: piece.hash, len: piece.data.len() as u32 }
        };
        let chunks = batch.iter_mut().map(name).collect();
        let data: Vec<&[u8]> = batch.iter().map(|piece| piece.data).collect();
        match self.backend.call(&Request::PutChunks { chunks }, &data)?.0 {
            Response::Receipts(receipts) if receipts.len() == batch.len() => {
                batch.iter_mut().zip(receipts).for_each(|(piece, receipt)| piece.receipt = receipt);
                Ok(())
            }
            _ => Err(BackendError::Lost("unexpected answer to a put of chunks".to_owned())),
        }
    }

    fn failed(&self, file: &File, error: &BackendError) -> Errno {
        let number = errno::of(error);
        tracing::warn!(ino = file.ino.0, %error, "flush failed");
        file.state.lock().note_failure(number);
        number
    }
}

impl State {
    /// Takes back what was not sent, under what was written since.
    fn put_back(&mut self, parts: Vec<Part<'_>>, held: AttrChange) {
        self.dirty.write_under(parts.into_iter());
        self.dirty_since = Some(Instant::now());
        self.held = merge_change(held, std::mem::take(&mut self.held));
    }
}

impl Handle {
    /// The last failure, unless this handle has told of it before.
    pub(super) fn tell_failure(&self) -> Result<()> {
        let state = self.file.state.lock();
        let heard = self.heard.swap(state.failures, Ordering::Relaxed);
        match state.failure {
            Some(error) if state.failures > heard => Err(error),
            _ => Ok(()),
        }
    }
}
