//! `renameat2`: replace, no-replace, exchange.

use raftmeta_types::command::{Rename, RenameMode};
use raftmeta_types::{FileKind, Ino, Inode, MetaError, Reply};

use super::state::{DENTRY_SIZE, State, Step, check_name, invalid};
use super::unlink;
use crate::keys;

pub(super) fn rename(state: &mut State<'_>, rename: &Rename) -> Step<Reply> {
    check_name(&rename.name)?;
    check_name(&rename.new_name)?;
    state.directory(rename.parent)?;
    state.directory(rename.new_parent)?;
    let source = state.dentry(rename.parent, &rename.name)?.ok_or(MetaError::NotFound)?;
    let target = state.dentry(rename.new_parent, &rename.new_name)?;
    if rename.mode == RenameMode::NoReplace && target.is_some() {
        return Err(MetaError::Exists.into());
    }
    if source.kind == FileKind::Directory && is_below(state, rename.new_parent, source.ino)? {
        return invalid("a directory cannot move into itself");
    }
    let source = state.inode(source.ino)?;
    let target = target.map(|target| state.inode(target.ino)).transpose()?;
    match (target, rename.mode) {
        (None, RenameMode::Exchange) => Err(MetaError::NotFound.into()),
        (None, _) => {
            let moved = [source.ino];
            move_entry(state, rename, source, false)?;
            Ok(Reply::Unlinked { inode: None, changed: changed(state, rename, &moved)? })
        }
        // Two names of one inode: nothing to do, says POSIX.
        (Some(target), _) if target.ino == source.ino => {
            Ok(Reply::Unlinked { inode: None, changed: Vec::new() })
        }
        (Some(target), RenameMode::Exchange) => exchange(state, rename, source, target),
        (Some(target), _) => replace(state, rename, source, target),
    }
}

fn replace(
    state: &mut State<'_>,
    rename: &Rename,
    source: Inode,
    mut target: Inode,
) -> Step<Reply> {
    let directory = target.kind == FileKind::Directory;
    match (source.kind == FileKind::Directory, directory) {
        (true, false) => return Err(MetaError::NotDirectory.into()),
        (false, true) => return Err(MetaError::IsDirectory.into()),
        _ => {}
    }
    if directory && !state.is_empty_directory(target.ino)? {
        return Err(MetaError::NotEmpty.into());
    }
    if directory {
        let mut parent = state.inode(rename.new_parent)?;
        parent.nlink -= 1;
        state.put_inode(&mut parent)?;
    }
    let moved = [source.ino];
    move_entry(state, rename, source, true)?;
    unlink::drop_link(state, &mut target, &rename.open_by)?;
    Ok(Reply::Unlinked { inode: Some(target), changed: changed(state, rename, &moved)? })
}

/// The directories and what `moved`, as they are now.
fn changed(state: &State<'_>, rename: &Rename, moved: &[Ino]) -> Step<Vec<Inode>> {
    let mut inos = vec![rename.parent, rename.new_parent];
    inos.extend(moved);
    inos.sort_unstable();
    inos.dedup();
    inos.into_iter().map(|ino| state.inode(ino)).collect()
}

/// Moves the entry; `replaced` if the new name was there already.
fn move_entry(
    state: &mut State<'_>,
    rename: &Rename,
    mut source: Inode,
    replaced: bool,
) -> Step<()> {
    let links = u32::from(source.kind == FileKind::Directory);
    state.delete(&keys::dentry(rename.parent, &rename.name))?;
    state.put_dentry(rename.new_parent, &rename.new_name, &source)?;

    let mut old = state.inode(rename.parent)?;
    old.size = old.size.saturating_sub(DENTRY_SIZE);
    old.nlink -= links;
    state.touch_directory(&mut old);
    state.put_inode(&mut old)?;

    let mut new = state.inode(rename.new_parent)?;
    new.size += if replaced { 0 } else { DENTRY_SIZE };
    new.nlink += links;
    state.touch_directory(&mut new);
    state.put_inode(&mut new)?;

    set_parent(&mut source, rename.new_parent);
    source.ctime = state.now;
    state.put_inode(&mut source)
}

fn exchange(
    state: &mut State<'_>,
    rename: &Rename,
    mut source: Inode,
    mut target: Inode,
) -> Step<Reply> {
    if target.kind == FileKind::Directory && is_below(state, rename.parent, target.ino)? {
        return invalid("a directory cannot move into itself");
    }
    state.put_dentry(rename.parent, &rename.name, &target)?;
    state.put_dentry(rename.new_parent, &rename.new_name, &source)?;
    let links = |inode: &Inode| u32::from(inode.kind == FileKind::Directory);

    let mut old = state.inode(rename.parent)?;
    old.nlink = old.nlink + links(&target) - links(&source);
    state.touch_directory(&mut old);
    state.put_inode(&mut old)?;
    let mut new = state.inode(rename.new_parent)?;
    new.nlink = new.nlink + links(&source) - links(&target);
    state.touch_directory(&mut new);
    state.put_inode(&mut new)?;

    set_parent(&mut source, rename.new_parent);
    set_parent(&mut target, rename.parent);
    source.ctime = state.now;
    target.ctime = state.now;
    state.put_inode(&mut source)?;
    state.put_inode(&mut target)?;
    let moved = [source.ino, target.ino];
    Ok(Reply::Unlinked { inode: None, changed: changed(state, rename, &moved)? })
}

fn set_parent(inode: &mut Inode, parent: Ino) {
    if inode.kind == FileKind::Directory {
        inode.parent = parent;
    }
}

/// Whether `ino` is `ancestor` or lies below it.
fn is_below(state: &State<'_>, mut ino: Ino, ancestor: Ino) -> Step<bool> {
    while ino != ancestor {
        if ino == Ino::ROOT {
            return Ok(false);
        }
        ino = state.inode(ino)?.parent;
    }
    Ok(true)
}
