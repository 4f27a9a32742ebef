//! The command line: one file per verb.

mod destroy;
mod down;
mod fault;
mod logs;
mod node;
mod ssh;
mod status;
mod up;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::cluster::{Cluster, Options};
use crate::error::{Doing, Error, Kind, Result};

/// Clusters of ClaudeFS on this machine, for development.
///
/// A node is a set of processes in a network namespace of its own; without root, at a loopback address of its own.
#[derive(Debug, Parser)]
#[command(
    name = "cfs-dev",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  cfs-dev up --phase 2                            one node, and a client that has it mounted
  cfs-dev up --topology cluster-config.yaml       more of them: `cfs-dev up --help` shows such a file
  cfs-dev status --detailed
  cfs-dev logs --agent A2                         what raftmeta and placement say, as they say it
  cfs-dev ssh n2 -- cfs admin status              a command, or a shell, where n2 is
  cfs-dev node add --instance-type i4i.2xlarge
  cfs-dev up --phase 3; cfs-dev fault run --time 2m   accidents, checked work meanwhile, and a verdict
  cfs-dev down                                    stops it; `up` goes on with the same data
  cfs-dev destroy                                 and its data

Exit codes: 0 ok, 1 failed, 2 usage, 3 health warning, 4 health error, 5 not found, 6 something has to be
done first, 7 timeout."
)]
struct CfsDev {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster, or what of it does not run
    Up(up::Up),
    /// What runs, and how the cluster is
    Status(status::Status),
    /// Show the logs of nodes and clients as one
    Logs(logs::Logs),
    /// Run a shell or a command where a node is
    Ssh(ssh::Ssh),
    /// Storage nodes
    #[command(subcommand)]
    Node(node::Node),
    /// Break parts of the cluster, and see whether it endures that
    #[command(subcommand)]
    Fault(fault::Fault),
    /// Stop everything in order; what was stored stays
    Down(down::Down),
    /// Stop everything at once and delete it, data included
    Destroy(destroy::Destroy),
}

/// Which cluster, and how patient to be.
#[derive(Debug, Args)]
struct Place {
    /// Directory with everything of the cluster [default: $XDG_STATE_HOME/cfs-dev, ~/.local/state/cfs-dev]
    #[arg(long, value_name = "DIR", env = "CFS_DEV_STATE_DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// How long each step may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, global = true,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl Place {
    fn directory(&self) -> Result<PathBuf> {
        let directory = match &self.state_dir {
            Some(directory) => directory.clone(),
            None => default_directory().ok_or_else(|| {
                let what = "where is the cluster? neither XDG_STATE_HOME nor HOME is set";
                Error::new(Kind::Usage, what).next("say it: --state-dir DIR")
            })?,
        };
        // As the mount table and later commands have it.
        let directory = std::path::absolute(&directory)
            .doing(|| format!("{} is no directory", directory.display()))?;
        Ok(directory.canonicalize().unwrap_or(directory))
    }

    fn options(&self) -> Result<Options> {
        Ok(Options {
            directory: self.directory()?,
            programs: None,
            limit: Duration::from_secs(self.timeout),
            say: |what| eprintln!("cfs-dev: {what}"),
        })
    }

    fn cluster(&self) -> Result<Cluster> {
        Cluster::open(self.options()?)
    }
}

fn default_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").filter(|path| path.is_absolute());
    Some(state.or_else(|| Some(set("HOME")?.join(".local/state")))?.join("cfs-dev"))
}

/// Runs the command line of this process. Data goes to stdout, everything else to stderr.
pub fn main() -> ExitCode {
    let line = CfsDev::parse();
    let place = &line.place;
    let result = match line.verb {
        Verb::Up(up) => up.run(place),
        Verb::Status(status) => status.run(place),
        Verb::Logs(logs) => logs.run(place),
        Verb::Ssh(ssh) => ssh.run(place),
        Verb::Node(node) => node.run(place),
        Verb::Fault(fault) => fault.run(place),
        Verb::Down(down) => down.run(place),
        Verb::Destroy(destroy) => destroy.run(place),
    };
    result.unwrap_or_else(|error| {
        // stderr may be closed: the exit code tells then.
        let _ = writeln!(std::io::stderr(), "cfs-dev: {error}");
        error.kind.into()
    })
}

/// Writes to stdout; `false` if nobody reads any more (`| head`).
fn print(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true).doing(|| "cannot write to stdout".into()),
    }
}

/// Columns without lines, as `cfs admin` has them.
fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|text| text.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parser_is_consistent() {
        CfsDev::command().debug_assert();
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [vec!["n1".to_owned(), "up".to_owned()], vec!["n10".to_owned(), String::new()]];
        assert_eq!(columns(&["NODE", "STATE"], &rows), "NODE  STATE\nn1    up\nn10\n");
    }
}
