//! Five nodes with three copies of everything, two clients that check what they do, and a nemesis.
//!
//! ```text
//!   up ─▶ workers on both mounts ════════════════════════════════▶ stop ─▶ read all ─▶ fsck ─▶ histories are checked
//!            peace ─▶ accident ─▶ peace ─▶ accident …  ─▶ heal, settle ┘
//! ```
//! The workers are a process of their own: one that is started while files of a mount are open inherits and closes them,
//! and waits for the cluster with that.
//!
//! The accidents are a pure function of the seed (`plan`), their moments depend on the machine. What an operation that
//! was acknowledged did has to be seen (`workload` says by whom and how it is checked), and nothing else. At the end
//! every shard has all its copies without a command, and the check of everything, all data read, finds nothing.
//!
//! `CFS_NEMESIS_SECONDS` (without it the test is skipped), `CFS_NEMESIS_SEED` (default random),
//! `CFS_NEMESIS_KINDS` (such as `Kill,Halves`; default all). A failure prints its seed and where the logs are.

mod history;
mod linear;
mod plan;
mod site;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cfs_dev::random::Random;
use serde::{Deserialize, Serialize};

use self::history::History;
use self::plan::{KINDS, Kind, Step};
use self::site::{CLIENTS, Site};
use self::workload::{REGISTERS, Work, Worker};
use crate::world::{in_namespaces, is_root};

/// What each client does, a thread each.
const WORKS: [Work; 6] =
    [Work::Registers, Work::Registers, Work::Appends, Work::Names, Work::Flock, Work::Fcntl];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    number("CFS_NEMESIS_SEED").unwrap_or(now % 1_000_000_007)
}

fn kinds() -> Vec<Kind> {
    let Ok(text) = std::env::var("CFS_NEMESIS_KINDS") else { return KINDS.to_vec() };
    let named = |name: &str| KINDS.into_iter().find(|kind| format!("{kind:?}") == name.trim());
    text.split(',')
        .map(|name| named(name).unwrap_or_else(|| panic!("`{name}` is none of {KINDS:?}")))
        .collect()
}

/// Where everything is; kept if the test fails, and says how to repeat it.
struct Evidence {
    directory: Option<tempfile::TempDir>,
    seed: u64,
}

impl Evidence {
    fn path(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        let directory = self.directory.take().unwrap();
        if std::thread::panicking() {
            let (kept, seed) = (directory.keep(), self.seed);
            eprintln!("nemesis: kept: {}   repeat: CFS_NEMESIS_SEED={seed}", kept.display());
        }
    }
}

#[test]
fn nemesis() {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED nemesis: it needs root and /dev/fuse, for mounts and namespaces");
        return;
    }
    let Some(seconds) = number("CFS_NEMESIS_SECONDS") else {
        eprintln!("SKIPPED nemesis: say for how long with CFS_NEMESIS_SECONDS=60");
        return;
    };
    if !in_namespaces("nemesis::nemesis") {
        return;
    }
    let (seed, kinds) = (seed(), kinds());
    let directory = tempfile::Builder::new().prefix("cfs-nemesis-").tempdir().unwrap();
    let evidence = Evidence { directory: Some(directory), seed };
    let at = evidence.path().display();
    eprintln!("nemesis: CFS_NEMESIS_SEED={seed}, {seconds} s, logs in {at}");
    // Its mounts end with this process and its namespaces.
    let site = Site::up(&evidence.path().join("state"));
    let started = Instant::now();
    workload::prepare(&site.mount(0)).unwrap();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        torment(&site, evidence.path(), seed, &kinds, Duration::from_secs(seconds))
    }));
    let wrong = outcome.unwrap_or_else(|_| vec!["the test itself failed, see above".to_owned()]);
    eprintln!("nemesis: {} s in all", started.elapsed().as_secs());
    if !wrong.is_empty() {
        site.save_logs(evidence.path());
    }
    assert!(wrong.is_empty(), "seed {seed}: {} finding(s)\n{}", wrong.len(), wrong.join("\n"));
    // Nothing is deleted through a mount.
    let umount = Command::new("umount").arg("--lazy").args(mounts(&site)).status();
    assert!(umount.unwrap().success(), "umount");
}

/// What is mounted in the directory that is deleted at the end.
fn mounts(site: &Site) -> Vec<PathBuf> {
    (0..CLIENTS).map(|client| site.mount(client)).chain(site.disks()).collect()
}

/// Holds a [`Job`] in the environment of the process of the workers.
const JOB: &str = "CFS_NEMESIS_JOB";

/// What the process of the workers is to do, until its stdin ends.
#[derive(Serialize, Deserialize)]
struct Job {
    mounts: Vec<PathBuf>,
    seed: u64,
    /// Where it writes its history in the end.
    history: PathBuf,
}

#[test]
#[ignore = "the process that the nemesis test starts as its workers"]
fn worker_process() {
    match std::env::var(JOB) {
        Ok(job) => serde_json::from_str::<Job>(&job).unwrap().run(),
        Err(_) => eprintln!("SKIPPED worker_process: the nemesis test starts it"),
    }
}

impl Job {
    fn start(&self) -> Child {
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "nemesis::worker_process", "--nocapture", "--ignored"])
            .env(JOB, serde_json::to_string(self).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn run(&self) {
        let (history, stop) = (History::default(), AtomicBool::new(false));
        let registers: Vec<[RwLock<()>; REGISTERS]> =
            self.mounts.iter().map(|_| Default::default()).collect();
        std::thread::scope(|scope| {
            for (client, mount) in self.mounts.iter().enumerate() {
                for (at, work) in WORKS.into_iter().enumerate() {
                    let worker = Worker {
                        work,
                        process: client * WORKS.len() + at + 1,
                        mount: mount.clone(),
                        history: &history,
                        stop: &stop,
                        registers: &registers[client],
                        random: Random::branch(self.seed, &[4, client as u64, at as u64]),
                    };
                    scope.spawn(move || worker.run());
                }
            }
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            stop.store(true, Ordering::Relaxed);
        });
        history.save(&self.history);
    }
}

/// Works and suffers for so long, heals, checks; what is wrong.
fn torment(
    site: &Site,
    directory: &Path,
    seed: u64,
    kinds: &[Kind],
    lasts: Duration,
) -> Vec<String> {
    let mounts: Vec<PathBuf> = (0..CLIENTS).map(|client| site.mount(client)).collect();
    let job = Job { mounts: mounts.clone(), seed, history: directory.join("history.json") };
    let mut workers = job.start();
    let mut wrong = accidents(site, seed, kinds, lasts);
    site.heal();
    eprintln!("nemesis: healed");
    drop(workers.stdin.take());
    let status = workers.wait().unwrap();
    assert!(status.success(), "the workers ended with {status}");
    // What they did last may have moved shards again.
    site.heal();
    let history = History::load(&job.history);
    for (client, mount) in mounts.iter().enumerate() {
        wrong.extend(workload::read_all(&history, 100 + client, mount));
    }
    wrong.extend(site.fsck());
    wrong.extend(history.findings());
    eprintln!("nemesis: {}", history.tally());
    if history.acknowledged() < 100 {
        wrong.push("hardly anything was done".to_owned());
    }
    wrong
}

fn accidents(site: &Site, seed: u64, kinds: &[Kind], lasts: Duration) -> Vec<String> {
    // More than fit in any time.
    let count = lasts.as_secs() as usize + kinds.len();
    let started = Instant::now();
    let mut wrong = Vec::new();
    for step in plan::steps(seed, kinds, count) {
        if started.elapsed() >= lasts {
            break;
        }
        std::thread::sleep(step.peace);
        let Step { kind, nodes, count, lasts, .. } = &step;
        let at = History::default().now_us();
        eprintln!("nemesis: {at} us: {kind:?}, nodes {nodes:?}, {count} of them, {lasts:?}");
        for finding in site.suffer(&step) {
            eprintln!("nemesis: {finding}");
            wrong.push(format!("{kind:?} at {at} us: {finding}"));
        }
    }
    wrong
}
