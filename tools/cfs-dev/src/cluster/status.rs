//! How a cluster is: its processes as the system sees them, its nodes as it tells itself.

use std::path::{Path, PathBuf};

use fsd_rpc::admin::{Health, Level, Node};
use serde::Serialize;

use super::client::is_mounted;
use super::{METRICS_PORT, MONITOR_PORT, PORT, addresses, ask};
use crate::error::Result;
use crate::fault;
use crate::net::Provider;
use crate::state::{Member, State};

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub site: String,
    pub provider: Provider,
    pub phase: u8,
    pub protection: String,
    pub shard_count: u32,
    pub directory: PathBuf,
    /// Nothing while no node answers.
    pub health: Option<Health>,
    pub nodes: Vec<NodeStatus>,
    pub clients: Vec<ClientStatus>,
    /// Both of phase 3.
    pub monitor: Option<MonitorStatus>,
    pub controller: Option<ControllerStatus>,
}

/// Of the monitoring.
#[derive(Clone, Debug, Serialize)]
pub struct MonitorStatus {
    pub pid: Option<u32>,
    /// Where the dashboards are.
    pub url: String,
    pub log: PathBuf,
}

/// Of the fault controller.
#[derive(Clone, Debug, Serialize)]
pub struct ControllerStatus {
    pub pid: Option<u32>,
    /// What is under way.
    pub job: Option<fault::controller::UnderWay>,
    pub log: PathBuf,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    pub name: String,
    pub instance_type: String,
    /// `cfs server`, if it runs.
    pub pid: Option<u32>,
    pub blockd_pid: Option<u32>,
    pub address: String,
    pub metrics: String,
    pub namespace: Option<String>,
    pub directory: PathBuf,
    pub log: PathBuf,
    /// As the cluster sees it: `up`, `down`, …; nothing if nobody tells.
    pub state: Option<String>,
    /// Of the metadata group.
    pub role: Option<String>,
    /// Shards that it has a copy of, and those that it leads.
    pub shards: usize,
    pub shards_primary: u32,
    pub capacity_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ClientStatus {
    pub name: String,
    pub pid: Option<u32>,
    pub address: String,
    pub namespace: Option<String>,
    pub mountpoint: PathBuf,
    pub mounted: bool,
    pub log: PathBuf,
}

impl Status {
    /// Of the cluster in this directory.
    pub fn of(directory: &Path, state: &State) -> Result<Status> {
        let told = ask::nodes(directory, state).unwrap_or_default();
        let nodes = state.nodes.iter().enumerate();
        let nodes = nodes.map(|(at, member)| node(directory, state, at, member, &told)).collect();
        let clients = state.clients.iter();
        let clients = clients.map(|member| client(directory, state, member));
        Ok(Status {
            name: state.name.clone(),
            site: state.site.clone(),
            provider: state.network.provider,
            phase: state.phase,
            protection: format!("replica:{}", state.replicas),
            shard_count: state.shard_count,
            directory: directory.to_owned(),
            health: ask::status(directory, state).ok().map(|status| status.health),
            nodes,
            clients: clients.collect::<Result<_>>()?,
            monitor: (state.phase >= 3).then(|| monitor(directory, state)),
            controller: (state.phase >= 3).then(|| controller(directory, state)),
        })
    }

    /// The worst of what the cluster says and of what does not run although it should.
    pub fn level(&self) -> Level {
        let running = self.nodes.iter().any(|node| node.pid.is_some());
        let told = match &self.health {
            Some(health) => health.word,
            None if running => Level::Err,
            // All is down, as `cfs-dev down` leaves it.
            None => Level::Warn,
        };
        let ended = self.nodes.iter().any(|node| node.pid.is_none());
        let gone = self.phase >= 2 && self.clients.iter().any(|c| !c.mounted || c.pid.is_none());
        let services = [
            self.controller.as_ref().map(|controller| controller.pid),
            self.monitor.as_ref().map(|monitor| monitor.pid),
        ];
        let gone = gone || services.contains(&Some(None));
        if ended || gone { told.max(Level::Warn) } else { told }
    }
}

fn node(directory: &Path, state: &State, at: usize, member: &Member, told: &[Node]) -> NodeStatus {
    let address = state.network.node(at + 1);
    let process = member.running();
    let blockd = process.and_then(|server| {
        let children = server.descendants();
        children.into_iter().find(|child| child.program().as_deref() == Some("blockd"))
    });
    let own = told.iter().find(|node| node.name == member.name && node.state != "removed");
    let shards = || told.iter().flat_map(|node| &node.shards);
    let directory = directory.join("nodes").join(&member.name);
    NodeStatus {
        name: member.name.clone(),
        instance_type: member.instance_type.clone(),
        pid: process.map(|process| process.pid),
        blockd_pid: blockd.map(|blockd| blockd.pid),
        address: format!("{address}:{PORT}"),
        metrics: format!("http://{address}:{METRICS_PORT}/metrics"),
        namespace: state.network.namespace(&member.name),
        log: directory.join("log"),
        directory,
        state: own.map(|node| node.state.clone()),
        role: own.map(|node| node.role.clone()),
        shards: own.map_or(0, |own| shards().filter(|s| s.in_sync.contains(&own.id)).count()),
        shards_primary: own.map_or(0, |node| node.shards_primary),
        capacity_bytes: own.map_or(0, |node| node.capacity_bytes),
    }
}

fn monitor(directory: &Path, state: &State) -> MonitorStatus {
    let process = state.monitor.as_ref().filter(|process| process.is_alive());
    MonitorStatus {
        pid: process.map(|process| process.pid),
        url: format!("http://{}:{MONITOR_PORT}/", state.network.orchestrator()),
        log: directory.join("monitor/log"),
    }
}

fn controller(directory: &Path, state: &State) -> ControllerStatus {
    let process = state.controller.as_ref().filter(|process| process.is_alive());
    let status = process.and_then(|_| fault::controller::status(directory).ok());
    ControllerStatus {
        pid: process.map(|process| process.pid),
        job: status.and_then(|status| status.job),
        log: fault::controller::log(directory),
    }
}

fn client(directory: &Path, state: &State, member: &Member) -> Result<ClientStatus> {
    let directory = directory.join("clients").join(&member.name);
    let mountpoint = directory.join("mnt");
    Ok(ClientStatus {
        name: member.name.clone(),
        pid: member.running().map(|process| process.pid),
        address: addresses(state)[&member.name].to_string(),
        namespace: state.network.namespace(&member.name),
        mounted: is_mounted(&mountpoint)?,
        log: directory.join("log"),
        mountpoint,
    })
}
