//! What the last deletions of a shard marked, so that an older receipt is refused only where it must be.
//!
//! ```text
//! F <shard>            since which epoch every deletion is remembered, and how many chunks each marked
//! F <shard> <epoch>    the chunks that this deletion marked
//! G <shard> <hash>     the last remembered deletion that marked this chunk
//! ```
//! A receipt of epoch r says that the store held the chunk when r was its last deletion. Deletions after r
//! that did not mark the chunk did not touch it. So the receipt is as good as new if all of them are
//! remembered (r >= since) and none of them marked it.

use std::collections::VecDeque;

use raftmeta_types::{ChunkHash, Epoch, ShardId};

use crate::apply::state::{State, Step};
use crate::keys;
use crate::records::Remembered;

/// Deletions remembered of each shard.
pub(super) const DELETIONS_MAX: usize = 64;
/// Chunks remembered of each shard; a deletion of more is forgotten at once.
const CHUNKS_MAX: u64 = 16384;

/// Whether no deletion after `receipt` can have taken the chunk.
pub(super) fn spared(
    state: &State<'_>,
    shard: ShardId,
    hash: &ChunkHash,
    receipt: Epoch,
) -> Step<bool> {
    let Some(remembered) = state.get::<Remembered>(&keys::remembered(shard))? else {
        return Ok(false);
    };
    if receipt < remembered.since {
        return Ok(false);
    }
    let last: Option<Epoch> = state.get(&keys::last_deletion(shard, hash))?;
    Ok(last.is_none_or(|last| last <= receipt))
}

/// Notes a deletion, and forgets the oldest ones if there are too many.
pub(super) fn remember(
    state: &mut State<'_>,
    shard: ShardId,
    epoch: Epoch,
    marked: &[ChunkHash],
) -> Step<()> {
    let key = keys::remembered(shard);
    let mut remembered = state
        .get::<Remembered>(&key)?
        .unwrap_or_else(|| Remembered { since: Epoch(epoch.0 - 1), deletions: VecDeque::new() });
    for hash in marked {
        state.put(&keys::last_deletion(shard, hash), &epoch)?;
    }
    state.put(&keys::deletion(shard, epoch), &marked)?;
    remembered.deletions.push_back((epoch, marked.len() as u32));
    let mut chunks: u64 = remembered.deletions.iter().map(|(_, count)| u64::from(*count)).sum();
    while remembered.deletions.len() > DELETIONS_MAX || chunks > CHUNKS_MAX {
        let Some((oldest, count)) = remembered.deletions.pop_front() else { break };
        chunks -= u64::from(count);
        forget(state, shard, oldest)?;
        remembered.since = oldest;
    }
    state.put(&key, &remembered)
}

/// Forgets them all: no receipt of before this epoch is spared.
pub(super) fn forget_before(state: &mut State<'_>, shard: ShardId, epoch: Epoch) -> Step<()> {
    let key = keys::remembered(shard);
    if let Some(remembered) = state.get::<Remembered>(&key)? {
        for (deletion, _) in remembered.deletions {
            forget(state, shard, deletion)?;
        }
    }
    state.put(&key, &Remembered { since: epoch, deletions: VecDeque::new() })
}

fn forget(state: &mut State<'_>, shard: ShardId, epoch: Epoch) -> Step<()> {
    let key = keys::deletion(shard, epoch);
    for hash in state.get::<Vec<ChunkHash>>(&key)?.unwrap_or_default() {
        let of_hash = keys::last_deletion(shard, &hash);
        // A later deletion may have marked it again.
        if state.get::<Epoch>(&of_hash)? == Some(epoch) {
            state.delete(&of_hash)?;
        }
    }
    state.delete(&key)
}
