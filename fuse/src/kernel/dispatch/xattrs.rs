//! Requests about extended attributes.

use raftmeta_types::command::XattrMode;
use rustix::io::Errno;

use super::super::abi::{self, Reader};
use super::super::reply;
use super::super::session::Shared;
use super::Head;
use crate::ops::Result;

/// The length if `size` is 0, else the bytes if they fit.
fn sized(size: u32, value: Vec<u8>) -> Result<Vec<u8>> {
    match size as usize {
        0 => Ok(reply::size(value.len() as u32)),
        size if size < value.len() => Err(Errno::RANGE),
        _ => Ok(value),
    }
}

impl Shared {
    pub(super) fn get_xattr(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let size = r.u32()?;
        r.skip(4)?;
        let value = self.core.get_xattr(head.ino, r.name()?);
        Some(value.and_then(|value| sized(size, value.to_vec())))
    }

    pub(super) fn list_xattrs(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let size = r.u32()?;
        let names = self.core.list_xattrs(head.ino);
        let join = |names: Vec<bytes::Bytes>| {
            names.iter().flat_map(|name| name.iter().copied().chain([0])).collect()
        };
        Some(names.and_then(|names| sized(size, join(names))))
    }

    pub(super) fn set_xattr(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let (size, flags, name) = (r.u32()?, r.u32()?, r.name()?);
        let value = r.bytes(size as usize)?;
        let mode = match flags {
            0 => XattrMode::Set,
            abi::XATTR_CREATE => XattrMode::Create,
            abi::XATTR_REPLACE => XattrMode::Replace,
            _ => return Some(Err(Errno::INVAL)),
        };
        Some(self.core.set_xattr(head.ino, name, value, mode).map(|()| Vec::new()))
    }

    pub(super) fn remove_xattr(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let name = r.name()?;
        Some(self.core.remove_xattr(head.ino, name).map(|()| Vec::new()))
    }
}
