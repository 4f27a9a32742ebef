//! The extents of a file as an overlay: what is written last shows, what it covers is cut away.
//!
//! An extent and its index records change together, only here: `R` (references of its chunk), `U`
//! (inline data that waits to be settled) and the inode's `allocated`.
//!
//! Within one version the bytes at a file offset are the same for good: what moves or copies an extent
//! gives it its own version. That is why (offset, length, version) is enough for `Settle` to name
//! what it replaces.

use raftmeta_types::{Epoch, Extent, ExtentData, Ino, Inode, MetaError};

use super::gc;
use super::state::{EXTENTS_AT_ONCE_MAX, State, Step};
use crate::keys;
use crate::records::{self, ExtentRecord};

/// Inline extents up to this many bytes stay inline for good.
pub const INLINE_KEEP_MAX: u32 = 512;

/// Appended inline data is joined to the inline extent before it up to this many bytes, so that a
/// log written line by line does not become one extent a line.
const INLINE_JOIN_MAX: u32 = 4096;

/// The part of `extent` within `from..to`, which must meet it.
pub(crate) fn slice(extent: &Extent, from: u64, to: u64) -> Extent {
    let end = extent.offset + u64::from(extent.len);
    let (from, to) = (from.max(extent.offset), to.min(end));
    assert!(from < to, "the range must meet the extent");
    let skipped = (from - extent.offset) as u32;
    let len = (to - from) as u32;
    let data = match &extent.data {
        // A copy, so that a small rest does not keep a large buffer alive.
        ExtentData::Inline(bytes) => ExtentData::Inline(bytes::Bytes::copy_from_slice(
            &bytes[skipped as usize..(skipped + len) as usize],
        )),
        ExtentData::Chunk { hash, chunk_offset } => {
            ExtentData::Chunk { hash: *hash, chunk_offset: chunk_offset + skipped }
        }
        ExtentData::Zero => ExtentData::Zero,
    };
    Extent { offset: from, len, data, version: extent.version }
}

pub(super) fn end(extent: &Extent) -> u64 {
    extent.offset + u64::from(extent.len)
}

/// Extents that meet `from..to`, ascending, at most `limit`.
pub(super) fn meeting(
    state: &State<'_>,
    ino: Ino,
    from: u64,
    to: u64,
    limit: usize,
) -> Step<Vec<Extent>> {
    let (first, _) = keys::extents(ino);
    let start = keys::extent(ino, from);
    let decode = |pair: (Vec<u8>, Vec<u8>)| -> Step<Extent> {
        let record: ExtentRecord = records::decode(&pair.0, &pair.1)?;
        let offset = keys::second_number(&pair.0);
        Ok(Extent { offset, len: record.len, data: record.data, version: record.version })
    };
    let mut found = Vec::new();
    for pair in state.scan(&(first, start.clone()), 1, true)? {
        let before = decode(pair)?;
        if end(&before) > from && to > from {
            found.push(before);
        }
    }
    let rest = limit.saturating_sub(found.len());
    for pair in state.scan(&(start, keys::extent(ino, to)), rest, false)? {
        found.push(decode(pair)?);
    }
    Ok(found)
}

/// Adds an extent where there is none.
pub(super) fn add(state: &mut State<'_>, inode: &mut Inode, extent: &Extent) -> Step<()> {
    match &extent.data {
        ExtentData::Inline(bytes) => {
            assert_eq!(bytes.len(), extent.len as usize, "inline data fills its extent");
            if extent.len > INLINE_KEEP_MAX {
                state.put(&keys::unsettled(inode.ino, extent.offset), &extent.version)?;
            }
        }
        ExtentData::Chunk { hash, .. } => gc::add_reference(state, hash)?,
        ExtentData::Zero => {}
    }
    inode.allocated += u64::from(extent.len);
    let record =
        ExtentRecord { len: extent.len, data: extent.data.clone(), version: extent.version };
    state.put(&keys::extent(inode.ino, extent.offset), &record)
}

/// Removes an extent that is there.
pub(super) fn drop(state: &mut State<'_>, inode: &mut Inode, extent: &Extent) -> Step<()> {
    inode.allocated = inode.allocated.saturating_sub(u64::from(extent.len));
    drop_record(state, inode.ino, extent)
}

/// The same where the inode is gone already.
pub(super) fn drop_record(state: &mut State<'_>, ino: Ino, extent: &Extent) -> Step<()> {
    match &extent.data {
        ExtentData::Inline(_) => state.delete(&keys::unsettled(ino, extent.offset))?,
        ExtentData::Chunk { hash, .. } => gc::drop_reference(state, hash)?,
        ExtentData::Zero => {}
    }
    state.delete(&keys::extent(ino, extent.offset))
}

/// Makes `from..to` a hole; what reaches beyond on either side is cut.
pub(super) fn clear(state: &mut State<'_>, inode: &mut Inode, from: u64, to: u64) -> Step<()> {
    if from >= to {
        return Ok(());
    }
    for extent in meeting(state, inode.ino, from, to, usize::MAX)? {
        drop(state, inode, &extent)?;
        if extent.offset < from {
            add(state, inode, &slice(&extent, extent.offset, from))?;
        }
        if end(&extent) > to {
            add(state, inode, &slice(&extent, to, end(&extent)))?;
        }
    }
    Ok(())
}

/// The same from the front, a bounded number of extents at once; `false` if more of them are left.
pub(super) fn clear_some(
    state: &mut State<'_>,
    inode: &mut Inode,
    from: u64,
    to: u64,
) -> Step<bool> {
    let first = meeting(state, inode.ino, from, to, EXTENTS_AT_ONCE_MAX + 1)?;
    let beyond = first.get(EXTENTS_AT_ONCE_MAX).map(|extent| extent.offset);
    clear(state, inode, from, beyond.unwrap_or(to))?;
    Ok(beyond.is_none())
}

/// The same from the end of the file down to `from`; returns where the file is cut by now.
pub(super) fn cut_some(state: &mut State<'_>, inode: &mut Inode, from: u64) -> Step<u64> {
    let range = (keys::extent(inode.ino, from), keys::extents(inode.ino).1);
    let last = state.scan(&range, EXTENTS_AT_ONCE_MAX, true)?;
    let down_to = match last.last() {
        Some((key, _)) if last.len() == EXTENTS_AT_ONCE_MAX => keys::second_number(key),
        _ => from,
    };
    clear(state, inode, down_to, u64::MAX)?;
    Ok(down_to)
}

/// Puts the extent into a range that is clear.
pub(super) fn lay(state: &mut State<'_>, inode: &mut Inode, extent: &Extent) -> Step<()> {
    match join(state, inode, extent)? {
        Some(joined) => add(state, inode, &joined),
        None => add(state, inode, extent),
    }
}

/// Takes away the inline extent that ends where this one starts, and returns both as one.
fn join(state: &mut State<'_>, inode: &mut Inode, extent: &Extent) -> Step<Option<Extent>> {
    let ExtentData::Inline(bytes) = &extent.data else { return Ok(None) };
    if extent.offset == 0 || extent.len >= INLINE_JOIN_MAX {
        return Ok(None);
    }
    let before = meeting(state, inode.ino, extent.offset - 1, extent.offset, 1)?;
    let Some(Extent { offset, len, data: ExtentData::Inline(first), .. }) = before.first() else {
        return Ok(None);
    };
    if len + extent.len > INLINE_JOIN_MAX {
        return Ok(None);
    }
    drop(state, inode, &before[0])?;
    Ok(Some(Extent {
        offset: *offset,
        len: len + extent.len,
        data: ExtentData::Inline([&first[..], &bytes[..]].concat().into()),
        version: state.version,
    }))
}

/// Refuses new references to chunks that may be under deletion (DESIGN.md §5).
pub(super) fn check_receipts<'d>(
    state: &State<'_>,
    data: impl Iterator<Item = (&'d ExtentData, Epoch)>,
) -> Step<()> {
    let mut again = Vec::new();
    for (data, receipt) in data {
        if let ExtentData::Chunk { hash, .. } = data
            && !gc::may_reference(state, hash, receipt)?
        {
            again.push(*hash);
        }
    }
    if again.is_empty() { Ok(()) } else { Err(MetaError::RetryPut(again).into()) }
}
