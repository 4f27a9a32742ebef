//! `copy_file_range` as a copy of references.

use raftmeta_types::command::CopyRange;
use raftmeta_types::{FILE_SIZE_MAX, MetaError, Reply};

use super::extents;
use super::state::{State, Step, invalid};

/// Most extents that one command copies, and most that it replaces; a longer range is copied short, as the
/// call allows.
const COPY_EXTENTS_MAX: usize = 4096;

pub(super) fn copy_range(state: &mut State<'_>, copy: &CopyRange) -> Step<Reply> {
    let source = state.file(copy.source)?;
    let mut target = state.file(copy.target)?;
    let before = target.data_version;
    let from = copy.source_offset;
    let mut len = copy.len.min(source.size.saturating_sub(from));
    if len == 0 {
        return Ok(Reply::Copied { len: 0, inode: target, before });
    }
    let overlap = copy.source == copy.target && from.abs_diff(copy.target_offset) < len;
    if overlap {
        return invalid("source and target overlap");
    }
    if copy.target_offset.checked_add(len).is_none_or(|end| end > FILE_SIZE_MAX) {
        return Err(MetaError::FileTooLarge.into());
    }
    let mut copied = extents::meeting(state, copy.source, from, from + len, COPY_EXTENTS_MAX + 1)?;
    if copied.len() > COPY_EXTENTS_MAX
        && let Some(beyond) = copied.pop()
    {
        len = beyond.offset - from;
    }
    let target_end = copy.target_offset + len;
    let replaced =
        extents::meeting(state, copy.target, copy.target_offset, target_end, COPY_EXTENTS_MAX + 1)?;
    if let Some(beyond) = replaced.get(COPY_EXTENTS_MAX) {
        len = beyond.offset - copy.target_offset;
        copied.retain(|extent| extent.offset < from + len);
    }
    let end = copy.target_offset + len;
    // The references of the source are live, so the copies need no receipts; they are added before
    // anything is removed only in effect: the command is one step.
    extents::clear(state, &mut target, copy.target_offset, end)?;
    for extent in copied {
        let mut part = extents::slice(&extent, from, from + len);
        part.offset = part.offset - from + copy.target_offset;
        part.version = state.version;
        extents::add(state, &mut target, &part)?;
    }
    target.size = target.size.max(end);
    target.mtime = state.now;
    target.ctime = state.now;
    target.data_version = state.version;
    state.put_inode(&mut target)?;
    Ok(Reply::Copied { len, inode: target, before })
}
