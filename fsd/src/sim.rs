//! Whole sites in one thread, from a seed: 3 to 5 nodes, a network, disks and a clock that are simulated, and
//! everything that decides about data as it is in the product.
//!
//! ```text
//!   clients ─▶ leader ─ put ─▶ primaries ─ ops ─▶ replicas            nemesis: kills, cuts power, network and
//!                 │  receipts                                          leadership, loses a disk, drains, …
//!                 └─ commit ─▶ metadata group (`log`)                 `check`: always, and when all is calm again
//! ```
//!
//! Real: the state machine (`raftmeta::apply`), the chunk stores on volumes that lose what is not flushed, courier,
//! keeper, director, placement, the signs of life and what follows from them, gc and sweep. Models: the log of the
//! metadata group (why: see `log`), connections, and of `Node` what joins the parts, which is short (`node`).
//!
//! A seed is all that a run depends on; a failure names it. `CLAUDEFS_SIM_SEEDS` says how many are run,
//! `CLAUDEFS_SIM_SEED` chooses one, `CLAUDEFS_SIM_TRACE=1` prints what happens in it.

mod check;
mod client;
mod dice;
mod history;
mod log;
mod nemesis;
mod node;
mod world;

use std::cell::Cell;
use std::sync::{Arc, Once};
use std::time::Duration;

use blockd_ipc::SimVolume;
use bytes::Bytes;
use raftmeta_types::cluster::{ClusterInfo, NodeInfo, NodeState, Protection};
use raftmeta_types::command::Create;
use raftmeta_types::{Command, FileKind, Ino, NodeId, Reply, Time};
use uuid::Uuid;

use crate::chunks::{ChunkStore, FormatParams};
use crate::clock::{self, simulated};
use node::Life;
use world::{Machine, Tally, World};

const CLUSTER: Uuid = Uuid::from_u128(7);
const SHARDS: u16 = 4;
const SEGMENT_BYTES: u32 = 64 << 10;
/// Segments of each volume.
const SLOTS: u64 = 96;
const FILES: u64 = 6;
const CLIENTS: u64 = 3;
/// Before anything goes wrong the nodes share the shards.
const PEACE: Duration = Duration::from_secs(3);
/// How long things go wrong.
const STORM_MIN: Duration = Duration::from_secs(10);
const STORM_MAX: Duration = Duration::from_secs(25);
const TICK: Duration = Duration::from_millis(100);

thread_local! {
    /// A task panicked: whoever waits for it would only see an error.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Has every panic of a thread noted in it.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.set(false);
}

/// Says how to see a failure again.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "simulation: seed {seed} failed. It alone: CLAUDEFS_SIM_SEED={seed} \
                 CLAUDEFS_SIM_TRACE=1 cargo test --workspace --lib -- sim:: --nocapture",
                seed = self.0
            );
        }
    }
}

/// One simulation, to its end.
fn run(seed: u64) -> Tally {
    simulate(seed, false)
}

/// One in which primaries may be careless.
fn simulate(seed: u64, careless: bool) -> Tally {
    let _named = Named(seed);
    note_panics();
    let print = std::env::var_os("CLAUDEFS_SIM_TRACE").is_some();
    let tally = simulated::run(async {
        let world = found(seed, print, careless).await;
        let ids: Vec<NodeId> = world.net.lock().machines.keys().copied().collect();
        for id in ids {
            world.start(id).await;
        }
        let ticking = tokio::spawn(tick(Arc::clone(&world)));
        let checking = tokio::spawn(check::watch(Arc::clone(&world)));
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(client::work(Arc::clone(&world)))).collect();
        clock::sleep(PEACE).await;
        let storm = world.roll(|dice| dice.between(STORM_MIN, STORM_MAX));
        nemesis::rage(&world, storm).await;
        world.calm.send_replace(true);
        for client in clients {
            client.await.expect("a client");
        }
        check::settle(&world).await;
        ticking.abort();
        checking.abort();
        world.tally.lock().runs = 1;
        check::all_is_there(&world).await;
        world.end()
    });
    assert!(!PANICKED.get(), "something panicked, see above");
    tally
}

/// A new site: node 1 holds everything, and the others have just been taken in.
async fn found(seed: u64, print: bool, careless: bool) -> Arc<World> {
    let nodes = 3 + seed % 3;
    let replicas = 2 + (seed / 3 % 2) as u8;
    let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let world = Arc::new(World::new(seed, &ids, print, careless));
    world.note(format_args!("{nodes} nodes, {replicas} replicas"));
    let blocks = 16 + SLOTS * u64::from(SEGMENT_BYTES / 4096);
    for id in &ids {
        let volume = SimVolume::new(4096, blocks);
        let params = FormatParams {
            cluster_uuid: CLUSTER,
            shard_count: u32::from(SHARDS),
            segment_bytes: SEGMENT_BYTES,
        };
        ChunkStore::format(&volume, params).await.expect("a volume of that size");
        let machine = Machine { volume: Some(volume), ..Machine::default() };
        world.net.lock().machines.insert(*id, machine);
    }
    let mut commands = vec![Command::InitCluster {
        cluster: ClusterInfo {
            uuid: CLUSTER,
            name: "sim".into(),
            site: 1,
            shard_count: u32::from(SHARDS),
            created: Time::default(),
        },
        sealed_ca: Bytes::new(),
    }];
    commands.extend(ids.iter().map(|id| {
        let (name, address) = (format!("n{id}"), format!("n{id}:9400"));
        let (state, capacity_bytes) = (NodeState::Up, blocks * 4096);
        Command::SetNode(NodeInfo { id: *id, name, address, state, capacity_bytes })
    }));
    commands.push(Command::SetProtection(Protection::of(replicas)));
    commands.extend((0..FILES).map(|file| {
        Command::Create(Create {
            parent: Ino::ROOT,
            name: format!("f{file}").into(),
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            open: false,
        })
    }));
    let files =
        world.log(|log, _, _| log.found(commands)).into_iter().filter_map(|reply| match reply {
            Reply::Created { inode, .. } => Some(inode.ino),
            _ => None,
        });
    world.files.lock().extend(files);
    world
}

async fn tick(world: Arc<World>) {
    loop {
        clock::sleep(TICK).await;
        let now = simulated::since_start();
        let term = world.log(|log, dice, net| {
            log.tick(now, dice, net);
            log.term()
        });
        world.tally.lock().terms = term;
        nemesis::restart_sick(&world);
        let due = world.due(now);
        for id in due {
            world.start(id).await;
        }
    }
}

impl World {
    /// Starts the node of a machine.
    async fn start(self: &Arc<World>, id: NodeId) {
        let volume = self.net.lock().machines[&id].volume.clone();
        let Some(volume) = volume else { return };
        let power_cut = self.net.lock().machines[&id].silent;
        self.log(|log, dice, _| log.restarted(id, simulated::since_start(), power_cut, dice));
        let begun = Life::begin(self, id, volume).await;
        self.note(format_args!("node {id} starts: {:?}", begun.as_ref().err()));
        let life = begun.expect("whatever happened to a volume, it can be opened");
        let mut net = self.net.lock();
        let machine = net.machines.entry(id).or_default();
        (machine.life, machine.starts) = (Some(life), None);
    }

    /// Ends everything, so that nothing is kept alive by going round in circles.
    fn end(&self) -> Tally {
        let machines = std::mem::take(&mut self.net.lock().machines);
        for machine in machines.into_values() {
            machine.life.inspect(|life| life.end());
        }
        let mut tally = *self.tally.lock();
        (tally.digest, tally.lines) = self.digest();
        tally
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs seeds on all cores.
fn run_all(seeds: std::ops::Range<u64>) -> Tally {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= seeds.end {
                return sum;
            }
            sum.add(&run(seed));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let mut sum = Tally::default();
        for worker in workers {
            sum.add(&worker.join().expect("every seed passes, see above"));
        }
        sum
    })
}

#[test]
fn nothing_that_was_committed_is_lost_and_all_is_well_in_the_end() {
    let tally = match from_env("CLAUDEFS_SIM_SEED") {
        Some(seed) => run(seed),
        None => run_all(0..from_env("CLAUDEFS_SIM_SEEDS").unwrap_or(200)),
    };
    println!("{tally:?}");
    let Tally { runs, removed, committed, read, deleted, faults, epochs, .. } = tally;
    assert!(committed.min(read).min(deleted).min(faults).min(epochs) > 0, "{tally:?}");
    // Disks are lost for good in about every third run, and some of their nodes are taken out.
    assert!(removed > 0 || runs < 100, "{tally:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..4 {
        let (once, again) = (run(seed), run(seed));
        assert_eq!(once, again, "seed {seed}");
    }
    assert_ne!(run(0).digest, run(3).digest);
}

/// Whether a mistake would be seen: primaries that answer before their replicas have it lose what they answered.
#[test]
fn a_primary_that_does_not_wait_for_its_replicas_is_found_out() {
    let passes = |seed| std::panic::catch_unwind(|| simulate(seed, true)).is_ok();
    assert!(!(0..40).all(passes), "nobody noticed");
}
