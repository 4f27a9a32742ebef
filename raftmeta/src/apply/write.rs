//! The commit of written data.

use raftmeta_types::command::{NewExtent, Write};
use raftmeta_types::{
    CHUNK_MAX, Extent, ExtentData, FILE_SIZE_MAX, INLINE_WRITE_MAX, Inode, MetaError, Reply,
};

use super::state::{State, Step, invalid};
use super::{extents, setattr};

pub(super) fn write(state: &mut State<'_>, write: &Write) -> Step<Reply> {
    let mut inode = match write.extents.is_empty() {
        true => state.inode(write.ino)?,
        false => state.file(write.ino)?,
    };
    let before = inode.data_version;
    check(&write.extents)?;
    extents::check_receipts(state, write.extents.iter().map(|new| (&new.data, new.receipt)))?;
    // Neighbours are looked up and cleared together: a scan costs more than an extent.
    for run in write.extents.chunk_by(|one, next| end(one) == next.offset) {
        put(state, &mut inode, run)?;
    }
    let change = &write.change;
    if !write.extents.is_empty() {
        inode.mtime = state.now;
        inode.ctime = state.now;
        inode.data_version = state.version;
    } else if change.mode.is_some()
        || change.uid.is_some()
        || change.gid.is_some()
        || change.mtime.is_some()
    {
        // An access time alone, held back by the client, is no change of status.
        inode.ctime = state.now;
    }
    setattr::change(state, &mut inode, change)?;
    state.put_inode(&mut inode)?;
    Ok(match write.extents.is_empty() {
        true => Reply::Inode(inode),
        false => Reply::Content { inode, before },
    })
}

fn end(new: &NewExtent) -> u64 {
    new.offset + u64::from(new.len)
}

/// Puts extents without gaps between them over what their range held.
fn put(state: &mut State<'_>, inode: &mut Inode, run: &[NewExtent]) -> Step<()> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
    extents::clear(state, inode, first.offset, end(last))?;
    let version = state.version;
    for new in run {
        let extent = Extent { offset: new.offset, len: new.len, data: new.data.clone(), version };
        extents::lay(state, inode, &extent)?;
    }
    inode.size = inode.size.max(end(last));
    Ok(())
}

fn check(new: &[NewExtent]) -> Step<()> {
    let (mut end, mut inline) = (0, 0);
    for extent in new {
        if extent.len == 0 {
            return invalid("empty extent");
        }
        if extent.offset < end {
            return invalid("extents must ascend and not overlap");
        }
        end = match extent.offset.checked_add(u64::from(extent.len)) {
            Some(end) if end <= FILE_SIZE_MAX => end,
            _ => return Err(MetaError::FileTooLarge.into()),
        };
        match &extent.data {
            ExtentData::Inline(bytes) if bytes.len() != extent.len as usize => {
                return invalid("inline data differs from its extent in length");
            }
            ExtentData::Inline(bytes) => inline += bytes.len(),
            ExtentData::Chunk { chunk_offset, .. } => {
                if u64::from(*chunk_offset) + u64::from(extent.len) > CHUNK_MAX as u64 {
                    return invalid("extent reaches beyond its chunk");
                }
            }
            ExtentData::Zero => {}
        }
    }
    if inline > INLINE_WRITE_MAX {
        return invalid(format!("{inline} bytes of inline data, at most {INLINE_WRITE_MAX}"));
    }
    Ok(())
}
