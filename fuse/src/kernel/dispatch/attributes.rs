//! Requests about attributes.

use raftmeta_types::command::{AttrChange, SetAttr, SetTime};
use raftmeta_types::{Ino, Time};

use super::super::abi::{Reader, fattr};
use super::super::reply;
use super::super::session::Shared;
use super::Head;
use crate::ops::Result;

impl Shared {
    pub(super) fn getattr(&self, head: Head) -> Result<Vec<u8>> {
        self.core.getattr(head.ino).map(|inode| reply::attributes(&inode))
    }

    pub(super) fn setattr(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let set = setattr_in(head.ino, r)?;
        Some(self.core.setattr(set).map(|inode| reply::attributes(&inode)))
    }

    pub(super) fn statx(&self, head: Head) -> Result<Vec<u8>> {
        self.core.getattr(head.ino).map(|inode| reply::statx(&inode))
    }

    pub(super) fn statfs(&self) -> Result<Vec<u8>> {
        self.core.statfs().map(|fs| reply::statfs(&fs))
    }
}

/// `fuse_setattr_in`
fn setattr_in(ino: Ino, r: &mut Reader<'_>) -> Option<SetAttr> {
    let valid = r.u32()?;
    r.skip(12)?;
    let size = r.u64()?;
    r.skip(8)?;
    let (atime, mtime) = (r.u64()?, r.u64()?);
    r.skip(8)?;
    let (atime_nanos, mtime_nanos) = (r.u32()?, r.u32()?);
    r.skip(4)?;
    let mode = r.u32()?;
    r.skip(4)?;
    let (uid, gid) = (r.u32()?, r.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |set: u32, now: u32, secs: u64, nanos: u32| match (has(set), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(Time { secs: secs as i64, nanos })),
        (false, false) => None,
    };
    Some(SetAttr {
        ino,
        change: AttrChange {
            mode: has(fattr::MODE).then_some(mode & 0o7777),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nanos),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nanos),
        },
        size: has(fattr::SIZE).then_some(size),
    })
}
