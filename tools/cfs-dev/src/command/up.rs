//! `cfs-dev up`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Place, print};
use crate::cluster::{Cluster, PORT};
use crate::error::{Error, Result};
use crate::topology::Topology;

/// If nothing is said, and if the topology has a fault controller.
const PHASE: u8 = 2;
const PHASE_CONTROLLER: u8 = 3;

#[derive(Debug, Args)]
#[command(after_help = "\
Phases:
  1   blockd and fsd: the storage nodes
  2   clients, each mounted, and admin as well (the default)
  3   monitoring and fault controller as well (the default if the topology has a jepsen_controller)

A topology is YAML. Instance types say how large a pool is (2xlarge: 2 GiB, in a sparse file):

  sites:
    - name: site-a
      nodes: 3
      instance_type: i4i.2xlarge
  clients:
    - instance_type: c7a.xlarge
      count: 1
  jepsen_controller:             # the fault controller: `cfs-dev fault --help`
    instance_type: c7a.xlarge
  protection: replica:2        # copies of every chunk; if not said two, of a single node one
  shard_count: 16              # if not said 16, for more than four nodes 64

`up` may be run again at any time: what runs already is left running.")]
pub struct Up {
    /// How much of it: 1, 2 or 3 [default: 2, or as much as there was, or 3 with a jepsen_controller]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3))]
    phase: Option<u8>,
    /// What it consists of; one node and one client if not said
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Name of a new cluster, and of its network [default: dev]
    #[arg(long)]
    name: Option<String>,
}

impl Up {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let topology = self.topology.as_deref().map(Topology::load).transpose()?;
        for note in topology.iter().flat_map(|topology| &topology.notes) {
            eprintln!("cfs-dev: {note}");
        }
        let controller = topology.as_ref().is_some_and(|topology| topology.controller);
        let cluster = Cluster::create(place.options()?, self.name.as_deref(), topology.as_ref())?;
        let least = if controller { PHASE_CONTROLLER } else { PHASE };
        let phase = self.phase.unwrap_or(least.max(cluster.phase()));
        if controller && phase < PHASE_CONTROLLER {
            eprintln!("cfs-dev: jepsen_controller: not started, it is of phase 3");
        }
        cluster.up(phase).map_err(|error| Error {
            next: error
                .next
                .clone()
                .or_else(|| Some("cfs-dev up again, or cfs-dev destroy".into())),
            ..error
        })?;
        let mut text = format!("cluster {} is up\n", cluster.name());
        for node in cluster.nodes() {
            text += &format!(
                "  {}  {}:{PORT}  {}\n",
                node.name(),
                node.address(),
                node.socket().display()
            );
        }
        for client in cluster.clients() {
            if client.process().is_some() {
                text += &format!("  {}  {}\n", client.name(), client.mountpoint().display());
            }
        }
        if cluster.monitor().process().is_some() {
            text += &format!("  monitoring  {}\n", cluster.monitor().url());
        }
        if cluster.controller().is_some() {
            text += "  fault controller  cfs-dev fault --help\n";
        }
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
