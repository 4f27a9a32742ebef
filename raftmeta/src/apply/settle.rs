//! Inline data that has been put into chunks meanwhile.

use std::collections::BTreeSet;

use raftmeta_types::command::Settle;
use raftmeta_types::{CHUNK_MAX, ExtentData, Reply};

use super::state::{State, Step, invalid};
use super::{extents, gc};
use crate::keys;
use crate::records::ExtentRecord;

pub(super) fn settle(state: &mut State<'_>, items: &[Settle]) -> Step<Reply> {
    let mut matching = Vec::new();
    // A second item for the same extent comes too late.
    let mut seen = BTreeSet::new();
    for item in items {
        if u64::from(item.chunk_offset) + u64::from(item.len) > CHUNK_MAX as u64 {
            return invalid("extent reaches beyond its chunk");
        }
        let record: Option<ExtentRecord> = state.get(&keys::extent(item.ino, item.offset))?;
        if record.is_some_and(|record| {
            record.version == item.version
                && record.len == item.len
                && matches!(record.data, ExtentData::Inline(_))
        }) && seen.insert((item.ino, item.offset))
        {
            let data = ExtentData::Chunk { hash: item.hash, chunk_offset: item.chunk_offset };
            matching.push((item, data));
        }
    }
    extents::check_receipts(state, matching.iter().map(|(item, data)| (data, item.receipt)))?;
    let mut count = 0;
    for (item, data) in matching {
        let key = keys::extent(item.ino, item.offset);
        let unsettled = keys::unsettled(item.ino, item.offset);
        gc::add_reference(state, &item.hash)?;
        // The content is what it was, so the extent keeps its version and the inode is not touched.
        state.put(&key, &ExtentRecord { len: item.len, data, version: item.version })?;
        state.delete(&unsettled)?;
        count += 1;
    }
    Ok(Reply::Settled { count })
}
