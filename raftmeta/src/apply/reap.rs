//! The end of an inode: at once if it is small, else by and by.

use raftmeta_types::{Ino, Inode, Reply, SessionId};

use super::extents;
use super::state::{State, Step};
use crate::keys;
use crate::records::Orphan;

/// Removes an inode without links and all that hangs on it. Its extents go with it while the command may
/// free some; else they are left to `Reap`, so that the end of a huge file holds nobody up.
pub(super) fn free(state: &mut State<'_>, inode: &Inode) -> Step<()> {
    let ino = inode.ino;
    state.delete_inode(inode)?;
    state.delete(&keys::orphan(ino))?;
    state.delete(&keys::locks(ino))?;
    state.delete_range(&keys::xattrs(ino))?;
    let limit = state.free_extents;
    let found = extents::meeting(state, ino, 0, u64::MAX, limit + 1)?;
    if found.len() > limit {
        let version = state.version;
        return state.put(&keys::dead(ino), &version);
    }
    state.free_extents -= found.len();
    found.iter().try_for_each(|extent| extents::drop_record(state, ino, extent))
}

/// The session lets go of unlinked files.
pub(super) fn release(state: &mut State<'_>, session: SessionId, inos: &[Ino]) -> Step<Reply> {
    for &ino in inos {
        let key = keys::orphan(ino);
        let Some(mut orphan) = state.get::<Orphan>(&key)? else { continue };
        orphan.sessions.retain(|&holder| holder != session);
        if orphan.sessions.is_empty() {
            let inode = state.inode(ino)?;
            free(state, &inode)?;
        } else {
            state.put(&key, &orphan)?;
        }
    }
    Ok(Reply::Done)
}

/// Frees at most `limit` extents of dead inodes.
pub(super) fn reap(state: &mut State<'_>, limit: u32) -> Step<Reply> {
    let mut left = limit as usize;
    let mut freed = 0;
    while left > 0 {
        let next = state.scan(&keys::class(b'B'), 1, false)?;
        let Some((key, _)) = next.first() else { break };
        let ino = Ino(keys::first_number(key));
        let found = extents::meeting(state, ino, 0, u64::MAX, left)?;
        for extent in &found {
            extents::drop_record(state, ino, extent)?;
        }
        freed += found.len() as u32;
        left -= found.len();
        if state.scan(&keys::extents(ino), 1, false)?.is_empty() {
            state.delete(key)?;
        }
    }
    let more = !state.scan(&keys::class(b'B'), 1, false)?.is_empty();
    Ok(Reply::Reaped { extents: freed, more })
}
