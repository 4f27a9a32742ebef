//! One request in, one answer out.

mod attributes;
mod directory;
mod files;
mod locks;
mod names;
mod space;
mod xattrs;

use raftmeta_types::Ino;
use rustix::io::Errno;

use super::abi::{self, Reader, Writer, init, opcode};
use super::session::Shared;
use crate::ops::Result;

/// A request's header (`fuse_in_header`).
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) ino: Ino,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Head {
    fn read(r: &mut Reader<'_>) -> Option<Head> {
        r.skip(4)?;
        let opcode = r.u32()?;
        let (unique, ino) = (r.u64()?, Ino(r.u64()?));
        let (uid, gid) = (r.u32()?, r.u32()?);
        r.skip(8)?;
        Some(Head { opcode, unique, ino, uid, gid })
    }
}

/// What a request comes to.
pub(super) enum Answer {
    /// This, now.
    Now(Result<Vec<u8>>),
    /// Another thread answers, or nobody waits.
    Later,
}

impl Shared {
    /// Serves one request as it was read.
    pub(super) fn request(&self, request: &[u8]) {
        let mut reader = Reader(request);
        let Some(head) = Head::read(&mut reader) else { return };
        match self.answer(head, &mut reader) {
            Some(Answer::Now(answer)) => self.reply(head.unique, answer),
            Some(Answer::Later) => {}
            None => self.reply(head.unique, Err(Errno::INVAL)),
        }
    }

    /// `None`: the request is malformed.
    fn answer(&self, head: Head, r: &mut Reader<'_>) -> Option<Answer> {
        let answer = match head.opcode {
            opcode::INIT => answer_init(r)?,
            opcode::DESTROY => Ok(Vec::new()),

            opcode::LOOKUP => self.lookup(head, r)?,
            opcode::MKNOD => self.mknod(head, r)?,
            opcode::MKDIR => self.mkdir(head, r)?,
            opcode::SYMLINK => self.symlink(head, r)?,
            opcode::READLINK => self.core.readlink(head.ino).map(|target| target.to_vec()),
            opcode::LINK => self.link(head, r)?,
            opcode::UNLINK => self.unlink(head, r, false)?,
            opcode::RMDIR => self.unlink(head, r, true)?,
            opcode::RENAME => self.rename(head, r, false)?,
            opcode::RENAME2 => self.rename(head, r, true)?,
            opcode::FORGET => return Some(self.forget(head)),
            opcode::BATCH_FORGET => return self.batch_forget(r),

            opcode::GETATTR => self.getattr(head),
            opcode::SETATTR => self.setattr(head, r)?,
            opcode::STATX => self.statx(head),
            opcode::STATFS => self.statfs(),

            opcode::OPEN => self.open(head, r)?,
            opcode::CREATE => self.create(head, r, true)?,
            opcode::TMPFILE => self.create(head, r, false)?,
            opcode::READ => self.read(r)?,
            opcode::WRITE => self.write(head, r)?,
            opcode::FLUSH => self.flush(head, r)?,
            opcode::FSYNC => self.core.sync(r.u64()?).map(|()| Vec::new()),
            opcode::RELEASE => self.release(head, r)?,

            opcode::FALLOCATE => self.fallocate(head, r)?,
            opcode::LSEEK => self.lseek(head, r)?,
            opcode::COPY_FILE_RANGE => self.copy_file_range(head, r, false)?,
            opcode::COPY_FILE_RANGE_64 => self.copy_file_range(head, r, true)?,

            opcode::OPENDIR => Ok(self.opendir()),
            opcode::READDIR => self.readdir(head, r, false)?,
            opcode::READDIRPLUS => self.readdir(head, r, true)?,
            opcode::RELEASEDIR => self.releasedir(r)?,
            opcode::FSYNCDIR | opcode::SYNCFS => self.core.sync_all().map(|()| Vec::new()),

            opcode::GETXATTR => self.get_xattr(head, r)?,
            opcode::SETXATTR => self.set_xattr(head, r)?,
            opcode::LISTXATTR => self.list_xattrs(head, r)?,
            opcode::REMOVEXATTR => self.remove_xattr(head, r)?,

            opcode::GETLK => self.get_lock(head, r)?,
            opcode::SETLK => return self.set_lock(head, r, false),
            opcode::SETLKW => return self.set_lock(head, r, true),
            opcode::INTERRUPT => {
                self.waiting.interrupt(r.u64()?);
                return Some(Answer::Later);
            }

            opcode::IOCTL => Err(Errno::NOTTY),
            _ => Err(Errno::NOSYS),
        };
        Some(Answer::Now(answer))
    }
}

/// `fuse_init_in`, `fuse_init_out`
fn answer_init(r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
    let (major, minor, readahead, flags) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    if major < abi::MAJOR {
        tracing::error!(major, minor, "the kernel's FUSE protocol is too old");
        return Some(Err(Errno::PROTO));
    }
    let mut out = Writer::default();
    out.u32(abi::MAJOR).u32(minor.min(abi::MINOR)).u32(readahead).u32(flags & init::FLAGS);
    out.u16(abi::MAX_BACKGROUND).u16(abi::CONGESTION).u32(abi::MAX_WRITE);
    let granularity_nanos = 1;
    out.u32(granularity_nanos).u16((abi::MAX_WRITE / 4096) as u16);
    out.0.resize(abi::INIT_OUT_SIZE, 0);
    Some(Ok(out.0))
}
