//! `unlink` and `rmdir`, and what becomes of an inode that loses its last link.

use raftmeta_types::command::Unlink;
use raftmeta_types::{FileKind, Ino, Inode, MetaError, Reply, SessionId};

use super::reap;
use super::state::{DENTRY_SIZE, State, Step, check_name};
use crate::keys;
use crate::records::Orphan;

pub(super) fn unlink(state: &mut State<'_>, unlink: &Unlink) -> Step<Reply> {
    check_name(&unlink.name)?;
    let mut parent = state.directory(unlink.parent)?;
    let entry = state.dentry(parent.ino, &unlink.name)?.ok_or(MetaError::NotFound)?;
    let mut inode = state.inode(entry.ino)?;
    match (unlink.directory, inode.kind == FileKind::Directory) {
        (false, true) => return Err(MetaError::IsDirectory.into()),
        (true, false) => return Err(MetaError::NotDirectory.into()),
        (true, true) if !state.is_empty_directory(inode.ino)? => {
            return Err(MetaError::NotEmpty.into());
        }
        _ => {}
    }
    state.delete(&keys::dentry(parent.ino, &unlink.name))?;
    parent.size = parent.size.saturating_sub(DENTRY_SIZE);
    if inode.kind == FileKind::Directory {
        parent.nlink -= 1;
    }
    state.touch_directory(&mut parent);
    state.put_inode(&mut parent)?;
    drop_link(state, &mut inode, &unlink.open_by)?;
    Ok(Reply::Unlinked { inode: Some(inode), changed: vec![parent] })
}

/// Takes one link from the inode, whose entry is gone already. With its last link it goes too, unless
/// sessions hold it open.
pub(super) fn drop_link(
    state: &mut State<'_>,
    inode: &mut Inode,
    open_by: &[(Ino, Vec<SessionId>)],
) -> Step<()> {
    inode.ctime = state.now;
    inode.nlink = match inode.kind {
        FileKind::Directory => 0,
        _ => inode.nlink.saturating_sub(1),
    };
    if inode.nlink > 0 {
        return state.put_inode(inode);
    }
    let mut sessions = Vec::new();
    let named = open_by.iter().filter(|(ino, _)| *ino == inode.ino).flat_map(|(_, list)| list);
    for &session in named {
        // A session that ended meanwhile would never let go.
        if state.has(&keys::session(session))? {
            sessions.push(session);
        }
    }
    sessions.sort_unstable();
    sessions.dedup();
    if sessions.is_empty() {
        return reap::free(state, inode);
    }
    state.put(&keys::orphan(inode.ino), &Orphan { sessions, linkable: false })?;
    state.put_inode(inode)
}
