//! Does everything that was acknowledged survive the death of processes and the loss of power?
//!
//! ```text
//!   round:  up ─▶ writers work ─▶ kill or cut, at a random operation ─▶ up ─▶ check ─▶ fsck ─▶ next round
//! ```
//! Writers are threads of a process of their own (`worker`); each does random operations in its own directory and
//! logs, outside of the mount, what was acknowledged. Seed, round and writer determine the operations, so the
//! checker knows them from the log's length alone (`plan`, `model`). What is done to the node:
//!
//! | kind | who dies | what may be missing |
//! |---|---|---|
//! | `Blockd` | blockd, up to twice; its supervisor starts it again | nothing: the client lives and retries |
//! | `Server` | `cfs server`, up to twice; blockd may go with it | nothing |
//! | `Client` | `cfs mount` | what was not acknowledged as durable |
//! | `All` | all three, in random order | likewise |
//! | `Power` | the machine: see `System::power_cut` | likewise |
//!
//! A power cut is simulated: blockd's fault engine drops, tears and reorders what was not flushed to the pool, and
//! the metadata is on an ext4 of its own whose page cache is thrown away. ext4 below is real, its disk is not cut.
//!
//! `CRASH_ROUNDS` (default 20; 200 in CI), `CRASH_SEED` (default random): a failure prints its seed, with which the same
//! operations are done and the same things killed; the moments depend on the scheduler. `CRASH_DEVICE` names a blank
//! device of 1 GiB or more, such as `/dev/ng0n1` or a PCI address, that has the pool instead of a file.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod disk;
mod model;
mod plan;
mod process;
mod scan;
mod system;
mod worker;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cfs_dev::random::Random;
use rustix::process::Signal;

use crate::disk::Disk;
use crate::model::Model;
use crate::scan::Found;
use crate::system::{Engine, System};
use crate::worker::{Job, Told};

const WRITERS: u64 = 3;
const ROUNDS_DEFAULT: u64 = 20;

/// What happens to the node in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blockd,
    Server,
    Client,
    All,
    Power,
}

impl Kind {
    /// Each kind once, in an order of the seed's, so that a short run has all of them; then by weight.
    fn choose(seed: u64, round: u64, random: &mut Random) -> Kind {
        let mut left = vec![Kind::Blockd, Kind::Server, Kind::Client, Kind::All, Kind::Power];
        let mut order = Random::branch(seed, &[u64::MAX]);
        for drawn in 0..left.len() as u64 {
            let kind = left.swap_remove(order.below(left.len()));
            if drawn == round {
                return kind;
            }
        }
        match random.below(100) {
            0..=17 => Kind::Blockd,
            18..=37 => Kind::Server,
            38..=49 => Kind::Client,
            50..=69 => Kind::All,
            _ => Kind::Power,
        }
    }

    /// A round that any engine serves keeps the one that runs.
    fn engine(self, now: Engine) -> Engine {
        match self {
            Kind::Blockd => Engine::Plain,
            Kind::Server | Kind::Client | Kind::All => now,
            Kind::Power => Engine::Fault,
        }
    }

    /// Whether nothing may be missing afterwards.
    fn is_exact(self) -> bool {
        match self {
            Kind::Blockd | Kind::Server => true,
            Kind::Client | Kind::All | Kind::Power => false,
        }
    }
}

#[test]
#[ignore = "the process that the crash test starts as its worker"]
fn worker_process() {
    match std::env::var(worker::VARIABLE) {
        Ok(job) => serde_json::from_str::<Job>(&job).unwrap().run(),
        Err(_) => eprintln!("SKIPPED worker_process: the crash test starts it"),
    }
}

/// The seed's environment variable, or a new one for each run.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    number("CRASH_SEED").unwrap_or(now % 1_000_000_007)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// Keeps the directory, and says how to repeat the run, if the test panics.
struct Evidence {
    dir: Option<tempfile::TempDir>,
    seed: u64,
}

impl Evidence {
    fn new(seed: u64) -> Evidence {
        let dir = tempfile::Builder::new().prefix("cfs-crash-").tempdir().unwrap();
        Evidence { dir: Some(dir), seed }
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.dir.take().unwrap().keep();
            eprintln!("kept: {}   repeat: CRASH_SEED={}", kept.display(), self.seed);
        }
    }
}

#[test]
fn crash() {
    if !process::is_root("crash") || !process::in_namespace("crash") {
        return;
    }
    let rounds = number("CRASH_ROUNDS").unwrap_or(ROUNDS_DEFAULT);
    let evidence = Evidence::new(seed());
    let seed = evidence.seed;
    eprintln!("crash: {rounds} rounds, CRASH_SEED={seed}, in {}", evidence.path().display());
    let started = Instant::now();
    let mut run = Run::new(evidence.path(), seed);
    for round in 0..rounds {
        run.round(round);
        if (round + 1) % 20 == 0 || round + 1 == rounds {
            let seconds = started.elapsed().as_secs();
            eprintln!("crash: {} rounds in {seconds} s, {}", round + 1, run.tally());
        }
    }
    run.system.finish();
}

struct Run {
    seed: u64,
    system: System,
    engine: Engine,
    dir: std::path::PathBuf,
    models: Vec<Model>,
    kinds: Vec<(Kind, u64)>,
    acknowledged: usize,
}

impl Run {
    fn new(dir: &Path, seed: u64) -> Run {
        let mut system = System::new(dir);
        let engine = Engine::Plain;
        system.up(engine);
        let models = (0..WRITERS).map(|writer| {
            let path = system.mountpoint().join(format!("w{writer}"));
            fs::create_dir(&path).unwrap();
            fs::File::open(&path).unwrap().sync_all().unwrap();
            Found::scan(&path).unwrap().into_model(true)
        });
        let models = models.collect();
        Run { seed, engine, dir: dir.into(), models, kinds: Vec::new(), acknowledged: 0, system }
    }

    fn tally(&self) -> String {
        let kinds = self.kinds.iter().map(|(kind, n)| format!("{n} {kind:?}"));
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        format!("{} operations acknowledged ({kinds})", self.acknowledged)
    }

    fn count(&mut self, kind: Kind) {
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, n)) => *n += 1,
            None => self.kinds.push((kind, 1)),
        }
    }

    fn round(&mut self, round: u64) {
        let mut random = Random::branch(self.seed, &[round, u64::MAX]);
        let kind = Kind::choose(self.seed, round, &mut random);
        self.count(kind);
        if kind == Kind::Blockd && self.system.is_tired() {
            self.system.down();
        }
        self.engine = kind.engine(self.engine);
        self.system.up(self.engine);
        let job = Job {
            root: self.system.mountpoint(),
            logs: self.dir.clone(),
            seed: self.seed,
            round,
            writers: WRITERS,
            operations: 40 + random.below(160),
            barriers: true,
        };
        let mut worker = job.start();
        self.strike(kind, &job, &mut worker, &mut random);
        let status = finish(&mut worker);
        assert!(status.success(), "round {round}, {kind:?}: the worker ended with {status}");
        self.system.up(self.engine);
        if kind.is_exact() && random.chance(50) {
            self.system.remount();
        }
        self.check(kind, &job);
        self.system.fsck();
    }

    /// Kills at random operations. The writers that it does not stop go on to their ends.
    fn strike(&mut self, kind: Kind, job: &Job, worker: &mut Child, random: &mut Random) {
        let all = job.operations * WRITERS as usize;
        let times = if kind.is_exact() { 1 + random.below(2) } else { 1 };
        let mut moments: Vec<usize> = (0..times).map(|_| random.below(all)).collect();
        moments.sort_unstable();
        for moment in moments {
            process::wait_for("the writers to get on", || {
                acknowledged(job) >= moment || worker.try_wait().unwrap().is_some()
            });
            std::thread::sleep(Duration::from_micros(random.below(4000) as u64));
            match kind {
                Kind::Blockd => self.system.kill_blockd(),
                Kind::Server => {
                    self.system.kill_server();
                    // With the fault engine that would cut blockd's power and not the server's.
                    if self.engine == Engine::Plain && random.chance(50) {
                        self.system.kill_blockd_last();
                    }
                    self.system.restart_server();
                }
                Kind::Client => self.system.kill_client(),
                Kind::All => self.kill_all(random),
                Kind::Power => self.system.power_cut(random.draw()),
            }
        }
    }

    fn kill_all(&mut self, random: &mut Random) {
        let mut order = vec![0, 1, 2];
        // With the fault engine blockd's memory is its cache: it goes when nobody relies on it any more.
        let blockd_last = self.engine == Engine::Fault;
        while !order.is_empty() {
            let choice = random.below(order.len());
            match order[choice] {
                0 => self.system.kill_server(),
                1 => self.system.kill_client(),
                _ if blockd_last && order.len() > 1 => continue,
                _ => self.system.kill_blockd_last(),
            }
            order.remove(choice);
        }
    }

    fn check(&mut self, kind: Kind, job: &Job) {
        let round = job.round;
        for writer in 0..WRITERS {
            let told = Told::read(&job.log(writer));
            self.acknowledged += told.acknowledged;
            let about = format!("round {round}, {kind:?}, writer {writer}");
            if let Some(failure) = &told.failure {
                assert!(!kind.is_exact(), "{about}: operation {failure}");
                assert!(
                    !failure.contains("WRONG"),
                    "{about}: operation {failure}\n  the last: {:#?}",
                    job.operations(writer, self.models[writer as usize].clone())
                );
            }
            let start = self.models[writer as usize].clone();
            let history = job.history(writer, start, kind.is_exact());
            let dir = job.dir(writer);
            let found = Found::scan(&dir)
                .unwrap_or_else(|error| panic!("{about}: reading the tree: {error}"));
            if let Err(why) = history.check(&found) {
                panic!(
                    "{about}: {} operations begun, {} acknowledged, {} durable: {why}\n  the last: {:#?}",
                    told.begun,
                    told.acknowledged,
                    history.durable,
                    job.operations(writer, self.models[writer as usize].clone())
                );
            }
            // From here on all of it has to survive.
            let synced = fs::File::open(&dir).and_then(|dir| dir.sync_all());
            synced.unwrap_or_else(|error| panic!("{about}: {}", process::named(&dir, &error)));
            self.models[writer as usize] = found.into_model(true);
        }
    }
}

fn acknowledged(job: &Job) -> usize {
    (0..WRITERS).map(|writer| Told::read(&job.log(writer)).acknowledged).sum()
}

fn finish(worker: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    process::wait_for("the end of the writers", || {
        status = worker.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// The model is right about Linux, and the writers' operations all work: ext4 has to pass with and without
/// a loss of power. Its `close` promises nothing.
#[test]
fn the_model_agrees_with_ext4() {
    let name = "the_model_agrees_with_ext4";
    if !process::is_root(name) || !process::in_namespace(name) {
        return;
    }
    let evidence = Evidence::new(seed());
    let disk = Disk::make(evidence.path(), "ext4", 512 << 20);
    let mut job = Job {
        root: disk.path().into(),
        logs: evidence.path().into(),
        seed: evidence.seed,
        round: 0,
        writers: WRITERS,
        operations: 300,
        barriers: false,
    };
    let mut models = Vec::new();
    for writer in 0..WRITERS {
        fs::create_dir(job.dir(writer)).unwrap();
        models.push(Found::scan(&job.dir(writer)).unwrap().into_model(false));
    }
    fs::File::open(disk.path()).unwrap().sync_all().unwrap();
    for round in 0..6 {
        job.round = round;
        let mut worker = job.start();
        let cut = round % 2 == 1;
        if cut {
            process::wait_for("the writers to get on", || {
                acknowledged(&job) >= 400 || worker.try_wait().unwrap().is_some()
            });
            // ext4 acknowledges an fsync that a shutdown interrupts.
            process::freeze(&worker);
            disk.cut();
            process::signal(process::pid(&worker), Signal::CONT);
        }
        assert!(finish(&mut worker).success(), "round {round}");
        if cut {
            disk.restore();
        }
        for writer in 0..WRITERS {
            let told = Told::read(&job.log(writer));
            assert!(cut || told.ended, "round {round}, writer {writer}: {told:?}");
            let start = models[writer as usize].clone();
            let found = Found::scan(&job.dir(writer)).unwrap();
            let checked = job.history(writer, start, !cut).check(&found);
            checked.unwrap_or_else(|why| panic!("round {round}, writer {writer}: {why}"));
            // ext4 makes nothing durable that was only read back.
            rustix::fs::syncfs(fs::File::open(disk.path()).unwrap()).unwrap();
            models[writer as usize] = found.into_model(false);
        }
    }
    disk.unmount();
}

/// A check that could not fail would be worth nothing: what a crash may not leave has to be found.
#[test]
fn the_check_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job {
        root: dir.path().join("tree"),
        logs: dir.path().into(),
        seed: 1,
        round: 0,
        writers: 1,
        operations: 200,
        barriers: true,
    };
    let tree = job.dir(0);
    fs::create_dir_all(&tree).unwrap();
    job.run();
    let start = || Model::new(model::Names::new(), std::collections::BTreeMap::new(), true);
    let strict = job.history(0, start(), true);
    strict.check(&Found::scan(&tree).unwrap()).unwrap();
    let crashed = job.history(0, start(), false);
    crashed.check(&Found::scan(&tree).unwrap()).unwrap();

    let found = Found::scan(&tree).unwrap();
    let sure = &crashed.names[crashed.durable];
    assert!(crashed.durable > 100, "the seed gives something durable late");
    // A byte that nobody wrote.
    let (path, _) =
        found.names.iter().find(|(path, _)| crashed.model.file_at(path).is_some()).unwrap();
    let whole = fs::read(tree.join(path)).unwrap();
    let mut torn = whole.clone();
    torn.resize(torn.len().max(1), 0);
    torn[0] = 0xfe;
    for wrong in [&torn[..], &[whole.as_slice(), b"tail"].concat()] {
        fs::write(tree.join(path), wrong).unwrap();
        assert!(crashed.check(&Found::scan(&tree).unwrap()).is_err(), "{path}: wrong bytes");
    }
    fs::write(tree.join(path), &whole).unwrap();
    crashed.check(&Found::scan(&tree).unwrap()).unwrap();
    // A name that is gone, one too many, and a link too many.
    let gone = sure.keys().rev().find(|path| tree.join(path).is_file()).unwrap();
    fs::rename(tree.join(gone), dir.path().join("kept")).unwrap();
    assert!(crashed.check(&Found::scan(&tree).unwrap()).is_err(), "{gone} is gone");
    fs::rename(dir.path().join("kept"), tree.join(gone)).unwrap();
    fs::write(tree.join("stranger"), "").unwrap();
    assert!(crashed.check(&Found::scan(&tree).unwrap()).is_err(), "a stranger");
    fs::remove_file(tree.join("stranger")).unwrap();
    fs::hard_link(tree.join(gone), dir.path().join("link")).unwrap();
    assert!(crashed.check(&Found::scan(&tree).unwrap()).is_err(), "a link from elsewhere");
}
