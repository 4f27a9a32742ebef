//! `cfs-dev up`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Place, print};
use crate::cluster::{Cluster, PORT};
use crate::error::{Error, Kind, Result};
use crate::topology::Topology;

/// The last phase there is something for.
const PHASE_MAX: u8 = 2;

#[derive(Debug, Args)]
#[command(after_help = "\
Phases:
  1   blockd and fsd: the storage nodes
  2   clients, each mounted, and admin as well (the default)
  3   monitoring and fault controller as well: refused, this version has neither

A topology is YAML. Instance types say how large a pool is (2xlarge: 2 GiB, in a sparse file):

  sites:
    - name: site-a
      nodes: 3
      instance_type: i4i.2xlarge
  clients:
    - instance_type: c7a.xlarge
      count: 1
  protection: replica:2        # copies of every chunk; if not said two, of a single node one
  shard_count: 16              # if not said 16, for more than four nodes 64

`up` may be run again at any time: what runs already is left running.")]
pub struct Up {
    /// How much of it: 1, 2 or 3
    #[arg(long, value_name = "N", default_value_t = PHASE_MAX,
          value_parser = clap::value_parser!(u8).range(1..=3))]
    phase: u8,
    /// What it consists of; one node and one client if not said
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Name of a new cluster, and of its network [default: dev]
    #[arg(long)]
    name: Option<String>,
}

impl Up {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        if self.phase > PHASE_MAX {
            let what = "phase 3 starts monitoring (Prometheus and dashboards) and the fault controller: this version \
                        of ClaudeFS has neither, and nothing was started";
            return Err(Error::new(Kind::Precondition, what).next(
                "cfs-dev up --phase 2; every node has its metrics, see `cfs-dev status --detailed`",
            ));
        }
        let topology = self.topology.as_deref().map(Topology::load).transpose()?;
        for note in topology.iter().flat_map(|topology| &topology.notes) {
            eprintln!("cfs-dev: {note}");
        }
        let cluster = Cluster::create(place.options()?, self.name.as_deref(), topology.as_ref())?;
        cluster.up(self.phase).map_err(|error| Error {
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
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
