//! What goes wrong, by the dice of the seed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::client::within;
use super::world::World;
use super::{disk, executor};
use crate::group::{Group, GroupError};

/// Between two faults.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// Longest absence of a replica: sometimes less than a lease, sometimes more than an election.
const ABSENCE_MAX: Duration = Duration::from_secs(9);
/// Longest time for which a process is stopped.
const STALL_MAX: Duration = Duration::from_secs(6);
/// Longest wait for an administrator's order.
const ORDER_MAX: Duration = Duration::from_secs(15);
/// So many replicas there may be, with those that went.
const IDS_MAX: u64 = 9;

/// Has things go wrong for that long, and puts right what can be.
pub(super) async fn rage(world: &Arc<World>, storm: Duration) {
    let end = executor::now() + storm;
    while executor::now() < end {
        strike(world).await;
        world.tally.lock().faults += 1;
        executor::sleep(executor::roll(|dice| dice.up_to(PAUSE_MAX))).await;
    }
    executor::note(format_args!("it is calm"));
    let mut net = world.net.lock();
    net.cut.clear();
    net.bad = 0;
    for (id, machine) in net.machines.iter_mut().filter(|(_, machine)| !machine.gone) {
        disk::of_machine(*id).slow(None);
        machine.starts = machine.starts.map(|_| executor::now());
    }
}

/// Starts what is due, and what has stopped by itself, until it is ended.
pub(super) async fn repair(world: Arc<World>) {
    loop {
        executor::sleep(Duration::from_millis(50)).await;
        let now = executor::now();
        let due: Vec<u64> = {
            let net = world.net.lock();
            let due = net
                .machines
                .iter()
                .filter(|(_, machine)| machine.starts.is_some_and(|at| at <= now));
            due.map(|(id, _)| *id).collect()
        };
        due.into_iter().for_each(|id| world.start(id));
        for (id, _, group) in world.running() {
            let stopping = world.net.lock().machines.get(&id).is_some_and(|m| m.stopping);
            if let Some(why) = group.failure().filter(|_| !stopping) {
                assert!(why.contains("the disk failed"), "replica {id} stopped by itself: {why}");
                world.tally.lock().failed += 1;
                drop(group);
                world.kill(id, false, Duration::from_secs(1));
            }
        }
    }
}

/// Who says that it leads.
fn leader(world: &World) -> Option<u64> {
    let running = world.running();
    let leads = running.iter().find(|(_, life, group)| life.look(|| group.lease_valid()));
    leads.map(|(id, _, _)| *id)
}

async fn strike(world: &Arc<World>) {
    let ids: Vec<u64> = {
        let net = world.net.lock();
        net.machines.iter().filter(|(_, machine)| !machine.gone).map(|(id, _)| *id).collect()
    };
    let some = || executor::roll(|dice| dice.pick(&ids)).expect("there are machines");
    let absence = executor::roll(|dice| dice.up_to(ABSENCE_MAX));
    // Every other time it hits the leader.
    let one = match executor::roll(|dice| dice.one_in(2)) {
        true => leader(world).unwrap_or_else(some),
        false => some(),
    };
    let other = some();
    match executor::roll(|dice| dice.below(30)) {
        0..=2 => world.kill(one, false, absence),
        3 | 4 => world.kill(one, true, absence),
        5 | 6 => {
            let power = executor::roll(|dice| !dice.one_in(4));
            for id in ids {
                world.kill(id, power, executor::roll(|dice| dice.up_to(Duration::from_secs(3))));
            }
        }
        7 | 8 => cut(world, &ids, |from, to| (from == one) != (to == one)),
        // It hears nobody, or nobody hears it.
        9 => cut(world, &ids, |from, to| to == one && from != one),
        10 => cut(world, &ids, |from, to| from == one && to != one),
        11 => cut(world, &ids, |from, to| from == one && to == other),
        12 => cut(world, &ids, |from, to| from % 2 != to % 2),
        // The others reach each other through one only.
        13 => cut(world, &ids, |from, to| from != one && to != one),
        14..=16 => {
            executor::note(format_args!("the network is whole"));
            world.net.lock().cut.clear();
        }
        17 | 18 => {
            let bad = executor::roll(|dice| [0, 5, 20, 100][dice.below(4) as usize]);
            executor::note(format_args!("one of {bad} messages is lost, repeated or late"));
            world.net.lock().bad = bad;
        }
        19 => {
            let most = executor::roll(|dice| dice.up_to(Duration::from_secs(2)));
            executor::note(format_args!("syncs of {one} take up to {most:?}"));
            disk::of_machine(one).slow(Some(most));
        }
        20 => ids.iter().for_each(|id| disk::of_machine(*id).slow(None)),
        21 => {
            executor::note(format_args!("a sync of {one} fails"));
            disk::of_machine(one).fail_next_sync();
        }
        22 | 23 => {
            let stall = executor::roll(|dice| dice.up_to(STALL_MAX));
            executor::note(format_args!("{one} is stopped for {stall:?}"));
            if let Some((life, _)) = world.group(one) {
                life.stall(stall);
            }
        }
        24 => {
            executor::note(format_args!("connections of {one} end"));
            world.part(one);
        }
        25 => {
            let done =
                order(
                    world,
                    "handover",
                    |group| async move { group.transfer_leadership(None).await },
                );
            world.tally.lock().handovers += u64::from(done.await);
        }
        26 | 27 => change(world, ids).await,
        28 => forget(world, one).await,
        _ => {
            executor::note(format_args!("{one} is stopped in order"));
            if let Some(machine) = world.net.lock().machines.get_mut(&one) {
                machine.stopping = true;
            }
            let stop = world.at(one, |group| async move { group.shutdown().await });
            let _it_may_be_stopped = within(ORDER_MAX, stop).await;
            world.kill(one, false, absence);
        }
    }
}

fn cut(world: &World, ids: &[u64], is_cut: impl Fn(u64, u64) -> bool) {
    let mut net = world.net.lock();
    let pairs = ids.iter().flat_map(|from| ids.iter().map(|to| (*from, *to)));
    let cut: BTreeSet<_> = pairs.filter(|(from, to)| from != to && is_cut(*from, *to)).collect();
    executor::note(format_args!("cut: {cut:?}"));
    net.cut.extend(cut);
}

/// Has the leader do something; whether it did.
async fn order<F>(world: &Arc<World>, what: &str, act: impl FnOnce(Group) -> F) -> bool
where
    F: Future<Output = Result<(), GroupError>> + Send + 'static,
{
    let Some(leader) = leader(world) else { return false };
    executor::note(format_args!("{what} by {leader}"));
    let done = within(ORDER_MAX, world.at(leader, act)).await;
    executor::note(format_args!("{what} by {leader}: {done:?}"));
    matches!(done, Some(Some(Ok(()))))
}

/// Voters change, a replica comes or goes.
async fn change(world: &Arc<World>, ids: Vec<u64>) {
    let done = match executor::roll(|dice| dice.below(4)) {
        0 | 1 => {
            let count =
                if ids.len() >= 5 { executor::roll(|dice| 3 + 2 * dice.below(2)) } else { 3 };
            let mut left = ids;
            let voters: BTreeSet<u64> = (0..count)
                .filter_map(|_| {
                    let id = executor::roll(|dice| dice.pick(&left))?;
                    left.retain(|other| *other != id);
                    Some(id)
                })
                .collect();
            order(world, &format!("voters {voters:?}"), |group| async move {
                group.set_voters(voters).await
            })
            .await
        }
        2 if ids.len() > 3 => {
            let id = executor::roll(|dice| dice.pick(&ids)).expect("there are some");
            let what = format!("removal of {id}");
            if !order(world, &what, |group| async move { group.remove(id).await }).await {
                return;
            }
            // It votes no more, and learns nothing. It never comes back.
            if let Some(machine) = world.net.lock().machines.get_mut(&id) {
                (machine.gone, machine.starts) = (true, None);
            }
            world.kill(id, false, Duration::ZERO);
            true
        }
        _ => {
            let id = 1 + world.net.lock().machines.keys().max().expect("there are some");
            if id > IDS_MAX || ids.len() >= 6 {
                return;
            }
            world.add(id).await;
            let address = super::world::address(id);
            order(world, &format!("learner {id}"), |group| async move {
                group.add_learner(id, &address).await
            })
            .await
        }
    };
    world.tally.lock().changes += u64::from(done);
}

/// A replica writes a checkpoint and drops the log before it: who lacks that needs the checkpoint.
async fn forget(world: &Arc<World>, id: u64) {
    executor::note(format_args!("{id} forgets"));
    let forgotten = world.at(id, |group| async move { group.forget().await });
    let done = within(ORDER_MAX, forgotten).await;
    executor::note(format_args!("{id} forgets: {done:?}"));
}
