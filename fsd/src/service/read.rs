//! Names, attributes and entries. Each answer comes from one view, so it is of one moment.

use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::message::{DirEntry, Failure, Response, StatFs};
use raftmeta::store::View;
use raftmeta::{KvError, read};
use raftmeta_types::{FileKind, Ino, Inode, MetaError, NAME_MAX, SessionId, XATTR_NAME_MAX};

use super::{Answer, plain};
use crate::node::Node;

/// Most entries of one answer.
const ENTRIES_MAX: usize = 1024;
/// Encoded bytes of one answer, at most about this; a message must stay below 1 MiB.
pub(super) const ANSWER_BYTES_MAX: usize = 768 << 10;
/// Encoded bytes of an entry besides its name and its inode's target, at most.
const ENTRY_BYTES: usize = 192;
/// What `statfs` calls a block.
const STATFS_BLOCK: u32 = 4096;
/// Inode numbers of this group: 48 bits.
const INODES_MAX: u64 = 1 << Ino::SEQUENCE_BITS;

/// The metadata store failed under a read.
pub(crate) fn storage(error: KvError) -> Failure {
    tracing::error!(%error, "a read of the metadata failed");
    Failure::Storage(error.to_string())
}

fn inode(view: &View, ino: Ino) -> Result<Inode, Failure> {
    read::inode(view, ino).map_err(storage)?.ok_or(MetaError::Stale.into())
}

pub(super) fn lookup(node: &Node, parent: Ino, name: &[u8]) -> Answer {
    if name.len() > NAME_MAX {
        return Err(MetaError::NameTooLong.into());
    }
    let found = read::lookup(&node.group.view(), parent, name).map_err(storage)?;
    plain(Response::Inode(found.ok_or(MetaError::NotFound)?))
}

pub(super) fn getattr(node: &Node, ino: Ino) -> Answer {
    plain(Response::Inode(inode(&node.group.view(), ino)?))
}

pub(super) fn readlink(node: &Node, ino: Ino) -> Answer {
    let inode = inode(&node.group.view(), ino)?;
    match inode.kind {
        FileKind::Symlink => plain(Response::Target(inode.target)),
        FileKind::Regular
        | FileKind::Directory
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::CharDevice
        | FileKind::BlockDevice => Err(MetaError::Invalid("not a symbolic link".into()).into()),
    }
}

pub(super) fn readdir(node: &Node, ino: Ino, after: &[u8], limit: u32) -> Answer {
    let view = node.group.view();
    if inode(&view, ino)?.kind != FileKind::Directory {
        return Err(MetaError::NotDirectory.into());
    }
    if after.len() > NAME_MAX {
        return Err(MetaError::NameTooLong.into());
    }
    let limit = (limit as usize).clamp(1, ENTRIES_MAX);
    let found = read::readdir(&view, ino, after, limit).map_err(storage)?;
    let mut end = found.len() < limit;
    let mut entries = Vec::with_capacity(found.len());
    let mut bytes = 0;
    for entry in found {
        let Some(inode) = read::inode(&view, entry.ino).map_err(storage)? else {
            let name = entry.name.escape_ascii();
            tracing::error!(directory = %ino, %name, "an entry names an inode that is not there");
            continue;
        };
        bytes += ENTRY_BYTES + entry.name.len() + inode.target.len();
        if bytes > ANSWER_BYTES_MAX {
            end = false;
            break;
        }
        entries.push(DirEntry { name: entry.name.into(), ino: entry.ino, kind: entry.kind, inode });
    }
    plain(Response::Entries { entries, end })
}

pub(super) fn xattr(node: &Node, ino: Ino, name: &[u8]) -> Answer {
    let view = node.group.view();
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(MetaError::Invalid("the name of an extended attribute".into()).into());
    }
    match read::xattr(&view, ino, name).map_err(storage)? {
        Some(value) => plain(Response::Xattr(value.into())),
        None => {
            inode(&view, ino)?;
            Err(MetaError::NoXattr.into())
        }
    }
}

pub(super) fn xattrs(node: &Node, ino: Ino) -> Answer {
    let view = node.group.view();
    inode(&view, ino)?;
    let names = read::xattr_names(&view, ino).map_err(storage)?;
    plain(Response::Xattrs(names.into_iter().map(Bytes::from).collect()))
}

/// `Request::Open`: see `order` for how it meets an unlink.
pub(super) async fn open(node: &Arc<Node>, session: SessionId, ino: Ino) -> Answer {
    let new = register(node, session, ino)?;
    node.order.unlinked(ino).await;
    node.may_answer()?;
    let found = openable(node, session, ino);
    if found.is_err() && new {
        node.sessions.lock().close(session, ino);
    }
    plain(Response::Inode(found?))
}

/// The session has the inode open from now on; false if it had before.
pub(super) fn register(node: &Node, session: SessionId, ino: Ino) -> Result<bool, Failure> {
    let new = node.sessions.lock().open(session, ino);
    new.map_err(|error| Failure::Refused(error.to_string()))
}

fn openable(node: &Node, session: SessionId, ino: Ino) -> Result<Inode, Failure> {
    let view = node.group.view();
    let inode = inode(&view, ino)?;
    if inode.nlink == 0 && !read::is_held(&view, ino, session).map_err(storage)? {
        return Err(MetaError::Stale.into());
    }
    Ok(inode)
}

pub(super) fn statfs(node: &Node) -> Answer {
    let space = node.space().map_err(storage)?;
    let counters = read::counters(&node.group.view()).map_err(storage)?;
    plain(Response::StatFs(StatFs {
        block_size: STATFS_BLOCK,
        total_bytes: space.total,
        free_bytes: (space.available + space.reserve).min(space.total),
        available_bytes: space.available,
        inodes: INODES_MAX,
        inodes_free: INODES_MAX.saturating_sub(counters.inodes),
    }))
}
