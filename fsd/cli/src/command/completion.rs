//! `cfs completion SHELL`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Debug, Args)]
pub struct Completion {
    shell: Shell,
}

impl Completion {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cfs::command(), "cfs", &mut script);
        std::io::stdout().write_all(&script).context("cannot write the completion script")
    }
}
