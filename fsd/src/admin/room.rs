//! Whether the nodes have room for the copies that a change would bring them.
//!
//! Asked before a drain and before more copies are wanted. What would go where is what the leader is about to plan
//! ([`placement::plan`]); how large it is and how much room there is, the nodes are asked at this moment. What would leave a
//! node is not counted as room on it: it goes only when its copies are elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fsd_rpc::message::{Failure, NodeUsage, ShardUsage};
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState, ShardInfo};
use raftmeta_types::{NodeId, ShardId};

use super::refused;
use crate::node::Node;
use crate::placement::{self, Held, Place};
use crate::replication::{self, Sizes};
use crate::service::storage;

/// Nodes that a refusal names.
const NAMED_MAX: usize = 8;

/// So many copies of everything, on all nodes that are up but one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub replicas: u8,
    pub without: Option<NodeId>,
}

/// Refuses what the nodes have no room for, and says on which of them.
pub(super) async fn check(node: &Arc<Node>, doing: &str, wanted: Wanted) -> Result<(), Failure> {
    let told = node.ask_usages().await?;
    let (nodes, shards) = {
        let view = node.group.view();
        (read::nodes(&view).map_err(storage)?, read::shards(&view).map_err(storage)?)
    };
    let usage = |id: NodeId| told.iter().find(|(info, _)| info.id == id).map(|(_, usage)| usage);
    let sizes = sizes(&shards, usage, u64::from(node.chunks.segment_bytes()));
    let gains = gains(&nodes, &shards, wanted, &sizes);
    let lacks = |(id, bytes): (&NodeId, &u64)| {
        let name = &nodes.iter().find(|info| info.id == *id)?.name;
        let available = usage(*id).map(|usage| usage.available_bytes);
        lack(name, *bytes, available)
    };
    let lacking: Vec<String> = gains.iter().filter_map(lacks).take(NAMED_MAX).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let next = "add a node first: `cfs server join`; or delete something, then `cfs admin gc`";
    Err(refused("NO_SPACE", doing, lacking.join("; "), next))
}

/// What a copy of each shard takes on its device, which gives whole segments.
fn sizes<'a>(
    shards: &[ShardInfo],
    usage: impl Fn(NodeId) -> Option<&'a NodeUsage>,
    segment_bytes: u64,
) -> Sizes {
    let size = |shard: &ShardInfo| {
        let is_it = |told: &&ShardUsage| told.shard == shard.id;
        let told = usage(shard.primary)?.shards.iter().find(is_it)?;
        Some((shard.id, told.bytes.next_multiple_of(segment_bytes)))
    };
    Sizes::new(shards.iter().filter_map(size).collect::<BTreeMap<ShardId, u64>>())
}

/// What each node would get that it does not hold.
fn gains(
    nodes: &[NodeInfo],
    shards: &[ShardInfo],
    wanted: Wanted,
    sizes: &Sizes,
) -> BTreeMap<NodeId, u64> {
    let may_hold =
        |info: &&NodeInfo| info.state == NodeState::Up && Some(info.id) != wanted.without;
    let place = |info: &NodeInfo| Place { node: info.id, weight: info.capacity_bytes };
    let places: Vec<Place> = nodes.iter().filter(may_hold).map(place).collect();
    let held: Vec<Held> = shards.iter().map(replication::held).collect();
    let plan = placement::plan(&places, usize::from(wanted.replicas), &held, &BTreeSet::new());
    let mut gains = BTreeMap::new();
    for (shard, planned) in shards.iter().zip(&plan) {
        for id in planned.by.iter().filter(|id| !shard.in_sync.contains(id)) {
            *gains.entry(*id).or_default() += sizes.of(shard.id);
        }
    }
    gains
}

/// What is wrong with so much more on a node that has so much left, if it has said so.
fn lack(name: &str, bytes: u64, available: Option<u64>) -> Option<String> {
    match available {
        Some(available) if bytes <= available => None,
        Some(available) => {
            let (more, left) = (mib(bytes), available >> 20);
            Some(format!("{name} would have to hold {more} MiB more, and has room for {left} MiB"))
        }
        None => {
            let more = mib(bytes);
            Some(format!(
                "{name} would have to hold {more} MiB more, and does not say for how much it has room"
            ))
        }
    }
}

/// Rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftmeta_types::Epoch;

    const MIB: u64 = 1 << 20;

    fn shard(id: u16, in_sync: &[u64]) -> ShardInfo {
        let in_sync: Vec<NodeId> = in_sync.iter().map(|id| NodeId(*id)).collect();
        let (epoch, gc_epoch, primary) = (Epoch(1), Epoch(0), in_sync[0]);
        ShardInfo { id: ShardId(id), epoch, gc_epoch, primary, in_sync }
    }

    fn gained(states: &[NodeState], shards: &[ShardInfo], wanted: Wanted) -> Vec<(u64, u64)> {
        let node = |(id, state): (u64, &NodeState)| NodeInfo {
            id: NodeId(id),
            name: format!("n{id}"),
            address: String::new(),
            state: *state,
            capacity_bytes: 100,
        };
        let nodes: Vec<NodeInfo> = (1..).zip(states).map(node).collect();
        let sizes = Sizes::new(BTreeMap::from([(ShardId(0), 10), (ShardId(1), 30)]));
        gains(&nodes, shards, wanted, &sizes).into_iter().map(|(id, bytes)| (id.0, bytes)).collect()
    }

    #[test]
    fn what_each_node_would_get() {
        use NodeState::{Down, Up};
        let two = [shard(0, &[1, 2]), shard(1, &[2, 1])];
        let drain = |id| Wanted { replicas: 2, without: Some(NodeId(id)) };
        let more = |replicas| Wanted { replicas, without: None };
        assert_eq!(gained(&[Up, Up, Up], &two, drain(1)), [(3, 40)]);
        // Who holds it already gets nothing.
        assert_eq!(gained(&[Up, Up, Up], &two, drain(3)), []);
        assert_eq!(gained(&[Up, Up, Up], &two, more(3)), [(3, 40)]);
        assert_eq!(gained(&[Up, Up, Down], &two, more(3)), []);
        // The third has not said how large it is: as large as the others are.
        let third = [shard(2, &[1])];
        assert_eq!(gained(&[Up, Up], &third, more(2)), [(2, 20)]);
    }

    #[test]
    fn who_has_no_room_is_told_with_numbers() {
        assert_eq!(lack("n2", 5 * MIB, Some(5 * MIB)), None);
        let told = lack("n2", 5 * MIB + 1, Some(5 * MIB)).unwrap();
        assert_eq!(told, "n2 would have to hold 6 MiB more, and has room for 5 MiB");
        assert!(lack("n2", MIB, None).unwrap().contains("does not say"));
    }
}
