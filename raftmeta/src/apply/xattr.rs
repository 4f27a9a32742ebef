//! Extended attributes, and the two that are POSIX ACLs.

use raftmeta_types::command::XattrMode;
use raftmeta_types::{FileKind, Ino, Inode, MetaError, Reply, XATTR_NAME_MAX, XATTR_VALUE_MAX};

use super::acl::{ACL_ACCESS, ACL_DEFAULT, Acl};
use super::state::{State, Step, invalid};
use crate::keys;
use crate::records;

/// Most bytes of all names of an inode with their NULs: what `listxattr` can return.
const NAMES_MAX: usize = 65536;

/// The value, without the record's version byte.
pub(super) fn value(state: &State<'_>, ino: Ino, name: &[u8]) -> Step<Option<Vec<u8>>> {
    Ok(state.get_raw(&keys::xattr(ino, name))?.map(|mut record| record.split_off(1)))
}

pub(super) fn store(state: &mut State<'_>, ino: Ino, name: &[u8], value: &[u8]) -> Step<()> {
    state.put_raw(&keys::xattr(ino, name), &[&[records::VERSION], value].concat())
}

pub(super) fn set(
    state: &mut State<'_>,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Step<Reply> {
    let mut inode = state.inode(ino)?;
    if name.is_empty() || name.contains(&0) {
        return invalid("not a name for an extended attribute");
    }
    if name.len() > XATTR_NAME_MAX {
        return Err(MetaError::NameTooLong.into());
    }
    if value.len() > XATTR_VALUE_MAX {
        return Err(MetaError::XattrTooLarge.into());
    }
    let exists = state.has(&keys::xattr(ino, name))?;
    match mode {
        XattrMode::Create if exists => return Err(MetaError::Exists.into()),
        XattrMode::Replace if !exists => return Err(MetaError::NoXattr.into()),
        _ => {}
    }
    if name == ACL_ACCESS || name == ACL_DEFAULT {
        set_acl(state, &mut inode, name, value)?;
    } else {
        if !exists {
            let names = state.scan(&keys::xattrs(ino), usize::MAX, false)?;
            let used: usize = names.iter().map(|(key, _)| keys::name(key).len() + 1).sum();
            if used + name.len() + 1 > NAMES_MAX {
                return Err(MetaError::XattrTooLarge.into());
            }
        }
        store(state, ino, name, value)?;
    }
    inode.ctime = state.now;
    state.put_inode(&mut inode)?;
    Ok(Reply::Inode(inode))
}

fn set_acl(state: &mut State<'_>, inode: &mut Inode, name: &[u8], value: &[u8]) -> Step<()> {
    if inode.kind == FileKind::Symlink {
        return Err(MetaError::Unsupported("ACL of a symbolic link".into()).into());
    }
    let mut acl = Acl::parse(value)?;
    if name == ACL_DEFAULT && inode.kind != FileKind::Directory && acl.is_some() {
        return Err(MetaError::AccessDenied.into());
    }
    if name == ACL_ACCESS
        && let Some(access) = &acl
    {
        inode.mode = inode.mode & !0o777 | access.mode();
        if access.is_mode() {
            acl = None;
        }
    }
    match acl {
        Some(acl) => store(state, inode.ino, name, &acl.encode())?,
        None => state.delete(&keys::xattr(inode.ino, name))?,
    }
    note_acl(state, inode)
}

fn note_acl(state: &State<'_>, inode: &mut Inode) -> Step<()> {
    inode.has_acl = state.has(&keys::xattr(inode.ino, ACL_ACCESS))?
        || state.has(&keys::xattr(inode.ino, ACL_DEFAULT))?;
    Ok(())
}

pub(super) fn remove(state: &mut State<'_>, ino: Ino, name: &[u8]) -> Step<Reply> {
    let mut inode = state.inode(ino)?;
    if name.len() > XATTR_NAME_MAX {
        return Err(MetaError::NameTooLong.into());
    }
    let key = keys::xattr(ino, name);
    if !state.has(&key)? {
        return Err(MetaError::NoXattr.into());
    }
    state.delete(&key)?;
    note_acl(state, &mut inode)?;
    inode.ctime = state.now;
    state.put_inode(&mut inode)?;
    Ok(Reply::Inode(inode))
}
