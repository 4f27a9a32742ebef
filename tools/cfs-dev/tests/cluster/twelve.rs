//! Twelve nodes with three copies of everything share the shards evenly, and any two of them may die at once.

use std::time::{SystemTime, UNIX_EPOCH};

use cfs_dev::process::Process;
use cfs_dev::random::Random;
use cfs_dev::topology::Topology;

use crate::load::Load;
use crate::site::Site;
use crate::world::{World, in_namespaces, is_root};

const NODES: usize = 12;
const REPLICAS: usize = 3;
const SHARDS: usize = 256;
/// Two open segments of every shard need more than the smallest pool has.
const INSTANCE: &str = "i4i.4xlarge";
/// Nodes that die.
const LOST: usize = 2;
/// Memory that is free before anything is started: about half of it is used.
const MEMORY_KIB: u64 = 8 << 20;
const FIRST: (u64, usize) = (64, 256 << 10);
const FILE_BYTES: usize = 24 << 10;

/// `MemAvailable` of the machine.
fn available_kib() -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Resident memory of a process and all that it has started.
fn resident_kib(process: &Process) -> u64 {
    let own = |process: &Process| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    std::iter::once(process).chain(&process.descendants()).filter_map(own).sum()
}

#[test]
fn twelve_nodes_are_balanced_and_any_two_may_die() {
    let name = "twelve_nodes_are_balanced_and_any_two_may_die";
    if !is_root() || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED {name}: it needs root and /dev/fuse, for mounts and namespaces");
        return;
    }
    if std::env::var_os("CFS_TWELVE").is_none() {
        eprintln!(
            "SKIPPED {name}: it takes minutes; CFS_TWELVE=1 runs it, CFS_TWELVE_SEED chooses who dies"
        );
        return;
    }
    if available_kib() < MEMORY_KIB {
        eprintln!("SKIPPED {name}: it needs {MEMORY_KIB} KiB of memory");
        return;
    }
    if !in_namespaces(&format!("twelve::{name}")) {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = match std::env::var("CFS_TWELVE_SEED") {
        Ok(text) => text.parse().expect("CFS_TWELVE_SEED is a number"),
        Err(_) => now % 1_000_000_007,
    };
    let world = World::new();
    let topology = Topology {
        nodes: vec![INSTANCE.to_owned(); NODES],
        replicas: REPLICAS,
        shard_count: SHARDS as u32,
        ..Topology::of(NODES, 2)
    };
    let site = Site::up(&world.state(), "twelve", &topology);
    let all: Vec<usize> = (1..=NODES).collect();
    let shares = site.balanced(&all, SHARDS, REPLICAS);
    let processes: Vec<Process> = site.cluster.nodes().iter().filter_map(|n| n.process()).collect();
    let resident: u64 = processes.iter().map(resident_kib).sum();
    eprintln!("twelve: shards of each node {shares:?}; {resident} KiB resident in all");

    let lost = Random::new(seed).some(&all, LOST);
    let left: Vec<usize> = all.iter().copied().filter(|number| !lost.contains(number)).collect();
    eprintln!("twelve: CFS_TWELVE_SEED={seed}: {lost:?} die; leader n{:?}", site.leader());
    let load = Load::prepare(vec![site.mount(0), site.mount(1)], seed, FILE_BYTES, FIRST);
    let shares = load.during(|| {
        std::thread::scope(|scope| {
            // At once.
            for number in &lost {
                scope.spawn(|| site.node(*number).kill9().unwrap());
            }
        });
        // Nobody is told anything: what they held is made good, evenly.
        site.balanced(&left, SHARDS, REPLICAS)
    });
    eprintln!("twelve: shards of each node that is left {shares:?}");
    let findings = load.findings();
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    let findings = site.fsck(left[0]);
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
}
