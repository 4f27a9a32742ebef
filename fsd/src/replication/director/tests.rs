use super::*;

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().map(|id| NodeId(*id)).collect()
}

fn nodes(alive: &[u64], down: &[u64], wrong: &[u64]) -> Nodes {
    Nodes { alive: ids(alive), down: ids(down), wrong: ids(wrong), ..Nodes::default() }
}

/// Led by the first.
fn shard(in_sync: &[u64]) -> ShardInfo {
    let in_sync: Vec<NodeId> = in_sync.iter().map(|id| NodeId(*id)).collect();
    let (epoch, gc_epoch, primary) = (Epoch(7), Epoch(0), in_sync[0]);
    ShardInfo { id: ShardId(0), epoch, gc_epoch, primary, in_sync }
}

type Change = Option<(u64, Vec<u64>)>;

/// The new primary and who is in sync with it.
fn shown(change: Option<ShardChange>) -> Change {
    change.map(|change| (change.primary.0, change.in_sync.iter().map(|id| id.0).collect()))
}

#[test]
fn what_cannot_wait() {
    for (alive, down, wrong, expected) in [
        (&[1, 2, 3][..], &[][..], &[][..], None),
        // Down, and not the primary: the others go on as they are.
        (&[1, 2], &[3], &[], Some((1, vec![1, 2]))),
        // The primary does not answer, and neither does another.
        (&[2, 3], &[], &[], Some((2, vec![2, 3]))),
        // Too few to go on: one of them makes copies, and nobody is left out.
        (&[2], &[1], &[], Some((2, vec![1, 2, 3]))),
        (&[2], &[1, 3], &[], Some((2, vec![1, 2, 3]))),
        (&[1], &[2, 3], &[], None),
        (&[], &[1, 2, 3], &[], None),
        // A wrong clock leads no more, and its copy counts as before.
        (&[1, 2, 3], &[], &[1], Some((2, vec![1, 2, 3]))),
        (&[1, 2, 3], &[], &[1, 2], Some((3, vec![1, 2, 3]))),
        (&[1, 3], &[], &[1], Some((3, vec![1, 2, 3]))),
        (&[1, 2, 3], &[], &[3], None),
        // Where nobody else can it leads on, and takes over.
        (&[1, 2, 3], &[], &[1, 2, 3], None),
        (&[1, 2], &[], &[1, 2], None),
        (&[2, 3], &[1], &[2], Some((3, vec![2, 3]))),
        (&[2, 3], &[1], &[2, 3], Some((2, vec![2, 3]))),
    ] {
        let found = shown(rescue(&shard(&[1, 2, 3]), &nodes(alive, down, wrong), 2));
        assert_eq!(found, expected, "alive {alive:?}, down {down:?}, wrong {wrong:?}");
    }
}

#[test]
fn the_plan_makes_nobody_primary_who_should_not_lead() {
    let planned = Held { shard: ShardId(0), by: vec![NodeId(1), NodeId(2), NodeId(3)] };
    for (in_sync, alive, wrong, expected) in [
        (&[1, 2, 3][..], &[1, 2, 3][..], &[][..], None),
        (&[2, 1, 3], &[1, 2, 3], &[], Some((1, vec![1, 2, 3]))),
        // Who leads now leads on.
        (&[3, 1, 2], &[1, 2, 3], &[1], None),
        (&[3, 1, 2], &[2, 3], &[], None),
        // Of two with wrong clocks it is the one that the plan wants.
        (&[2, 1, 3], &[1, 2, 3], &[1, 2, 3], Some((1, vec![1, 2, 3]))),
        (&[1, 2, 3, 4], &[1, 2, 3, 4], &[1], Some((2, vec![1, 2, 3]))),
    ] {
        let found = shown(follow(&shard(in_sync), &planned, &nodes(alive, &[], wrong), 3));
        assert_eq!(found, expected, "{in_sync:?}, alive {alive:?}, wrong {wrong:?}");
    }
}

#[test]
fn the_most_urgent_cause_is_told() {
    let planned = Held { shard: ShardId(0), by: vec![NodeId(1), NodeId(2), NodeId(3)] };
    for (in_sync, down, draining, expected) in [
        (&[1, 2][..], &[][..], &[][..], Cause::Copies),
        // Too few are left to go on without those that are down.
        (&[1, 4, 5], &[4, 5], &[], Cause::Copies),
        (&[1, 4], &[], &[4], Cause::Copies),
        (&[1, 2, 4], &[], &[4], Cause::Drain),
        (&[1, 2, 4], &[], &[5], Cause::Balance),
    ] {
        let nodes = Nodes { draining: ids(draining), ..nodes(&[1, 2, 3], down, &[]) };
        assert_eq!(cause(&shard(in_sync), &planned, &nodes), expected, "{in_sync:?}, {down:?}");
    }
}

#[test]
fn what_is_left_is_counted_in_bytes_once_they_are_known() {
    let mut director = Director::default();
    let mut note = |steps, bytes| {
        director.note(&BTreeMap::from([(Cause::Drain, Amount { steps, bytes })]));
        let work = &director.works[&Cause::Drain];
        (work.is_in_bytes(), work.left, work.total)
    };
    let amount = |steps, bytes| Amount { steps, bytes };
    assert_eq!(note(3, 0), (false, amount(3, 0), amount(3, 0)));
    assert_eq!(note(3, 900), (true, amount(3, 900), amount(3, 900)));
    assert_eq!(note(2, 500), (true, amount(2, 500), amount(3, 900)));
    // Clients write meanwhile.
    assert_eq!(note(2, 1000), (true, amount(2, 1000), amount(3, 1000)));
    // Copies are left to be dropped.
    assert_eq!(note(1, 0), (true, amount(1, 0), amount(3, 1000)));
    director.note(&BTreeMap::new());
    assert!(director.works.is_empty());
}

#[test]
fn a_shard_whose_primary_has_not_said_how_large_it_is_takes_the_mean() {
    let sizes = Sizes::new(BTreeMap::from([(ShardId(0), 100), (ShardId(2), 500)]));
    let found = [0, 1, 2].map(|id| sizes.of(ShardId(id)));
    assert_eq!(found, [100, 300, 500]);
    assert_eq!(Sizes::default().of(ShardId(0)), 0);
}
