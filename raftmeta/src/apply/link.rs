//! `link`, also of a file made by `O_TMPFILE`.

use raftmeta_types::{FileKind, Ino, LINK_MAX, MetaError, Reply};

use super::state::{DENTRY_SIZE, State, Step, check_name};
use crate::keys;
use crate::records::Orphan;

pub(super) fn link(state: &mut State<'_>, ino: Ino, parent: Ino, name: &[u8]) -> Step<Reply> {
    check_name(name)?;
    let mut parent = state.directory(parent)?;
    let mut inode = state.inode(ino)?;
    if inode.kind == FileKind::Directory {
        return Err(MetaError::NotPermitted.into());
    }
    if state.dentry(parent.ino, name)?.is_some() {
        return Err(MetaError::Exists.into());
    }
    if inode.nlink >= LINK_MAX {
        return Err(MetaError::TooManyLinks.into());
    }
    if inode.nlink == 0 {
        let orphan: Option<Orphan> = state.get(&keys::orphan(ino))?;
        if !orphan.is_some_and(|orphan| orphan.linkable) {
            return Err(MetaError::NotFound.into());
        }
        state.delete(&keys::orphan(ino))?;
    }
    inode.nlink += 1;
    inode.ctime = state.now;
    state.put_dentry(parent.ino, name, &inode)?;
    state.put_inode(&mut inode)?;
    parent.size += DENTRY_SIZE;
    state.touch_directory(&mut parent);
    state.put_inode(&mut parent)?;
    Ok(Reply::Created { inode, new: false, changed: vec![parent] })
}
