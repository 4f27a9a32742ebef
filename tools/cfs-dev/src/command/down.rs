//! `cfs-dev down`.

use std::process::ExitCode;

use clap::Args;

use super::Place;
use crate::cluster::Cluster;
use crate::error::Result;

#[derive(Debug, Args)]
#[command(after_help = "\
The fault controller ends first, whatever it is doing. Then clients are unmounted, which is refused while files are open
(exit code 6). Nodes get SIGTERM and, after a minute, SIGKILL. The network goes as well; `cfs-dev up` makes it again.")]
pub struct Down {}

impl Down {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let cluster = Cluster::open_to_stop(place.options()?)?;
        cluster.down()?;
        let directory = cluster.directory().display();
        eprintln!("cfs-dev: cluster {} is stopped; its data is in {directory}", cluster.name());
        Ok(ExitCode::SUCCESS)
    }
}
