//! Taking written bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use raftmeta_types::command::SetTime;
use rustix::io::Errno;

use super::flush::Depth;
use super::{Core, File, OFFSET_MAX, Result, now};

/// A file with this many dirty bytes is sent in the background.
const FLUSH_BYTES: usize = 16 << 20;
/// With this many its writers wait for the sending.
const WAIT_BYTES: usize = 48 << 20;
/// Dirty bytes older than this are sent.
const DIRTY_AGE_MAX: Duration = Duration::from_secs(5);

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WriteMode {
    /// At the end of the file, wherever the kernel believes it is.
    pub(crate) append: bool,
    /// `O_SYNC`, `O_DSYNC`: durable when answered.
    pub(crate) sync: bool,
}

/// Where the bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Where,
    /// Not where the kernel believes: what it holds of the file is wrong.
    Elsewhere,
}

impl Core {
    pub(crate) fn write(
        &self,
        fh: u64,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> Result<Written> {
        let handle = self.handle(fh)?;
        // As on NFS: an error of sending earlier bytes is told at the first chance.
        handle.tell_failure()?;
        self.note_dropped(&handle);
        let file = &handle.file;
        while !self.budget.has_room(data.len()) {
            self.make_room(file)?;
        }
        let mut state = file.state.lock();
        let at = if mode.append { state.size() } else { offset };
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= OFFSET_MAX);
        end.ok_or(Errno::FBIG)?;
        let before = state.dirty.bytes();
        state.dirty.write(at, data);
        let bytes = state.dirty.bytes();
        self.budget.changed(before, bytes);
        let now = now();
        state.held.mtime = Some(SetTime::At(now));
        state.changed = Some(now);
        state.dirty_since.get_or_insert_with(Instant::now);
        let queue = bytes >= FLUSH_BYTES && !std::mem::replace(&mut state.queued, true);
        drop(state);
        if queue {
            self.back.push(file.clone());
        }
        if mode.sync {
            self.flush(file, Depth::Durable)?;
        } else if bytes >= WAIT_BYTES {
            self.flush(file, Depth::Background)?;
        }
        Ok(if at == offset { Written::Where } else { Written::Elsewhere })
    }

    /// Sends what this file has dirty, or, if that is little, what the fullest one has.
    fn make_room(&self, own: &Arc<File>) -> Result<()> {
        let bytes = |file: &Arc<File>| {
            let state = file.state.lock();
            state.dirty.bytes() + state.flying.as_ref().map_or(0, |flying| flying.bytes())
        };
        if bytes(own) >= FLUSH_BYTES / 8 {
            return self.flush(own, Depth::Commit);
        }
        let files = self.open_files();
        match files.iter().max_by_key(|file| bytes(file)) {
            Some(fullest) => self.flush(fullest, Depth::Commit),
            None => Ok(()),
        }
    }

    /// Hands files to the write-back threads whose dirty bytes have waited long enough.
    pub(crate) fn send_aged(&self) {
        for file in self.open_files() {
            let mut state = file.state.lock();
            let aged = state.dirty_since.is_some_and(|since| since.elapsed() > DIRTY_AGE_MAX);
            if aged && !std::mem::replace(&mut state.queued, true) {
                drop(state);
                self.back.push(file);
            }
        }
    }

    /// Sends one file of the queue for write-back. A failure is noted in the file.
    pub(crate) fn send_back(&self, file: &File) {
        let aged = {
            let state = file.state.lock();
            state.dirty_since.is_some_and(|since| since.elapsed() > DIRTY_AGE_MAX)
        };
        let depth = if aged { Depth::Commit } else { Depth::Background };
        if let Err(error) = self.flush(file, depth) {
            tracing::debug!(ino = file.ino.0, %error, "write-back failed, to be told and retried");
        }
    }
}
