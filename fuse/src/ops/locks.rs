//! `fcntl` and `flock` locks.

use fsd_rpc::message::{Request, Response};
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{Command, Ino, Version};

use super::{Core, Result, unexpected};
use crate::errno;

/// A lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    /// What the kernel holds of the file is good.
    Fresh,
    /// The kernel has to drop the pages that it holds before the lock is answered: all that it reads then is of this
    /// version of the content, or of a later one.
    Stale(Version),
}

impl Core {
    /// The lock that stands in the way.
    pub(crate) fn get_lock(&self, wanted: Lock) -> Result<Option<Lock>> {
        match self.call(&Request::GetLock(wanted))?.0 {
            Response::Lock(found) => Ok(found),
            _ => unexpected(),
        }
    }

    /// Takes or drops a lock; `AGAIN` if another stands in the way. Unlocking commits what was written
    /// under the lock; whoever locks sees what was committed before.
    pub(crate) fn set_lock(&self, lock: &Lock) -> Result<Locked> {
        if lock.kind == LockKind::Unlock {
            self.commit(lock.ino)?;
        }
        // Locks are taken on a read-only mount, too.
        let set = self.backend.mutate(false, Command::Lock(lock.clone()));
        set.map_err(|error| errno::of(&error))?;
        if lock.kind == LockKind::Unlock {
            return Ok(Locked::Fresh);
        }
        if lock.family == LockFamily::Posix {
            self.lock_owners.lock().insert((lock.ino, lock.owner.owner));
        }
        // Not what is cached: the event of a change under the lock may be on its way.
        let inode = self.inode_now(lock.ino)?;
        // The kernel is told before the lock is answered; who opens the file until then keeps no pages either.
        if self.seen.is_current_or_going(&inode) {
            return Ok(Locked::Fresh);
        }
        self.invalidate(lock.ino, false);
        Ok(Locked::Stale(inode.data_version))
    }

    /// POSIX: a process that closes any descriptor of a file drops its `fcntl` locks on it.
    pub(crate) fn unlock_owner(&self, ino: Ino, owner: u64) -> Result<()> {
        if !self.lock_owners.lock().remove(&(ino, owner)) {
            return Ok(());
        }
        let dropped = self.backend.mutate(false, Command::UnlockOwner { ino, owner });
        dropped.map(drop).map_err(|error| errno::of(&error))
    }

    /// The same for `flock`, at the end of an open file description.
    pub(crate) fn unlock_flock(&self, ino: Ino, owner: u64) -> Result<()> {
        let unlock = Lock {
            ino,
            family: LockFamily::Flock,
            owner: LockOwner { session: self.backend.session(), owner },
            kind: LockKind::Unlock,
            start: 0,
            end: u64::MAX,
            pid: 0,
        };
        self.set_lock(&unlock).map(drop)
    }
}
