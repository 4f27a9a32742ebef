//! Chunk garbage without clocks (DESIGN.md §5).
//!
//! ```text
//!   state machine           shard's store
//!   BeginDelete(e+1) ────▶  deletes the marked chunks and adopts e+1, in one step
//!        ▲                       │
//!        │                  puts answer receipts of e+1 from now on
//!   EndDelete(e+1)  ◀────────────┘
//! ```
//!
//! A commit may reference a chunk that has references already (it cannot have been marked), or whose
//! receipt is of the shard's present epoch: the put came after the last deletion was carried out, so
//! that deletion cannot take it. It may also have an older receipt if none of the deletions since has
//! marked the chunk: the state machine remembers what the last ones marked ([`deletions`]). Anything else has
//! to be put again.

mod deletions;

use raftmeta_types::cluster::{ClusterInfo, ShardInfo};
use raftmeta_types::{ChunkHash, Epoch, MetaError, Reply, ShardId};

use super::state::{State, Step, invalid};
use crate::keys;
use crate::records::PendingDelete;

/// Most chunks that one deletion may name.
pub const DELETION_MAX: usize = 65536;

pub(super) fn shard_of(state: &State<'_>, hash: &ChunkHash) -> Step<ShardId> {
    let cluster: ClusterInfo = state.get(keys::CLUSTER)?.ok_or(MetaError::NotFound)?;
    Ok(hash.shard(cluster.shard_count))
}

fn shard(state: &State<'_>, id: ShardId) -> Step<ShardInfo> {
    state.get(&keys::shard(id))?.ok_or(MetaError::NotFound.into())
}

/// Whether a new reference to the chunk is safe.
pub(super) fn may_reference(state: &State<'_>, hash: &ChunkHash, receipt: Epoch) -> Step<bool> {
    if state.has(&keys::references(hash))? {
        return Ok(true);
    }
    let shard = shard(state, shard_of(state, hash)?)?;
    Ok(receipt >= shard.gc_epoch || deletions::spared(state, shard.id, hash, receipt)?)
}

pub(super) fn add_reference(state: &mut State<'_>, hash: &ChunkHash) -> Step<()> {
    let key = keys::references(hash);
    let count: u64 = state.get(&key)?.unwrap_or(0);
    if count == 0 {
        let shard = shard_of(state, hash)?;
        state.delete(&keys::garbage(shard, hash))?;
    }
    state.put(&key, &(count + 1))
}

pub(super) fn drop_reference(state: &mut State<'_>, hash: &ChunkHash) -> Step<()> {
    let key = keys::references(hash);
    let count: u64 = state.get(&key)?.unwrap_or(0);
    if count > 1 {
        return state.put(&key, &(count - 1));
    }
    state.delete(&key)?;
    let shard = shard_of(state, hash)?;
    let version = state.version;
    state.put(&keys::garbage(shard, hash), &version)
}

pub(super) fn begin_delete(
    state: &mut State<'_>,
    id: ShardId,
    epoch: Epoch,
    hashes: &[ChunkHash],
) -> Step<Reply> {
    if hashes.len() > DELETION_MAX {
        return invalid(format!("a deletion of {} chunks, at most {DELETION_MAX}", hashes.len()));
    }
    let mut info = shard(state, id)?;
    let pending_key = keys::pending_delete(id);
    if let Some(pending) = state.get::<PendingDelete>(&pending_key)? {
        // One at a time. Asked again for the same epoch the answer is what was marked then.
        return if pending.epoch == epoch {
            Ok(Reply::Deleting { epoch, hashes: pending.hashes })
        } else {
            Err(MetaError::StaleEpoch(info.gc_epoch).into())
        };
    }
    if epoch.0 != info.gc_epoch.0 + 1 {
        return Err(MetaError::StaleEpoch(info.gc_epoch).into());
    }
    let mut marked = Vec::new();
    for hash in hashes {
        if shard_of(state, hash)? != id {
            return invalid("a chunk of another shard");
        }
        if !state.has(&keys::references(hash))? {
            marked.push(*hash);
            state.delete(&keys::garbage(id, hash))?;
        }
    }
    marked.sort_unstable();
    marked.dedup();
    info.gc_epoch = epoch;
    state.put(&keys::shard(id), &info)?;
    deletions::remember(state, id, epoch, &marked)?;
    state.put(&pending_key, &PendingDelete { epoch, hashes: marked.clone() })?;
    Ok(Reply::Deleting { epoch, hashes: marked })
}

/// The shard has lost what it held: receipts of before this epoch are none, and nothing is left to be deleted.
pub(super) fn forget_all(state: &mut State<'_>, id: ShardId, epoch: Epoch) -> Step<()> {
    state.delete(&keys::pending_delete(id))?;
    deletions::forget_before(state, id, epoch)
}

pub(super) fn end_delete(state: &mut State<'_>, id: ShardId, epoch: Epoch) -> Step<Reply> {
    let info = shard(state, id)?;
    let key = keys::pending_delete(id);
    match state.get::<PendingDelete>(&key)? {
        Some(pending) if pending.epoch == epoch => state.delete(&key)?,
        // Said twice.
        None if info.gc_epoch == epoch => {}
        _ => return Err(MetaError::StaleEpoch(info.gc_epoch).into()),
    }
    Ok(Reply::Done)
}
