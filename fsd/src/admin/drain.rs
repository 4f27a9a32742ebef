//! `NodeDrain`, `NodeUndrain`, `NodeRemove`, `NodeRecover`: what an operator wants of a node. What follows is done by
//! the leader round by round (`replication::director`), and goes on whoever leads.

use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, NodeMoved};
use fsd_rpc::message::Failure;
use raftmeta::read;
use raftmeta_types::Command;
use raftmeta_types::cluster::{NodeInfo, NodeState, ShardInfo};

use super::refused;
use super::room::{self, Wanted};
use crate::health::{Lacking, Redundancy};
use crate::node::Node;
use crate::replication;
use crate::service::storage;

/// The node that is meant by `n3`, `3` or its name.
pub(super) fn named(node: &Node, text: &str) -> Result<(NodeInfo, Vec<NodeInfo>), Failure> {
    let all = read::nodes(&node.group.view()).map_err(storage)?;
    let number = text.strip_prefix('n').unwrap_or(text).parse::<u64>().ok();
    let known = all.iter().filter(|info| info.state != NodeState::Removed);
    let found = known
        .clone()
        .find(|info| info.name == text)
        .or_else(|| known.clone().find(|info| Some(info.id.0) == number));
    match found.cloned() {
        Some(found) => Ok((found, all)),
        None => {
            let next = "list them: `cfs admin node list`";
            Err(refused("NOT_FOUND", format!("node `{text}`"), "there is no such node", next))
        }
    }
}

fn holds(node: &Node, info: &NodeInfo) -> Result<Vec<ShardInfo>, Failure> {
    let shards = read::shards(&node.group.view()).map_err(storage)?;
    Ok(shards.into_iter().filter(|shard| shard.in_sync.contains(&info.id)).collect())
}

fn moved(node: &Node, info: &NodeInfo, state: NodeState) -> Result<AdminReply, Failure> {
    let shards = holds(node, info)?.len() as u32;
    let bytes = match info.id == node.id {
        true => node.scrub_state().total_bytes,
        false => {
            let beats = node.beats.lock();
            let usage = beats.get(&info.id).and_then(|beat| beat.usage.as_ref());
            usage.map_or(0, |usage| usage.scrub.total_bytes)
        }
    };
    let (name, state) = (info.name.clone(), state.to_string());
    Ok(AdminReply::NodeMoved(NodeMoved { node: info.id.0, name, state, shards, bytes }))
}

async fn set(node: &Arc<Node>, info: &NodeInfo, to: NodeState) -> Result<AdminReply, Failure> {
    let command = Command::SetNodeState { node: info.id, from: info.state, to };
    node.command(command, true).await?;
    tracing::info!(node = %info.id, name = info.name, %to, "an administrator changes a node's state");
    moved(node, info, to)
}

pub(super) async fn drain(
    node: &Arc<Node>,
    text: &str,
    dry_run: bool,
) -> Result<AdminReply, Failure> {
    let (info, all) = named(node, text)?;
    let doing = format!("draining {} (n{})", info.name, info.id);
    match info.state {
        NodeState::Draining | NodeState::Drained => return moved(node, &info, info.state),
        NodeState::Up => {}
        NodeState::Joining | NodeState::Down | NodeState::Removed => {
            let why = format!("it is {}", info.state);
            let next = "for a node that is lost: `cfs admin node recover`, then `remove`";
            return Err(refused("NOT_UP", doing, why, next));
        }
    }
    let protection = read::protection(&node.group.view()).map_err(storage)?;
    let left =
        all.iter().filter(|other| other.state == NodeState::Up && other.id != info.id).count();
    let wanted = usize::from(protection.replicas);
    if left < wanted {
        let why = format!("{left} nodes would be left for {wanted} copies of everything");
        return Err(refused("REDUNDANCY", doing, why, "add a node first: `cfs server join`"));
    }
    let then = Wanted { replicas: protection.replicas, without: Some(info.id) };
    room::check(node, &doing, then).await?;
    if dry_run {
        return moved(node, &info, NodeState::Up);
    }
    set(node, &info, NodeState::Draining).await
}

pub(super) async fn undrain(node: &Arc<Node>, text: &str) -> Result<AdminReply, Failure> {
    let (info, _) = named(node, text)?;
    match info.state {
        NodeState::Draining | NodeState::Drained => set(node, &info, NodeState::Up).await,
        NodeState::Up => moved(node, &info, info.state),
        NodeState::Joining | NodeState::Down | NodeState::Removed => {
            let why = format!("it is {}", info.state);
            let doing = format!("taking back the drain of {} (n{})", info.name, info.id);
            Err(refused("NOT_DRAINED", doing, why, "start the node"))
        }
    }
}

pub(super) async fn remove(node: &Arc<Node>, text: &str) -> Result<AdminReply, Failure> {
    let (info, all) = named(node, text)?;
    let doing = format!("removing {} (n{})", info.name, info.id);
    let held = holds(node, &info)?.len();
    match info.state {
        NodeState::Drained | NodeState::Joining if held == 0 => {
            set(node, &info, NodeState::Removed).await
        }
        // The others go on without one that is down long before they have copied what it held.
        NodeState::Down => match to_make_up(node, &info, &all)? {
            (0, _) => set(node, &info, NodeState::Removed).await,
            (lacking, _) => {
                let shards = if lacking == 1 { "shard lacks" } else { "shards lack" };
                let why = format!("{lacking} {shards} a copy: not all that it held is made up for");
                let next = "wait until it is: `cfs admin node recover --wait`, with another node if there are too few; \
                            if its disks are gone for good: `cfs admin node remove --lost`";
                Err(refused("REDUNDANCY", doing, why, next))
            }
        },
        NodeState::Up
        | NodeState::Draining
        | NodeState::Drained
        | NodeState::Joining
        | NodeState::Removed => {
            let why = format!("it is {}", info.state);
            Err(refused("NOT_DRAINED", doing, why, "first `cfs admin node drain --wait`"))
        }
    }
}

/// What is left to be made up for while a node is down: shards that lack a copy or still count on it, and the bytes
/// to be copied.
fn to_make_up(node: &Arc<Node>, info: &NodeInfo, all: &[NodeInfo]) -> Result<(u32, u64), Failure> {
    let view = node.group.view();
    let shards = read::shards(&view).map_err(storage)?;
    let protection = read::protection(&view).map_err(storage)?;
    let lacking = Redundancy::of(&shards, protection, &node.down(all)).lacking;
    let sizes = replication::copy_sizes(&**node, &shards);
    let missing = |one: &Lacking| u64::from(u32::from(protection.replicas) - one.copies);
    let bytes = lacking.iter().map(|one| missing(one) * sizes.of(one.shard)).sum();
    let lacks = |shard: &ShardInfo| lacking.iter().any(|one| one.shard == shard.id);
    let counted = shards.iter().filter(|shard| lacks(shard) || shard.in_sync.contains(&info.id));
    Ok((counted.count() as u32, bytes))
}

/// The leader makes good what a node that is down held without being asked; this says how much is left of it.
pub(super) fn recover(node: &Arc<Node>, text: &str) -> Result<AdminReply, Failure> {
    let (info, all) = named(node, text)?;
    let doing = format!("recovering {} (n{})", info.name, info.id);
    if info.state != NodeState::Down {
        let why = format!("it is {}", info.state);
        return Err(refused("NOT_DOWN", doing, why, "nothing has to be recovered"));
    }
    let protection = read::protection(&node.group.view()).map_err(storage)?;
    let wanted = usize::from(protection.replicas);
    let up = all.iter().filter(|other| other.state == NodeState::Up).count();
    if up < wanted {
        let why = format!("{up} nodes are up for {wanted} copies of everything");
        return Err(refused("REDUNDANCY", doing, why, "start it again, or add a node"));
    }
    let (shards, bytes) = to_make_up(node, &info, &all)?;
    let (name, state) = (info.name.clone(), info.state.to_string());
    Ok(AdminReply::NodeMoved(NodeMoved { node: info.id.0, name, state, shards, bytes }))
}
