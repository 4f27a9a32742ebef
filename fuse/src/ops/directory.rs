//! Listing directories.

use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::message::{DirEntry, Request, Response};
use raftmeta_types::Ino;
use rustix::io::Errno;

use super::{Core, Result, unexpected};

/// Entries asked for at a time.
const BATCH: u32 = 512;
/// Entries kept, so that the kernel can go back a little without asking again.
const WINDOW_MAX: usize = 4 * BATCH as usize;

/// A directory being listed. The position of an entry is its number in this listing. Only a window of
/// entries is kept; before it one name per batch, so that `seekdir` finds its way back.
#[derive(Default)]
pub(crate) struct Dir {
    window: Vec<DirEntry>,
    /// Position of the first entry of the window.
    start: usize,
    /// Position of the first entry of each batch read so far, and the name before it.
    marks: Vec<(usize, Bytes)>,
    /// The window reaches to the last entry.
    end: bool,
}

impl Core {
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

    /// Forgets what was listed, for `rewinddir`.
    pub(crate) fn rewind(&self, fh: u64) {
        let dir = self.handles.lock().dirs.get(&fh).cloned();
        if let Some(dir) = dir {
            *dir.lock() = Dir::default();
        }
    }

    /// Calls `each` with the entry at position `from` (0 is the first after `..`) and on, until it says
    /// stop.
    pub(crate) fn readdir(
        &self,
        ino: Ino,
        fh: u64,
        from: usize,
        mut each: impl FnMut(usize, &DirEntry) -> bool,
    ) -> Result<()> {
        let dir = self.handles.lock().dirs.get(&fh).cloned().ok_or(Errno::BADF)?;
        let mut dir = dir.lock();
        dir.seek(from);
        let mut at = from;
        loop {
            while let Some(entry) = dir.window.get(at - dir.start) {
                if !each(at, entry) {
                    return Ok(());
                }
                at += 1;
            }
            if dir.end {
                return Ok(());
            }
            self.read_on(ino, &mut dir)?;
            // Entries went since the first reading, and the place lies behind the new end.
            if dir.end && at - dir.start > dir.window.len() {
                return Ok(());
            }
        }
    }

    /// Reads the batch behind the window.
    fn read_on(&self, ino: Ino, dir: &mut Dir) -> Result<()> {
        let position = dir.start + dir.window.len();
        let after = match (dir.window.last(), dir.marks.iter().rfind(|mark| mark.0 <= position)) {
            (Some(last), _) => last.name.clone(),
            (None, Some((_, name))) => name.clone(),
            (None, None) => Bytes::new(),
        };
        if dir.marks.last().is_none_or(|mark| mark.0 < position) {
            // A copy, so that the name does not keep the whole answer in memory.
            dir.marks.push((position, Bytes::copy_from_slice(&after)));
        }
        match self.call(&Request::ReadDir { ino, after, limit: BATCH })?.0 {
            Response::Entries { entries, end } => {
                dir.end = end || entries.is_empty();
                let local = |entry: DirEntry| DirEntry { inode: self.local(entry.inode), ..entry };
                dir.window.extend(entries.into_iter().map(local));
                let surplus = dir.window.len().saturating_sub(WINDOW_MAX);
                dir.window.drain(..surplus);
                dir.start += surplus;
                Ok(())
            }
            _ => unexpected(),
        }
    }
}

impl Dir {
    /// Makes the window start at or before `position`, and reach or be able to reach it.
    fn seek(&mut self, position: usize) {
        if (self.start..=self.start + self.window.len()).contains(&position) {
            return;
        }
        let mark = self.marks.iter().rfind(|mark| mark.0 <= position);
        self.start = mark.map_or(0, |mark| mark.0);
        self.window.clear();
        self.end = false;
    }
}
