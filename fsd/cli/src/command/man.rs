//! `cfs man`: the manual page in roff, for `man -l -`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};

#[derive(Debug, Args)]
pub struct Man {}

impl Man {
    pub fn run(self) -> Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(crate::Cfs::command())
            .render(&mut page)
            .context("cannot make the manual page")?;
        std::io::stdout().write_all(&page).context("cannot write the manual page")
    }
}
