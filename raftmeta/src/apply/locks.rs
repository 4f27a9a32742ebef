//! Byte-range and whole-file locks.

use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{Ino, MetaError, Reply, SessionId};

use super::state::{State, Step, invalid};
use crate::keys;

/// Most locks on one inode; they are one record.
const LOCKS_MAX: usize = 4096;

fn load(state: &State<'_>, ino: Ino) -> Step<Vec<Lock>> {
    Ok(state.get(&keys::locks(ino))?.unwrap_or_default())
}

fn save(state: &mut State<'_>, ino: Ino, locks: &[Lock]) -> Step<()> {
    if locks.is_empty() {
        state.delete(&keys::locks(ino))
    } else {
        state.put(&keys::locks(ino), &locks)
    }
}

fn overlap(a: &Lock, b: &Lock) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// The first held lock that `wanted` has to wait for.
pub(crate) fn conflict<'l>(held: &'l [Lock], wanted: &Lock) -> Option<&'l Lock> {
    held.iter().find(|lock| {
        lock.family == wanted.family
            && lock.owner != wanted.owner
            && overlap(lock, wanted)
            && (lock.kind == LockKind::Exclusive || wanted.kind == LockKind::Exclusive)
    })
}

pub(super) fn lock(state: &mut State<'_>, wanted: &Lock) -> Step<Reply> {
    if wanted.start > wanted.end {
        return invalid("the range ends before it starts");
    }
    if state.session != SessionId::SERVER && wanted.owner.session != state.session {
        return Err(MetaError::NotPermitted.into());
    }
    let mut wanted = wanted.clone();
    if wanted.family == LockFamily::Flock {
        (wanted.start, wanted.end) = (0, u64::MAX);
    }
    let mut locks = load(state, wanted.ino)?;
    if wanted.kind == LockKind::Unlock {
        // Also for an inode that is gone: its locks went with it.
        cut(&mut locks, &wanted);
        save(state, wanted.ino, &locks)?;
        return Ok(Reply::Done);
    }
    state.inode(wanted.ino)?;
    if !state.has(&keys::session(wanted.owner.session))? {
        return Err(MetaError::SessionExpired.into());
    }
    if conflict(&locks, &wanted).is_some() {
        return Err(MetaError::WouldBlock.into());
    }
    cut(&mut locks, &wanted);
    locks.push(wanted.clone());
    join(&mut locks);
    if locks.len() > LOCKS_MAX {
        return Err(MetaError::NoSpace.into());
    }
    save(state, wanted.ino, &locks)?;
    Ok(Reply::Done)
}

/// Takes the range away from what the owner holds.
fn cut(locks: &mut Vec<Lock>, range: &Lock) {
    let own = |lock: &Lock| lock.family == range.family && lock.owner == range.owner;
    let mut rest = Vec::with_capacity(locks.len() + 1);
    for lock in locks.drain(..) {
        if !own(&lock) || !overlap(&lock, range) {
            rest.push(lock);
            continue;
        }
        if lock.start < range.start {
            rest.push(Lock { end: range.start - 1, ..lock.clone() });
        }
        if lock.end > range.end {
            rest.push(Lock { start: range.end + 1, ..lock });
        }
    }
    *locks = rest;
}

/// Sorts, and makes one of neighbours that are alike.
fn join(locks: &mut Vec<Lock>) {
    locks.sort_by_key(|lock| (lock.family, lock.owner, lock.start));
    let mut joined: Vec<Lock> = Vec::with_capacity(locks.len());
    for lock in locks.drain(..) {
        match joined.last_mut() {
            Some(last)
                if last.family == lock.family
                    && last.owner == lock.owner
                    && last.kind == lock.kind
                    && last.pid == lock.pid
                    && last.end.checked_add(1) == Some(lock.start) =>
            {
                last.end = lock.end;
            }
            _ => joined.push(lock),
        }
    }
    *locks = joined;
}

pub(super) fn unlock_owner(state: &mut State<'_>, ino: Ino, owner: u64) -> Step<Reply> {
    let owner = LockOwner { session: state.session, owner };
    retain(state, ino, |lock| lock.owner != owner)?;
    Ok(Reply::Done)
}

/// Drops every lock of a session that ended.
pub(super) fn drop_session(state: &mut State<'_>, session: SessionId) -> Step<()> {
    for (key, _) in state.scan(&keys::class(b'L'), usize::MAX, false)? {
        let ino = Ino(keys::first_number(&key));
        retain(state, ino, |lock| lock.owner.session != session)?;
    }
    Ok(())
}

fn retain(state: &mut State<'_>, ino: Ino, keep: impl Fn(&Lock) -> bool) -> Step<()> {
    let mut locks = load(state, ino)?;
    let before = locks.len();
    locks.retain(keep);
    if locks.len() == before { Ok(()) } else { save(state, ino, &locks) }
}
