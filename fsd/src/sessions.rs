//! Who has what open, and who is still there: the table behind unlink-while-open and session expiry.
//!
//! It lives in memory and is lost with the server. After a restart the sessions that the state machine
//! knows are *awaited*: until such a session comes back and says what it has open (`Hello`), or its grace
//! is over, it may hold any inode and counts as a holder of every one. So no file is freed under a client
//! that did not have the time to come back; what it turns out not to hold is released afterwards.
//!
//! Pure: the time is given to every call, as a duration since the server's start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftmeta_types::{Ino, SessionId};

#[cfg(test)]
mod tests;

/// A session without traffic for this long has ended; an awaited one has this long to come back.
pub const LEASE: Duration = Duration::from_secs(30);
/// Inodes one session may have open; the next `open` is refused.
pub const OPEN_MAX: usize = 1 << 20;

/// A session has `OPEN_MAX` inodes open already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session {0} has {OPEN_MAX} inodes open: close some first")]
pub struct TooManyOpen(pub SessionId);

/// See the module.
#[derive(Debug, Default)]
pub struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    holders: BTreeMap<Ino, BTreeSet<SessionId>>,
}

#[derive(Debug)]
struct Session {
    /// Known from before a restart and not back yet: what it has open is unknown.
    awaited: bool,
    /// Time of its last sign of life.
    seen: Duration,
    open: BTreeSet<Ino>,
}

impl Sessions {
    /// After a start: these sessions are in the state machine and may come back.
    pub fn restarted(known: impl IntoIterator<Item = SessionId>, now: Duration) -> Sessions {
        let session = || Session { awaited: true, seen: now, open: BTreeSet::new() };
        let sessions = known.into_iter().map(|id| (id, session())).collect();
        Sessions { sessions, holders: BTreeMap::new() }
    }

    /// A connection of the session said `Hello`, new or back again, with all it has open. The list counts
    /// for an awaited session only, and true says that it was one; later on opens and closes are known as
    /// they come, and a list made before a close would undo it.
    pub fn hello(
        &mut self,
        id: SessionId,
        open: impl IntoIterator<Item = Ino>,
        now: Duration,
    ) -> Result<bool, TooManyOpen> {
        let new = || Session { awaited: false, seen: now, open: BTreeSet::new() };
        let session = self.sessions.entry(id).or_insert_with(new);
        session.seen = now;
        if !session.awaited {
            return Ok(false);
        }
        for ino in open {
            self.open(id, ino)?;
        }
        // Only now: a list refused halfway leaves the session a possible holder of everything.
        if let Some(session) = self.sessions.get_mut(&id) {
            session.awaited = false;
        }
        Ok(true)
    }

    /// A sign of life. False if the session is not known (any more): it must say `Hello` first.
    pub fn touch(&mut self, id: SessionId, now: Duration) -> bool {
        match self.sessions.get_mut(&id) {
            Some(session) => {
                session.seen = session.seen.max(now);
                true
            }
            None => false,
        }
    }

    /// The session has the inode open from now on; false if it had before. A session that is not known
    /// holds nothing.
    pub fn open(&mut self, id: SessionId, ino: Ino) -> Result<bool, TooManyOpen> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(false) };
        if session.open.len() >= OPEN_MAX && !session.open.contains(&ino) {
            return Err(TooManyOpen(id));
        }
        let new = session.open.insert(ino);
        self.holders.entry(ino).or_default().insert(id);
        Ok(new)
    }

    /// The session closed its last handle of the inode.
    pub fn close(&mut self, id: SessionId, ino: Ino) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.open.remove(&ino);
        }
        self.let_go(id, ino);
    }

    /// The session ended.
    pub fn end(&mut self, id: SessionId) {
        let open = self.sessions.remove(&id).map(|session| session.open).unwrap_or_default();
        open.into_iter().for_each(|ino| self.let_go(id, ino));
    }

    /// Who has, or may have, the inode open: `open_by` of a command that unlinks it. In order of ids.
    pub fn holders(&self, ino: Ino) -> Vec<SessionId> {
        let awaited = self.sessions.iter().filter(|(_, s)| s.awaited).map(|(id, _)| *id);
        let known = self.holders.get(&ino).into_iter().flatten().copied();
        awaited.chain(known).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether the session exists.
    pub fn is_known(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Whether the session has, or may have, the inode open.
    pub fn holds(&self, id: SessionId, ino: Ino) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.awaited || session.open.contains(&ino))
    }

    /// Time since the last sign of life, and how many inodes it has open. `None` if it is not known.
    pub fn activity(&self, id: SessionId, now: Duration) -> Option<(Duration, usize)> {
        let session = self.sessions.get(&id)?;
        Some((now.saturating_sub(session.seen), session.open.len()))
    }

    /// Sessions whose lease or grace is over, in order of ids. They stay until [`Sessions::end`], which
    /// comes when the state machine has closed them.
    pub fn expired(&self, now: Duration) -> Vec<SessionId> {
        let over = |session: &Session| now.saturating_sub(session.seen) > LEASE;
        self.sessions.iter().filter(|(_, s)| over(s)).map(|(id, _)| *id).collect()
    }

    fn let_go(&mut self, id: SessionId, ino: Ino) {
        if let Some(holders) = self.holders.get_mut(&ino) {
            holders.remove(&id);
            if holders.is_empty() {
                self.holders.remove(&ino);
            }
        }
    }
}
