//! `cfs-dev logs`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{Place, print};
use crate::agent::Agent;
use crate::cluster;
use crate::error::Result;
use crate::logs;

const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(after_help = "\
Everything that was logged is shown, sorted by time, and then what comes, until Ctrl-C; with --no-follow only
what is there. A line begins with the node or client that wrote it.")]
pub struct Logs {
    /// Only one node or client, `controller` or `monitor`
    #[arg(value_name = "NODE")]
    member: Option<String>,
    /// Only what this part of the system says
    #[arg(long, value_enum, ignore_case = true)]
    agent: Option<Agent>,
    /// End when all is shown that is there
    #[arg(long)]
    no_follow: bool,
}

impl Logs {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let directory = place.directory()?;
        let state = cluster::view(&directory)?;
        if let Some(member) = &self.member
            && !state.members().any(|known| known.name == *member)
            && !(member == logs::CONTROLLER && state.controller.is_some())
            && !(member == logs::MONITOR && state.monitor.is_some())
        {
            return Err(cluster::unknown(&state, member));
        }
        let mut all = logs::Logs::of(&directory, &state, self.member.as_deref(), self.agent);
        loop {
            for line in all.next()? {
                if !print(&(line + "\n"))? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            if self.no_follow {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(POLL);
        }
    }
}
