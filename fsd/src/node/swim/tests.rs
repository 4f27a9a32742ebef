//! Whole clusters on a simulated network and clock, from one seed each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raftmeta_types::NodeId;

use super::protocol::{Liveness, Swim};

const MS: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(500);

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Nodes, the datagrams on their way, and what keeps them from arriving.
struct World {
    now: Duration,
    rng: Rng,
    nodes: BTreeMap<NodeId, Swim>,
    /// Who each node believes to be a member.
    maps: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// Neither receives nor wakes; what is sent to it waits, as in a socket.
    stopped: BTreeSet<NodeId>,
    /// Pairs (from, to) between which nothing arrives.
    cut: BTreeSet<(NodeId, NodeId)>,
    loss_percent: u64,
    under_way: BTreeMap<(Duration, u64), (NodeId, NodeId, Vec<u8>)>,
    waiting: BTreeMap<NodeId, Vec<(NodeId, Vec<u8>)>>,
    sent: u64,
}

fn ids(count: u64) -> impl Iterator<Item = NodeId> {
    (1..=count).map(NodeId)
}

impl World {
    fn of(count: u64, seed: u64) -> World {
        let all: BTreeSet<NodeId> = ids(count).collect();
        let mut world = World {
            now: Duration::ZERO,
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            nodes: BTreeMap::new(),
            maps: BTreeMap::new(),
            stopped: BTreeSet::new(),
            cut: BTreeSet::new(),
            loss_percent: 0,
            under_way: BTreeMap::new(),
            waiting: BTreeMap::new(),
            sent: 0,
        };
        for id in ids(count) {
            world.start(id, 1);
            world.maps.insert(id, all.iter().copied().filter(|other| *other != id).collect());
        }
        world
    }

    fn start(&mut self, id: NodeId, start: u32) {
        let seed = self.rng.below(u64::MAX);
        self.nodes.insert(id, Swim::new(id, start, seed));
    }

    fn send(&mut self, from: NodeId, outgoing: Vec<(NodeId, Vec<u8>)>) {
        for (to, bytes) in outgoing {
            self.sent += 1;
            let lost = self.rng.below(100) < self.loss_percent;
            if lost || self.cut.contains(&(from, to)) {
                continue;
            }
            let at = self.now + MS * (1 + self.rng.below(20) as u32);
            self.under_way.insert((at, self.sent), (from, to, bytes));
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, bytes: &[u8]) {
        if let Some(node) = self.nodes.get_mut(&to) {
            // Refusals are asserted where they are wanted.
            let outgoing = node.receive(self.now, bytes).unwrap_or_default();
            self.send(to, outgoing);
        }
        let _ = from;
    }

    /// The next millisecond.
    fn step(&mut self) {
        self.now += MS;
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (from, to, bytes) = entry.remove();
            if self.stopped.contains(&to) {
                self.waiting.entry(to).or_default().push((from, bytes));
            } else {
                self.deliver(from, to, &bytes);
            }
        }
        let running: Vec<NodeId> =
            self.nodes.keys().copied().filter(|id| !self.stopped.contains(id)).collect();
        for id in running {
            let node = self.nodes.get_mut(&id).unwrap();
            let mut outgoing = Vec::new();
            if self.now.as_millis() % TICK.as_millis() == u128::from(id.0) {
                outgoing.extend(node.meet(self.now, &self.maps[&id]));
            }
            if node.next_wake().is_some_and(|at| at <= self.now) {
                outgoing.extend(node.wake(self.now));
            }
            self.send(id, outgoing);
        }
    }

    fn go_on(&mut self, id: NodeId) {
        self.stopped.remove(&id);
        // What waited in the socket comes first.
        for (from, bytes) in self.waiting.remove(&id).unwrap_or_default() {
            self.deliver(from, id, &bytes);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// How long until all running nodes but `of` itself see it so.
    fn until_seen(&mut self, of: NodeId, as_: Liveness, most: Duration) -> Duration {
        let begin = self.now;
        loop {
            let seers = self.nodes.iter().filter(|(id, _)| **id != of);
            let mut seers = seers.filter(|(id, _)| !self.stopped.contains(id));
            if seers.all(|(_, node)| node.seen().get(&of) == Some(&as_)) {
                return self.now - begin;
            }
            assert!(self.now - begin < most, "node {of} is not {as_:?} to all in {most:?}");
            self.step();
        }
    }

    fn all_alive(&mut self, most: Duration) {
        for id in self.maps.keys().copied().collect::<Vec<_>>() {
            self.until_seen(id, Liveness::Alive, most);
        }
    }
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;

#[test]
fn a_lone_node_has_nothing_to_do() {
    let mut swim = Swim::new(NodeId(1), 1, 1);
    assert!(swim.meet(SECONDS(1), &BTreeSet::new()).is_empty());
    assert_eq!(swim.next_wake(), None);
    // Nor has one whose only companion left, once the last timers have run out.
    let mut world = World::of(2, 3);
    world.all_alive(SECONDS(5));
    world.nodes.remove(&NodeId(2));
    world.maps.insert(NodeId(1), BTreeSet::new());
    world.run(SECONDS(20));
    assert_eq!(world.nodes[&NodeId(1)].next_wake(), None);
    assert!(world.nodes[&NodeId(1)].seen().is_empty());
}

#[test]
fn a_dead_node_is_suspected_then_down_and_comes_back() {
    for seed in 0..40 {
        let count = 2 + seed % 6;
        let mut world = World::of(count, seed);
        world.all_alive(SECONDS(10));
        world.run(SECONDS(3));
        let lost = NodeId(1 + seed % count);
        world.nodes.remove(&lost);
        let suspected = world.until_seen(lost, Liveness::Suspect, SECONDS(6));
        let down = suspected + world.until_seen(lost, Liveness::Down, SECONDS(8));
        assert!(down > SECONDS(6) && down < SECONDS(12), "seed {seed}: down after {down:?}");
        world.start(lost, 2);
        world.all_alive(SECONDS(5));
    }
}

#[test]
fn a_node_that_was_stopped_comes_back_by_itself() {
    for seed in 0..20 {
        let mut world = World::of(3, seed);
        world.all_alive(SECONDS(10));
        world.stopped.insert(NodeId(2));
        world.until_seen(NodeId(2), Liveness::Down, SECONDS(15));
        world.run(SECONDS(seed));
        world.go_on(NodeId(2));
        world.all_alive(SECONDS(8));
        // And for good.
        world.run(SECONDS(20));
        world.all_alive(MS);
    }
}

#[test]
fn a_lost_link_is_no_lost_node_and_neither_are_lost_datagrams() {
    for seed in 0..10 {
        let mut world = World::of(5, seed);
        world.all_alive(SECONDS(10));
        world.cut.extend([(NodeId(1), NodeId(2)), (NodeId(2), NodeId(1))]);
        world.loss_percent = 5;
        let end = world.now + SECONDS(120);
        while world.now < end {
            world.step();
            for (id, node) in &world.nodes {
                let down = node.seen().into_iter().find(|(_, seen)| *seen == Liveness::Down);
                assert_eq!(down, None, "seed {seed}: to node {id} at {:?}", world.now);
            }
        }
    }
}

#[test]
fn a_partition_heals() {
    for seed in 0..10 {
        let mut world = World::of(5, seed);
        world.all_alive(SECONDS(10));
        for (a, b) in
            [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)].map(|(a, b)| (NodeId(a), NodeId(b)))
        {
            world.cut.extend([(a, b), (b, a)]);
        }
        world.run(SECONDS(30));
        assert_eq!(world.nodes[&NodeId(1)].seen()[&NodeId(2)], Liveness::Alive);
        assert_eq!(world.nodes[&NodeId(1)].seen()[&NodeId(3)], Liveness::Down);
        assert_eq!(world.nodes[&NodeId(5)].seen()[&NodeId(1)], Liveness::Down);
        world.cut.clear();
        world.all_alive(SECONDS(10));
    }
}

#[test]
fn a_removed_node_does_not_count_and_hears_nothing() {
    let mut world = World::of(3, 5);
    world.all_alive(SECONDS(10));
    for id in [NodeId(1), NodeId(2)] {
        world.maps.get_mut(&id).unwrap().remove(&NodeId(3));
    }
    world.run(SECONDS(1));
    let mut stranger = Swim::new(NodeId(3), 9, 1);
    let greeting = stranger.meet(world.now, &BTreeSet::from([NodeId(1)]));
    let now = world.now;
    let refused = world.nodes.get_mut(&NodeId(1)).unwrap().receive(now, &greeting[0].1);
    assert!(refused.unwrap_err().to_string().contains("node 3 is not a member"));
    world.until_seen(NodeId(2), Liveness::Alive, SECONDS(1));
    world.run(SECONDS(10));
    assert_eq!(world.nodes[&NodeId(1)].seen().keys().collect::<Vec<_>>(), [&NodeId(2)]);
    // Nobody answers it: to itself it is alone.
    let seen = world.nodes[&NodeId(3)].seen();
    assert!(seen.values().all(|seen| *seen == Liveness::Down), "{seen:?}");
}

#[test]
fn garbage_under_the_right_key_changes_nothing() {
    let mut world = World::of(2, 1);
    world.all_alive(SECONDS(10));
    let now = world.now;
    let mut rng = Rng(99);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..rng.below(60)).map(|_| rng.below(256) as u8).collect();
        let node = world.nodes.get_mut(&NodeId(1)).unwrap();
        let _ = node.receive(now, &bytes);
    }
    world.run(SECONDS(20));
    world.all_alive(SECONDS(10));
}
