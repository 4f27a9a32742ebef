//! `cfs-dev destroy`.

use std::process::ExitCode;

use clap::Args;

use super::Place;
use crate::cluster::{self, Cluster};
use crate::error::{Kind, Result};

#[derive(Debug, Args)]
#[command(after_help = "\
Takes away processes, mounts, namespaces and files, whatever state they are in; also after an `up` that failed
halfway. There is no way back, and it does not ask.")]
pub struct Destroy {}

impl Destroy {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let options = place.options()?;
        let directory = options.directory.clone();
        match cluster::view(&directory) {
            // As asked for.
            Err(error) if error.kind == Kind::Absent => {
                eprintln!("cfs-dev: there is no cluster in {}", directory.display());
                return Ok(ExitCode::SUCCESS);
            }
            Ok(_) | Err(_) => {}
        }
        let cluster = Cluster::open_to_stop(options)?;
        let name = cluster.name();
        cluster.destroy()?;
        eprintln!("cfs-dev: cluster {name} is gone");
        Ok(ExitCode::SUCCESS)
    }
}
