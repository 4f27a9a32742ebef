//! What is done to the cluster, and when: a pure function of the seed.
//!
//! First every kind once, in an order of the seed's, so that a short run has as many as it can; then by weight. One
//! accident at a time, except that a partition may meet a node that is killed: what is cut off or dead leaves a majority
//! of five, so the cluster goes on in most of them. A node that is named by its role (`Leader`) is found when it happens.

use std::time::Duration;

use cfs_dev::random::Random;

pub const NODES: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kill -9` of one or two nodes, later started again.
    Kill,
    /// `kill -9` of all nodes: the whole site loses its power.
    KillAll,
    /// A node stops in order and is started again.
    Restart,
    /// One or two nodes stand still (SIGSTOP) and go on.
    Pause,
    /// Two nodes cannot reach the other three; clients reach one half, both, or one each.
    Halves,
    /// What one node says does not reach another; the other direction works.
    OneWay,
    /// The node that leads the metadata reaches no other; clients reach it.
    LeaderAlone,
    /// Two and two nodes are cut off from each other, the fifth reaches all.
    Bridge,
    /// A client reaches no node.
    ClientAlone,
    /// The disk of a node is full, with its data, metadata and log on it.
    FullDisk,
    /// Bytes of a node's data are overwritten while it is down.
    Corrupt,
}

pub const KINDS: [Kind; 11] = [
    Kind::Kill,
    Kind::KillAll,
    Kind::Restart,
    Kind::Pause,
    Kind::Halves,
    Kind::OneWay,
    Kind::LeaderAlone,
    Kind::Bridge,
    Kind::ClientAlone,
    Kind::FullDisk,
    Kind::Corrupt,
];

/// One accident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    /// Time of peace before it.
    pub peace: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// Numbers of the nodes, all in an order of the seed's: whom it hits is at the front.
    pub nodes: Vec<usize>,
    /// How many it hits, where that is a choice.
    pub count: usize,
    /// For choices within the kind.
    pub choice: u64,
}

/// The first `count` steps of a seed.
pub fn steps(seed: u64, kinds: &[Kind], count: usize) -> Vec<Step> {
    let first = Random::branch(seed, &[1]).some(kinds, kinds.len());
    let step = |at: usize| {
        let mut random = Random::branch(seed, &[2, at as u64]);
        let kind = match first.get(at) {
            Some(kind) => *kind,
            None => kinds[random.below(kinds.len())],
        };
        let numbers: Vec<usize> = (1..=NODES).collect();
        Step {
            kind,
            peace: Duration::from_millis(500 + random.below(3500) as u64),
            lasts: Duration::from_millis(1000 + random.below(11_000) as u64),
            nodes: random.some(&numbers, NODES),
            count: 1 + random.below(2),
            choice: random.draw(),
        }
    };
    (0..count).map(step).collect()
}

impl Step {
    /// Members that reach each other, for kinds that cut the network; see `cfs_dev::net::faults::of_groups`.
    pub fn groups(&self) -> Vec<Vec<String>> {
        let node = |at: usize| format!("n{}", self.nodes[at]);
        let (few, many) = ([node(0), node(1)], [node(2), node(3), node(4)]);
        let (mut few, mut many) = (few.to_vec(), many.to_vec());
        match self.kind {
            Kind::Halves => {
                match self.choice % 4 {
                    // In no group: both clients reach everybody.
                    0 => {}
                    1 => {
                        few.push("c1".into());
                        many.push("c2".into());
                    }
                    2 => {
                        many.push("c1".into());
                        few.push("c2".into());
                    }
                    _ => many.extend(["c1".into(), "c2".into()]),
                }
                vec![few, many]
            }
            Kind::Bridge => {
                few.push(node(4));
                vec![few, many]
            }
            Kind::ClientAlone => {
                let client = format!("c{}", 1 + self.choice % 2);
                vec![vec![client], few.into_iter().chain(many).collect()]
            }
            Kind::Kill
            | Kind::KillAll
            | Kind::Restart
            | Kind::Pause
            | Kind::OneWay
            | Kind::LeaderAlone
            | Kind::FullDisk
            | Kind::Corrupt => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let plan = steps(7, &KINDS, 40);
        assert_eq!(plan, steps(7, &KINDS, 40));
        assert_eq!(plan[..20], steps(7, &KINDS, 20));
        assert_ne!(plan, steps(8, &KINDS, 40));
        let mut first: Vec<_> = plan[..KINDS.len()].iter().map(|step| step.kind as usize).collect();
        first.sort_unstable();
        assert_eq!(first, (0..KINDS.len()).collect::<Vec<_>>(), "each once");
    }

    #[test]
    fn every_partition_leaves_a_majority_together() {
        for step in steps(3, &KINDS, 200) {
            let groups = step.groups();
            if matches!(step.kind, Kind::Halves | Kind::Bridge | Kind::ClientAlone) {
                let nodes =
                    |group: &Vec<String>| group.iter().filter(|m| m.starts_with('n')).count();
                assert!(groups.iter().any(|group| nodes(group) >= 3), "{step:?}");
            } else {
                assert!(groups.is_empty());
            }
        }
    }
}
