//! What a cluster is to consist of: the runbook's YAML, or one node and one client.
//!
//! ```yaml
//! sites:
//!   - name: site-a
//!     nodes: 3
//!     instance_type: i4i.2xlarge
//!     availability_zone: us-west-2a    # taken and without effect here
//! clients:
//!   - instance_type: c7a.xlarge
//!     count: 1
//! protection: replica:2                # not in the runbook; else two copies, one of a single node
//! shard_count: 16                      # likewise; else 16 up to four nodes, 64 for more
//! ```
//! Everything is checked before anything is started. A `conduit` joins two sites and a `jepsen_controller` is of phase 3:
//! the first is read, so that the file of a cloud can be used, the second asks for that phase. A second site is refused, for
//! nothing would replicate to it.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Doing, Error, Kind, Result};
use crate::instance;

/// Most nodes and clients: they are processes of one machine, and addresses of one network.
pub const NODES_MAX: usize = 64;
pub const CLIENTS_MAX: usize = 32;
/// Most copies that ClaudeFS keeps.
const REPLICAS_MAX: usize = 7;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    pub site: String,
    /// Instance type of each node.
    pub nodes: Vec<String>,
    pub clients: usize,
    /// Copies of every chunk.
    pub replicas: usize,
    pub shard_count: u32,
    /// Whether it has a fault controller.
    pub controller: bool,
    /// What is in the file and has no effect, for people.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sites: Vec<Site>,
    #[serde(default)]
    clients: Vec<Machines>,
    conduit: Option<Machines>,
    jepsen_controller: Option<Controller>,
    protection: Option<String>,
    shard_count: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Site {
    name: String,
    nodes: usize,
    instance_type: String,
    #[serde(rename = "availability_zone")]
    _availability_zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    instance_type: String,
    count: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Controller {
    instance_type: String,
}

impl Default for Topology {
    /// The runbook's single-node development cluster.
    fn default() -> Topology {
        Topology::of(1, 1)
    }
}

impl Topology {
    /// So many nodes of the usual size, and clients.
    pub fn of(nodes: usize, clients: usize) -> Topology {
        Topology {
            site: "local".into(),
            nodes: vec![instance::DEFAULT.into(); nodes],
            clients,
            replicas: nodes.clamp(1, 2),
            shard_count: shard_count(nodes),
            controller: false,
            notes: Vec::new(),
        }
    }

    pub fn load(path: &Path) -> Result<Topology> {
        let text = std::fs::read_to_string(path)
            .doing(|| format!("cannot read the topology {}", path.display()))?;
        Topology::parse(&text, &path.display().to_string())
    }

    /// `name` is the file's, for messages.
    pub fn parse(text: &str, name: &str) -> Result<Topology> {
        let file: File = serde_yaml_ng::from_str(text).map_err(|error| {
            Error::new(Kind::Usage, format!("topology {name} is refused: {error}"))
                .next("`cfs-dev up --help` shows one")
        })?;
        file.check().map_err(|(key, why)| {
            let place = match line_of(text, key) {
                Some(line) => format!("{name}, line {line}"),
                None => name.to_owned(),
            };
            Error::new(Kind::Usage, format!("topology {place} is refused: {key}: {why}"))
        })
    }
}

fn shard_count(nodes: usize) -> u32 {
    if nodes <= 4 { 16 } else { 64 }
}

/// Number of the first line that sets the key.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start().trim_start_matches("- ").trim_start();
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'))
    };
    text.lines().position(sets).map(|at| at + 1)
}

impl File {
    /// The key that is wrong, and why.
    fn check(self) -> std::result::Result<Topology, (&'static str, String)> {
        let [site] = self.sites.as_slice() else {
            let why = match self.sites.get(1) {
                Some(second) => format!(
                    "`{}` is a second site, and this version cannot replicate to one: there is no conduit yet. Keep one",
                    second.name
                ),
                None => "there is none: name one, with its nodes".to_owned(),
            };
            return Err(("sites", why));
        };
        if site.name.is_empty() {
            return Err(("name", "a site needs one".into()));
        }
        if !(1..=NODES_MAX).contains(&site.nodes) {
            return Err(("nodes", format!("{} is not from 1 to {NODES_MAX}", site.nodes)));
        }
        let machines = self.clients.iter().chain(&self.conduit).map(|m| &m.instance_type);
        let types = machines.chain(self.jepsen_controller.iter().map(|c| &c.instance_type));
        for instance_type in types.chain([&site.instance_type]) {
            instance::pool_bytes(instance_type).map_err(|error| ("instance_type", error.what))?;
        }
        let clients = self.clients.iter().try_fold(0usize, |sum, c| sum.checked_add(c.count));
        let clients = match clients {
            Some(clients @ 0..=CLIENTS_MAX) => clients,
            _ => return Err(("count", format!("more than {CLIENTS_MAX} clients"))),
        };
        let replicas = match &self.protection {
            Some(text) => protection(text, site.nodes).map_err(|why| ("protection", why))?,
            None => site.nodes.min(2),
        };
        let shard_count = self.shard_count.unwrap_or(shard_count(site.nodes));
        if !shard_count.is_power_of_two() || shard_count > 65536 {
            return Err((
                "shard_count",
                format!("{shard_count} is not a power of two up to 65536"),
            ));
        }
        let mut notes = Vec::new();
        if self.conduit.is_some_and(|conduit| conduit.count > 0) {
            notes.push("conduit: not started, there is one site and nothing to join".to_owned());
        }
        Ok(Topology {
            site: site.name.clone(),
            nodes: vec![site.instance_type.clone(); site.nodes],
            clients,
            replicas,
            shard_count,
            controller: self.jepsen_controller.is_some(),
            notes,
        })
    }
}

/// Copies that `replica:N` means, if so many nodes can hold them.
fn protection(text: &str, nodes: usize) -> std::result::Result<usize, String> {
    if text.starts_with("ec:") {
        return Err(format!("`{text}`: this version has no erasure coding; say `replica:N`"));
    }
    match text.strip_prefix("replica:").map(str::parse::<usize>) {
        Some(Ok(replicas @ 1..=REPLICAS_MAX)) if replicas <= nodes => Ok(replicas),
        Some(Ok(replicas @ 1..=REPLICAS_MAX)) => {
            Err(format!("{replicas} copies need {replicas} nodes, and there are {nodes}"))
        }
        Some(_) | None => {
            Err(format!("`{text}` is not `replica:N` with N from 1 to {REPLICAS_MAX}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNBOOK: &str = "\
sites:
  - name: site-a
    nodes: 3
    instance_type: i4i.2xlarge
    availability_zone: us-west-2a
  - name: site-b
    nodes: 2
    instance_type: i4i.2xlarge
    availability_zone: us-west-2b

clients:
  - instance_type: c7a.xlarge
    count: 1

conduit:
  instance_type: t3.medium
  count: 1

jepsen_controller:
  instance_type: c7a.xlarge
";

    fn one_site() -> String {
        let (before, rest) = RUNBOOK.split_once("  - name: site-b").unwrap();
        before.to_owned() + rest.split_once("us-west-2b\n").unwrap().1
    }

    fn refused(text: &str) -> String {
        let error = Topology::parse(text, "t.yaml").unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        error.what
    }

    #[test]
    fn the_runbooks_file_with_one_site_is_understood() {
        let topology = Topology::parse(&one_site(), "t.yaml").unwrap();
        assert_eq!(topology.nodes, vec!["i4i.2xlarge"; 3]);
        assert_eq!((topology.site.as_str(), topology.clients), ("site-a", 1));
        assert_eq!((topology.replicas, topology.shard_count), (2, 16));
        // What is not started is said.
        assert_eq!(topology.notes.len(), 1, "{:?}", topology.notes);
        assert!(topology.controller);
        let more = one_site() + "protection: replica:3\nshard_count: 64\n";
        let topology = Topology::parse(&more, "t.yaml").unwrap();
        assert_eq!((topology.replicas, topology.shard_count), (3, 64));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name_and_line() {
        let told = refused(RUNBOOK);
        assert!(told.contains("site-b") && told.contains("conduit"), "{told}");
        let told = refused(&one_site().replace("count: 1", "count: 1\n    colour: red"));
        assert!(told.contains("colour") && told.contains("line 10"), "{told}");
        let two = one_site().replace("nodes: 3", "nodes: 2") + "protection: replica:3\n";
        let told = refused(&two);
        assert!(told.contains("line 17 "), "{told}");
        assert!(told.contains("protection: 3 copies need 3 nodes"), "{told}");
        for (from, to, word) in [
            ("nodes: 3", "nodes: 0", "nodes"),
            ("nodes: 3", "nodes: 65", "nodes"),
            ("nodes: 3", "nodes: many", "line 3"),
            ("i4i.2xlarge", "i4i", "instance_type"),
            ("c7a.xlarge\n    count: 1", "c7a.xlarge\n    count: 33", "clients"),
            ("sites:", "places:", "places"),
        ] {
            let text = one_site().replacen(from, to, 1);
            assert!(refused(&text).contains(word), "{to}: {}", refused(&text));
        }
        for (line, word) in [
            ("protection: ec:4+2", "erasure coding"),
            ("protection: replica:8", "from 1 to 7"),
            ("protection: three", "replica:N"),
            ("shard_count: 12", "power of two"),
        ] {
            let told = refused(&(one_site() + line + "\n"));
            assert!(told.contains(word), "{line}: {told}");
        }
        assert!(refused("sites: []").contains("there is none"));
        refused("");
    }
}
