//! A storage node: `cfs server`, and the `blockd` that it starts.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use fsd_rpc::admin::{AdminRequest, TokenPurpose};
use rustix::process::Signal;
use serde::Serialize;

use super::{Cluster, METRICS_PORT, PORT, STOP_WITHIN, ask};
use crate::error::{Doing, Error, Kind, Result};
use crate::instance;
use crate::process::{Launch, Process};
use crate::programs;
use crate::wait;

/// Lines of a log that are told when a process has ended.
const TAIL_LINES: usize = 12;

/// A node of a [`Cluster`], running or not.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    pub(super) cluster: &'a Cluster,
    /// Place in the state.
    pub(super) at: usize,
}

/// `node.toml`, as `fsd::config` reads it.
#[derive(Serialize)]
struct Config {
    node: NodeTable,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterTable>,
    door: Door,
    blockd: Blockd,
    metrics: Metrics,
}

#[derive(Serialize)]
struct NodeTable {
    name: String,
    data_dir: &'static str,
}

#[derive(Serialize)]
struct ClusterTable {
    name: String,
    shard_count: u32,
    protection: String,
}

#[derive(Serialize)]
struct Door {
    unix: &'static str,
    tcp: SocketAddr,
}

#[derive(Serialize)]
struct Blockd {
    socket: &'static str,
    pool: Pool,
}

#[derive(Serialize)]
struct Pool {
    path: &'static str,
    size: u64,
}

#[derive(Serialize)]
struct Metrics {
    listen: SocketAddr,
}

impl Node<'_> {
    pub fn name(&self) -> String {
        self.cluster.state.lock().nodes[self.at].name.clone()
    }

    pub fn directory(&self) -> PathBuf {
        self.cluster.options.directory.join("nodes").join(self.name())
    }

    pub fn log(&self) -> PathBuf {
        self.directory().join("log")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory().join("fsd.sock")
    }

    /// The file of its data.
    pub fn pool(&self) -> PathBuf {
        self.directory().join("pool")
    }

    pub fn address(&self) -> Ipv4Addr {
        self.cluster.state.lock().network.node(self.at + 1)
    }

    /// `cfs server`, if it runs.
    pub fn process(&self) -> Option<Process> {
        self.cluster.state.lock().nodes[self.at].running().cloned()
    }

    /// Whether it has been made a node of the cluster.
    pub(super) fn has_joined(&self) -> bool {
        self.directory().join("meta/identity.toml").exists()
    }

    /// Starts it, joining the cluster first if it has not, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.ready()
    }

    /// Starts its process, unless it runs, and waits for nothing.
    pub fn launch(&self) -> Result<()> {
        if self.process().is_some() {
            return Ok(());
        }
        let (name, directory) = (self.name(), self.directory());
        self.cluster.say(&format!("starting {name} at {}", self.address()));
        fs::create_dir_all(&directory).doing(|| format!("cannot make {}", directory.display()))?;
        // Of a node that was killed: its blockd ends by itself, and must have before another one starts.
        self.end_blockd()?;
        let config = self.write_config()?;
        let mut arguments = vec!["server".into()];
        if self.at > 0 && !self.has_joined() {
            let metadata = directory.join("meta");
            // What an attempt to join has left is of no use, and in the way.
            match fs::remove_dir_all(&metadata) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).doing(|| format!("cannot remove {}", metadata.display()));
                }
                Ok(()) | Err(_) => {}
            }
            let token = self.cluster.token(TokenPurpose::Node)?;
            let first = self.cluster.state.lock().network.node(1);
            arguments.extend(["join".into(), "--token".into(), token.into()]);
            arguments.extend(["--seed".into(), format!("{first}:{PORT}").into()]);
        }
        arguments.extend(["--config".into(), config.into()]);
        let program = programs::directory(self.cluster.options.programs.as_deref())?.join("cfs");
        let namespace = self.cluster.state.lock().network.namespace(&name);
        let launch = Launch {
            namespace: namespace.as_deref(),
            program: &program,
            arguments,
            environment: vec![("CFS_RUNTIME_DIR", directory.join("run").into())],
            log: &self.log(),
        };
        self.record(Some(launch.start()?))
    }

    fn record(&self, process: Option<Process>) -> Result<()> {
        self.cluster.state.lock().nodes[self.at].process = process;
        self.cluster.save()
    }

    /// Waits until it answers.
    fn ready(&self) -> Result<()> {
        let (name, directory) = (self.name(), &self.cluster.options.directory);
        wait::until(&format!("{name} ready"), self.cluster.options.limit, || {
            if self.process().is_none() {
                let log = self.log();
                let what = format!("{name} has ended; its log:\n{}", tail(&log));
                let next = format!("all of it is in {}", log.display());
                return Err(Error::new(Kind::Failed, what).next(next));
            }
            Ok(ask::one(directory, &name, AdminRequest::Status).ok().map(drop))
        })
    }

    fn write_config(&self) -> Result<PathBuf> {
        let path = self.directory().join("node.toml");
        let state = self.cluster.state.lock();
        let address = state.network.node(self.at + 1);
        let member = &state.nodes[self.at];
        let config = Config {
            node: NodeTable { name: member.name.clone(), data_dir: "meta" },
            cluster: (self.at == 0).then(|| ClusterTable {
                name: state.name.clone(),
                shard_count: state.shard_count,
                protection: format!("replica:{}", state.replicas),
            }),
            door: Door { unix: "fsd.sock", tcp: (address, PORT).into() },
            blockd: Blockd {
                socket: "blockd.sock",
                pool: Pool { path: "pool", size: instance::pool_bytes(&member.instance_type)? },
            },
            metrics: Metrics { listen: (address, METRICS_PORT).into() },
        };
        let text = toml::to_string(&config).doing(|| "cannot write a configuration".into())?;
        fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Stops it in order: SIGTERM, SIGKILL after a minute.
    pub fn stop(&self) -> Result<()> {
        let Some(process) = self.process() else { return self.end_blockd() };
        let family = process.descendants();
        for member in &family {
            // One that stands still answers nobody.
            member.signal(Signal::CONT)?;
        }
        process.stop(STOP_WITHIN)?;
        family.iter().try_for_each(Process::kill)?;
        self.end_blockd()?;
        self.record(None)
    }

    /// Ends all of it at once, as when its machine dies.
    pub fn kill9(&self) -> Result<()> {
        if let Some(process) = self.process() {
            let mut family = vec![process.clone()];
            family.extend(process.descendants());
            for member in &family {
                member.signal(Signal::KILL)?;
            }
            family.iter().try_for_each(Process::kill)?;
        }
        self.end_blockd()?;
        self.record(None)
    }

    fn end_blockd(&self) -> Result<()> {
        let left = crate::process::with_argument_in(&["blockd"], &self.directory());
        left.iter().try_for_each(Process::kill)
    }

    /// Stops it dead (SIGSTOP): its peers see a node that says nothing, its kernel still takes their messages.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Goes on after [`Node::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(process) = self.process() else {
            let what = format!("{} does not run", self.name());
            return Err(Error::new(Kind::Precondition, what).next("cfs-dev up"));
        };
        process.signal(signal)?;
        for member in process.descendants() {
            member.signal(signal)?;
        }
        Ok(())
    }
}

/// The last lines of a log.
pub(super) fn tail(path: &std::path::Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
