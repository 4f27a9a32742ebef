//! Corrections of what fsck found (`cfs admin fsck --repair`).
//!
//! fsck counts on the state of one moment, and the cluster goes on. So a correction of a number is what is to
//! be added to it: both the number and what it counts have moved alike since. Everything else is decided
//! again here, from the present records, and a correction that is not needed any more changes nothing.

use raftmeta_types::command::Repair;
use raftmeta_types::{ChunkHash, ExtentData, Ino, Inode, Reply};

use super::state::{State, Step, invalid};
use super::{ACL_ACCESS, ACL_DEFAULT, INLINE_KEEP_MAX, gc, reap};
use crate::keys;
use crate::records::{Counters, ExtentRecord, Orphan};

/// Most corrections of one command.
pub const REPAIRS_MAX: usize = 1024;

pub(super) fn repair(state: &mut State<'_>, repairs: &[Repair]) -> Step<Reply> {
    if repairs.len() > REPAIRS_MAX {
        return invalid(format!("more than {REPAIRS_MAX} corrections in one command"));
    }
    for repair in repairs {
        match repair {
            Repair::Counters { inodes, logical_bytes } => {
                let mut counters: Counters = state.get(keys::COUNTERS)?.unwrap_or_default();
                counters.inodes = counters.inodes.saturating_add_signed(*inodes);
                counters.logical_bytes =
                    counters.logical_bytes.saturating_add_signed(*logical_bytes);
                state.put(keys::COUNTERS, &counters)?;
            }
            Repair::References { hash, by } => references(state, hash, *by)?,
            Repair::Inode { ino, links, allocated, directory_size } => {
                let Some(mut inode) = state.get::<Inode>(&keys::inode(*ino))? else { continue };
                inode.nlink = inode.nlink.saturating_add_signed(*links);
                inode.allocated = inode.allocated.saturating_add_signed(*allocated);
                inode.size = inode.size.saturating_add_signed(*directory_size);
                state.put_inode(&mut inode)?;
            }
            Repair::AclMark { ino } => acl_mark(state, *ino)?,
            Repair::Unsettled { ino, offset } => unsettled(state, *ino, *offset)?,
            Repair::Orphan { ino } => orphan(state, *ino)?,
            Repair::Leftovers { ino } => leftovers(state, *ino)?,
        }
    }
    Ok(Reply::Done)
}

fn references(state: &mut State<'_>, hash: &ChunkHash, by: i64) -> Step<()> {
    let key = keys::references(hash);
    let count = state.get::<u64>(&key)?.unwrap_or(0).saturating_add_signed(by);
    let garbage = keys::garbage(gc::shard_of(state, hash)?, hash);
    if count > 0 {
        state.delete(&garbage)?;
        return state.put(&key, &count);
    }
    state.delete(&key)?;
    let version = state.version;
    state.put(&garbage, &version)
}

fn acl_mark(state: &mut State<'_>, ino: Ino) -> Step<()> {
    let Some(mut inode) = state.get::<Inode>(&keys::inode(ino))? else { return Ok(()) };
    inode.has_acl =
        state.has(&keys::xattr(ino, ACL_ACCESS))? || state.has(&keys::xattr(ino, ACL_DEFAULT))?;
    state.put_inode(&mut inode)
}

/// The index of inline data that waits to be settled says what the extent is.
fn unsettled(state: &mut State<'_>, ino: Ino, offset: u64) -> Step<()> {
    let key = keys::unsettled(ino, offset);
    match state.get::<ExtentRecord>(&keys::extent(ino, offset))? {
        Some(ExtentRecord { data: ExtentData::Inline(_), len, version })
            if len > INLINE_KEEP_MAX && state.has(&keys::inode(ino))? =>
        {
            state.put(&key, &version)
        }
        Some(_) | None => state.delete(&key),
    }
}

/// An inode without links stays while a live session holds it; a record that holds nothing goes.
fn orphan(state: &mut State<'_>, ino: Ino) -> Step<()> {
    let key = keys::orphan(ino);
    let Some(inode) = state.get::<Inode>(&keys::inode(ino))?.filter(|inode| inode.nlink == 0)
    else {
        return state.delete(&key);
    };
    let mut holders = Vec::new();
    let orphan = state.get::<Orphan>(&key)?;
    for session in orphan.iter().flat_map(|orphan| &orphan.sessions) {
        if state.has(&keys::session(*session))? {
            holders.push(*session);
        }
    }
    if holders.is_empty() {
        return reap::free(state, &inode);
    }
    let linkable = orphan.is_some_and(|orphan| orphan.linkable);
    state.put(&key, &Orphan { sessions: holders, linkable })
}

/// What hangs on an inode that does not exist goes; its extents are left to `Reap`.
fn leftovers(state: &mut State<'_>, ino: Ino) -> Step<()> {
    if state.has(&keys::inode(ino))? {
        return Ok(());
    }
    state.delete_range(&keys::xattrs(ino))?;
    state.delete(&keys::locks(ino))?;
    state.delete_range(&keys::unsettled_of(ino))?;
    if state.scan(&keys::extents(ino), 1, false)?.is_empty() {
        return Ok(());
    }
    let version = state.version;
    state.put(&keys::dead(ino), &version)
}
