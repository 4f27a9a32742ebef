//! Which nodes shall hold which shards: weighted rendezvous hashing, bounded so that nobody gets more than
//! its share, and changed as little as possible.
//!
//! ```text
//!   nodes (capacity, usable?)  ─┐
//!   protection (copies)         ├─▶ plan ─▶ for each shard: its replicas, the first of them the primary
//!   what is (shards in sync)   ─┘
//! ```
//! Every pair of shard and node has a score that only depends on the two, and a node with twice the weight
//! wins twice as often. A shard goes to the nodes with its best scores that are not full; what lies on a
//! usable node already stays there until that node has more than its share, and a node with part of a copy, which
//! is being made or was dropped from those in sync, is taken before one with nothing. A pure function: the leader
//! computes, writes the outcome in the cluster map, and everybody reads it there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use raftmeta_types::{NodeId, ShardId};

#[cfg(test)]
mod tests;

/// A node that may hold shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: NodeId,
    /// Share of the data relative to the other nodes': bytes of its volume.
    pub weight: u64,
}

/// A shard and where it is now; the first is its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub shard: ShardId,
    pub by: Vec<NodeId>,
}

/// Copies and primaries of each node, and how many it shall have.
struct Load {
    weight: u64,
    copies: usize,
    copies_max: usize,
    primaries: usize,
    primaries_max: usize,
}

/// Where each shard shall be, in the order given; the first is its primary. Fewer replicas than asked for
/// where there are fewer places; none where there is no place at all. `begun` are copies that are not in sync, whole
/// or in part.
pub fn plan(
    places: &[Place],
    replicas: usize,
    now: &[Held],
    begun: &BTreeSet<(ShardId, NodeId)>,
) -> Vec<Held> {
    let replicas = replicas.min(places.len());
    if replicas == 0 {
        return now.iter().map(|held| Held { shard: held.shard, by: Vec::new() }).collect();
    }
    let mut loads = loads(places, replicas, now.len());
    let mut wanted: Vec<Held> = now
        .iter()
        .map(|held| Held { shard: held.shard, by: keep(held, &loads, replicas) })
        .collect();
    for held in &wanted {
        held.by.iter().for_each(|node| load(&mut loads, *node).copies += 1);
    }
    // Nobody gets the room of a copy that is on its way.
    fill(&mut wanted, &mut loads, replicas, |shard, node| begun.contains(&(shard, node)));
    fill(&mut wanted, &mut loads, replicas, |_, _| true);
    level(&mut wanted, &mut loads);
    lead(&mut wanted, now, &mut loads);
    wanted
}

fn load(loads: &mut BTreeMap<NodeId, Load>, node: NodeId) -> &mut Load {
    loads.get_mut(&node).expect("only places are planned with")
}

/// What each place shall have at most: its share, rounded up, and never more than one copy a shard.
fn loads(places: &[Place], replicas: usize, shards: usize) -> BTreeMap<NodeId, Load> {
    let mut copies_left = shards * replicas;
    let mut weights: Vec<(u128, NodeId)> =
        places.iter().map(|place| (u128::from(place.weight.max(1)), place.node)).collect();
    // The heaviest first: whoever would get more than all shards leaves the rest to the others.
    weights.sort_by_key(|(weight, node)| (Reverse(*weight), *node));
    let mut weight_left: u128 = weights.iter().map(|(weight, _)| weight).sum();
    let total = weight_left;
    let mut loads = BTreeMap::new();
    for (weight, node) in weights {
        let share = (copies_left as u128 * weight).div_ceil(weight_left);
        let copies_max = usize::try_from(share).unwrap_or(shards).min(shards);
        let primaries = (shards as u128 * weight).div_ceil(total);
        loads.insert(
            node,
            Load {
                weight: u64::try_from(weight).unwrap_or(u64::MAX),
                copies: 0,
                copies_max,
                primaries: 0,
                primaries_max: usize::try_from(primaries).unwrap_or(shards),
            },
        );
        copies_left -= copies_max.min(copies_left);
        weight_left -= weight;
    }
    loads
}

/// Those of the present replicas that may stay, the best first where there are too many.
fn keep(held: &Held, loads: &BTreeMap<NodeId, Load>, replicas: usize) -> Vec<NodeId> {
    let mut kept: Vec<NodeId> =
        held.by.iter().copied().filter(|node| loads.contains_key(node)).collect();
    if kept.len() > replicas {
        let primary = kept[0];
        kept.sort_by_key(|node| {
            (*node != primary, Reverse(score(held.shard, *node, loads[node].weight)))
        });
        kept.truncate(replicas);
    }
    kept
}

/// Gives every shard its replicas, from those nodes with the best scores that are not full.
fn fill(
    wanted: &mut [Held],
    loads: &mut BTreeMap<NodeId, Load>,
    replicas: usize,
    may: impl Fn(ShardId, NodeId) -> bool,
) {
    for held in wanted {
        while held.by.len() < replicas {
            let free = |(node, load): (&NodeId, &Load)| {
                (!held.by.contains(node) && may(held.shard, *node)).then(|| {
                    let full = load.copies >= load.copies_max;
                    ((!full, score(held.shard, *node, load.weight)), *node)
                })
            };
            let Some((_, node)) = loads.iter().filter_map(free).max() else { break };
            held.by.push(node);
            load(loads, node).copies += 1;
        }
    }
}

/// Moves copies from nodes that have more than their share to such that have room.
fn level(wanted: &mut [Held], loads: &mut BTreeMap<NodeId, Load>) {
    let over = |load: &Load| load.copies.saturating_sub(load.copies_max);
    while let Some((&from, _)) = loads
        .iter()
        .filter(|(_, load)| over(load) > 0)
        .max_by_key(|(node, load)| (over(load), Reverse(**node)))
    {
        // The best of all moves away from it; the primary's copy moves only if nothing else can.
        let lying = wanted.iter().enumerate().filter_map(|(at, held)| {
            let place = held.by.iter().position(|node| *node == from)?;
            Some((at, place, held))
        });
        let moves = lying.flat_map(|(at, place, held)| {
            let room = |(node, load): &(&NodeId, &Load)| {
                load.copies < load.copies_max && !held.by.contains(node)
            };
            let value = move |load: &Load, node| (place != 0, score(held.shard, node, load.weight));
            loads
                .iter()
                .filter(room)
                .map(|(node, load)| (value(load, *node), at, place, *node))
                .max()
        });
        // Every node with room has a copy of each of these shards already.
        let Some((_, at, place, to)) = moves.max() else { return };
        wanted[at].by[place] = to;
        load(loads, from).copies -= 1;
        load(loads, to).copies += 1;
    }
}

/// Chooses primaries and puts them first. One that was it before stays, else one that has the data; then
/// nodes that lead more than their share hand some over, by way of others if need be.
fn lead(wanted: &mut [Held], now: &[Held], loads: &mut BTreeMap<NodeId, Load>) {
    for (held, before) in wanted.iter_mut().zip(now) {
        let rank = |node: &NodeId| {
            let has_it = before.by.iter().position(|other| other == node);
            let room = loads[node].primaries_max as i64 - loads[node].primaries as i64;
            (has_it == Some(0), has_it.is_some(), room, Reverse(*node))
        };
        let Some(node) = held.by.iter().copied().max_by_key(rank) else { continue };
        load(loads, node).primaries += 1;
        put_first(held, node);
    }
    while let Some(from) = loads
        .iter()
        .filter(|(_, load)| load.primaries > load.primaries_max)
        .max_by_key(|(node, load)| (load.primaries - load.primaries_max, Reverse(**node)))
        .map(|(node, _)| *node)
    {
        let Some(path) = way_to_room(wanted, loads, from) else { return };
        for (at, to) in path {
            let before = wanted[at].by[0];
            put_first(&mut wanted[at], to);
            load(loads, before).primaries -= 1;
            load(loads, to).primaries += 1;
        }
    }
}

/// The shortest chain of shards that change their primary so that in the end `from` leads one less and a
/// node that has room for it one more: each with its new primary.
fn way_to_room(
    wanted: &[Held],
    loads: &BTreeMap<NodeId, Load>,
    from: NodeId,
) -> Option<Vec<(usize, NodeId)>> {
    // Who reached a node, and by which shard.
    let mut reached: BTreeMap<NodeId, (NodeId, usize)> = BTreeMap::new();
    let mut next = vec![from];
    while !next.is_empty() {
        let mut found = Vec::new();
        for (at, held) in wanted.iter().enumerate() {
            let Some((leader, others)) = held.by.split_first() else { continue };
            if !next.contains(leader) {
                continue;
            }
            for other in others {
                if *other != from && !reached.contains_key(other) {
                    reached.insert(*other, (*leader, at));
                    found.push(*other);
                }
            }
        }
        let room = |node: &&NodeId| loads[node].primaries < loads[node].primaries_max;
        if let Some(end) = found.iter().find(room) {
            let mut path = Vec::new();
            let mut to = *end;
            while to != from {
                let (leader, at) = reached[&to];
                path.push((at, to));
                to = leader;
            }
            return Some(path);
        }
        next = found;
    }
    None
}

fn put_first(held: &mut Held, node: NodeId) {
    if let Some(place) = held.by.iter().position(|other| *other == node) {
        held.by.swap(0, place);
    }
}

/// Rendezvous score: the greatest wins. `-weight / ln(u)` with `u` from the hash of shard and node, as a
/// number whose order is that of the real one.
fn score(shard: ShardId, node: NodeId, weight: u64) -> u64 {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&shard.0.to_be_bytes());
    key[2..].copy_from_slice(&node.0.to_be_bytes());
    let hash = blake3::hash(&key);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    // 53 bits, from just above 0 to just below 1.
    let u = ((u64::from_le_bytes(first) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    // Positive, and the bits of positive numbers are in their order.
    (weight as f64 / -u.ln()).to_bits()
}
