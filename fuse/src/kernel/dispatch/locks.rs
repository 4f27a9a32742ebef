//! Requests about locks.

use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use rustix::io::Errno;

use super::super::abi::{self, Reader};
use super::super::notify::Notice;
use super::super::reply;
use super::super::session::Shared;
use super::{Answer, Head};
use crate::ops::{Locked, Result};

impl Shared {
    /// `fuse_lk_in`
    fn lock_in(&self, head: Head, r: &mut Reader<'_>) -> Option<Lock> {
        r.skip(8)?;
        let (owner, start, end) = (r.u64()?, r.u64()?, r.u64()?);
        let (kind, pid, flags) = (r.u32()?, r.u32()?, r.u32()?);
        let flock = flags & abi::LK_FLOCK != 0;
        Some(Lock {
            ino: head.ino,
            family: if flock { LockFamily::Flock } else { LockFamily::Posix },
            owner: LockOwner { session: self.core.backend.session(), owner },
            kind: match kind {
                abi::F_RDLCK => LockKind::Shared,
                abi::F_WRLCK => LockKind::Exclusive,
                abi::F_UNLCK => LockKind::Unlock,
                _ => return None,
            },
            start,
            end: if end >= i64::MAX as u64 { u64::MAX } else { end },
            pid,
        })
    }

    pub(super) fn get_lock(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let wanted = self.lock_in(head, r)?;
        let none = Lock { kind: LockKind::Unlock, ..wanted.clone() };
        let found = self.core.get_lock(wanted);
        Some(found.map(|found| reply::lock(&found.unwrap_or(none))))
    }

    /// `waits`: until the lock is free or a signal comes.
    pub(super) fn set_lock(&self, head: Head, r: &mut Reader<'_>, waits: bool) -> Option<Answer> {
        let lock = self.lock_in(head, r)?;
        match self.core.set_lock(&lock) {
            Err(Errno::AGAIN) if waits => self.waiting.add(head.unique, lock),
            result => self.answer_lock(head.unique, &lock, result),
        }
        Some(Answer::Later)
    }

    /// Whoever has locked reads what was written under the lock before.
    pub(in super::super) fn answer_lock(&self, unique: u64, lock: &Lock, result: Result<Locked>) {
        match result {
            Ok(Locked::Stale(version)) => {
                self.notices.push(Notice::InodeThenDone(lock.ino, version, unique));
            }
            Ok(Locked::Fresh) => self.reply(unique, Ok(Vec::new())),
            Err(error) => self.reply(unique, Err(error)),
        }
        if lock.kind != LockKind::Exclusive {
            self.waiting.unlocked();
        }
    }
}
