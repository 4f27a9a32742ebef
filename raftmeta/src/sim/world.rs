//! Everything in a simulation that is not one replica: machines, the network between them, and what clients know.
//!
//! ```text
//!   Transport::call ─ delay ─ cut? lost? ─▶ Group::handle in the life of the target ─ delay ─ cut? lost? ─▶ answer
//!                                └─ twice?      └─ it dies: refused, or nothing ever again if the power is gone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::check::Register;
use super::disk;
use super::executor::{self, Life, WORLD};
use crate::group::{Group, GroupConfig};
use crate::network::{Answering, Peer, RaftAnswer, RaftMessage, Transport};

const DELAY_MIN: Duration = Duration::from_micros(50);
const DELAY_MAX: Duration = Duration::from_millis(3);
/// Now and then.
const DELAY_MAX_RARELY: Duration = Duration::from_millis(200);
/// In bad weather, longer than a lease.
const DELAY_MAX_BADLY: Duration = Duration::from_secs(4);
/// Clocks run at most so much too fast or too slow, in thousandths: apart by less than a tenth.
const RATE_OFF_MAX: u64 = 47;

/// A machine, whether a replica runs on it or not.
#[derive(Default)]
pub(super) struct Machine {
    /// How fast its clock runs, in thousandths.
    pub rate: u32,
    pub life: Option<Life>,
    /// Once it is open.
    pub group: Option<Group>,
    /// It was switched off, so nobody refuses connections.
    pub silent: bool,
    /// It is to be started again then.
    pub starts: Option<Duration>,
    /// It is being stopped in order.
    pub stopping: bool,
    /// It has been taken out of the group, and never comes back.
    pub gone: bool,
}

#[derive(Default)]
pub(super) struct Net {
    pub machines: BTreeMap<u64, Machine>,
    /// Nothing goes from the first to the second.
    pub cut: BTreeSet<(u64, u64)>,
    /// One of so many messages is lost, repeated or very late; 0 is none.
    pub bad: u64,
}

/// How much happened: a simulation in which nothing does shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub runs: u64,
    pub acknowledged: u64,
    pub read: u64,
    pub faults: u64,
    /// Of the last leader.
    pub terms: u64,
    pub handovers: u64,
    /// Changes of voters, and replicas that came or went.
    pub changes: u64,
    /// Checkpoints that replicas got from another one.
    pub installed: u64,
    pub power_cuts: u64,
    /// Replicas that stopped by themselves, because their disk failed.
    pub failed: u64,
    pub digest: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.acknowledged += other.acknowledged;
        self.read += other.read;
        self.faults += other.faults;
        self.terms += other.terms;
        self.handovers += other.handovers;
        self.changes += other.changes;
        self.installed += other.installed;
        self.power_cuts += other.power_cuts;
        self.failed += other.failed;
        self.digest ^= other.digest;
    }
}

pub(super) struct World {
    pub net: Mutex<Net>,
    pub tally: Mutex<Tally>,
    pub registers: Mutex<Vec<Register>>,
    /// The last name that each client was told to be there, by number.
    pub named: Mutex<Vec<u64>>,
    /// Nothing goes wrong any more, and clients end.
    pub calm: watch::Sender<bool>,
}

pub(super) fn address(id: u64) -> String {
    format!("replica-{id}")
}

impl World {
    pub fn new(clients: usize, registers: usize) -> World {
        World {
            net: Mutex::default(),
            tally: Mutex::default(),
            registers: Mutex::new((0..registers).map(|_| Register::default()).collect()),
            named: Mutex::new(vec![0; clients]),
            calm: watch::Sender::new(false),
        }
    }

    /// A new machine; its replica is started.
    pub async fn add(self: &Arc<World>, id: u64) -> Group {
        let off = executor::roll(|dice| dice.below(2 * RATE_OFF_MAX + 1));
        let rate = (1000 - RATE_OFF_MAX + off) as u32;
        self.net.lock().machines.insert(id, Machine { rate, ..Machine::default() });
        self.start(id);
        loop {
            if let Some(group) = self.group(id) {
                return group.1;
            }
            executor::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the replica of a machine, on what is on its disk.
    pub fn start(self: &Arc<World>, id: u64) {
        let life = {
            let mut net = self.net.lock();
            let machine = net.machines.get_mut(&id).expect("there is this machine");
            if machine.life.is_some() || machine.gone {
                return;
            }
            let life = executor::begin(machine.rate);
            (machine.life, machine.silent, machine.starts) = (Some(life), false, None);
            machine.stopping = false;
            life
        };
        executor::note(format_args!("{id} starts"));
        let config = GroupConfig {
            dir: disk::dir(id),
            node_id: id,
            bootstrap: id == 1,
            checkpoint_entries: executor::roll(|dice| 20 << dice.below(6)),
            address: address(id),
            transport: Some(Arc::new(Wire { me: id, world: Arc::downgrade(self) })),
        };
        let world = Arc::clone(self);
        life.spawn(async move {
            let opened = Group::open(config).await;
            executor::note(format_args!("{id} runs: {:?}", opened.as_ref().err()));
            // A disk that fails while it is opened; whatever else it is, there must be none.
            let group = match opened {
                Err(error) if error.to_string().contains("the disk failed") => {
                    world.tally.lock().failed += 1;
                    // Not by the life that ends.
                    WORLD.spawn(async move { world.kill(id, false, Duration::from_secs(1)) });
                    return;
                }
                opened => opened.expect("whatever happened to a disk, it can be opened"),
            };
            if let Some(machine) = world.net.lock().machines.get_mut(&id)
                && machine.life == Some(life)
            {
                machine.group = Some(group);
            }
        });
    }

    /// The replica dies, with the power or without, and is started again later.
    pub fn kill(self: &Arc<World>, id: u64, power: bool, absence: Duration) {
        let (life, group) = {
            let mut net = self.net.lock();
            let Some(machine) = net.machines.get_mut(&id) else { return };
            let Some(life) = machine.life.take() else { return };
            machine.silent = power;
            machine.starts = (!machine.gone).then_some(executor::now() + absence);
            (life, machine.group.take())
        };
        executor::note(format_args!("{id} dies, power cut: {power}"));
        self.tally.lock().power_cuts += u64::from(power);
        disk::of_machine(id).cut(power);
        life.end();
        drop(group);
        if !power {
            self.part(id);
        }
    }

    /// The connections of this replica end, as far as the others know.
    pub fn part(self: &Arc<World>, id: u64) {
        for (_, life, group) in self.running() {
            let delay = executor::roll(|dice| dice.up_to(DELAY_MAX));
            life.spawn(async move {
                executor::sleep(delay).await;
                group.parted(id);
            });
        }
    }

    pub fn group(&self, id: u64) -> Option<(Life, Group)> {
        let net = self.net.lock();
        let machine = net.machines.get(&id)?;
        Some((machine.life?, machine.group.clone()?))
    }

    /// Who runs.
    pub fn running(&self) -> Vec<(u64, Life, Group)> {
        let net = self.net.lock();
        let running =
            |(id, machine): (&u64, &Machine)| Some((*id, machine.life?, machine.group.clone()?));
        net.machines.iter().filter_map(running).collect()
    }

    /// Has a replica do something in its own life. `None`: it died before it was done.
    pub async fn at<T, F>(&self, id: u64, what: impl FnOnce(Group) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (life, group) = self.group(id)?;
        life.spawn(what(group)).await
    }

    pub fn delay(&self) -> Duration {
        let bad = self.net.lock().bad;
        executor::roll(|dice| {
            let most = match dice.below(40) {
                0 => DELAY_MAX_RARELY,
                _ if bad > 0 && dice.one_in(bad) => DELAY_MAX_BADLY,
                _ => DELAY_MAX,
            };
            dice.between(DELAY_MIN, most)
        })
    }

    fn happens(&self) -> bool {
        let bad = self.net.lock().bad;
        bad > 0 && executor::roll(|dice| dice.one_in(bad))
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.net.lock().cut.contains(&(from, to))
    }
}

/// One replica's way to the others.
struct Wire {
    me: u64,
    world: Weak<World>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("me", &self.me).finish_non_exhaustive()
    }
}

fn lost<T>() -> io::Result<T> {
    Err(io::Error::other("the connection was lost"))
}

impl Transport for Wire {
    fn call(&self, target: Peer, message: RaftMessage, _timeout: Duration) -> Answering {
        let (from, world) = (self.me, self.world.clone());
        Box::pin(async move {
            match world.upgrade() {
                Some(world) => carry(&world, from, target, message).await,
                None => lost(),
            }
        })
    }
}

async fn carry(
    world: &Arc<World>,
    from: u64,
    target: Peer,
    message: RaftMessage,
) -> io::Result<RaftAnswer> {
    let (to, name) = (target.id, message.name());
    let bytes = message.encode().map_err(io::Error::other)?;
    executor::sleep(world.delay()).await;
    if world.is_cut(from, to) {
        return std::future::pending().await;
    }
    if world.happens() || target.address != address(to) {
        return lost();
    }
    let Some((life, group)) = world.group(to) else {
        let silent = world.net.lock().machines.get(&to).is_none_or(|machine| machine.silent);
        if silent {
            return std::future::pending().await;
        }
        return Err(io::ErrorKind::ConnectionRefused.into());
    };
    executor::note(format_args!("{from}>{to} {name}"));
    let handle = move |group: Group, bytes: bytes::Bytes, later: Duration| async move {
        executor::sleep(later).await;
        let message = RaftMessage::decode(&bytes).expect("it was encoded");
        group.handle(from, message).await
    };
    if world.happens() {
        life.spawn(handle(group.clone(), bytes.clone(), world.delay()));
    }
    let handling = life.spawn(handle(group, bytes, Duration::ZERO));
    let Some(answer) = handling.await else {
        let silent = world.net.lock().machines.get(&to).is_none_or(|machine| machine.silent);
        return if silent { std::future::pending().await } else { lost() };
    };
    if matches!(answer, RaftAnswer::Checkpoint(_)) {
        world.tally.lock().installed += 1;
    }
    let bytes = answer.encode().map_err(io::Error::other)?;
    executor::sleep(world.delay()).await;
    if world.is_cut(to, from) {
        return std::future::pending().await;
    }
    if world.happens() {
        return lost();
    }
    RaftAnswer::decode(&bytes).map_err(io::Error::other)
}
