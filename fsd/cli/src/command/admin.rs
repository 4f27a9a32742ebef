//! `cfs admin …`, also called `cfsctl`: one file per noun.

mod block;
mod ca;
mod cert;
mod checkpoint;
mod client;
mod du;
mod fsck;
mod gc;
mod node;
mod protection;
mod scrub;
mod stat;
mod status;
mod token;

pub use block::SOCKET_NAME as BLOCKD_SOCKET_NAME;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::connect::{self, Local};
use crate::failed::Exit;
use crate::output::Format;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfs admin status --watch              one screen, again every 2 s
  cfs admin token create --ttl 10m      let one client of the network in
  cfs admin du /mnt/claudefs/src        what a directory takes
  cfs admin fsck -o json | jq .found    for scripts

Exit codes: 0 ok, 1 failed, 2 usage, 3 health warning, 4 health error, 5 not found, 6 something has to be
done first, 7 timeout, 8 partial.")]
pub struct Admin {
    #[command(flatten)]
    local: Local,
    /// What to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", global = true)]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// One screen: health, capacity, clients, jobs
    Status(status::Status),
    /// Storage nodes
    #[command(subcommand)]
    Node(node::Node),
    /// How often data is kept, and with how few copies writes go on
    #[command(subcommand)]
    Protection(protection::Protection),
    /// Check the namespace, its counters and references, and that every chunk is there
    Fsck(fsck::Fsck),
    /// Free what nothing needs any more, or say what is pending
    Gc(gc::Gc),
    /// Read all copies of everything now, and repair what is damaged
    Scrub(scrub::Scrub),
    /// What a file or directory takes: logical and stored bytes, dedup and compression ratio
    Du(du::Du),
    /// Attributes and extents of one file, and where its chunks are
    Stat(stat::Stat),
    /// One-time enrolment tokens for clients of the network
    #[command(subcommand)]
    Token(token::Token),
    /// Certificates that the cluster issued
    #[command(subcommand)]
    Cert(cert::Cert),
    /// The cluster's certificate authority
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Mounts that are connected
    #[command(subcommand)]
    Client(client::Client),
    /// Devices, volumes and NVMe/TCP exports of blockd
    Block(block::Block),
    /// Write a checkpoint of the metadata now, and drop the log before it
    Checkpoint(checkpoint::Checkpoint),
}

/// How a verb asks and prints.
struct Context {
    local: Local,
    format: Format,
}

impl Context {
    fn connect(&self) -> Result<connect::Admin> {
        Ok(self.local.admin()?)
    }
}

impl Admin {
    pub fn run(self) -> Result<Exit> {
        let context = Context { local: self.local, format: self.output };
        match self.verb {
            Verb::Status(status) => status.run(&context),
            Verb::Node(node) => node.run(&context),
            Verb::Protection(protection) => protection.run(&context),
            Verb::Fsck(fsck) => fsck.run(&context),
            Verb::Gc(gc) => gc.run(&context),
            Verb::Scrub(scrub) => scrub.run(&context),
            Verb::Du(du) => du.run(&context),
            Verb::Stat(stat) => stat.run(&context),
            Verb::Token(token) => token.run(&context),
            Verb::Cert(cert) => cert.run(&context),
            Verb::Ca(ca) => ca.run(&context),
            Verb::Client(client) => client.run(&context),
            Verb::Block(block) => block.run(&context),
            Verb::Checkpoint(checkpoint) => checkpoint.run(&context),
        }
    }
}
