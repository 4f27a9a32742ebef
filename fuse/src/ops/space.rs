//! `fallocate`, `copy_file_range`, `SEEK_DATA` and `SEEK_HOLE`.

use fsd_rpc::message::{Request, Response};
use raftmeta_types::command::{Allocate, CopyRange};
use raftmeta_types::{Command, ExtentData, Ino, Inode, Reply};
use rustix::io::Errno;

use super::flush::Depth;
use super::{Core, OFFSET_MAX, Result, unexpected};

/// Range that a seek asks for first; it doubles while little is found.
const SEEK_BYTES_MIN: u64 = 16 << 20;
/// An answer with more extents than this is large enough.
const SEEK_EXTENTS_MANY: usize = 1024;

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seek {
    Data,
    Hole,
}

impl Core {
    pub(crate) fn allocate(&self, allocate: Allocate) -> Result<()> {
        match self.change(allocate.ino, Command::Allocate(allocate))? {
            Reply::Content { .. } => Ok(()),
            _ => unexpected(),
        }
    }

    /// Answers how much was copied.
    pub(crate) fn copy_range(&self, copy: CopyRange) -> Result<u64> {
        self.commit(copy.source)?;
        match self.change(copy.target, Command::CopyRange(copy))? {
            Reply::Copied { len, .. } => Ok(len),
            _ => unexpected(),
        }
    }

    /// Runs a command that changes content on the server, after what is dirty here.
    fn change(&self, ino: Ino, command: Command) -> Result<Reply> {
        let Some(file) = self.open_file(ino) else { return self.mutate(command) };
        let flushing = file.flushing.lock();
        self.flush_held(&file, &flushing, Depth::Commit)?;
        let reply = self.mutate(command)?;
        if let Reply::Content { inode, before } | Reply::Copied { inode, before, .. } = &reply {
            self.committed(&file, inode, Some(*before));
            file.state.lock().undurable = true;
        }
        Ok(reply)
    }

    pub(crate) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64> {
        self.commit(ino)?;
        let mut at = offset;
        let mut len = SEEK_BYTES_MIN;
        loop {
            let wanted = len.min(OFFSET_MAX - at.min(OFFSET_MAX));
            let (inode, extents, end) = self.extents(ino, at, wanted)?;
            if offset >= inode.size {
                return Err(Errno::NXIO);
            }
            let end = end.min(inode.size);
            for extent in extents.iter().filter(|extent| extent.data != ExtentData::Zero) {
                if extent.offset > at && what == Seek::Hole {
                    return Ok(at);
                }
                if what == Seek::Data && extent.offset < inode.size {
                    return Ok(at.max(extent.offset));
                }
                at = at.max(extent.offset + u64::from(extent.len));
            }
            if what == Seek::Hole && at < end {
                return Ok(at);
            }
            at = at.max(end);
            if at >= inode.size {
                return if what == Seek::Data { Err(Errno::NXIO) } else { Ok(inode.size) };
            }
            if extents.len() < SEEK_EXTENTS_MANY {
                len = len.saturating_mul(2);
            }
        }
    }

    /// Extents from `offset` on, and up to where they are known.
    fn extents(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
    ) -> Result<(Inode, Vec<raftmeta_types::Extent>, u64)> {
        let request = Request::Extents { ino, offset, len, with_chunks: false, chunk_bytes_max: 0 };
        match self.call(&request)?.0 {
            Response::Extents { inode, extents, end, .. } => Ok((inode, extents, end)),
            _ => unexpected(),
        }
    }
}
