//! `fallocate` in all its modes.

use raftmeta_types::command::{Allocate, AllocateMode};
use raftmeta_types::{Extent, ExtentData, FILE_SIZE_MAX, Inode, MetaError, Reply};

use super::extents;
use super::state::{State, Step, invalid};

/// Collapse and insert work in these units, like the file systems that applications know.
const ALIGNMENT: u64 = 4096;

/// Most bytes that one extent of zeros covers.
const ZERO_EXTENT_MAX: u64 = 1 << 31;

/// Most bytes that one call may reserve; beyond it there is surely no space left, and the number of
/// extents that one command writes stays bounded (8192).
const RESERVE_MAX: u64 = 1 << 44;

pub(super) fn allocate(state: &mut State<'_>, allocate: &Allocate) -> Step<Reply> {
    let mut inode = state.file(allocate.ino)?;
    if allocate.len == 0 {
        return invalid("nothing to allocate");
    }
    let end = match allocate.offset.checked_add(allocate.len) {
        Some(end) if end <= FILE_SIZE_MAX => end,
        _ => return Err(MetaError::FileTooLarge.into()),
    };
    let from = allocate.offset;
    match allocate.mode {
        AllocateMode::PunchHole => extents::clear(state, &mut inode, from, end)?,
        AllocateMode::Reserve => reserve(state, &mut inode, from, end)?,
        AllocateMode::ZeroRange => {
            extents::clear(state, &mut inode, from, end)?;
            reserve(state, &mut inode, from, end)?;
        }
        AllocateMode::Collapse => collapse(state, &mut inode, from, end)?,
        AllocateMode::Insert => insert(state, &mut inode, from, allocate.len)?,
    }
    let grows = matches!(allocate.mode, AllocateMode::Reserve | AllocateMode::ZeroRange);
    if grows && !allocate.keep_size {
        inode.size = inode.size.max(end);
    }
    inode.mtime = state.now;
    inode.ctime = state.now;
    inode.data_version = state.version;
    state.put_inode(&mut inode)?;
    Ok(Reply::Inode(inode))
}

/// Backs the holes of `from..to` with zeros.
fn reserve(state: &mut State<'_>, inode: &mut Inode, from: u64, to: u64) -> Step<()> {
    if to - from > RESERVE_MAX {
        return Err(MetaError::NoSpace.into());
    }
    let mut at = from;
    for extent in extents::meeting(state, inode.ino, from, to, usize::MAX)? {
        zeros(state, inode, at, extent.offset)?;
        at = extents::end(&extent);
    }
    zeros(state, inode, at, to)
}

fn zeros(state: &mut State<'_>, inode: &mut Inode, from: u64, to: u64) -> Step<()> {
    let mut offset = from;
    while offset < to {
        let len = (to - offset).min(ZERO_EXTENT_MAX);
        let version = state.version;
        let extent = Extent { offset, len: len as u32, data: ExtentData::Zero, version };
        extents::add(state, inode, &extent)?;
        offset += len;
    }
    Ok(())
}

fn collapse(state: &mut State<'_>, inode: &mut Inode, from: u64, to: u64) -> Step<()> {
    check_alignment(from, to - from)?;
    if to >= inode.size {
        return invalid("the range to collapse reaches the end of the file");
    }
    extents::clear(state, inode, from, to)?;
    let moved = extents::meeting(state, inode.ino, to, u64::MAX, usize::MAX)?;
    for mut extent in moved {
        extents::drop(state, inode, &extent)?;
        extent.offset -= to - from;
        extent.version = state.version;
        extents::add(state, inode, &extent)?;
    }
    inode.size -= to - from;
    Ok(())
}

fn insert(state: &mut State<'_>, inode: &mut Inode, at: u64, len: u64) -> Step<()> {
    check_alignment(at, len)?;
    if at >= inode.size {
        return invalid("the place to insert is at or beyond the end of the file");
    }
    let moved = extents::meeting(state, inode.ino, at, u64::MAX, usize::MAX)?;
    let last = moved.last().map_or(0, extents::end).max(inode.size);
    if last.checked_add(len).is_none_or(|end| end > FILE_SIZE_MAX) {
        return Err(MetaError::FileTooLarge.into());
    }
    // From the last one on, so that nothing lands on what has still to move.
    for extent in moved.iter().rev() {
        extents::drop(state, inode, extent)?;
        if extent.offset < at {
            extents::add(state, inode, &extents::slice(extent, extent.offset, at))?;
        }
        let mut tail = extents::slice(extent, at, extents::end(extent));
        tail.offset += len;
        tail.version = state.version;
        extents::add(state, inode, &tail)?;
    }
    inode.size += len;
    Ok(())
}

fn check_alignment(offset: u64, len: u64) -> Step<()> {
    if offset.is_multiple_of(ALIGNMENT) && len.is_multiple_of(ALIGNMENT) {
        Ok(())
    } else {
        invalid(format!("offset and length must be multiples of {ALIGNMENT}"))
    }
}
