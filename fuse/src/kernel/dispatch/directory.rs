//! Requests that list directories.

use raftmeta_types::{FileKind, Ino};

use super::super::abi::{self, Reader, Writer};
use super::super::reply::{self, Dirent};
use super::super::session::Shared;
use super::Head;
use crate::ops::Result;

/// `.` and `..` come first: entry n of the listing is at n + 2.
const DOTS: u64 = 2;

impl Shared {
    pub(super) fn opendir(&self) -> Vec<u8> {
        reply::opened(self.core.opendir(), false)
    }

    pub(super) fn releasedir(&self, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        self.core.releasedir(r.u64()?);
        Some(Ok(Vec::new()))
    }

    pub(super) fn readdir(
        &self,
        head: Head,
        r: &mut Reader<'_>,
        plus: bool,
    ) -> Option<Result<Vec<u8>>> {
        let (fh, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
        let size = size.min(abi::MAX_WRITE) as usize;
        let mut out = Writer::default();
        Some(self.list(head.ino, fh, offset, size, plus, &mut out).map(|()| out.0))
    }

    fn list(
        &self,
        ino: Ino,
        fh: u64,
        offset: u64,
        size: usize,
        plus: bool,
        out: &mut Writer,
    ) -> Result<()> {
        if offset == 0 {
            self.core.rewind(fh);
        }
        if offset < DOTS {
            let parent = self.core.getattr(ino)?.parent;
            for (number, ino, name) in [(0, ino, &b"."[..]), (1, parent, b"..")] {
                let found = Dirent { ino, next: number + 1, kind: FileKind::Directory, name };
                if offset <= number && !reply::dirent(out, size, &found, plus.then_some(None)) {
                    return Ok(());
                }
            }
        }
        let from = offset.saturating_sub(DOTS) as usize;
        self.core.readdir(ino, fh, from, |at, entry| {
            let next = at as u64 + DOTS + 1;
            let found = Dirent { ino: entry.ino, next, kind: entry.kind, name: &entry.name };
            reply::dirent(out, size, &found, plus.then_some(Some(&entry.inode)))
        })
    }
}
