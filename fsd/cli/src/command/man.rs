//! `cfs man [VERB…]`: a manual page in roff, for `man -l -`; `--dir` writes all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Command};

use super::completion::Program;
use crate::failed::{Exit, Failed};
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfs man mount | man -l -
  cfs man --of cfsctl status | man -l -
  cfs man --dir /usr/local/share/man/man1")]
pub struct Man {
    /// Verb and noun, such as `admin token create`
    verbs: Vec<String>,
    /// Command that is described
    #[arg(long, value_enum, default_value_t)]
    of: Program,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["verbs", "of"])]
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self) -> Result<()> {
        if let Some(dir) = &self.dir {
            for program in [Program::Cfs, Program::Cfsctl, Program::MountCfs] {
                let mut command = program.command();
                command.build();
                write_all(&command, program.name(), dir)?;
            }
            return Ok(());
        }
        let mut command = self.of.command();
        command.build();
        let mut page = &command;
        let mut name = self.of.name().to_owned();
        for verb in &self.verbs {
            let Some(found) = page.find_subcommand(verb) else {
                let what = format!("there is no `{name} {verb}`");
                let failed = Failed::new(Exit::NotFound, "NO_PAGE", what);
                return Err(failed.next(format!("`{} --help`", name.replace('-', " "))).into());
            };
            page = found;
            name = format!("{name}-{verb}");
        }
        let text = render(page, &name)?;
        output::write_out(&String::from_utf8_lossy(&text))
    }
}

fn render(command: &Command, name: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command.clone()).title(name);
    page.render(&mut text).context("cannot make the manual page")?;
    Ok(text)
}

/// The page of a command and of everything below it.
fn write_all(command: &Command, name: &str, dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        bail!(Failed::new(
            Exit::NotFound,
            "NO_DIRECTORY",
            format!("{}: no directory", dir.display())
        ));
    }
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, render(command, name)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        write_all(below, &format!("{name}-{}", below.get_name()), dir)?;
    }
    Ok(())
}
