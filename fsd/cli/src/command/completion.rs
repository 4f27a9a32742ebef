//! `cfs completion SHELL [--of COMMAND]`.

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cfs completion bash > /etc/bash_completion.d/cfs
  cfs completion bash --of cfsctl > /etc/bash_completion.d/cfsctl")]
pub struct Completion {
    shell: Shell,
    /// Command that is completed
    #[arg(long, value_enum, default_value_t)]
    of: Program,
}

/// The commands of this package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Program {
    #[default]
    Cfs,
    Cfsctl,
    #[value(name = "mount.cfs")]
    MountCfs,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Program::Cfs => "cfs",
            Program::Cfsctl => "cfsctl",
            Program::MountCfs => "mount.cfs",
        }
    }

    pub fn command(self) -> clap::Command {
        match self {
            Program::Cfs => crate::Cfs::command(),
            Program::Cfsctl => crate::Cfsctl::command(),
            Program::MountCfs => super::mount::MountHelper::command(),
        }
    }
}

impl Completion {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        let mut command = self.of.command();
        clap_complete::generate(self.shell, &mut command, self.of.name(), &mut script);
        output::write_out(&String::from_utf8_lossy(&script))
    }
}
