//! Nodes of a site and which of them hold which shards (DESIGN.md §7).
//!
//! Who decides is the leader; what is checked here keeps a mistaken or late leader from losing data: a
//! shard's new primary was in sync before, and what its author knew of it is what it is.

use std::collections::BTreeSet;

use raftmeta_types::cluster::{
    CertificateInfo, NodeInfo, NodeState, Protection, ShardChange, ShardInfo,
};
use raftmeta_types::{Epoch, MetaError, NodeId, Reply};

use super::cluster::{record_certificate, take_use};
use super::state::{State, Step, invalid};
use crate::keys;

/// Most nodes that a cluster knows, removed ones included.
pub const NODES_MAX: usize = 4096;
/// Most copies.
const REPLICAS_MAX: u8 = 7;

pub(super) fn nodes(state: &State<'_>) -> Step<Vec<NodeInfo>> {
    let found = state.scan(&keys::class(b'N'), usize::MAX, false)?;
    found.iter().map(|(key, _)| node(state, NodeId(keys::first_number(key)))).collect()
}

pub(super) fn node(state: &State<'_>, id: NodeId) -> Step<NodeInfo> {
    state.get(&keys::node(id))?.ok_or(MetaError::NotFound.into())
}

pub(super) fn join(
    state: &mut State<'_>,
    token_hash: &[u8; 32],
    certificate: &CertificateInfo,
    new: &NodeInfo,
) -> Step<Reply> {
    if new.id.0 == 0 || new.state != NodeState::Joining {
        return invalid("a node joins with a number from 1 and as `joining`");
    }
    if certificate.subject != format!("node:{}", new.id) {
        return invalid("the certificate is for another node");
    }
    let known = nodes(state)?;
    if known.len() >= NODES_MAX {
        return invalid(format!("a cluster has at most {NODES_MAX} nodes"));
    }
    if known.iter().any(|node| node.id >= new.id) {
        // Numbers are not used again; the leader asks with the next one.
        return Err(MetaError::Superseded.into());
    }
    if known.iter().any(|node| node.state != NodeState::Removed && node.name == new.name) {
        return Err(MetaError::NameTaken(new.name.clone()).into());
    }
    take_use(state, &keys::node_token(token_hash))?;
    record_certificate(state, certificate)?;
    state.put(&keys::node(new.id), new)?;
    Ok(Reply::Done)
}

/// Whether a node may go from one state to the other.
fn follows(from: NodeState, to: NodeState) -> bool {
    use NodeState::{Down, Drained, Draining, Joining, Removed, Up};
    match from {
        Joining => matches!(to, Up | Down | Removed),
        Up => matches!(to, Draining | Down),
        Draining => matches!(to, Up | Drained | Down),
        // A drained node may be switched off; it stays drained.
        Drained => matches!(to, Up | Removed),
        Down => matches!(to, Up | Draining | Removed),
        Removed => false,
    }
}

pub(super) fn set_state(
    state: &mut State<'_>,
    id: NodeId,
    from: NodeState,
    to: NodeState,
) -> Step<Reply> {
    let mut info = node(state, id)?;
    if info.state == to {
        return Ok(Reply::Done);
    }
    if info.state != from || !follows(from, to) {
        return Err(MetaError::NodeIs(info.state).into());
    }
    if matches!(to, NodeState::Drained | NodeState::Removed) {
        let holds = shards(state)?.into_iter().find(|shard| shard.in_sync.contains(&id));
        if let Some(shard) = holds {
            return invalid(format!("node {id} holds shard {}", shard.id));
        }
    }
    info.state = to;
    state.put(&keys::node(id), &info)?;
    Ok(Reply::Done)
}

pub(super) fn set_protection(state: &mut State<'_>, protection: Protection) -> Step<Reply> {
    let Protection { replicas, in_sync_min } = protection;
    if !(1..=REPLICAS_MAX).contains(&replicas) || !(1..=replicas).contains(&in_sync_min) {
        return invalid(format!(
            "1 to {REPLICAS_MAX} replicas, and at least 1 and at most all of them in sync"
        ));
    }
    state.put(keys::PROTECTION, &protection)?;
    Ok(Reply::Done)
}

pub(super) fn shards(state: &State<'_>) -> Step<Vec<ShardInfo>> {
    let found = state.scan(&keys::class(b'P'), usize::MAX, false)?;
    let shard = |key: &[u8]| state.get(key)?.ok_or_else(|| MetaError::NotFound.into());
    found.iter().map(|(key, _)| shard(key)).collect()
}

pub(super) fn set_shards(state: &mut State<'_>, changes: &[ShardChange]) -> Step<Reply> {
    let usable: BTreeSet<NodeId> = nodes(state)?
        .into_iter()
        .filter(|node| node.state != NodeState::Removed)
        .map(|node| node.id)
        .collect();
    for change in changes {
        let key = keys::shard(change.id);
        let mut shard: ShardInfo = state.get(&key)?.ok_or(MetaError::NotFound)?;
        if shard.epoch != change.expected {
            return Err(MetaError::StaleEpoch(shard.epoch).into());
        }
        let members: BTreeSet<NodeId> = change.in_sync.iter().copied().collect();
        if members.len() != change.in_sync.len() || !members.contains(&change.primary) {
            return invalid("the replicas in sync are the primary and others, each once");
        }
        if !members.is_subset(&usable) {
            return invalid("a replica on a node that is unknown or removed");
        }
        // Whoever was not in sync may lack what was acknowledged.
        if !shard.in_sync.contains(&change.primary) {
            return invalid(format!(
                "node {} was not in sync in shard {}",
                change.primary, shard.id
            ));
        }
        shard.epoch = Epoch(shard.epoch.0 + 1);
        shard.primary = change.primary;
        shard.in_sync.clone_from(&change.in_sync);
        state.put(&key, &shard)?;
    }
    bump_map(state)?;
    Ok(Reply::Done)
}

/// Those who know the map look at it again.
pub(super) fn bump_map(state: &mut State<'_>) -> Step<()> {
    let version: u64 = state.get(keys::MAP_VERSION)?.unwrap_or(0);
    state.put(keys::MAP_VERSION, &(version + 1))
}
