//! A cluster by the library behind the command, asked as an operator and a scraper would ask it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cfs_dev::Cluster;
use cfs_dev::cluster::{METRICS_PORT, Node, Options};
use cfs_dev::topology::Topology;
use serde_json::Value;

/// Longer than any start, move or repair takes on the slowest machine.
pub const LIMIT: Duration = Duration::from_secs(400);

/// See the module.
#[derive(Debug)]
pub struct Site {
    pub cluster: Cluster,
    programs: PathBuf,
}

impl Site {
    /// All up, nodes and clients, in this directory.
    pub fn up(directory: &Path, name: &str, topology: &Topology) -> Site {
        let programs = Path::new(crate::world::PROGRAM).parent().unwrap().to_owned();
        let options = Options {
            directory: directory.to_owned(),
            programs: Some(programs.clone()),
            limit: LIMIT,
            say: |what| eprintln!("site: {what}"),
        };
        let cluster = Cluster::create(options, Some(name), Some(topology)).unwrap();
        cluster.up(2).unwrap();
        Site { cluster, programs }
    }

    pub fn mount(&self, client: usize) -> PathBuf {
        self.cluster.clients()[client].mountpoint()
    }

    pub fn node(&self, number: usize) -> Node<'_> {
        self.cluster.node(&format!("n{number}")).unwrap()
    }

    /// Number of the node that leads the metadata, if anybody says.
    pub fn leader(&self) -> Option<usize> {
        let nodes = self.cluster.list().ok()?;
        let leader = nodes.iter().find(|node| node.role == "leader")?;
        leader.name.strip_prefix('n')?.parse().ok()
    }

    /// `cfs admin …` on a node, whatever its exit code: its document.
    pub fn admin(&self, asked: usize, arguments: &[&str]) -> Value {
        let mut command = Command::new(self.programs.join("cfs"));
        command.arg("admin").args(arguments).args(["-o", "json", "--timeout", "300s", "--socket"]);
        let output = command.arg(self.node(asked).socket()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let told = String::from_utf8_lossy(&output.stderr);
            panic!("{command:?}: {error}: {}: {told}", output.status)
        })
    }

    /// Findings of the check of everything, all data read.
    pub fn fsck(&self, asked: usize) -> Vec<String> {
        let report = self.admin(asked, &["fsck", "--read-data"]);
        let findings = report["findings"].as_array().expect("fsck tells its findings");
        assert!(report["chunks_read"].as_u64() > Some(0), "{report}");
        findings.iter().map(|finding| format!("fsck: {finding}")).collect()
    }

    /// What a node exports under this name.
    pub fn metric(&self, number: usize, name: &str) -> u64 {
        let mut stream = TcpStream::connect((self.node(number).address(), METRICS_PORT)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("n{number} exports no {name}:\n{text}"));
        value.parse::<f64>().unwrap() as u64
    }

    /// Copies of shards that each of these nodes has, by its number.
    pub fn shards_of(&self, numbers: &[usize]) -> BTreeMap<usize, usize> {
        let nodes = self.cluster.list().unwrap_or_default();
        let shards: Vec<_> = nodes.iter().flat_map(|node| &node.shards).collect();
        let count = |number: &usize| {
            let id = nodes.iter().find(|node| node.name == format!("n{number}")).map(|n| n.id);
            let held =
                shards.iter().filter(|shard| id.is_some_and(|id| shard.in_sync.contains(&id)));
            (*number, held.count())
        };
        numbers.iter().map(count).collect()
    }

    /// Waits until these nodes, and no others, have so many copies of every shard, as many each as any other within five
    /// percent of the share, or one.
    pub fn balanced(
        &self,
        numbers: &[usize],
        shard_count: usize,
        copies: usize,
    ) -> BTreeMap<usize, usize> {
        let all = shard_count * copies;
        let slack = (all / numbers.len() / 20).max(1);
        let mut found = BTreeMap::new();
        let is_so = |found: &BTreeMap<usize, usize>| {
            let (least, most) = (found.values().min(), found.values().max());
            let near = least.zip(most).is_some_and(|(least, most)| most - least <= slack);
            near && found.values().sum::<usize>() == all
        };
        let since = Instant::now();
        while since.elapsed() < LIMIT {
            found = self.shards_of(numbers);
            if is_so(&found) && self.copies() == all {
                return found;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("{copies} copies of {shard_count} shards are not balanced on {numbers:?}: {found:?}")
    }

    /// How many epochs all shards have had.
    pub fn epochs(&self) -> u64 {
        let nodes = self.cluster.list().unwrap();
        nodes.iter().flat_map(|node| &node.shards).map(|shard| shard.epoch).sum()
    }

    /// Copies of all shards, wherever they are.
    fn copies(&self) -> usize {
        let nodes = self.cluster.list().unwrap_or_default();
        nodes.iter().flat_map(|node| &node.shards).map(|shard| shard.in_sync.len()).sum()
    }
}
