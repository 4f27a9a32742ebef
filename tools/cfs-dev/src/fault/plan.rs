//! What is done to the cluster, and when: a pure function of the seed and of what the cluster consists of.
//!
//! First every kind once, in an order of the seed's, so that a short run has as many as it can; then any of them. One
//! accident at a time. What is cut off or dead leaves a majority of the nodes together where there are three or more
//! (except for `kill-all` and `leader-alone`, of which the cluster comes back), so it goes on in most of them.

use std::time::Duration;

use super::{Accident, Kind, Shape, Step};
use crate::error::{self, Error, Result};
use crate::random::Random;

/// Power that fails for the whole site is soon back: nothing is learnt while all is dark.
const DARK_MAX: Duration = Duration::from_secs(3);

/// The first `count` steps of a seed, of kinds that are possible.
pub fn steps(seed: u64, shape: &Shape, kinds: &[Kind], count: usize) -> Vec<Step> {
    let first = Random::branch(seed, &[1]).some(kinds, kinds.len());
    let few = minority(shape).clamp(1, 2);
    let step = |at: usize| {
        let mut random = Random::branch(seed, &[2, at as u64]);
        let kind = match first.get(at) {
            Some(kind) => *kind,
            None => kinds[random.below(kinds.len())],
        };
        let peace = Duration::from_millis(500 + random.below(3500) as u64);
        let lasts = Duration::from_millis(1000 + random.below(11_000) as u64);
        let order = random.some(&shape.nodes, shape.nodes.len());
        let count = 1 + random.below(few);
        let accident = accident(kind, shape, order, count, random.draw());
        let lasts = if kind == Kind::KillAll { lasts.min(DARK_MAX) } else { lasts };
        Step { kind, accident, peace, lasts }
    };
    (0..count).map(step).collect()
}

/// Most nodes that a majority can do without.
fn minority(shape: &Shape) -> usize {
    shape.nodes.len().saturating_sub(1) / 2
}

/// `order` has all nodes, those whom it hits first.
fn accident(kind: Kind, shape: &Shape, order: Vec<String>, count: usize, choice: u64) -> Accident {
    let first = order[0].clone();
    let client = |at: u64| shape.clients.get(at as usize % shape.clients.len().max(1)).cloned();
    match kind {
        Kind::Kill => Accident::Kill(order[..count].to_vec()),
        Kind::KillAll => Accident::Kill(order),
        Kind::Restart => Accident::Restart(first),
        Kind::Pause => Accident::Pause(order[..count].to_vec()),
        Kind::OneWay => Accident::OneWay { from: first, to: order[1].clone() },
        Kind::LeaderAlone => Accident::LeaderAlone { otherwise: first },
        Kind::FullDisk => Accident::FullDisk(first),
        Kind::Corrupt => Accident::Corrupt { node: first, choice },
        Kind::ClientAlone => Accident::Cut(vec![client(choice).into_iter().collect(), order]),
        Kind::Halves => {
            let (few, many) = order.split_at(minority(shape));
            let mut halves = [few.to_vec(), many.to_vec()];
            for (at, client) in shape.clients.iter().enumerate() {
                match choice % 4 {
                    // In no group: the clients reach everybody.
                    0 => {}
                    // One half each.
                    turn @ 1..=2 => halves[(at + turn as usize + 1) % 2].push(client.clone()),
                    _ => halves[1].push(client.clone()),
                }
            }
            Accident::Cut(halves.into())
        }
        Kind::Bridge => {
            let (few, many) = order.split_at(minority(shape));
            let bridge = order.last().cloned();
            let few = few.iter().cloned().chain(bridge).collect();
            Accident::Cut(vec![few, many.to_vec()])
        }
    }
}

/// One accident of a kind that is possible, to these members; to some of the seed's choice if none are named.
pub fn one(
    kind: Kind,
    shape: &Shape,
    members: &[String],
    seed: u64,
    lasts: Duration,
) -> Result<Step> {
    let refuse = |why: String| Err(Error::new(error::Kind::Usage, format!("{kind}: {why}")));
    let (mut nodes, mut clients) = (Vec::new(), Vec::new());
    for member in members {
        let known = [(&shape.nodes, &mut nodes), (&shape.clients, &mut clients)];
        let Some((_, list)) = known.into_iter().find(|(all, _)| all.contains(member)) else {
            let all: Vec<_> = shape.nodes.iter().chain(&shape.clients).cloned().collect();
            let what = format!("`{member}` is none of those that run: {}", all.join(", "));
            return Err(Error::new(error::Kind::Absent, what));
        };
        if list.contains(member) {
            return refuse(format!("{member} is named twice"));
        }
        list.push(member.clone());
    }
    let wrong = match kind {
        Kind::KillAll | Kind::LeaderAlone | Kind::Bridge if !members.is_empty() => {
            Some("it takes no names, whom it meets is certain or the seed's choice")
        }
        Kind::ClientAlone if !nodes.is_empty() || clients.len() > 1 => Some("it takes one client"),
        Kind::OneWay if !matches!(members.len(), 0 | 2) => {
            Some("it takes two names: nothing of the first reaches the second")
        }
        Kind::Halves if nodes.len() == shape.nodes.len() => {
            Some("it takes the names on one side, and all nodes are on it")
        }
        Kind::Kill | Kind::Pause if !clients.is_empty() => Some("it takes nodes"),
        Kind::Restart | Kind::FullDisk | Kind::Corrupt if members.len() > nodes.len().min(1) => {
            Some("it takes one node")
        }
        _ => None,
    };
    if let Some(wrong) = wrong {
        return refuse(wrong.into());
    }
    let mut random = Random::branch(seed, &[5]);
    let rest: Vec<String> =
        shape.nodes.iter().filter(|node| !nodes.contains(node)).cloned().collect();
    let accident = match kind {
        Kind::OneWay if !members.is_empty() => {
            Accident::OneWay { from: members[0].clone(), to: members[1].clone() }
        }
        Kind::ClientAlone if !members.is_empty() => Accident::Cut(vec![clients, rest]),
        Kind::Halves if !members.is_empty() => {
            Accident::Cut(vec![nodes.into_iter().chain(clients).collect(), rest])
        }
        _ => {
            let count = nodes.len().max(1);
            nodes.extend(random.some(&rest, rest.len()));
            accident(kind, shape, nodes, count, random.draw())
        }
    };
    Ok(Step { kind, accident, peace: Duration::ZERO, lasts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(nodes: usize) -> Shape {
        Shape {
            nodes: (1..=nodes).map(|number| format!("n{number}")).collect(),
            clients: vec!["c1".into(), "c2".into()],
            replicas: 3,
            namespaces: true,
            own_disks: true,
        }
    }

    #[test]
    fn a_seed_is_a_plan() {
        let shape = shape(5);
        let plan = steps(7, &shape, &Kind::ALL, 40);
        assert_eq!(plan, steps(7, &shape, &Kind::ALL, 40));
        assert_eq!(plan[..20], steps(7, &shape, &Kind::ALL, 20));
        assert_ne!(plan, steps(8, &shape, &Kind::ALL, 40));
        let mut first: Vec<_> =
            plan[..Kind::ALL.len()].iter().map(|step| step.kind as usize).collect();
        first.sort_unstable();
        assert_eq!(first, (0..Kind::ALL.len()).collect::<Vec<_>>(), "each once");
    }

    #[test]
    fn a_majority_stays_together_and_alive() {
        for (nodes, majority) in [(3, 2), (4, 3), (5, 3), (12, 7)] {
            let shape = shape(nodes);
            for step in steps(3, &shape, &Kind::ALL, 200) {
                let hit = match &step.accident {
                    Accident::Cut(groups) => {
                        let of = |group: &Vec<String>| {
                            group.iter().filter(|m| shape.nodes.contains(m)).count()
                        };
                        let together = groups.iter().map(of).max().unwrap();
                        assert!(together >= majority, "{step}");
                        assert!(groups.iter().all(|group| !group.is_empty()), "{step}");
                        continue;
                    }
                    Accident::Kill(hit) if step.kind == Kind::Kill => hit,
                    Accident::Pause(hit) => hit,
                    _ => continue,
                };
                assert!((1..=nodes - majority).contains(&hit.len()), "{step}");
            }
        }
    }

    #[test]
    fn every_kind_of_halves_is_met() {
        let plan = steps(1, &shape(5), &[Kind::Halves], 64);
        let side = |step: &Step, client: &str| match &step.accident {
            Accident::Cut(groups) => groups.iter().position(|g| g.iter().any(|m| m == client)),
            other => panic!("{other:?}"),
        };
        let mut seen: Vec<_> = plan.iter().map(|s| (side(s, "c1"), side(s, "c2"))).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(
            seen,
            [(None, None), (Some(0), Some(1)), (Some(1), Some(0)), (Some(1), Some(1))]
        );
    }

    #[test]
    fn what_is_impossible_is_told() {
        let small = Shape { replicas: 1, own_disks: false, clients: Vec::new(), ..shape(1) };
        let told: Vec<_> =
            Kind::ALL.iter().filter(|kind| kind.impossible(&small).is_some()).collect();
        assert_eq!(told.len(), 7, "{told:?}");
        let cannot_cut = Shape { namespaces: false, ..shape(5) };
        let told = Kind::ALL.iter().filter(|kind| kind.impossible(&cannot_cut).is_some());
        assert!(told.clone().all(|kind| kind.cuts()) && told.count() == 5);
        assert!(Kind::ALL.iter().all(|kind| kind.impossible(&shape(3)).is_none()));
        // And what is possible with one node can be planned.
        let possible: Vec<_> =
            Kind::ALL.into_iter().filter(|kind| kind.impossible(&small).is_none()).collect();
        assert_eq!(steps(1, &small, &possible, 50).len(), 50);
    }

    #[test]
    fn members_that_are_named_are_met() {
        let shape = shape(5);
        let of = |kind, members: &[&str]| {
            let members: Vec<String> = members.iter().map(|&name| name.to_owned()).collect();
            one(kind, &shape, &members, 1, Duration::from_secs(1)).map(|step| step.accident)
        };
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(of(Kind::Kill, &["n2", "n4"]).unwrap(), Accident::Kill(names(&["n2", "n4"])));
        assert_eq!(of(Kind::Restart, &["n3"]).unwrap(), Accident::Restart("n3".into()));
        assert_eq!(
            of(Kind::Halves, &["n1", "c2"]).unwrap(),
            Accident::Cut(vec![names(&["n1", "c2"]), names(&["n2", "n3", "n4", "n5"])])
        );
        assert_eq!(
            of(Kind::OneWay, &["c1", "n2"]).unwrap(),
            Accident::OneWay { from: "c1".into(), to: "n2".into() }
        );
        assert_eq!(
            of(Kind::ClientAlone, &["c2"]).unwrap(),
            Accident::Cut(vec![names(&["c2"]), shape.nodes.clone()])
        );
        for kind in Kind::ALL {
            of(kind, &[]).unwrap_or_else(|error| panic!("{kind}: {error}"));
        }
        for (kind, members) in [
            (Kind::Kill, &["c1"][..]),
            (Kind::Kill, &["n1", "n1"]),
            (Kind::KillAll, &["n1"]),
            (Kind::Restart, &["n1", "n2"]),
            (Kind::Restart, &["c1"]),
            (Kind::OneWay, &["n1"]),
            (Kind::ClientAlone, &["n1"]),
            (Kind::Halves, &["n1", "n2", "n3", "n4", "n5"]),
        ] {
            let told = of(kind, members).unwrap_err();
            assert_eq!(told.kind, error::Kind::Usage, "{kind} {members:?}: {told}");
        }
        assert_eq!(of(Kind::Kill, &["n9"]).unwrap_err().kind, error::Kind::Absent);
    }
}
