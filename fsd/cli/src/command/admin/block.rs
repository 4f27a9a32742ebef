//! `cfs admin block …`: blockd's devices, volumes and exports, by its admin socket (JSON-RPC).

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;
use crate::failed::{Exit, Failed};
use crate::mount::control::runtime_dir;

mod bench;
mod device;
mod export;
mod format;
mod hosts;
mod rpc;
mod stats;
mod volume;

use rpc::Door;

/// Name of blockd's admin socket, or of the link to it, in the runtime directory.
pub const SOCKET_NAME: &str = "blockd-admin.sock";
const SOCKET_ENV: &str = "CFS_BLOCKD_SOCKET";
/// Names the socket of the node, which is another one.
const NODE_SOCKET_ENV: &str = "CFS_SOCKET";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfsctl block device list
  cfsctl block volume create disk1 --size 10G --thin
  cfsctl block export disk1 --host $(cat /etc/nvme/hostnqn)
  cfsctl block bench scratch --rw randread --qd 32
  cfsctl block stats --watch

What destroys asks for the name once more, or takes --confirm NAME. docs/nvme.md says how hosts connect.")]
pub struct Block {
    /// Unix socket of blockd's admin interface [default: /run/claudefs/blockd-admin.sock]
    #[arg(long, value_name = "PATH", env = SOCKET_ENV, global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Devices: files, block devices, NVMe namespaces
    #[command(subcommand)]
    Device(device::Device),
    /// Volumes: LBA spaces carved from the devices
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Serve a volume to NVMe/TCP hosts
    Export(export::Export),
    /// Stop serving a volume
    Unexport(export::Unexport),
    /// Show the hosts that may connect, or say which may from now on
    Hosts(hosts::Hosts),
    /// Measure a volume, or an engine on a device
    Bench(bench::Bench),
    /// What the reactors have done, or do now
    Stats(stats::Stats),
}

impl Block {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let door = Door::new(self.place(), context.local.timeout);
        match self.verb {
            Verb::Device(device) => device.run(context, &door),
            Verb::Volume(volume) => volume.run(context, &door),
            Verb::Export(export) => export.run(context, &door),
            Verb::Unexport(unexport) => unexport.run(&door),
            Verb::Hosts(hosts) => hosts.run(context, &door),
            Verb::Bench(bench) => bench.run(context, &door),
            Verb::Stats(stats) => stats.run(context, &door),
        }
    }

    /// The socket that was named, if one was. `--socket` is also an option of the verbs of a node, and clap hands the value of
    /// their variable on to here: it names another socket and does not count.
    fn place(&self) -> rpc::Place {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let of_node = variable(NODE_SOCKET_ENV);
        let named = self.socket.clone().filter(|socket| of_node.as_ref() != Some(socket));
        match named.or_else(|| variable(SOCKET_ENV)) {
            Some(socket) => rpc::Place::Named(socket),
            None => rpc::Place::Usual(runtime_dir().join(SOCKET_NAME)),
        }
    }
}

/// Whoever destroys says the name once more: in `--confirm`, or typed at the terminal.
fn confirm(name: &str, given: Option<&str>, loss: &str) -> Result<(), Failed> {
    let refused = |what: String| {
        Failed::new(Exit::Precondition, "CONFIRM", what)
            .next(format!("if it may be lost: the same with `--confirm {name}`"))
    };
    let said = match given {
        Some(given) => given.to_owned(),
        None if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() => {
            eprint!("{loss}\nType `{name}` to go on: ");
            let mut line = String::new();
            // What cannot be read is not the name.
            let _ = std::io::stdin().lock().read_line(&mut line);
            line.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => return Err(refused(loss.to_owned())),
    };
    if said == name {
        return Ok(());
    }
    Err(refused(format!("`{said}` is not `{name}`: nothing was changed")))
}
