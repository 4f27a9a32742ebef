//! `cfs-dev node add`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Place, print};
use crate::error::Result;

#[derive(Debug, Subcommand)]
pub enum Node {
    /// Start one more node, which joins the cluster
    Add(Add),
}

#[derive(Debug, Args)]
pub struct Add {
    /// Such as `i4i.2xlarge`: says how large the pool is
    #[arg(long, value_name = "TYPE")]
    instance_type: String,
}

impl Node {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let Node::Add(add) = self;
        let name = place.cluster()?.add_node(&add.instance_type)?;
        // Shards move to it by and by: `cfs admin node list --show-shards`.
        print(&format!("{name}\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}
