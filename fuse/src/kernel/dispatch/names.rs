//! Requests that name entries.

use bytes::Bytes;
use raftmeta_types::command::{Create, RenameMode};
use raftmeta_types::{FileKind, Ino};
use rustix::io::Errno;

use super::super::abi::{self, Reader};
use super::super::reply;
use super::super::session::Shared;
use super::{Answer, Head};
use crate::ops::{Place, Result};

/// What `open(O_CREAT)`, `mkdir`, `mknod` and `symlink` have in common.
pub(super) fn create_in(head: Head, name: &[u8], kind: FileKind, mode: u32, umask: u32) -> Create {
    Create {
        parent: head.ino,
        name: Bytes::copy_from_slice(name),
        kind,
        mode: mode & 0o7777,
        umask,
        uid: head.uid,
        gid: head.gid,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
        open: false,
    }
}

impl Shared {
    pub(super) fn lookup(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let name = r.name()?;
        Some(self.core.lookup(head.ino, name).map(|inode| reply::entry(&inode)))
    }

    fn make(&self, create: Create) -> Result<Vec<u8>> {
        self.core.create(create).map(|(inode, _)| reply::entry(&inode))
    }

    pub(super) fn mknod(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (mode, rdev, umask) = (r.u32()?, r.u32()?, r.u32()?);
        r.skip(4)?;
        let mut create = create_in(head, r.name()?, reply::kind_of(mode)?, mode, umask);
        create.rdev = rdev;
        Some(self.make(create))
    }

    pub(super) fn mkdir(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (mode, umask) = (r.u32()?, r.u32()?);
        Some(self.make(create_in(head, r.name()?, FileKind::Directory, mode, umask)))
    }

    pub(super) fn symlink(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (name, target) = (r.name()?, r.name()?);
        let mut create = create_in(head, name, FileKind::Symlink, 0o777, 0);
        create.target = Bytes::copy_from_slice(target);
        Some(self.make(create))
    }

    pub(super) fn link(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (ino, name) = (Ino(r.u64()?), r.name()?);
        let place = Place { parent: head.ino, name };
        Some(self.core.link(ino, &place).map(|inode| reply::entry(&inode)))
    }

    pub(super) fn unlink(
        &self,
        head: Head,
        r: &mut Reader<'_>,
        directory: bool,
    ) -> Option<Result<Vec<u8>>> {
        let place = Place { parent: head.ino, name: r.name()? };
        Some(self.core.unlink(&place, directory).map(|()| Vec::new()))
    }

    pub(super) fn rename(
        &self,
        head: Head,
        r: &mut Reader<'_>,
        with_flags: bool,
    ) -> Option<Result<Vec<u8>>> {
        let new_parent = Ino(r.u64()?);
        let flags = match with_flags {
            true => (r.u32()?, r.skip(4)?).0,
            false => 0,
        };
        let mode = match flags {
            0 => RenameMode::Replace,
            abi::RENAME_NOREPLACE => RenameMode::NoReplace,
            abi::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Some(Err(Errno::INVAL)),
        };
        let from = Place { parent: head.ino, name: r.name()? };
        let to = Place { parent: new_parent, name: r.name()? };
        Some(self.core.rename(&from, &to, mode).map(|()| Vec::new()))
    }

    pub(super) fn forget(&self, head: Head) -> Answer {
        self.core.forget(head.ino);
        Answer::Later
    }

    pub(super) fn batch_forget(&self, r: &mut Reader<'_>) -> Option<Answer> {
        let count = r.u32()?;
        r.skip(4)?;
        for _ in 0..count {
            let (Some(ino), Some(_lookups)) = (r.u64(), r.u64()) else { break };
            self.core.forget(Ino(ino));
        }
        // Nobody waits for an answer, also not to a malformed one.
        Some(Answer::Later)
    }
}
