//! A cluster whose nodes are processes of this machine.
//!
//! ```text
//!   create ─▶ up ─▶ add_node, status, Node { start, stop, kill9, pause, resume }, net() ─▶ down ─▶ up … ─▶ destroy
//! ```
//! Every step may be done again: what is there already stays as it is. What is made is written down first, so a
//! cluster that came up halfway goes on where it was, or is taken away as a whole.

mod ask;
mod client;
mod controller;
mod monitor;
mod node;
mod status;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fsd_rpc::admin::TokenPurpose;
use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};
use crate::instance;
use crate::net::faults::Net;
use crate::net::{Network, Provider};
use crate::process;
use crate::programs;
use crate::state::{Lock, Member, State};
use crate::topology::{NODES_MAX, Topology};
use crate::wait;

pub use client::Client;
pub use monitor::{MONITOR_PORT, Monitor};
pub use node::Node;
pub use status::{ClientStatus, ControllerStatus, MonitorStatus, NodeStatus, Status};

/// Longest name: it is part of those of namespaces and interfaces.
const NAME_BYTES_MAX: usize = 32;
/// What a node may take to stop in order: it hands over what it leads, and ends its jobs.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Port of the door of every node, and of its metrics.
pub const PORT: u16 = 9400;
pub const METRICS_PORT: u16 = 9090;

/// How to work on a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything of the cluster is in here.
    pub directory: PathBuf,
    /// Directory of `cfs` and `blockd`; nothing for the usual places.
    pub programs: Option<PathBuf>,
    /// How long each step may take.
    pub limit: Duration,
    /// Hears what is being done.
    pub say: fn(&str),
}

/// See the module. Nobody else changes the cluster while this lives.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    state: Mutex<State>,
    _lock: Lock,
}

/// The cluster of a directory as it is, without changing anything.
pub fn view(directory: &Path) -> Result<State> {
    State::load(directory)?.ok_or_else(|| absent(directory))
}

fn absent(directory: &Path) -> Error {
    Error::new(Kind::Absent, format!("there is no cluster in {}", directory.display()))
        .next("cfs-dev up")
}

/// Why this is no name of a cluster.
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-');
    if good {
        return Ok(());
    }
    let what = format!("`{name}` is no name: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and - inside");
    Err(Error::new(Kind::Usage, what))
}

/// A socket of a node that is too deep in the tree could not be bound.
fn check_paths(directory: &Path) -> Result<()> {
    const SOCKET_BYTES_MAX: usize = 107;
    let bytes = directory.join("nodes/n64/blockd.sock.admin").as_os_str().len();
    if bytes <= SOCKET_BYTES_MAX {
        return Ok(());
    }
    let directory = directory.display();
    let what = format!("{directory} is too long a path for sockets in it ({bytes} bytes in all)");
    Err(Error::new(Kind::Usage, what).next("choose a shorter one with --state-dir"))
}

impl Cluster {
    /// The one in the directory, or a new one. A topology that is given has to be that of the one that is there.
    pub fn create(
        options: Options,
        name: Option<&str>,
        topology: Option<&Topology>,
    ) -> Result<Cluster> {
        let wanted = name.unwrap_or("dev");
        if State::load(&options.directory)?.is_none() {
            // Nothing is made, not even the directory, for what cannot be.
            check_name(wanted)?;
            check_paths(&options.directory)?;
            programs::directory(options.programs.as_deref())?;
        }
        let lock = Lock::take(&options.directory)?;
        if let Some(state) = State::load(&options.directory)? {
            fits(&state, name, topology)?;
            return Ok(Cluster { options, state: Mutex::new(state), _lock: lock });
        }
        let provider = match rustix::process::geteuid().is_root() {
            true => Provider::Namespaces,
            false => Provider::Loopback,
        };
        let network = Network::choose(provider, wanted)?;
        network.is_free()?;
        let default = Topology::default();
        let topology = topology.unwrap_or(&default);
        let mut state = State::new(wanted, network);
        state.site.clone_from(&topology.site);
        (state.replicas, state.shard_count) = (topology.replicas, topology.shard_count);
        let types = topology.nodes.iter().enumerate();
        state.nodes = types.map(|(at, of)| Member::new(format!("n{}", at + 1), of)).collect();
        let clients = 1..=topology.clients;
        state.clients =
            clients.map(|number| Member::new(format!("c{number}"), instance::DEFAULT)).collect();
        let cluster = Cluster { options, state: Mutex::new(state), _lock: lock };
        cluster.save()?;
        Ok(cluster)
    }

    /// The one in the directory.
    pub fn open(options: Options) -> Result<Cluster> {
        // A look first: what is not there is not made, not even a lock.
        view(&options.directory)?;
        let lock = Lock::take(&options.directory)?;
        let state = view(&options.directory)?;
        Ok(Cluster { options, state: Mutex::new(state), _lock: lock })
    }

    /// The one in the directory, to stop it: its fault controller ends, whatever it is doing.
    pub fn open_to_stop(options: Options) -> Result<Cluster> {
        if !controller::end(&options.directory)? {
            return Cluster::open(options);
        }
        // A process is dead before its last thread has given up what it had, its lock among that.
        wait::until("the fault controller's lock", options.limit, || {
            match Cluster::open(options.clone()) {
                Err(error) if error.kind == Kind::Precondition => Ok(None),
                opened => opened.map(Some),
            }
        })
    }

    pub fn directory(&self) -> &Path {
        &self.options.directory
    }

    /// How long each step may take.
    pub fn limit(&self) -> Duration {
        self.options.limit
    }

    pub fn provider(&self) -> Provider {
        self.state.lock().network.provider
    }

    /// How much of it was started.
    pub fn phase(&self) -> u8 {
        self.state.lock().phase
    }

    /// Copies of every chunk.
    pub fn replicas(&self) -> usize {
        self.state.lock().replicas
    }

    pub fn name(&self) -> String {
        self.state.lock().name.clone()
    }

    fn save(&self) -> Result<()> {
        self.state.lock().save(&self.options.directory)
    }

    fn say(&self, what: &str) {
        (self.options.say)(what);
    }

    /// Starts what is not running: the nodes, with phase 2 the clients as well, with phase 3 monitoring and the fault
    /// controller, and waits until every node is up and everything is as redundant as it should be.
    pub fn up(&self, phase: u8) -> Result<()> {
        let clients = !self.state.lock().clients.is_empty();
        if phase >= 2 && clients {
            self.can_mount()?;
        }
        if phase >= 3 {
            self.can_monitor()?;
        }
        self.network_up()?;
        self.undo_what_is_left()?;
        // Those that belong to it first and all at once: one alone answers nothing before others vote with it.
        for node in self.nodes().iter().filter(|node| node.has_joined()) {
            node.launch()?;
        }
        for node in self.nodes() {
            node.start()?;
        }
        self.settled()?;
        if phase >= 2 {
            for client in self.clients() {
                client.start()?;
            }
        }
        if phase >= 3 {
            self.start_controller()?;
            self.monitor().start()?;
        }
        let mut state = self.state.lock();
        state.phase = state.phase.max(phase);
        state.save(&self.options.directory)
    }

    /// The network alone.
    fn network_up(&self) -> Result<()> {
        let state = self.state.lock().clone();
        state.network.up()?;
        let addresses = addresses(&state);
        state.members().try_for_each(|m| state.network.add(&m.name, addresses[&m.name]))
    }

    /// Starts one more node and waits until it has joined.
    pub fn add_node(&self, instance_type: &str) -> Result<String> {
        instance::pool_bytes(instance_type)?;
        let name = {
            let mut state = self.state.lock();
            if state.nodes.iter().all(|node| node.running().is_none()) {
                let what = "no node runs that a new one could join";
                return Err(Error::new(Kind::Precondition, what).next("cfs-dev up"));
            }
            if state.nodes.len() == NODES_MAX {
                let what =
                    format!("there are {NODES_MAX} nodes already, no more fit in the network");
                return Err(Error::new(Kind::Precondition, what));
            }
            let name = format!("n{}", state.nodes.len() + 1);
            state.nodes.push(Member::new(name.clone(), instance_type));
            state.save(&self.options.directory)?;
            name
        };
        self.network_up()?;
        self.node(&name)?.start()?;
        self.monitor().refresh()?;
        self.settled()?;
        Ok(name)
    }

    /// Stops everything in order and takes the network away; what was stored stays.
    pub fn down(&self) -> Result<()> {
        self.end_controller()?;
        self.monitor().stop()?;
        for client in self.clients() {
            client.stop()?;
        }
        self.stop_nodes()?;
        self.clear()
    }

    /// Takes everything away, data included.
    pub fn destroy(self) -> Result<()> {
        self.end_controller()?;
        self.monitor().end()?;
        for client in self.clients() {
            client.end()?;
        }
        for node in self.nodes() {
            node.kill9()?;
        }
        self.clear()?;
        State::remove(&self.options.directory)
    }

    /// All at once: each waits for others to hand over to while there are any.
    fn stop_nodes(&self) -> Result<()> {
        let nodes = self.nodes();
        std::thread::scope(|scope| {
            let stops: Vec<_> = nodes.iter().map(|node| scope.spawn(|| node.stop())).collect();
            stops.into_iter().try_for_each(|stop| stop.join().expect("a stop does not panic"))
        })
    }

    /// What was started and not recorded, and the network.
    fn clear(&self) -> Result<()> {
        for stray in
            process::with_argument_in(&["cfs", "blockd", "prometheus"], &self.options.directory)
        {
            stray.kill()?;
        }
        let state = self.state.lock().clone();
        state.network.remove(state.members().map(|member| member.name.as_str()))
    }

    pub fn nodes(&self) -> Vec<Node<'_>> {
        let count = self.state.lock().nodes.len();
        (0..count).map(|at| Node { cluster: self, at }).collect()
    }

    pub fn node(&self, name: &str) -> Result<Node<'_>> {
        let at = self.state.lock().nodes.iter().position(|node| node.name == name);
        match at {
            Some(at) => Ok(Node { cluster: self, at }),
            None => Err(unknown(&self.state.lock(), name)),
        }
    }

    pub fn clients(&self) -> Vec<Client<'_>> {
        let count = self.state.lock().clients.len();
        (0..count).map(|at| Client { cluster: self, at }).collect()
    }

    /// The network between the members there are now, to be cut.
    pub fn net(&self) -> Result<Net> {
        let state = self.state.lock();
        Net::new(state.network.clone(), addresses(&state))
    }

    fn token(&self, purpose: TokenPurpose) -> Result<String> {
        let state = self.state.lock().clone();
        ask::token(&self.options.directory, &state, purpose)
    }

    /// `HOST:PORT` of every node, separated by commas.
    fn servers(&self) -> String {
        let state = self.state.lock();
        let numbers = 1..=state.nodes.len();
        let doors = numbers.map(|number| format!("{}:{PORT}", state.network.node(number)));
        doors.collect::<Vec<_>>().join(",")
    }
}

/// The failure for a name that no member has.
pub fn unknown(state: &State, name: &str) -> Error {
    let names: Vec<_> = state.members().map(|member| member.name.as_str()).collect();
    let what = format!("cluster {} has no `{name}`, but {}", state.name, names.join(", "));
    Error::new(Kind::Absent, what)
}

/// Address of every member.
pub fn addresses(state: &State) -> BTreeMap<String, Ipv4Addr> {
    let nodes = state.nodes.iter().enumerate();
    let nodes = nodes.map(|(at, node)| (node.name.clone(), state.network.node(at + 1)));
    let clients = state.clients.iter().enumerate();
    let clients = clients.map(|(at, client)| (client.name.clone(), state.network.client(at + 1)));
    nodes.chain(clients).collect()
}

/// What is asked for has to be what is there; nodes may have been added since.
fn fits(state: &State, name: Option<&str>, topology: Option<&Topology>) -> Result<()> {
    let refuse = |why: String| {
        let what = format!("cluster {} is there already, {why}", state.name);
        Err(Error::new(Kind::Precondition, what).next("cfs-dev destroy, or another --state-dir"))
    };
    if let Some(name) = name
        && name != state.name
    {
        return refuse(format!("and is not called {name}"));
    }
    let Some(topology) = topology else { return Ok(()) };
    let types: Vec<_> = state.nodes.iter().map(|node| node.instance_type.clone()).collect();
    if topology.site != state.site || !types.starts_with(&topology.nodes) {
        return refuse(format!("with {} nodes other than those of the topology", types.len()));
    }
    if topology.clients != state.clients.len() {
        return refuse(format!("with {} clients", state.clients.len()));
    }
    if (topology.replicas, topology.shard_count) != (state.replicas, state.shard_count) {
        let (replicas, shards) = (state.replicas, state.shard_count);
        return refuse(format!("with replica:{replicas} and {shards} shards"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path) -> Options {
        let programs = directory.join("programs");
        std::fs::create_dir_all(&programs).unwrap();
        for name in ["cfs", "blockd"] {
            std::fs::write(programs.join(name), "").unwrap();
        }
        Options {
            directory: directory.join("state"),
            programs: Some(programs),
            limit: Duration::from_secs(1),
            say: |_| {},
        }
    }

    #[test]
    fn a_cluster_keeps_its_shape() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        assert_eq!(Cluster::open(options.clone()).unwrap_err().kind, Kind::Absent);
        assert!(!options.directory.exists());
        let three = Topology::of(3, 1);
        let name = "unit-shape";
        drop(Cluster::create(options.clone(), Some(name), Some(&three)).unwrap());
        let create = |name: Option<&str>, topology: Option<&Topology>| {
            Cluster::create(options.clone(), name, topology).map(drop)
        };
        create(Some(name), Some(&three)).unwrap();
        create(None, None).unwrap();
        for other in [
            Topology::of(4, 1),
            Topology::of(3, 2),
            Topology { replicas: 3, ..three.clone() },
            Topology { nodes: vec!["i4i.metal".into(); 3], ..three.clone() },
        ] {
            let error = create(None, Some(&other)).unwrap_err();
            assert_eq!(error.kind, Kind::Precondition, "{error}");
        }
        assert_eq!(create(Some("other"), None).unwrap_err().kind, Kind::Precondition);
        let cluster = Cluster::open(options.clone()).unwrap();
        assert_eq!(cluster.node("n4").unwrap_err().kind, Kind::Absent);
        assert_eq!(cluster.add_node("i4i.large").unwrap_err().kind, Kind::Precondition);
        // Nothing was started, so nothing is in the way.
        cluster.destroy().unwrap();
        assert!(!options.directory.exists());
    }

    #[test]
    fn names_and_paths_are_checked_before_anything_is_made() {
        for wrong in ["", "-a", "A", "a b", "a/b", &"a".repeat(33)] {
            assert_eq!(check_name(wrong).unwrap_err().kind, Kind::Usage, "{wrong}");
        }
        check_name("dev-2").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        options.directory = directory.path().join("deep".repeat(25));
        let error = Cluster::create(options, Some("unit-deep"), None).unwrap_err();
        assert!(error.what.contains("too long"), "{error}");
    }
}
