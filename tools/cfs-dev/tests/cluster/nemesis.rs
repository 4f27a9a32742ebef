//! Five nodes with three copies of everything, each on a small disk of its own, two clients, and the fault controller
//! with all that it can do: `cfs-dev fault run`.
//!
//! `CFS_NEMESIS_SECONDS` (without it the test is skipped), `CFS_NEMESIS_SEED` (default random),
//! `CFS_NEMESIS_KINDS` (such as `kill,halves`; default all). A failure prints its seed and where the logs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::world::{World, in_namespaces, is_root, lacks_prometheus};

const NODES: usize = 5;
/// A node's disk: a tmpfs, so that it can be full.
const DISK: &str = "size=1g,mode=0755";
const TOPOLOGY: &str = "\
sites:
  - name: site-a
    nodes: 5
    instance_type: i4i.large
clients:
  - instance_type: c7a.xlarge
    count: 2
jepsen_controller:
  instance_type: c7a.xlarge
protection: replica:3
shard_count: 16
";

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// The nodes' disks, gone with this.
struct Disks(Vec<PathBuf>);

impl Disks {
    fn mount(state: &Path) -> Disks {
        let mount = |number| {
            let disk = state.join(format!("nodes/n{number}"));
            fs::create_dir_all(&disk).unwrap();
            run(Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&disk));
            disk
        };
        Disks((1..=NODES).map(mount).collect())
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

/// Copies every log and report to where they outlive this process's mounts.
fn save(world: &World) -> PathBuf {
    let kept = tempfile::Builder::new().prefix("cfs-nemesis-").tempdir().unwrap().keep();
    let state = world.state();
    let names = (1..=NODES).map(|number| format!("nodes/n{number}"));
    let names = names.chain(["clients/c1".into(), "clients/c2".into(), "controller".into()]);
    for name in names {
        let log = state.join(&name).join("log");
        if let Err(error) = fs::copy(&log, kept.join(name.replace('/', "-") + ".log")) {
            eprintln!("nemesis: {}: {error}", log.display());
        }
    }
    let runs = state.join("controller/runs");
    let _ = Command::new("cp").arg("-r").args([&runs, &kept]).status();
    kept
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
    if lacks_prometheus("nemesis") || !in_namespaces("nemesis::nemesis") {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("CFS_NEMESIS_SEED").unwrap_or(now % 1_000_000_007);
    eprintln!("nemesis: CFS_NEMESIS_SEED={seed}, {seconds} s");
    let world = World::new();
    // Its mounts end with this process and its namespaces.
    let disks = Disks::mount(&world.state());
    world.up(&["--topology", &world.topology(TOPOLOGY)]);
    let mut run = world.command(&["fault", "run", "--timeout", "400", "-o", "json"]);
    run.args(["--time", &format!("{seconds}s"), "--seed", &seed.to_string()]);
    if let Ok(kinds) = std::env::var("CFS_NEMESIS_KINDS") {
        run.args(["--kinds", &kinds]);
    }
    let output = run.stderr(Stdio::inherit()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    eprintln!("nemesis: {told}");
    if !output.status.success() {
        let kept = save(&world);
        eprintln!("nemesis: kept: {}   repeat: CFS_NEMESIS_SEED={seed}", kept.display());
    }
    // Nothing is deleted through a mount.
    let end = world.run(&["down", "--timeout", "400"]);
    let mut umount = Command::new("umount");
    umount.arg("--lazy").args(&disks.0).status().unwrap();
    assert!(output.status.success(), "seed {seed}: {}", output.status);
    let ended = String::from_utf8_lossy(&end.stderr);
    assert!(end.status.success(), "{ended}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["seed"], seed);
    assert!(!report["accidents"].as_array().unwrap().is_empty(), "{report}");
    // Every sort of accident is possible here.
    assert_eq!(report["left_out"].as_array().map(Vec::len), Some(0), "{report}");
}
