//! Five nodes, each on a small disk of its own, two clients, and what is done to them.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cfs_dev::cluster::Node;
use cfs_dev::net::faults::Net;
use cfs_dev::random::Random;
use cfs_dev::topology::Topology;
use serde_json::Value;

use super::plan::{Kind, NODES, Step};
use crate::site::{self, LIMIT};

pub const CLIENTS: usize = 2;
/// A node's disk: a tmpfs, so that it can be full.
const DISK: &str = "size=1g,mode=0755";
/// Records that are damaged at a time, at most.
const DAMAGES_MAX: usize = 40;
/// What every record in a pool starts with, at a multiple of 16 bytes (docs/formats).
const RECORD_MAGIC: &[u8] = b"CFRC";

/// See the module.
#[derive(Debug)]
pub struct Site {
    site: site::Site,
    net: Net,
}

impl Site {
    /// All up, in this directory.
    pub fn up(directory: &Path) -> Site {
        for number in 1..=NODES {
            let disk = directory.join(format!("nodes/n{number}"));
            fs::create_dir_all(&disk).unwrap();
            run(Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(&disk));
        }
        let topology = Topology { replicas: 3, shard_count: 16, ..Topology::of(NODES, CLIENTS) };
        let site = site::Site::up(directory, "nemesis", &topology);
        Site { net: site.cluster.net().unwrap(), site }
    }

    pub fn mount(&self, client: usize) -> PathBuf {
        self.site.mount(client)
    }

    fn node(&self, number: usize) -> Node<'_> {
        self.site.node(number)
    }

    /// Does what the step says, from its beginning to its end. What is wrong afterwards is returned.
    pub fn suffer(&self, step: &Step) -> Vec<String> {
        let hit = &step.nodes[..step.count];
        match step.kind {
            Kind::Kill => self.killed(hit, step.lasts),
            Kind::KillAll => self.killed(&step.nodes, step.lasts.min(Duration::from_secs(3))),
            Kind::Restart => {
                let node = self.node(step.nodes[0]);
                node.stop().unwrap();
                std::thread::sleep(step.lasts / 4);
                node.start().unwrap();
            }
            Kind::Pause => {
                hit.iter().for_each(|number| self.node(*number).pause().unwrap());
                std::thread::sleep(step.lasts);
                hit.iter().for_each(|number| self.node(*number).resume().unwrap());
            }
            Kind::Halves | Kind::Bridge | Kind::ClientAlone => {
                self.cut(&step.groups(), step.lasts);
            }
            Kind::LeaderAlone => {
                let leader = self.site.leader().unwrap_or(step.nodes[0]);
                let others = step.nodes.iter().filter(|number| **number != leader);
                let others = others.map(|number| format!("n{number}")).collect();
                self.cut(&[vec![format!("n{leader}")], others], step.lasts);
            }
            Kind::OneWay => {
                let name = |at: usize| format!("n{}", step.nodes[at]);
                self.net.one_way(&name(0), &name(1)).unwrap();
                std::thread::sleep(step.lasts);
                self.net.heal().unwrap();
            }
            Kind::FullDisk => self.full_disk(step.nodes[0], step.lasts),
            Kind::Corrupt => return self.corrupt(step.nodes[0], step.choice),
        }
        self.site.fallen()
    }

    fn killed(&self, numbers: &[usize], lasts: Duration) {
        numbers.iter().for_each(|number| self.node(*number).kill9().unwrap());
        std::thread::sleep(lasts);
        // All before any is waited for: they may need each other.
        numbers.iter().for_each(|number| self.node(*number).launch().unwrap());
        numbers.iter().for_each(|number| self.node(*number).start().unwrap());
    }

    fn cut(&self, groups: &[Vec<String>], lasts: Duration) {
        self.net.partition(groups).unwrap();
        std::thread::sleep(lasts);
        self.net.heal().unwrap();
    }

    /// A node may stop working, or end, while its disk is full; with room again it is started anew, as an operator would.
    fn full_disk(&self, number: usize, lasts: Duration) {
        let node = self.node(number);
        let filler = node.directory().join("filler");
        fill(&filler);
        std::thread::sleep(lasts);
        fs::remove_file(&filler).unwrap();
        node.stop().unwrap();
        node.start().unwrap();
    }

    /// While everything has all its copies, one of them goes bad; the scrub has to make it good.
    fn corrupt(&self, number: usize, choice: u64) -> Vec<String> {
        self.site.cluster.settled().unwrap();
        let node = self.node(number);
        node.kill9().unwrap();
        let damaged = damage(&node.pool(), choice);
        node.start().unwrap();
        self.site.cluster.settled().unwrap();
        eprintln!("nemesis: {damaged} records of n{number} are damaged");
        self.scrub()
    }

    /// Every node verifies what it has and makes it good, again until there is nothing: what is deleted while it is
    /// looked at cannot be made good, and goes.
    fn scrub(&self) -> Vec<String> {
        let started = Instant::now();
        loop {
            let report = self.site.admin(1, &["scrub"]);
            let nodes = report["nodes"].as_array().expect("scrub tells of every node");
            let bad = |node: &&Value| !node["failed"].is_null() || node["damaged"] != 0;
            let bad: Vec<String> =
                nodes.iter().filter(bad).map(|node| format!("scrub: {node}")).collect();
            if bad.is_empty() || started.elapsed() > LIMIT {
                return bad;
            }
            eprintln!("nemesis: {}", bad.join(", "));
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Undoes whatever an accident has left and waits until all is well.
    pub fn heal(&self) {
        self.net.heal().unwrap();
        for node in self.site.cluster.nodes() {
            if node.process().is_some() {
                node.resume().unwrap();
            }
            node.start().unwrap();
        }
        self.site.cluster.settled().unwrap();
    }

    /// Findings of the check of everything, all data read.
    pub fn fsck(&self) -> Vec<String> {
        self.site.fsck(1)
    }

    /// Where the nodes' disks are mounted.
    pub fn disks(&self) -> Vec<PathBuf> {
        self.site.cluster.nodes().iter().map(Node::directory).collect()
    }

    /// Copies the logs to where they outlive this process's mounts.
    pub fn save_logs(&self, to: &Path) {
        let nodes = self.site.cluster.nodes();
        let nodes = nodes.iter().map(|node| (node.name(), node.log()));
        let clients = self.site.cluster.clients();
        let clients = clients.iter().map(|c| (c.name(), c.directory().join("log")));
        for (name, log) in nodes.chain(clients) {
            if let Err(error) = fs::copy(&log, to.join(format!("{name}.log"))) {
                eprintln!("nemesis: {}: {error}", log.display());
            }
        }
    }
}

/// Writes until there is no room for another page.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for len in [1 << 20, 4 << 10] {
        let bytes = vec![1; len];
        loop {
            match file.write_all(&bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("filling {}: {error}", path.display()),
            }
        }
    }
}

/// Flips bytes in some records of a pool, as a bad disk would; how many.
fn damage(pool: &Path, choice: u64) -> usize {
    let bytes = fs::read(pool).unwrap();
    let starts = (0..bytes.len()).step_by(16).filter(|at| bytes[*at..].starts_with(RECORD_MAGIC));
    let starts: Vec<usize> = starts.collect();
    let mut random = Random::branch(choice, &[3]);
    let chosen = random.some(&starts, starts.len().min(DAMAGES_MAX));
    let file = File::options().write(true).open(pool).unwrap();
    for at in &chosen {
        let flipped: Vec<u8> = bytes[at + 100..at + 108].iter().map(|byte| !byte).collect();
        file.write_all_at(&flipped, *at as u64 + 100).unwrap();
    }
    chosen.len()
}

/// Runs a command that has to succeed; its stdout.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {told}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
