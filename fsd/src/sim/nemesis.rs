//! What goes wrong, by the dice of the seed.

use std::sync::Arc;
use std::time::Duration;

use raftmeta::read;
use raftmeta_types::NodeId;
use raftmeta_types::cluster::NodeState;

use super::world::World;
use crate::clock::{self, simulated::since_start};
use crate::replication::Host;

/// Between two faults.
const PAUSE_MAX: Duration = Duration::from_millis(2500);
/// Longest absence of a node, and longest cut; sometimes less than it takes to be missed.
const ABSENCE_MAX: Duration = Duration::from_secs(14);

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// What it wrote is in the cache of a disk that goes on.
    Killed,
    /// What it did not flush may be there or not, or partly.
    PowerCut,
    /// And its disk never comes back.
    DiskLost,
}

/// Has things go wrong for that long, and puts right what can be.
pub(super) async fn rage(world: &Arc<World>, storm: Duration) {
    let end = since_start() + storm;
    while since_start() < end {
        strike(world).await;
        world.tally.lock().faults += 1;
        clock::sleep(world.roll(|dice| dice.up_to(PAUSE_MAX))).await;
    }
    world.note(format_args!("it is calm"));
    for life in world.lives() {
        life.chunks.volume().clear_faults();
    }
    {
        let mut net = world.net.lock();
        net.cut.clear();
        net.bad = 0;
        let now = since_start();
        for machine in net.machines.values_mut().filter(|machine| machine.life.is_none()) {
            machine.starts = machine.volume.is_some().then_some(now);
        }
    }
}

async fn strike(world: &Arc<World>) {
    let ids: Vec<NodeId> = world.net.lock().machines.keys().copied().collect();
    let some = |world: &World| world.roll(|dice| dice.pick(&ids)).expect("there are nodes");
    let (one, other) = (some(world), some(world));
    let absence = world.roll(|dice| dice.up_to(ABSENCE_MAX));
    match world.roll(|dice| dice.below(20)) {
        0..=2 => end_life(world, one, End::Killed, absence),
        3 | 4 => end_life(world, one, End::PowerCut, absence),
        5 => {
            // All at once.
            for id in ids {
                let absence = world.roll(|dice| dice.up_to(Duration::from_secs(3)));
                end_life(world, id, End::PowerCut, absence);
            }
        }
        6 => lose_disk(world, one),
        7 | 8 => cut(world, &ids, |from, to| (from == one) != (to == one)),
        // It hears nobody, or nobody hears it.
        9 => cut(world, &ids, |from, to| to == one && from != one),
        10 => cut(world, &ids, |from, to| from == one && to != one),
        11 => cut(world, &ids, |from, to| from == one && to == other),
        12 => cut(world, &ids, |from, to| from.0 % 2 != to.0 % 2),
        13 | 14 => world.net.lock().cut.clear(),
        15 => {
            let bad = world.roll(|dice| [0, 10, 40, 200][dice.below(4) as usize]);
            world.note(format_args!("one of {bad} connections is lost"));
            world.net.lock().bad = bad;
        }
        16 => {
            world.note(format_args!("the leadership goes"));
            world.log(|log, dice, _| log.depose(since_start(), dice));
        }
        17 => drain(world, one).await,
        18 => {
            if let Some(life) = world.life(one) {
                world.note(format_args!("a flush of {one} fails"));
                life.chunks.volume().fail_flush();
            }
        }
        _ => {
            let ahead = world.roll(|dice| dice.below(40));
            if let Some(life) = world.life(one) {
                world.note(format_args!("an operation of the disk of {one} fails"));
                life.chunks.volume().fail_op(ahead);
            }
        }
    }
}

/// A store that cannot go on ends its node, which is started again.
pub(super) fn restart_sick(world: &Arc<World>) {
    for life in world.lives() {
        if life.is_sick() {
            let absence = world.roll(|dice| dice.up_to(Duration::from_secs(4)));
            end_life(world, life.id, End::Killed, absence);
        }
    }
}

fn cut(world: &World, ids: &[NodeId], between: impl Fn(NodeId, NodeId) -> bool) {
    let mut net = world.net.lock();
    for from in ids {
        let cut = ids.iter().filter(|to| between(*from, **to)).map(|to| (*from, *to));
        net.cut.extend(cut);
    }
    world.note(format_args!("cut: {:?}", net.cut));
}

fn end_life(world: &World, id: NodeId, how: End, absence: Duration) {
    let mut net = world.net.lock();
    let machine = net.machines.get_mut(&id).expect("there is such a machine");
    let Some(life) = machine.life.take() else { return };
    machine.silent = how != End::Killed;
    machine.starts = Some(since_start() + absence);
    let volume = machine.volume.take().expect("a node runs on a volume");
    machine.volume = match how {
        End::Killed => Some(volume.reopen()),
        End::PowerCut => Some(volume.power_cut(world.roll(|dice| dice.next()))),
        End::DiskLost => {
            drop(volume.power_cut(0));
            machine.starts = None;
            None
        }
    };
    drop(net);
    life.end();
    world.log(|log, dice, _| {
        if log.leader() == Some(id) {
            log.depose(since_start(), dice);
        }
    });
    world.note(format_args!("node {id} ends: {how:?}, for {absence:?}"));
}

/// Where enough others have everything, and the metadata group can do without.
fn lose_disk(world: &Arc<World>, id: NodeId) {
    let (shards, least) = world.log(|log, _, _| {
        let newest = log.newest();
        let protection = read::protection(&newest).expect("memory does not fail");
        (read::shards(&newest).expect("memory does not fail"), protection.in_sync_min)
    });
    let has_disk = |id: &NodeId| world.net.lock().machines[id].volume.is_some();
    let spared = shards.iter().all(|shard| {
        let others = shard.in_sync.iter().filter(|other| **other != id && has_disk(other));
        others.count() >= usize::from(least)
    });
    let ids: Vec<NodeId> = world.net.lock().machines.keys().copied().collect();
    let voters: Vec<NodeId> =
        world.log(|log, _, _| ids.into_iter().filter(|id| log.is_voter(*id)).collect());
    let left = voters.iter().filter(|voter| **voter != id && has_disk(voter)).count();
    if spared && 2 * left > voters.len() {
        end_life(world, id, End::DiskLost, Duration::ZERO);
    }
}

/// An administrator drains a node, or thinks better of it, or sees that it is lost.
async fn drain(world: &Arc<World>, id: NodeId) {
    let Some(life) = world.log(|log, _, _| log.leader()).and_then(|id| world.life(id)) else {
        return;
    };
    let info = read::node(&life.view(), id).expect("memory does not fail");
    let from = info.expect("nodes stay known").state;
    let lost = world.net.lock().machines[&id].volume.is_none();
    let ask = async {
        match from {
            NodeState::Up => life.set_state(id, from, NodeState::Draining).await,
            NodeState::Draining | NodeState::Drained => {
                life.set_state(id, from, NodeState::Up).await;
            }
            NodeState::Down if lost => life.remove_lost(id, Vec::new()).await,
            NodeState::Joining | NodeState::Down | NodeState::Removed => {}
        }
    };
    tokio::select! {
        biased;
        () = clock::sleep(Duration::from_secs(3)) => {}
        () = ask => {}
    }
}
