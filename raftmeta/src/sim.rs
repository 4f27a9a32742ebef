//! The metadata group in one thread, from a seed: 3 to 6 replicas, with openraft itself, and with time, network and disks
//! that are simulated.
//!
//! ```text
//!   clients ─▶ Group ─ openraft ─ LogStore ─▶ `disk`: written, synced, lost with the power     `nemesis`: kills, cuts,
//!                │        └─ Links ─▶ `world`: late, lost, twice, in any order, cut             stalls, handovers, …
//!                └─ Store ─▶ `disk`: commits of which a crash leaves a prefix                   `check`: always
//! ```
//! Real: everything of the group as it is in the product: openraft, leadership, leases, pre-votes and replacement, changes
//! of members, messages byte by byte, checkpoints and their transfer, the log in its files with their recovery, the
//! state machine. Simulated: the executor and its clocks (`executor`, `runtime`), which run apart by up to a tenth;
//! files (`files`); fjall, for which stands a map; the threads behind the log, which are tasks here.
//!
//! A seed is all that a run depends on; a failure names it. `CLAUDEFS_RAFT_SIM_SEEDS` says how many are run,
//! `CLAUDEFS_RAFT_SIM_SEED` chooses one, `CLAUDEFS_RAFT_SIM_TRACE=1` prints what happens in it.

pub(crate) mod check;
mod client;
mod dice;
pub(crate) mod disk;
pub(crate) mod executor;
pub(crate) mod files;
mod nemesis;
pub(crate) mod runtime;
mod world;

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftmeta_types::cluster::{ClusterInfo, SessionInfo};
use raftmeta_types::{Command, Envelope, SessionId, Time};

use crate::group::{Group, GroupError};
use executor::Life;
use world::{Tally, World, address};

const CLIENTS: usize = 4;
const REGISTERS: usize = 3;
/// How long things go wrong.
const STORM_MIN: Duration = Duration::from_secs(20);
const STORM_MAX: Duration = Duration::from_secs(60);
/// And how long clients go on when nothing does any more.
const PEACE: Duration = Duration::from_secs(8);

/// A mistake that the group makes, to see whether it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Appends are answered before they are on stable storage.
    AnswersBeforeSync,
    /// Leaders rely on their lease for twice as long as it is given.
    LongLease,
}

thread_local! {
    static FLAW: Cell<Option<Flaw>> = const { Cell::new(None) };
}

/// Whether the group makes this mistake here.
pub(crate) fn has(flaw: Flaw) -> bool {
    FLAW.get() == Some(flaw)
}

/// What is done by a thread beside the replica's own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let latency = executor::roll(|dice| dice.up_to(disk::SYNC_MAX));
    let work = async move {
        executor::sleep(latency).await;
        executor::aside(work)
    };
    let done = Life::current().spawn(work).await;
    done.unwrap_or_else(|| Err(io::Error::other("the replica is dead")))
}

/// Says how to see a failure again.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() && FLAW.get().is_none() {
            eprintln!(
                "simulation: seed {seed} failed. It alone: CLAUDEFS_RAFT_SIM_SEED={seed} \
                 CLAUDEFS_RAFT_SIM_TRACE=1 cargo test --workspace --lib -- raft_sim --nocapture",
                seed = self.0
            );
        }
    }
}

fn run(seed: u64) -> Tally {
    simulate(seed, None)
}

/// One simulation, to its end.
fn simulate(seed: u64, flaw: Option<Flaw>) -> Tally {
    FLAW.set(flaw);
    let _named = Named(seed);
    disk::clear();
    check::forget();
    let print = std::env::var_os("CLAUDEFS_RAFT_SIM_TRACE").is_some();
    let (mut tally, digest) = executor::run(seed, print, async {
        let world = Arc::new(World::new(CLIENTS, REGISTERS));
        found(&world, 3 + 2 * (seed % 2)).await;
        let background = [
            executor::WORLD.spawn(check::leases(Arc::clone(&world))),
            executor::WORLD.spawn(nemesis::repair(Arc::clone(&world))),
        ];
        let work = |client| executor::WORLD.spawn(client::work(Arc::clone(&world), client));
        let clients: Vec<_> = (0..CLIENTS).map(work).collect();
        let storm = executor::roll(|dice| dice.between(STORM_MIN, STORM_MAX));
        nemesis::rage(&world, storm).await;
        executor::sleep(PEACE).await;
        world.calm.send_replace(true);
        for client in clients {
            client.await.expect("nobody ends it");
        }
        check::agree(&world).await;
        background.iter().for_each(|task| task.abort());
        world.end()
    });
    disk::clear();
    tally.digest = digest;
    tally
}

/// A group of so many voters, with a cluster and a session in its state.
async fn found(world: &Arc<World>, voters: u64) {
    executor::note(format_args!("{voters} voters"));
    world.add(1).await;
    let cluster = ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "t".into(),
        site: 1,
        shard_count: 4,
        created: Time::default(),
    };
    let session = SessionInfo {
        session: client::SESSION,
        client: "c".into(),
        identity: "uid=0".into(),
        opened: Time::default(),
        secret: [0; 16],
    };
    let init = Command::InitCluster { cluster, sealed_ca: Bytes::new() };
    for command in [init, Command::OpenSession(session)] {
        let envelope = Envelope {
            session: SessionId::SERVER,
            slot: 0,
            seq: 0,
            time: Time::default(),
            command,
        };
        let done = at_first(world, move |group| {
            let envelope = envelope.clone();
            async move { group.propose(envelope, true).await }
        });
        done.await.expect("a new group");
    }
    for id in 2..=voters {
        world.add(id).await;
        at_first(world, move |group| async move { group.add_learner(id, &address(id)).await })
            .await;
    }
    at_first(world, move |group| async move { group.set_voters((1..=voters).collect()).await })
        .await;
}

/// Has the first replica do something, as often as it takes.
async fn at_first<T, F>(world: &Arc<World>, what: impl Fn(Group) -> F) -> T
where
    T: Send + 'static,
    F: Future<Output = Result<T, GroupError>> + Send + 'static,
{
    loop {
        match world.at(1, &what).await {
            Some(Ok(done)) => return done,
            Some(Err(error)) => executor::note(format_args!("not yet: {error}")),
            None => panic!("nothing goes wrong yet"),
        }
        executor::sleep(Duration::from_millis(100)).await;
    }
}

impl World {
    /// Ends everything, so that nothing is kept alive by going round in circles.
    fn end(&self) -> Tally {
        let machines = std::mem::take(&mut self.net.lock().machines);
        for (id, machine) in machines {
            disk::of_machine(id).cut(false);
            machine.life.inspect(|life| life.end());
        }
        Tally { runs: 1, ..*self.tally.lock() }
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
fn raft_sim_nothing_is_lost_done_twice_or_read_stale_and_all_agree_in_the_end() {
    let tally = match from_env("CLAUDEFS_RAFT_SIM_SEED") {
        Some(seed) => run(seed),
        None => run_all(0..from_env("CLAUDEFS_RAFT_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    println!("{tally:?}");
    let Tally { runs, acknowledged, read, faults, handovers, changes, installed, failed, .. } =
        tally;
    assert!(acknowledged.min(read).min(faults) > 0, "{tally:?}");
    assert!(handovers.min(changes).min(installed).min(failed) > 0 || runs < 100, "{tally:?}");
}

/// As many as a test by hand runs.
const SEEDS: u64 = 30;

#[test]
fn raft_sim_the_same_seed_is_the_same_run() {
    for seed in 0..4 {
        let (once, again) = (run(seed), run(seed));
        assert_eq!(once, again, "seed {seed}");
    }
    assert_ne!(run(0).digest, run(2).digest);
}

/// Whether mistakes would be seen.
#[test]
fn raft_sim_mistakes_are_found_out() {
    for flaw in [Flaw::AnswersBeforeSync, Flaw::LongLease] {
        let passes = |seed| std::panic::catch_unwind(|| simulate(seed, Some(flaw))).is_ok();
        let found = (0..FLAW_SEEDS).find(|seed| !passes(*seed));
        println!("{flaw:?}: seed {found:?}");
        assert!(found.is_some(), "nobody noticed {flaw:?}");
    }
}

/// Within so many seeds a mistake has to be found.
const FLAW_SEEDS: u64 = 100;
