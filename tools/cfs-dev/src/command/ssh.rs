//! `cfs-dev ssh`: a shell where a node is. There is no other machine, so nothing is encrypted and nobody logs in.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;

use super::Place;
use crate::error::{Error, Kind, Result};
use crate::{cluster, programs};

#[derive(Debug, Args)]
#[command(after_help = "\
The shell is in the network namespace and the directory of the node (or client), `cfs` and `cfsctl` are in its
PATH, and CFS_SOCKET names the node.

Example:
  cfs-dev ssh n2 -- cfs admin status")]
pub struct Ssh {
    /// Node or client [default: n1]
    #[arg(value_name = "NODE", default_value = "n1")]
    member: String,
    /// What to run instead of a shell
    #[arg(last = true)]
    command: Vec<OsString>,
}

impl Ssh {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let directory = place.directory()?;
        let state = cluster::view(&directory)?;
        let member = state.members().find(|member| member.name == self.member);
        let member = member.ok_or_else(|| cluster::unknown(&state, &self.member))?;
        if member.running().is_none() {
            let what = format!("{} does not run", self.member);
            return Err(Error::new(Kind::Precondition, what).next("cfs-dev up"));
        }
        let is_node = state.nodes.iter().any(|node| node.name == self.member);
        let home = directory.join(if is_node { "nodes" } else { "clients" }).join(&self.member);
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        let words = if self.command.is_empty() { vec![shell] } else { self.command };
        let mut command = match state.network.namespace(&self.member) {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg("--").args(&words);
                command
            }
            None => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
        };
        let programs = programs::directory(None)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::iter::once(programs).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(places) {
            command.env("PATH", path);
        }
        if is_node {
            command.env("CFS_SOCKET", home.join("fsd.sock"));
        }
        let error = command.env("CFS_DEV_NODE", &self.member).current_dir(&home).exec();
        let what = format!("cannot run {}: {error}", words[0].to_string_lossy());
        Err(Error::new(Kind::Failed, what))
    }
}
