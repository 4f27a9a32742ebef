//! Opening and closing files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fsd_rpc::message::{Request, Response};
use parking_lot::{Condvar, Mutex};
use raftmeta_types::command::{AttrChange, SetAttr, SetTime};
use raftmeta_types::{Ino, Inode, Version};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::flush::Depth;
use super::{Core, File, Handle, Result, State, unexpected};
use crate::buffer::Dirty;

/// Files closed here that the server has not heard of, at most.
const CLOSED_MAX: usize = 64;

/// An opened file.
pub(crate) struct Opened {
    pub(crate) fh: u64,
    /// The pages that the kernel holds are still good.
    pub(crate) keep_pages: bool,
    /// The kernel may remember attributes of before another's change.
    pub(crate) changed: bool,
}

impl Core {
    fn file(&self, ino: Ino) -> Arc<File> {
        let new = || {
            let (flushing, state, loaded) = (Mutex::default(), Mutex::default(), Condvar::new());
            Arc::new(File { ino, flushing, state, loaded })
        };
        self.files.lock().entry(ino).or_insert_with(new).clone()
    }

    /// The file, with one handle more: no release retires it before that is taken back.
    fn enter(&self, ino: Ino) -> Arc<File> {
        loop {
            let file = self.file(ino);
            let mut state = file.state.lock();
            if !state.dead {
                state.opens += 1;
                drop(state);
                return file;
            }
        }
    }

    /// Opens a file, as of now on the server.
    pub(crate) fn open(&self, ino: Ino, flags: OFlags) -> Result<Opened> {
        let file = self.enter(ino);
        // A close that waits to be told would undo this.
        let known = self.closed.lock().remove(&ino);
        let inode = match self.call(&Request::Open { ino }) {
            Ok((Response::Inode(inode), _)) => inode,
            other => {
                self.close(&file, known);
                return other.and_then(|_| unexpected());
            }
        };
        let mut state = file.state.lock();
        // If not, the kernel drops its pages after the answer; another open until then must not keep them.
        let keep_pages = self.seen.is_current_or_going(&inode);
        state.adopt(&inode);
        drop(state);
        if !keep_pages {
            // Of a command's reply, from before another's change.
            self.attrs.forget(ino);
        }
        let dropping = (!keep_pages).then_some(inode.data_version);
        let fh = self.add_handle(file, flags, dropping);
        Ok(Opened { fh, keep_pages, changed: !keep_pages })
    }

    /// The same for `open(O_CREAT)` of a file that another has made since the kernel looked: the kernel takes
    /// it for new and leaves the truncation to us.
    pub(crate) fn open_found(&self, ino: Ino, flags: OFlags) -> Result<Opened> {
        let opened = self.open(ino, flags)?;
        if flags.contains(OFlags::TRUNC) {
            let set = SetAttr { ino, change: AttrChange::default(), size: Some(0) };
            if let Err(error) = self.setattr(set) {
                self.release(opened.fh);
                return Err(error);
            }
            return Ok(Opened { keep_pages: false, changed: true, ..opened });
        }
        Ok(opened)
    }

    /// A handle of a file that this mount has just made, which the server knows as open.
    pub(crate) fn open_made(&self, inode: Inode, flags: OFlags) -> Opened {
        let file = self.enter(inode.ino);
        self.seen.made(&inode);
        let mut state = file.state.lock();
        state.adopt(&inode);
        state.undurable = true;
        state.no_capability = true;
        drop(state);
        Opened { fh: self.add_handle(file, flags, None), keep_pages: false, changed: false }
    }

    fn add_handle(&self, file: Arc<File>, flags: OFlags, dropping: Option<Version>) -> u64 {
        let heard = file.state.lock().failures;
        let handle = Handle {
            file,
            writable: flags.intersects(OFlags::WRONLY | OFlags::RDWR),
            keeps_atime: flags.contains(OFlags::NOATIME),
            heard: AtomicU64::new(heard),
            pattern: Mutex::default(),
            dropping: Mutex::new(dropping),
        };
        let mut handles = self.handles.lock();
        handles.next += 1;
        let fh = handles.next;
        handles.files.insert(fh, Arc::new(handle));
        fh
    }

    pub(crate) fn release(&self, fh: u64) {
        let handle = self.handles.lock().files.remove(&fh);
        if let Some(handle) = handle {
            self.close(&handle.file, true);
        }
    }

    /// One handle less. The last one sends what is left, and notes that the server, if it was `told` of the
    /// file, has to hear of it.
    fn close(&self, file: &Arc<File>, told: bool) {
        let mut state = file.state.lock();
        state.opens -= 1;
        while state.opens == 0 && !state.dead {
            // Left after the flush of `close`: pages written through a mapping, an access time.
            if !state.is_settled() {
                drop(state);
                let flushed = self.flush(file, Depth::Last);
                state = file.state.lock();
                match flushed {
                    Err(error) if state.opens == 0 => self.give_up(file, &mut state, error),
                    Ok(()) | Err(_) => {}
                }
                continue;
            }
            state.dead = true;
            let many = told && {
                let mut closed = self.closed.lock();
                // While the file is still in the table: an open that comes now waits for the state's lock
                // and takes this back.
                closed.insert(file.ino);
                closed.len() >= CLOSED_MAX
            };
            self.files.lock().remove(&file.ino);
            if many {
                drop(state);
                self.tell_closed();
                return;
            }
        }
    }

    /// Tells the server which files are closed: before a name is taken away, so that the file behind it
    /// goes at once, and else many at a time.
    pub(crate) fn tell_closed(&self) {
        // Held over the call: an open of one of them comes before it or after it.
        let mut closed = self.closed.lock();
        if closed.is_empty() {
            return;
        }
        let inos: Vec<Ino> = closed.iter().copied().collect();
        match self.call(&Request::Close { inos }) {
            Ok(_) => closed.clear(),
            // They stay for the next time: until then the server keeps what others unlink of them.
            Err(error) => tracing::warn!(%error, "closed files not reported"),
        }
    }

    /// No handle is left that could try again.
    fn give_up(&self, file: &File, state: &mut State, error: Errno) {
        let bytes = state.dirty.bytes();
        if bytes > 0 {
            tracing::error!(ino = file.ino.0, %error, bytes, "written data lost at the last close");
            self.lost.store(true, Ordering::Relaxed);
            self.budget.changed(bytes, 0);
        }
        state.dirty = Dirty::default();
        state.held = AttrChange::default();
    }
}

impl State {
    /// Nothing here that the server does not have.
    fn is_settled(&self) -> bool {
        self.is_clean() && self.held == AttrChange::default()
    }

    /// `relatime`: an access is noted if the last noted one is older than the last change, or a day.
    pub(super) fn note_access(&mut self) {
        const DAY_SECS: i64 = 86_400;
        let Some(inode) = &self.inode else { return };
        let mut shown = inode.clone();
        self.show(&mut shown);
        let now = super::now();
        let due = shown.atime <= shown.mtime
            || shown.atime <= shown.ctime
            || now.secs - shown.atime.secs >= DAY_SECS;
        if due && shown.atime < now {
            self.held.atime = Some(SetTime::At(now));
        }
    }
}
