use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn plan(places: &[Place], replicas: usize, now: &[Held]) -> Vec<Held> {
    super::plan(places, replicas, now, &BTreeSet::new())
}

fn places(weights: &[u64]) -> Vec<Place> {
    (1..).zip(weights).map(|(id, weight)| Place { node: NodeId(id), weight: *weight }).collect()
}

/// All shards on node 1, as in a cluster that has just been made.
fn fresh(shards: u16) -> Vec<Held> {
    (0..shards).map(|id| Held { shard: ShardId(id), by: vec![NodeId(1)] }).collect()
}

fn copies(plan: &[Held], node: u64) -> usize {
    plan.iter().filter(|held| held.by.contains(&NodeId(node))).count()
}

fn primaries(plan: &[Held], node: u64) -> usize {
    plan.iter().filter(|held| held.by.first() == Some(&NodeId(node))).count()
}

/// Copies of the second plan that the first does not have: what has to be copied.
fn moved(from: &[Held], to: &[Held]) -> usize {
    from.iter()
        .zip(to)
        .map(|(from, to)| to.by.iter().filter(|node| !from.by.contains(node)).count())
        .sum()
}

/// A replica that was missed for a while gets its shard back, and what is on its way arrives, whatever else the
/// scores would choose.
#[test]
fn a_copy_that_is_begun_is_ended() {
    let all = places(&[10; 4]);
    let before = plan(&all, 2, &fresh(64));
    // Node 3 drops out of every other shard that it has.
    let mut now = before.clone();
    let mut begun = BTreeSet::new();
    for held in now.iter_mut().filter(|held| held.by.contains(&NodeId(3))).step_by(2) {
        held.by.retain(|node| *node != NodeId(3));
        begun.insert((held.shard, NodeId(3)));
    }
    let again = super::plan(&all, 2, &now, &begun);
    assert_eq!(moved(&before, &again), 0);
    // Nobody gets more than its share for it.
    begun.extend(before.iter().map(|held| (held.shard, NodeId(4))));
    let kept = super::plan(&all, 2, &now, &begun);
    assert!((1..=4).all(|node| copies(&kept, node) == 32), "{kept:?}");
}

#[test]
fn twelve_equal_nodes_are_within_five_percent() {
    let plan = plan(&places(&[1 << 40; 12]), 3, &fresh(256));
    for node in 1..=12 {
        assert_eq!(copies(&plan, node), 64);
        assert!((20..=22).contains(&primaries(&plan, node)), "{}", primaries(&plan, node));
    }
}

#[test]
fn any_two_of_twelve_leave_ten_within_five_percent() {
    let twelve = plan(&places(&[1 << 40; 12]), 3, &fresh(256));
    for (one, other) in (1..=12).flat_map(|one| (1..one).map(move |other| (one, other))) {
        let gone = [NodeId(one), NodeId(other)];
        let mut left = places(&[1 << 40; 12]);
        left.retain(|place| !gone.contains(&place.node));
        let ten = plan(&left, 3, &twelve);
        let loads: Vec<usize> = left.iter().map(|place| copies(&ten, place.node.0)).collect();
        let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(most - least <= 3 && loads.iter().sum::<usize>() == 3 * 256, "{loads:?}");
        // What the two held, and hardly anything else.
        let lost = copies(&twelve, one) + copies(&twelve, other);
        assert!(moved(&twelve, &ten) <= lost + 4, "{} for {lost}", moved(&twelve, &ten));
    }
}

#[test]
fn a_further_node_gets_its_share_and_nothing_else_moves() {
    let four = plan(&places(&[10; 4]), 2, &fresh(256));
    let five = plan(&places(&[10; 5]), 2, &four);
    let share = (256 * 2usize).div_ceil(5);
    assert!(copies(&five, 5) >= 256 * 2 / 5 - 4 && copies(&five, 5) <= share);
    assert_eq!(moved(&four, &five), copies(&five, 5));
    // Asked again, nothing changes.
    assert_eq!(plan(&places(&[10; 5]), 2, &five), five);
}

#[test]
fn what_a_lost_node_held_goes_to_the_others() {
    let five = plan(&places(&[10; 5]), 3, &fresh(64));
    let left: Vec<Place> =
        places(&[10; 5]).into_iter().filter(|place| place.node != NodeId(3)).collect();
    let four = plan(&left, 3, &five);
    // One or two more, where whoever has room has a copy already.
    assert!(moved(&five, &four) <= copies(&five, 3) + 2);
    assert!(four.iter().all(|held| held.by.len() == 3 && !held.by.contains(&NodeId(3))));
}

#[test]
fn weights_count() {
    let plan = plan(&places(&[30, 10, 10, 10]), 1, &fresh(240));
    assert_eq!([1, 2, 3, 4].map(|node| copies(&plan, node)), [120, 40, 40, 40]);
}

#[test]
fn fewer_places_than_copies() {
    let two = plan(&places(&[1, 1]), 3, &fresh(8));
    assert!(two.iter().all(|held| held.by.len() == 2));
    assert!(plan(&[], 3, &fresh(2)).iter().all(|held| held.by.is_empty()));
    // One that is far larger than all others together cannot hold a shard twice.
    let uneven = plan(&places(&[1 << 50, 1, 1]), 2, &fresh(16));
    assert!(uneven.iter().all(|held| held.by.len() == 2));
    assert_eq!(copies(&uneven, 1), 16);
}

proptest! {
    #[test]
    fn every_plan_is_whole_and_stays(
        weights in prop::collection::vec(0u64..1 << 44, 1..13),
        gone in prop::collection::btree_set(1u64..13, 0..6),
        replicas in 1usize..5,
        shards in 1u16..100,
    ) {
        let all = places(&weights);
        let first = plan(&all, replicas, &fresh(shards));
        let left: Vec<Place> =
            all.iter().copied().filter(|place| !gone.contains(&place.node.0)).collect();
        let second = plan(&left, replicas, &first);
        for (plan, places) in [(&first, &all), (&second, &left)] {
            let usable: BTreeSet<NodeId> = places.iter().map(|place| place.node).collect();
            for held in plan {
                let by: BTreeSet<NodeId> = held.by.iter().copied().collect();
                prop_assert_eq!(by.len(), held.by.len(), "each once");
                prop_assert_eq!(by.len(), replicas.min(places.len()));
                prop_assert!(by.is_subset(&usable));
            }
        }
        let again = plan(&left, replicas, &second);
        prop_assert_eq!(&again, &second);
        // A copy that may stay is given up only by a node that had too many.
        let lost: usize = first
            .iter()
            .map(|held| held.by.iter().filter(|node| gone.contains(&node.0)).count())
            .sum();
        let most = replicas * usize::from(shards);
        prop_assert!(moved(&first, &second) <= lost + most.div_ceil(2), "{} of {}", moved(&first, &second), most);
    }
}
