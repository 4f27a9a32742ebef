//! `stat`, `chmod`, `chown`, `utimensat`, `truncate`, `statfs`.

use std::sync::atomic::Ordering;

use fsd_rpc::message::{Request, Response, StatFs};
use raftmeta_types::command::{AttrChange, SetAttr, SetTime};
use raftmeta_types::{Command, Ino, Inode, Reply};
use rustix::io::Errno;

use super::flush::Depth;
use super::{Core, File, Result, merge_change, now, unexpected};

impl Core {
    pub(crate) fn getattr(&self, ino: Ino) -> Result<Inode> {
        match self.attrs.get(ino) {
            Some(inode) => Ok(self.local(inode)),
            None => self.inode_of(&Request::GetAttr { ino }),
        }
    }

    pub(crate) fn setattr(&self, set: SetAttr) -> Result<Inode> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let Some(file) = self.open_file(set.ino) else {
            // No `close` will follow that could make the new size durable.
            let durable = set.size.is_some();
            return self.set_on_server(set, durable);
        };
        if set.size.is_none()
            && let Some(inode) = hold_back(&file, &set.change)
        {
            return Ok(inode);
        }
        let flushing = file.flushing.lock();
        if let Some(size) = set.size {
            let mut state = file.state.lock();
            let before = state.dirty.bytes();
            state.dirty.cut(size, u64::MAX);
            self.budget.changed(before, state.dirty.bytes());
        }
        // Later commits would stamp their own time over the one set here.
        self.flush_held(&file, &flushing, Depth::Commit)?;
        let inode = self.set_on_server(set, false)?;
        let mut state = file.state.lock();
        state.undurable = true;
        state.adopt(&inode);
        let mut shown = inode;
        state.show(&mut shown);
        Ok(shown)
    }

    pub(super) fn set_on_server(&self, set: SetAttr, durable: bool) -> Result<Inode> {
        let command = Command::SetAttr(set);
        let reply = if durable { self.mutate_durably(command) } else { self.mutate(command) };
        match reply? {
            Reply::Inode(inode) => Ok(inode),
            Reply::Content { inode, before } => {
                self.seen.changed(&inode, before);
                Ok(inode)
            }
            _ => unexpected(),
        }
    }

    pub(crate) fn statfs(&self) -> Result<StatFs> {
        match self.call(&Request::StatFs)?.0 {
            Response::StatFs(fs) => Ok(fs),
            _ => unexpected(),
        }
    }

    /// Everything that was answered so far becomes durable.
    pub(crate) fn sync_all(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let files = self.open_files();
        files.iter().try_for_each(|file| self.flush(file, Depth::Commit))?;
        self.call(&Request::Sync).map(drop)
    }

    /// The same at the end of the mount, which also tells of what was lost before.
    pub(crate) fn sync_last(&self) -> Result<()> {
        self.sync_all()?;
        if self.lost.load(Ordering::Relaxed) { Err(Errno::IO) } else { Ok(()) }
    }
}

/// While a file has dirty bytes its attributes change along with them, in one command later. Answers
/// the inode as it is shown meanwhile, or `None` if the server has to do it.
fn hold_back(file: &File, change: &AttrChange) -> Option<Inode> {
    let mut state = file.state.lock();
    // With an ACL the mode is more than a number.
    let acl = state.inode.as_ref()?.has_acl;
    if state.dirty.is_empty() || acl {
        return None;
    }
    let now = now();
    let at = |time: Option<SetTime>| {
        time.map(|time| match time {
            SetTime::Now => SetTime::At(now),
            at @ SetTime::At(_) => at,
        })
    };
    let change = AttrChange { atime: at(change.atime), mtime: at(change.mtime), ..change.clone() };
    state.held = merge_change(std::mem::take(&mut state.held), change);
    state.changed = Some(now);
    let mut inode = state.inode.clone()?;
    state.show(&mut inode);
    Some(inode)
}
