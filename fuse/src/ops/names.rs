//! Names: lookup, create, link, rename, unlink, symbolic links.

use bytes::Bytes;
use fsd_rpc::message::{Request, Response};
use raftmeta_types::command::{Create, Rename, RenameMode, Unlink};
use raftmeta_types::{Command, Ino, Inode, NAME_MAX, Reply};
use rustix::io::Errno;

use super::{Core, Result, unexpected};

/// A place in the tree.
pub(crate) struct Place<'a> {
    pub(crate) parent: Ino,
    pub(crate) name: &'a [u8],
}

impl Core {
    pub(crate) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        match name {
            b"." => self.getattr(parent),
            b".." => {
                let up = self.getattr(parent)?.parent;
                self.getattr(if up == Ino(0) { Ino::ROOT } else { up })
            }
            _ if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => self.inode_of(&Request::Lookup { parent, name: Bytes::copy_from_slice(name) }),
        }
    }

    /// The inode, and whether it is new.
    pub(crate) fn create(&self, create: Create) -> Result<(Inode, bool)> {
        match self.mutate(Command::Create(create))? {
            Reply::Created { inode, new, .. } => Ok((self.local(inode), new)),
            _ => unexpected(),
        }
    }

    pub(crate) fn link(&self, ino: Ino, at: &Place<'_>) -> Result<Inode> {
        let name = Bytes::copy_from_slice(at.name);
        match self.mutate(Command::Link { ino, parent: at.parent, name })? {
            Reply::Created { inode, .. } => Ok(self.local(inode)),
            _ => unexpected(),
        }
    }

    pub(crate) fn unlink(&self, at: &Place<'_>, directory: bool) -> Result<()> {
        self.tell_closed();
        let name = Bytes::copy_from_slice(at.name);
        let unlink = Unlink { parent: at.parent, name, directory, open_by: Vec::new() };
        match self.mutate(Command::Unlink(unlink))? {
            Reply::Unlinked { .. } => Ok(()),
            _ => unexpected(),
        }
    }

    pub(crate) fn rename(&self, from: &Place<'_>, to: &Place<'_>, mode: RenameMode) -> Result<()> {
        self.tell_closed();
        let rename = Rename {
            parent: from.parent,
            name: Bytes::copy_from_slice(from.name),
            new_parent: to.parent,
            new_name: Bytes::copy_from_slice(to.name),
            mode,
            open_by: Vec::new(),
        };
        match self.mutate(Command::Rename(rename))? {
            Reply::Unlinked { .. } => Ok(()),
            _ => unexpected(),
        }
    }

    pub(crate) fn readlink(&self, ino: Ino) -> Result<Bytes> {
        match self.call(&Request::ReadLink { ino })?.0 {
            Response::Target(target) => Ok(target),
            _ => unexpected(),
        }
    }
}
