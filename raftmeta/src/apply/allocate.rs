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

/// Extents looked at in one go.
const PAGE_EXTENTS: usize = 1024;

/// Most extents that collapse and insert move: they cannot stop in between.
const MOVED_MAX: usize = 65536;

pub(super) fn allocate(state: &mut State<'_>, allocate: &Allocate) -> Step<Reply> {
    let mut inode = state.file(allocate.ino)?;
    if allocate.len == 0 {
        return invalid("nothing to allocate");
    }
    let end = match allocate.offset.checked_add(allocate.len) {
        Some(end) if end <= FILE_SIZE_MAX => end,
        _ => return Err(MetaError::FileTooLarge.into()),
    };
    let before = inode.data_version;
    let from = allocate.offset;
    let mut done = true;
    match allocate.mode {
        AllocateMode::PunchHole => done = extents::clear_some(state, &mut inode, from, end)?,
        AllocateMode::Reserve => reserve(state, &mut inode, from, end)?,
        AllocateMode::ZeroRange => {
            check_reserve(from, end)?;
            done = extents::clear_some(state, &mut inode, from, end)?;
            if done {
                reserve(state, &mut inode, from, end)?;
            }
        }
        AllocateMode::Collapse => collapse(state, &mut inode, from, end)?,
        AllocateMode::Insert => insert(state, &mut inode, from, allocate.len)?,
    }
    let grows = matches!(allocate.mode, AllocateMode::Reserve | AllocateMode::ZeroRange);
    if done && grows && !allocate.keep_size {
        inode.size = inode.size.max(end);
    }
    inode.mtime = state.now;
    inode.ctime = state.now;
    inode.data_version = state.version;
    state.put_inode(&mut inode)?;
    Ok(if done { Reply::Content { inode, before } } else { Reply::More })
}

fn check_reserve(from: u64, to: u64) -> Step<()> {
    if to - from > RESERVE_MAX { Err(MetaError::NoSpace.into()) } else { Ok(()) }
}

/// Backs the holes of `from..to` with zeros.
fn reserve(state: &mut State<'_>, inode: &mut Inode, from: u64, to: u64) -> Step<()> {
    check_reserve(from, to)?;
    let mut at = from;
    while at < to {
        let page = extents::meeting(state, inode.ino, at, to, PAGE_EXTENTS)?;
        let last = page.len() < PAGE_EXTENTS;
        for extent in page {
            zeros(state, inode, at, extent.offset)?;
            at = extents::end(&extent);
        }
        if last {
            return zeros(state, inode, at, to);
        }
    }
    Ok(())
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
    check_moved(&moving(state, inode, from)?)?;
    extents::clear(state, inode, from, to)?;
    for mut extent in moving(state, inode, to)? {
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
    let moved = moving(state, inode, at)?;
    check_moved(&moved)?;
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

/// The extents from `from` on, up to one more than may be moved.
fn moving(state: &State<'_>, inode: &Inode, from: u64) -> Step<Vec<Extent>> {
    extents::meeting(state, inode.ino, from, u64::MAX, MOVED_MAX + 1)
}

fn check_moved(moved: &[Extent]) -> Step<()> {
    if moved.len() > MOVED_MAX {
        let reason = "collapse or insert in a file of so many extents";
        return Err(MetaError::Unsupported(reason.into()).into());
    }
    Ok(())
}

fn check_alignment(offset: u64, len: u64) -> Step<()> {
    if offset.is_multiple_of(ALIGNMENT) && len.is_multiple_of(ALIGNMENT) {
        Ok(())
    } else {
        invalid(format!("offset and length must be multiples of {ALIGNMENT}"))
    }
}
