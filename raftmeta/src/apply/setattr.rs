//! `chmod`, `chown`, `utimensat`, `truncate`.

use raftmeta_types::command::{AttrChange, SetAttr, SetTime};
use raftmeta_types::{FILE_SIZE_MAX, Inode, MetaError, Reply, Time};

use super::acl::{ACL_ACCESS, Acl};
use super::state::{State, Step};
use super::{extents, xattr};

pub(super) fn set_attr(state: &mut State<'_>, set: &SetAttr) -> Step<Reply> {
    let mut inode = match set.size {
        Some(_) => state.file(set.ino)?,
        None => state.inode(set.ino)?,
    };
    let before = inode.data_version;
    if let Some(size) = set.size
        && !resize(state, &mut inode, size)?
    {
        inode.ctime = state.now;
        state.put_inode(&mut inode)?;
        return Ok(Reply::More);
    }
    change(state, &mut inode, &set.change)?;
    inode.ctime = state.now;
    state.put_inode(&mut inode)?;
    Ok(match set.size {
        Some(_) => Reply::Content { inode, before },
        None => Reply::Inode(inode),
    })
}

/// Cuts the file down or leaves a hole up to `size`; `false` if it is longer still, because it had too many
/// extents to lose them in one command.
fn resize(state: &mut State<'_>, inode: &mut Inode, size: u64) -> Step<bool> {
    if size > FILE_SIZE_MAX {
        return Err(MetaError::FileTooLarge.into());
    }
    // What lies beyond the new end goes, so that it reads as zeros when the file grows again.
    let reached = match size < inode.size {
        true => extents::cut_some(state, inode, size)?,
        false => size,
    };
    inode.size = if reached > size { reached.min(inode.size) } else { size };
    inode.mtime = state.now;
    inode.data_version = state.version;
    Ok(reached <= size)
}

/// Changes the attributes; ctime is the caller's.
pub(super) fn change(state: &mut State<'_>, inode: &mut Inode, change: &AttrChange) -> Step<()> {
    if let Some(mode) = change.mode {
        inode.mode = mode & 0o7777;
        if inode.has_acl
            && let Some(bytes) = xattr::value(state, inode.ino, ACL_ACCESS)?
            && let Some(mut acl) = Acl::parse(&bytes)?
        {
            acl.set_mode(inode.mode);
            xattr::store(state, inode.ino, ACL_ACCESS, &acl.encode())?;
        }
    }
    inode.uid = change.uid.unwrap_or(inode.uid);
    inode.gid = change.gid.unwrap_or(inode.gid);
    let now = state.now;
    let set = |to: &mut Time, time: Option<SetTime>| match time {
        Some(SetTime::Now) => *to = now,
        Some(SetTime::At(at)) => *to = at,
        None => {}
    };
    set(&mut inode.atime, change.atime);
    set(&mut inode.mtime, change.mtime);
    Ok(())
}
