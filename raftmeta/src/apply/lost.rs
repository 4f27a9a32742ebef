//! A node whose disks are gone for good leaves the cluster at once, whatever counted on it.
//!
//! ```text
//!   shard in sync with it and others ─▶ with the others alone, one of them leads        (a new epoch)
//!   shard in sync with it alone ─▶ begins anew on a node that is named for it           (a new epoch and gc epoch)
//! ```
//! Only an administrator can know that a disk will not come back, so only his command goes below the least number of
//! replicas in sync. A shard of which nothing is left is never given up in passing: each has to be named, with the node
//! that begins it, so one that came to it since the question was asked has the whole command refused.

use std::collections::{BTreeMap, BTreeSet};

use raftmeta_types::cluster::{CertificateInfo, NodeInfo, NodeState, ShardInfo};
use raftmeta_types::{Epoch, MetaError, NodeId, Reply, ShardId};

use super::nodes::{bump_map, node, nodes, shards};
use super::state::{State, Step, invalid};
use super::{gc, rotation};
use crate::keys;

pub(super) fn remove_lost(
    state: &mut State<'_>,
    id: NodeId,
    heirs: &[(ShardId, NodeId)],
) -> Step<Reply> {
    let mut info = node(state, id)?;
    match info.state {
        NodeState::Removed => return Ok(Reply::Done),
        NodeState::Up => return Err(MetaError::NodeIs(info.state).into()),
        NodeState::Joining | NodeState::Draining | NodeState::Drained | NodeState::Down => {}
    }
    let up: BTreeSet<NodeId> = nodes(state)?
        .into_iter()
        .filter(|node: &NodeInfo| node.state == NodeState::Up)
        .map(|node| node.id)
        .collect();
    let heirs: BTreeMap<ShardId, NodeId> = heirs.iter().copied().collect();
    for mut shard in shards(state)? {
        if !shard.in_sync.contains(&id) {
            continue;
        }
        shard.in_sync.retain(|other| *other != id);
        shard.epoch = Epoch(shard.epoch.0 + 1);
        if shard.in_sync.is_empty() {
            let heir = heirs.get(&shard.id).filter(|heir| up.contains(heir));
            begin_anew(state, &mut shard, heir)?;
        } else if !shard.in_sync.contains(&shard.primary) {
            let first = shard.in_sync.iter().find(|other| up.contains(other));
            shard.primary = *first.unwrap_or(&shard.in_sync[0]);
        }
        state.put(&keys::shard(shard.id), &shard)?;
    }
    bump_map(state)?;
    revoke_certificates(state, id)?;
    info.state = NodeState::Removed;
    state.put(&keys::node(id), &info)?;
    Ok(Reply::Done)
}

/// Nobody has a complete copy of this shard any more.
fn begin_anew(state: &mut State<'_>, shard: &mut ShardInfo, heir: Option<&NodeId>) -> Step<()> {
    let Some(heir) = heir else {
        return invalid(format!("shard {} would have no replica left", shard.id));
    };
    (shard.primary, shard.in_sync) = (*heir, vec![*heir]);
    // What was put before is not there any more: no receipt for it may be good.
    shard.gc_epoch = Epoch(shard.gc_epoch.0 + 1);
    gc::forget_all(state, shard.id, shard.gc_epoch)
}

/// The number is never used again, and neither is what the cluster gave the node to show.
fn revoke_certificates(state: &mut State<'_>, id: NodeId) -> Step<()> {
    let subject = format!("node:{id}");
    for (key, _) in state.scan(&keys::class(b'C'), usize::MAX, false)? {
        let info: CertificateInfo = state.get(&key)?.ok_or(MetaError::NotFound)?;
        if info.subject == subject && !info.revoked {
            rotation::no_more(state, info.serial)?;
            state.put(&key, &CertificateInfo { revoked: true, ..info })?;
        }
    }
    Ok(())
}
