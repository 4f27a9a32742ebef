//! `open(O_CREAT)`, `mkdir`, `mknod`, `symlink`, `O_TMPFILE`.

use raftmeta_types::command::Create;
use raftmeta_types::{FileKind, Ino, Inode, MetaError, Reply, SYMLINK_MAX, SessionId};

use super::acl::{ACL_ACCESS, ACL_DEFAULT, Acl};
use super::state::{DENTRY_SIZE, State, Step, check_name, invalid};
use super::{cluster, xattr};
use crate::keys;
use crate::records::Orphan;

const SETGID: u32 = 0o2000;

pub(super) fn create(state: &mut State<'_>, create: &Create) -> Step<Reply> {
    let unnamed = create.name.is_empty();
    if !unnamed {
        check_name(&create.name)?;
    } else if create.kind != FileKind::Regular || state.session == SessionId::SERVER {
        return invalid("only a client's regular file can be without a name");
    }
    check_target(create)?;
    let mut parent = state.directory(create.parent)?;
    if !unnamed && let Some(existing) = state.dentry(parent.ino, &create.name)? {
        return match existing.kind {
            FileKind::Regular if !create.exclusive && create.kind == FileKind::Regular => {
                let inode = state.inode(existing.ino)?;
                Ok(Reply::Created { inode, new: false, changed: Vec::new() })
            }
            FileKind::Directory if !create.exclusive => Err(MetaError::IsDirectory.into()),
            _ => Err(MetaError::Exists.into()),
        };
    }
    let mut inode = make(state, create, &parent)?;
    let mut changed = Vec::new();
    if unnamed {
        let orphan = Orphan { sessions: vec![state.session], linkable: true };
        state.put(&keys::orphan(inode.ino), &orphan)?;
    } else {
        state.put_dentry(parent.ino, &create.name, &inode)?;
        parent.size += DENTRY_SIZE;
        if inode.kind == FileKind::Directory {
            parent.nlink += 1;
        }
        state.touch_directory(&mut parent);
        state.put_inode(&mut parent)?;
        changed.push(parent);
    }
    state.put_inode(&mut inode)?;
    Ok(Reply::Created { inode, new: true, changed })
}

fn check_target(create: &Create) -> Step<()> {
    if create.kind != FileKind::Symlink {
        return if create.target.is_empty() {
            Ok(())
        } else {
            invalid("only a symlink has a target")
        };
    }
    match create.target.len() {
        0 => Err(MetaError::NotFound.into()),
        1..=SYMLINK_MAX => Ok(()),
        _ => Err(MetaError::NameTooLong.into()),
    }
}

/// The new inode, with what it inherits from its directory: group and ACLs.
fn make(state: &mut State<'_>, create: &Create, parent: &Inode) -> Step<Inode> {
    let directory = create.kind == FileKind::Directory;
    let ino = cluster::next_ino(state)?;
    let inherits_group = parent.mode & SETGID != 0;
    let mut inode = Inode {
        ino,
        kind: create.kind,
        mode: create.mode & 0o7777,
        uid: create.uid,
        gid: if inherits_group { parent.gid } else { create.gid },
        nlink: match create.kind {
            FileKind::Directory => 2,
            _ if create.name.is_empty() => 0,
            _ => 1,
        },
        size: create.target.len() as u64,
        allocated: 0,
        atime: state.now,
        mtime: state.now,
        ctime: state.now,
        btime: state.now,
        rdev: match create.kind {
            FileKind::CharDevice | FileKind::BlockDevice => create.rdev,
            _ => 0,
        },
        version: state.version,
        data_version: state.version,
        parent: if directory { parent.ino } else { Ino(0) },
        target: create.target.clone(),
        has_acl: false,
    };
    if create.kind == FileKind::Symlink {
        inode.mode = 0o777;
        return Ok(inode);
    }
    let default = match parent.has_acl {
        true => xattr::value(state, parent.ino, ACL_DEFAULT)?,
        false => None,
    };
    match default.as_deref().map(Acl::parse).transpose()?.flatten() {
        None => inode.mode &= !(create.umask & 0o777),
        Some(default) => {
            let mut access = default.clone();
            inode.mode = access.inherit(inode.mode);
            if !access.is_mode() {
                xattr::store(state, ino, ACL_ACCESS, &access.encode())?;
                inode.has_acl = true;
            }
            if directory {
                xattr::store(state, ino, ACL_DEFAULT, &default.encode())?;
                inode.has_acl = true;
            }
        }
    }
    if inherits_group && directory {
        inode.mode |= SETGID;
    }
    Ok(inode)
}
