//! Accidents: each is done, lasts, and is undone.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Accident, Shape, Step, Stop, disk};
use crate::cluster::{Cluster, Node};
use crate::error::{Error, Kind, Result};
use crate::net::Provider;
use crate::net::faults::Net;
use crate::programs;

/// Of the wait between two scrubs.
const SCRUB_AGAIN: Duration = Duration::from_millis(500);

/// What happens to one cluster.
#[derive(Debug)]
pub struct Faults<'a> {
    cluster: &'a Cluster,
    shape: Shape,
    /// Nothing where it cannot be cut.
    net: Option<Net>,
    stop: &'a Stop,
}

impl<'a> Faults<'a> {
    /// For a cluster that runs.
    pub fn new(cluster: &'a Cluster, stop: &'a Stop) -> Result<Faults<'a>> {
        let shape = shape(cluster)?;
        let net = shape.namespaces.then(|| cluster.net()).transpose()?;
        Ok(Faults { cluster, shape, net, stop })
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Does what the step says, from its beginning to its end, which comes earlier if it is asked to stop. What is
    /// wrong afterwards is returned.
    pub fn suffer(&self, step: &Step) -> Result<Vec<String>> {
        match &step.accident {
            Accident::Kill(names) => {
                let nodes = self.nodes(names)?;
                nodes.iter().try_for_each(Node::kill9)?;
                self.stop.sleep(step.lasts);
                // All before any is waited for: they may need each other.
                nodes.iter().try_for_each(Node::launch)?;
                nodes.iter().try_for_each(Node::start)?;
            }
            Accident::Restart(name) => {
                let node = self.cluster.node(name)?;
                node.stop()?;
                self.stop.sleep(step.lasts / 4);
                node.start()?;
            }
            Accident::Pause(names) => {
                let nodes = self.nodes(names)?;
                nodes.iter().try_for_each(Node::pause)?;
                self.stop.sleep(step.lasts);
                nodes.iter().try_for_each(Node::resume)?;
            }
            Accident::Cut(groups) => self.cut(groups, step.lasts)?,
            Accident::LeaderAlone { otherwise } => {
                let leader = self.leader().unwrap_or_else(|| otherwise.clone());
                let others = self.shape.nodes.iter().filter(|node| **node != leader);
                let others = others.cloned().collect();
                self.cut(&[vec![leader], others], step.lasts)?;
            }
            Accident::OneWay { from, to } => {
                let net = self.net()?;
                net.one_way(from, to)?;
                self.stop.sleep(step.lasts);
                net.heal()?;
            }
            Accident::FullDisk(name) => {
                // It may stop working, but lives; with room again it is started anew, as an operator would.
                let node = self.cluster.node(name)?;
                disk::fill(&node.directory())?;
                self.stop.sleep(step.lasts);
                let fallen = self.fallen();
                disk::empty(&node.directory())?;
                node.stop()?;
                node.start()?;
                return Ok(fallen);
            }
            Accident::Corrupt { node, choice } => return self.corrupt(node, *choice),
        }
        Ok(self.fallen())
    }

    fn nodes(&self, names: &[String]) -> Result<Vec<Node<'a>>> {
        names.iter().map(|name| self.cluster.node(name)).collect()
    }

    /// Name of the node that leads the metadata, if anybody says.
    fn leader(&self) -> Option<String> {
        let nodes = self.cluster.list().ok()?;
        let leader = nodes.into_iter().find(|node| node.role == "leader")?;
        self.shape.nodes.contains(&leader.name).then_some(leader.name)
    }

    fn net(&self) -> Result<&Net> {
        let what = "the network of this cluster cannot be cut";
        self.net.as_ref().ok_or_else(|| Error::new(Kind::Precondition, what))
    }

    fn cut(&self, groups: &[Vec<String>], lasts: Duration) -> Result<()> {
        let net = self.net()?;
        net.partition(groups)?;
        self.stop.sleep(lasts);
        net.heal()
    }

    /// Nodes that ended although nobody ended them.
    fn fallen(&self) -> Vec<String> {
        let nodes = self.cluster.nodes();
        let names = nodes.iter().filter(|node| node.process().is_none()).map(Node::name);
        let fallen = names.filter(|name| self.shape.nodes.contains(name));
        fallen.map(|name| format!("{name} ended by itself")).collect()
    }

    /// While everything has all its copies, one of them goes bad; the scrub has to make it good.
    fn corrupt(&self, name: &str, choice: u64) -> Result<Vec<String>> {
        self.cluster.settled()?;
        let node = self.cluster.node(name)?;
        node.kill9()?;
        let damaged = disk::damage(&node.pool(), choice)?;
        node.start()?;
        self.cluster.settled()?;
        tracing::info!("{damaged} records of {name} are damaged");
        self.scrub_until_good()
    }

    /// Every node verifies what it has and makes it good: what was damaged. A node that cannot just now is asked again.
    pub fn scrub(&self) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let report = self.cluster.admin(&["scrub"])?;
            let nodes = report["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let failed = |node: &Value| !node["failed"].is_null();
            let told = |is: &dyn Fn(&Value) -> bool| -> Vec<String> {
                nodes.iter().filter(|node| is(node)).map(|node| format!("scrub: {node}")).collect()
            };
            let damaged = told(&|node| !failed(node) && node["damaged"] != 0);
            if !nodes.is_empty() && (!damaged.is_empty() || !nodes.iter().any(failed)) {
                return Ok(damaged);
            }
            tracing::info!("{report}");
            if started.elapsed() > self.cluster.limit() {
                return Ok(vec![format!("scrub: {report}")]);
            }
            std::thread::sleep(SCRUB_AGAIN);
        }
    }

    /// Again until there is nothing: what is deleted while it is looked at cannot be made good, and goes.
    fn scrub_until_good(&self) -> Result<Vec<String>> {
        let started = Instant::now();
        loop {
            let bad = self.scrub()?;
            if bad.is_empty() || started.elapsed() > self.cluster.limit() {
                return Ok(bad);
            }
            tracing::info!("{}", bad.join(", "));
            std::thread::sleep(SCRUB_AGAIN);
        }
    }

    /// Undoes whatever an accident has left and waits until all is well.
    pub fn heal(&self) -> Result<()> {
        undo(self.cluster)?;
        let nodes = self.nodes(&self.shape.nodes)?;
        // All before any is waited for: they may need each other.
        nodes.iter().try_for_each(Node::launch)?;
        nodes.iter().try_for_each(Node::start)?;
        self.cluster.settled()
    }

    /// Findings of the check of everything, all data read.
    pub fn fsck(&self) -> Result<Vec<String>> {
        let report = self.cluster.admin(&["fsck", "--read-data"])?;
        match report["findings"].as_array() {
            Some(findings) if report["chunks_read"] == report["chunks"] => {
                Ok(findings.iter().map(|finding| format!("fsck: {finding}")).collect())
            }
            _ => Ok(vec![format!("fsck has not read everything: {report}")]),
        }
    }
}

/// What of a cluster runs, so that accidents can happen to it.
pub fn shape(cluster: &Cluster) -> Result<Shape> {
    let nodes = cluster.nodes();
    let nodes: Vec<&Node> = nodes.iter().filter(|node| node.process().is_some()).collect();
    let clients = cluster.clients();
    let clients = clients.iter().filter(|client| client.process().is_some());
    if nodes.is_empty() {
        return Err(Error::new(Kind::Precondition, "no node runs").next("cfs-dev up"));
    }
    Ok(Shape {
        nodes: nodes.iter().map(|node| node.name()).collect(),
        clients: clients.map(crate::cluster::Client::name).collect(),
        replicas: cluster.replicas(),
        namespaces: cluster.provider() == Provider::Namespaces,
        own_disks: nodes.iter().all(|node| disk::is_own(&node.directory(), cluster.directory())),
    })
}

/// Undoes what accidents leave that nobody undid: everybody reaches everybody, nobody stands still, no disk is full.
/// What was ended stays so.
pub fn undo(cluster: &Cluster) -> Result<()> {
    // Without nft nothing was cut.
    if cluster.provider() == Provider::Namespaces && programs::is_in_path("nft") {
        cluster.net()?.clear()?;
    }
    for node in cluster.nodes() {
        disk::empty(&node.directory())?;
        if node.process().is_some() {
            node.resume()?;
        }
    }
    Ok(())
}
