//! Requests about open files.

use raftmeta_types::{FileKind, Ino};
use rustix::fs::OFlags;

use super::super::abi::{self, Reader};
use super::super::notify::Notice;
use super::super::reply;
use super::super::session::Shared;
use super::Head;
use super::names::create_in;
use crate::ops::{Opened, Result, WriteMode, Written};

impl Shared {
    fn open_reply(&self, ino: Ino, opened: &Opened) -> Vec<u8> {
        if opened.changed {
            // Otherwise the kernel would read up to the size that it remembers.
            self.forget_inode(ino, false);
        }
        reply::opened(opened.fh, opened.keep_pages)
    }

    pub(super) fn open(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let flags = OFlags::from_bits_retain(r.u32()?);
        let opened = self.core.open(head.ino, flags);
        Some(opened.map(|opened| self.open_reply(head.ino, &opened)))
    }

    /// `named`: not `O_TMPFILE`.
    pub(super) fn create(
        &self,
        head: Head,
        r: &mut Reader<'_>,
        named: bool,
    ) -> Option<Result<Vec<u8>>> {
        let flags = OFlags::from_bits_retain(r.u32()?);
        let (mode, umask) = (r.u32()?, r.u32()?);
        r.skip(4)?;
        // The name that the kernel shows for an unnamed file is its own invention.
        let name = r.name()?;
        let name = if named { name } else { &[] };
        let mut create = create_in(head, name, FileKind::Regular, mode, umask);
        create.exclusive = flags.contains(OFlags::EXCL);
        create.open = true;
        Some(self.core.create(create).and_then(|(inode, made)| {
            let (inode, opened) = match made {
                true => (inode.clone(), self.core.open_made(inode, flags)),
                false => {
                    let opened = self.core.open_found(inode.ino, flags)?;
                    (self.core.getattr(inode.ino)?, opened)
                }
            };
            let mut out = reply::entry(&inode);
            out.extend(self.open_reply(inode.ino, &opened));
            Ok(out)
        }))
    }

    pub(super) fn read(&self, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (fh, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
        Some(self.core.read(fh, offset, size.min(abi::MAX_WRITE)))
    }

    pub(super) fn write(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (fh, offset, size, write_flags) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
        r.skip(8)?;
        let flags = OFlags::from_bits_retain(r.u32()?);
        r.skip(4)?;
        let data = r.bytes(size as usize)?;
        let from_pages = write_flags & abi::WRITE_CACHE != 0;
        let mode = WriteMode {
            append: flags.contains(OFlags::APPEND) && !from_pages,
            sync: flags.contains(OFlags::DSYNC),
        };
        Some(self.core.write(fh, offset, data, mode).map(|written| {
            if written == Written::Elsewhere {
                self.notices.push(Notice::Inode(head.ino));
            }
            reply::size(size)
        }))
    }

    /// At every `close`.
    pub(super) fn flush(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let fh = r.u64()?;
        r.skip(8)?;
        let owner = r.u64()?;
        let flushed = self.core.sync(fh);
        let unlocked = self.core.unlock_owner(head.ino, owner);
        self.waiting.unlocked();
        Some(flushed.and(unlocked).map(|()| Vec::new()))
    }

    pub(super) fn release(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let fh = r.u64()?;
        r.skip(4)?;
        let (flags, owner) = (r.u32()?, r.u64()?);
        if flags & abi::RELEASE_FLOCK_UNLOCK != 0 {
            if let Err(error) = self.core.unlock_flock(head.ino, owner) {
                tracing::warn!(ino = head.ino.0, %error, "unlock at close failed");
            }
            self.waiting.unlocked();
        }
        self.core.release(fh);
        Some(Ok(Vec::new()))
    }
}
