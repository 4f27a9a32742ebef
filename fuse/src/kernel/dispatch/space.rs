//! Requests about the space that files take.

use raftmeta_types::Ino;
use raftmeta_types::command::{Allocate, AllocateMode, CopyRange};
use rustix::io::Errno;

use super::super::abi::{self, Reader, fallocate};
use super::super::reply;
use super::super::session::Shared;
use super::Head;
use crate::ops::{Result, Seek};

/// Bytes that one `copy_file_range` copies: its old form answers 32 bits.
const COPY_MAX: u64 = 1 << 30;

impl Shared {
    pub(super) fn fallocate(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        r.skip(8)?;
        let (offset, len, mode) = (r.u64()?, r.u64()?, r.u32()?);
        let keep_size = mode & fallocate::KEEP_SIZE != 0;
        let mode = match mode & !fallocate::KEEP_SIZE {
            0 => AllocateMode::Reserve,
            fallocate::PUNCH_HOLE => AllocateMode::PunchHole,
            fallocate::ZERO_RANGE => AllocateMode::ZeroRange,
            fallocate::COLLAPSE_RANGE => AllocateMode::Collapse,
            fallocate::INSERT_RANGE => AllocateMode::Insert,
            _ => return Some(Err(Errno::OPNOTSUPP)),
        };
        let allocate = Allocate { ino: head.ino, mode, offset, len, keep_size };
        Some(self.core.allocate(allocate).map(|()| Vec::new()))
    }

    pub(super) fn lseek(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        r.skip(8)?;
        let (offset, whence) = (r.u64()?, r.u32()?);
        let what = match whence {
            abi::SEEK_DATA => Seek::Data,
            abi::SEEK_HOLE => Seek::Hole,
            _ => return Some(Err(Errno::INVAL)),
        };
        let found = self.core.seek(head.ino, offset, what);
        Some(found.map(|at| at.to_ne_bytes().to_vec()))
    }

    pub(super) fn copy_file_range(
        &self,
        head: Head,
        r: &mut Reader<'_>,
        wide: bool,
    ) -> Option<Result<Vec<u8>>> {
        r.skip(8)?;
        let (source_offset, target) = (r.u64()?, Ino(r.u64()?));
        r.skip(8)?;
        let (target_offset, len) = (r.u64()?, r.u64()?.min(COPY_MAX));
        let copy = CopyRange { source: head.ino, source_offset, target, target_offset, len };
        Some(self.core.copy_range(copy).map(|len| match wide {
            true => len.to_ne_bytes().to_vec(),
            false => reply::size(len as u32),
        }))
    }
}
