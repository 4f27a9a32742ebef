//! What must always hold, and what must hold once nothing goes wrong any more.
//!
//! - Entry N is the same wherever it is applied.
//! - No two replicas have a lease at one moment.
//! - Registers that clients write and read under a lease are linearizable.
//! - What was acknowledged is there, and nothing was done twice.
//! - In the end: one leader, everybody has the same, and `check` finds the state in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use openraft::Entry;
use openraft::type_config::alias::EntryOf;
use raftmeta_types::Ino;

use super::executor;
use super::world::World;
use crate::group::{Group, Types};
use crate::kv::KvRead;
use crate::{check, read};

/// How long it may take until everybody agrees, after the storm.
const AGREE_MAX: Duration = Duration::from_secs(60);
/// Between two looks at the leases.
const LOOK_MAX: Duration = Duration::from_millis(40);

thread_local! {
    /// A number for what every entry said, by index.
    static APPLIED: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// A replica applies this entry.
pub(crate) fn applies(entry: &EntryOf<Types>) {
    if !executor::is_on() {
        return;
    }
    let Entry { log_id, payload } = entry;
    let mut digest = DefaultHasher::new();
    digest.write(format!("{log_id:?}").as_bytes());
    digest.write(&postcard::to_stdvec(payload).expect("plain data always serialises"));
    let is = digest.finish();
    let was = APPLIED.with(|all| *all.borrow_mut().entry(log_id.index).or_insert(is));
    assert!(was == is, "entry {log_id} is not what another replica applied in its place");
}

pub(super) fn forget() {
    APPLIED.with(|all| all.borrow_mut().clear());
}

/// Numbers of values; 0 is none.
pub(super) type Value = u64;

/// What clients did with a register. Every value is written once.
#[derive(Default)]
pub(super) struct Register {
    /// From when to when a value was written; without an end if nobody heard of it.
    pub writes: BTreeMap<Value, (Duration, Option<Duration>)>,
    /// From when to when which value was read.
    pub reads: Vec<(Duration, Duration, Value)>,
}

impl Register {
    /// Whether the operations could have happened one after the other, each between its start and its end. Gibbons and
    /// Korach: those of one value happen together. From the first end to the last start of them the register must
    /// have had the value, if they do not all overlap; else there must be a moment for it.
    pub fn check(&self) -> Result<(), String> {
        struct Zone {
            value: Value,
            /// First end and last start.
            ended: Duration,
            started: Duration,
        }
        let first = (Duration::ZERO, Some(Duration::ZERO));
        let writes = self.writes.iter().map(|(value, times)| (*value, *times));
        let mut zones: BTreeMap<Value, Zone> = std::iter::once((0, first))
            .chain(writes)
            .map(|(value, (started, ended))| {
                (value, Zone { value, ended: ended.unwrap_or(Duration::MAX), started })
            })
            .collect();
        for (started, ended, value) in &self.reads {
            let Some(zone) = zones.get_mut(value) else {
                return Err(format!("{value} was read, and nobody wrote it"));
            };
            let written = self.writes.get(value).map_or(Duration::ZERO, |times| times.0);
            if written > *ended {
                return Err(format!("{value} was read at {ended:?} and written at {written:?}"));
            }
            zone.ended = zone.ended.min(*ended);
            zone.started = zone.started.max(*started);
        }
        let (mut forward, backward): (Vec<Zone>, Vec<Zone>) =
            zones.into_values().partition(|zone| zone.ended < zone.started);
        forward.sort_by_key(|zone| zone.ended);
        for pair in forward.windows(2) {
            if let [one, other] = pair
                && other.ended < one.started
            {
                return Err(format!(
                    "{} was there at {:?} and at {:?}, and {} at {:?} and at {:?}",
                    one.value, one.ended, one.started, other.value, other.ended, other.started
                ));
            }
        }
        for zone in &backward {
            let before = forward.partition_point(|other| other.ended < zone.started);
            let around = before.checked_sub(1).and_then(|at| forward.get(at));
            if let Some(other) = around.filter(|other| zone.ended < other.started) {
                return Err(format!(
                    "{} was there between {:?} and {:?}, when {} was from {:?} to {:?}",
                    zone.value, zone.started, zone.ended, other.value, other.ended, other.started
                ));
            }
        }
        Ok(())
    }
}

/// Looks who has a lease, until it is ended.
pub(super) async fn leases(world: Arc<World>) {
    loop {
        let running = world.running();
        let holds = |(id, life, group): &(u64, executor::Life, Group)| {
            life.look(|| group.lease_valid()).then_some(*id)
        };
        let holders: Vec<u64> = running.iter().filter_map(holds).collect();
        assert!(holders.len() < 2, "replicas {holders:?} have a lease at one moment");
        drop(running);
        executor::sleep(executor::roll(|dice| dice.up_to(LOOK_MAX))).await;
    }
}

fn contents(group: &Group) -> Vec<(Vec<u8>, Vec<u8>)> {
    group.view().scan(&[1], &[0xff; 64], usize::MAX, false).expect("memory does not fail")
}

/// Waits until all that are in the group have the same, and compares it with what clients know.
pub(super) async fn agree(world: &Arc<World>) {
    let start = executor::now();
    let running = loop {
        let mut running = world.running();
        let leader = running.iter().find(|(_, life, group)| life.look(|| group.lease_valid()));
        // Who was to join may not have got so far, and who was to go may be out.
        let members: Vec<u64> = leader
            .map(|(_, _, leader)| leader.members().iter().map(|member| member.id).collect())
            .unwrap_or_default();
        running.retain(|(id, _, _)| members.is_empty() || members.contains(id));
        let mut statuses = running.iter().map(|(_, _, group)| group.status());
        let first = statuses.next();
        let same = first.as_ref().is_some_and(|first| {
            first.applied == first.last_log
                && first.leader.is_some()
                && statuses.all(|status| {
                    (status.applied, status.last_log, status.leader, status.term)
                        == (first.applied, first.last_log, first.leader, first.term)
                })
        });
        if same && running.len() == members.len() {
            break running;
        }
        if executor::now() - start > AGREE_MAX {
            for (id, _, group) in &running {
                eprintln!("replica {id}: {:?}, failed: {:?}", group.status(), group.failure());
            }
            panic!("replicas do not agree: {} of {members:?} run", running.len());
        }
        executor::sleep(Duration::from_millis(100)).await;
    };
    let (first, _, reference) = &running[0];
    let expected = contents(reference);
    for (id, _, group) in &running[1..] {
        assert!(contents(group) == expected, "replicas {first} and {id} differ");
    }
    let view = reference.view();
    assert_eq!(check::check(&view).expect("memory does not fail"), []);
    let entries = read::readdir(&view, Ino::ROOT, b"", usize::MAX).expect("memory does not fail");
    let names: Vec<String> = entries
        .into_iter()
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect();
    let mut known: Vec<String> = {
        let named = world.named.lock();
        let of = |(client, last): (usize, &u64)| {
            (1..=*last).map(move |number| super::client::name(client, number))
        };
        named.iter().enumerate().flat_map(of).collect()
    };
    known.sort();
    assert_eq!(names, known, "not what was acknowledged");
    for (at, register) in world.registers.lock().iter().enumerate() {
        if let Err(why) = register.check() {
            panic!("register {at} is not linearizable: {why}");
        }
    }
    world.tally.lock().terms = reference.status().term;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(writes: &[(u64, u64, Option<u64>)], reads: &[(u64, u64, u64)]) -> Register {
        let at = Duration::from_millis;
        Register {
            writes: writes
                .iter()
                .map(|(value, from, to)| (*value, (at(*from), to.map(at))))
                .collect(),
            reads: reads.iter().map(|(from, to, value)| (at(*from), at(*to), *value)).collect(),
        }
    }

    #[test]
    fn what_can_be_put_in_order_is_linearizable_and_nothing_else() {
        let good = [
            register(&[(1, 10, Some(20)), (2, 30, Some(40))], &[(21, 29, 1), (41, 50, 2)]),
            // Before, during and after a write that overlaps.
            register(&[(1, 10, Some(50))], &[(1, 5, 0), (15, 20, 0), (30, 35, 1), (60, 61, 1)]),
            // Never answered, and done late.
            register(&[(1, 10, None), (2, 20, Some(30))], &[(31, 32, 2), (40, 41, 1)]),
            register(&[(1, 10, None)], &[(31, 32, 0)]),
        ];
        for (at, register) in good.iter().enumerate() {
            assert_eq!(register.check(), Ok(()), "{at}");
        }
        let bad = [
            // Stale.
            register(&[(1, 10, Some(20))], &[(21, 22, 0)]),
            register(&[(1, 10, Some(20)), (2, 30, Some(40))], &[(41, 42, 1)]),
            // Forth and back.
            register(&[(1, 10, Some(50))], &[(15, 20, 1), (30, 35, 0)]),
            // Not yet written, or never.
            register(&[(1, 30, Some(50))], &[(15, 20, 1)]),
            register(&[], &[(15, 20, 7)]),
            // Written within the time in which it must have been another.
            register(&[(1, 1, Some(2)), (2, 10, Some(20))], &[(3, 4, 1), (30, 31, 1)]),
        ];
        for (at, register) in bad.iter().enumerate() {
            assert!(register.check().is_err(), "{at}");
        }
    }
}
