//! `NodeRemoveLost`: a node whose disks are gone for good leaves the cluster.
//!
//! `NodeRemove` waits until nothing counts on a node any more. Where two disks went at the wrong moment that may be never:
//! a shard is not led with fewer replicas in sync than it needs as long as the missing ones may come back with something
//! that nobody else has. That they will not is for an administrator to say. So this first tells what it costs, and never
//! takes a node that could still be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{AdminReply, CopiesLeft, NodeLost};
use fsd_rpc::message::{Failure, NodeRequest};
use fsd_rpc::nodes::Target;
use raftmeta::group::Member;
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState, ShardInfo};
use raftmeta_types::{Command, NodeId, ShardId};

use super::drain::named;
use super::refused;
use crate::health::list;
use crate::node::members::Beat;
use crate::node::{Liveness, Node};
use crate::service::storage;

/// A node that is alive answers faster than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Numbers of shards that a refusal names.
const NAMED_MAX: usize = 32;

/// What the administrator has said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Consent {
    pub confirm: bool,
    pub accept_data_loss: bool,
}

pub(super) async fn remove(
    node: &Arc<Node>,
    text: &str,
    consent: Consent,
) -> Result<AdminReply, Failure> {
    node.may_answer()?;
    let (info, all) = named(node, text)?;
    let doing = format!("removing {} (n{}) as lost", info.name, info.id);
    is_gone(node, &info, &doing).await?;
    let members = node.group.members();
    let answering = answering(node, &all);
    let voters = voters_left(&members, info.id, &all, &answering).map_err(|(here, left)| {
        let why = format!("of the {left} voters of the metadata that are left only {here} answer");
        refused("NO_MAJORITY", &doing, why, "start another node first: `cfs admin node list`")
    })?;
    let shards = read::shards(&node.group.view()).map_err(storage)?;
    let copies_wanted = read::protection(&node.group.view()).map_err(storage)?.replicas;
    let (left, lost) = cost(&shards, info.id, &answering);
    let told = |done| {
        AdminReply::NodeLost(NodeLost {
            node: info.id.0,
            name: info.name.clone(),
            done,
            copies_wanted: u32::from(copies_wanted),
            left: left.clone(),
            lost_shards: lost.iter().map(|shard| shard.0).collect(),
            voters: voters as u32,
        })
    };
    if !consent.confirm {
        return Ok(told(false));
    }
    if !lost.is_empty() && !consent.accept_data_loss {
        let why = format!("no copy in sync would be left of {}", list(&lost, NAMED_MAX));
        let next = "start a node that has one; if there is none, say --accept-data-loss: they begin anew, and \
                    `cfs admin fsck` says what is missing";
        return Err(refused("DATA_LOSS", &doing, why, next));
    }
    let heirs = heirs(&lost, &candidates(node, &all, &answering));
    node.command(Command::RemoveLost { node: info.id, heirs: heirs.clone() }, true).await?;
    tracing::warn!(
        node = %info.id, name = info.name, ?left, anew = ?heirs,
        "an administrator has removed a node as lost for good"
    );
    Ok(told(true))
}

/// Nobody hears it, and it does not answer.
async fn is_gone(node: &Arc<Node>, info: &NodeInfo, doing: &str) -> Result<(), Failure> {
    let next = "if it is not to come back: stop it, and wait until `cfs admin node list` says that it is down; one that \
                has its disks is drained instead";
    let up = |why: String| Err(refused("NODE_UP", doing, why, next));
    if info.id == node.id {
        return up("it leads the cluster, and answers you".into());
    }
    if info.state == NodeState::Up {
        return up("it is up".into());
    }
    match node.beats.lock().get(&info.id) {
        Some(beat) if beat.is_silent() => {}
        Some(_) | None => return up("it may have answered a moment ago".into()),
    }
    match node.membership.seen(info.id) {
        Liveness::Alive | Liveness::Suspect => return up("other nodes hear it".into()),
        Liveness::Down | Liveness::Unknown => {}
    }
    let target = Target { node: info.id, address: info.address.clone() };
    let request = NodeRequest::Usage { with_shards: false };
    match node.peers.ask(&target, request, &[], ANSWER_WITHIN).await {
        Ok(_) => up(format!("it answers at {}", info.address)),
        Err(_) => Ok(()),
    }
}

/// The nodes that can be counted on at this moment.
fn answering(node: &Node, all: &[NodeInfo]) -> BTreeSet<NodeId> {
    let beats = node.beats.lock();
    let heard = |beat: &Beat| beat.usage.is_some() && !beat.is_suspect();
    let answers = |id: &NodeId| *id == node.id || beats.get(id).is_some_and(heard);
    all.iter().map(|info| info.id).filter(answers).collect()
}

/// How many voters are left; if not enough of them answer to decide anything, how many do. One that was removed is a
/// voter until the others have decided that it is none, and does not stay.
fn voters_left(
    members: &[Member],
    lost: NodeId,
    all: &[NodeInfo],
    answering: &BTreeSet<NodeId>,
) -> Result<usize, (usize, usize)> {
    let left = members.iter().filter(|member| member.voter && member.id != lost.0);
    let here = left.clone().filter(|member| answering.contains(&NodeId(member.id))).count();
    let removed = |member: &&Member| {
        all.iter().any(|info| info.id.0 == member.id && info.state == NodeState::Removed)
    };
    let going = left.clone().filter(removed).count();
    let left = left.count();
    if 2 * here > left { Ok(left - going) } else { Err((here, left)) }
}

/// What becomes of the shards that count on a node: by the copies that are left, and those of which there is none.
fn cost(
    shards: &[ShardInfo],
    lost: NodeId,
    answering: &BTreeSet<NodeId>,
) -> (Vec<CopiesLeft>, Vec<ShardId>) {
    let mut left: BTreeMap<u32, CopiesLeft> = BTreeMap::new();
    let mut none = Vec::new();
    for shard in shards.iter().filter(|shard| shard.in_sync.contains(&lost)) {
        let mut others = shard.in_sync.iter().filter(|id| **id != lost);
        let copies = others.clone().count() as u32;
        if copies == 0 {
            none.push(shard.id);
            continue;
        }
        let entry = CopiesLeft { copies, shards: 0, shards_waiting: 0 };
        let entry = left.entry(copies).or_insert(entry);
        entry.shards += 1;
        entry.shards_waiting += u32::from(!others.any(|id| answering.contains(id)));
    }
    (left.into_values().collect(), none)
}

/// Who may begin a shard anew, and what each has left of shards that it held once.
fn candidates(
    node: &Node,
    all: &[NodeInfo],
    answering: &BTreeSet<NodeId>,
) -> Vec<(NodeId, BTreeSet<ShardId>)> {
    let strays = |id: NodeId| match id == node.id {
        true => node.upkeep.strays.of(node),
        false => {
            let beats = node.beats.lock();
            let usage = beats.get(&id).and_then(|beat| beat.usage.as_ref());
            usage.map(|usage| usage.strays.clone()).unwrap_or_default()
        }
    };
    all.iter()
        .filter(|info| info.state == NodeState::Up && answering.contains(&info.id))
        .map(|info| (info.id, strays(info.id).into_iter().collect()))
        .collect()
}

/// Who begins which shard. An outdated copy is better than none: chunks never change, so what is in it is right.
fn heirs(lost: &[ShardId], candidates: &[(NodeId, BTreeSet<ShardId>)]) -> Vec<(ShardId, NodeId)> {
    let mut given: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut heirs = Vec::new();
    for shard in lost {
        let rank = |(id, has): &&(NodeId, BTreeSet<ShardId>)| {
            (!has.contains(shard), given.get(id).copied().unwrap_or(0), *id)
        };
        if let Some((id, _)) = candidates.iter().min_by_key(rank) {
            *given.entry(*id).or_default() += 1;
            heirs.push((*shard, *id));
        }
    }
    heirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftmeta_types::Epoch;

    fn shard(id: u16, in_sync: &[u64]) -> ShardInfo {
        let in_sync: Vec<NodeId> = in_sync.iter().map(|id| NodeId(*id)).collect();
        let (epoch, gc_epoch, primary) = (Epoch(1), Epoch(0), in_sync[0]);
        ShardInfo { id: ShardId(id), epoch, gc_epoch, primary, in_sync }
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn what_it_costs_is_counted_by_the_copies_left() {
        let shards = [
            shard(0, &[1, 2, 3]),
            shard(1, &[3, 4]),
            shard(2, &[2, 3]),
            shard(3, &[3]),
            shard(4, &[1, 2]),
            shard(5, &[3]),
        ];
        let (left, lost) = cost(&shards, NodeId(3), &nodes(&[1, 2]));
        let left: Vec<_> =
            left.iter().map(|one| (one.copies, one.shards, one.shards_waiting)).collect();
        assert_eq!(left, [(1, 2, 1), (2, 1, 0)]);
        assert_eq!(lost, [ShardId(3), ShardId(5)]);
    }

    #[test]
    fn the_voters_that_are_left_have_to_be_able_to_decide() {
        let member =
            |id: u64, voter| Member { id, address: String::new(), voter, matched: None, lag: None };
        let five: Vec<Member> = (1..=6).map(|id| member(id, id < 6)).collect();
        let state = |id: u64| if id == 4 { NodeState::Removed } else { NodeState::Up };
        let info = |id: u64| NodeInfo {
            id: NodeId(id),
            name: format!("n{id}"),
            address: String::new(),
            state: state(id),
            capacity_bytes: 0,
        };
        let all: Vec<NodeInfo> = (1..=6).map(info).collect();
        let left =
            |lost, answering: &[u64]| voters_left(&five, NodeId(lost), &all, &nodes(answering));
        // The fourth was removed a moment ago.
        assert_eq!(left(5, &[1, 2, 3, 6]), Ok(3));
        assert_eq!(left(5, &[1, 2, 6]), Err((2, 4)));
        // A learner costs no vote.
        assert_eq!(left(6, &[1, 2, 3]), Ok(4));
        assert_eq!(left(6, &[1, 2]), Err((2, 5)));
    }

    #[test]
    fn who_has_something_left_of_a_shard_begins_it() {
        let has = |shards: &[u16]| shards.iter().map(|id| ShardId(*id)).collect();
        let candidates = [(NodeId(1), has(&[])), (NodeId(2), has(&[7, 8])), (NodeId(4), has(&[8]))];
        let found = heirs(&[1, 2, 7, 8].map(ShardId), &candidates);
        let found: Vec<(u16, u64)> = found.iter().map(|(shard, id)| (shard.0, id.0)).collect();
        assert_eq!(found, [(1, 1), (2, 2), (7, 2), (8, 4)]);
        assert_eq!(heirs(&[ShardId(1)], &[]), []);
    }
}
