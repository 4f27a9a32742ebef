//! `cfs server`: runs a storage node in this process, and its block daemon as a child; `cfs server join` makes
//! this machine a node of a cluster first.

mod join;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd::config::Config;

use crate::advertise::{self, advertise};
use crate::command::admin::BLOCKD_SOCKET_NAME;
use crate::failed::{Exit, Failed};
use crate::mount::control::runtime_dir;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Server {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the file, name what is wrong in it, and start nothing
    #[arg(long, requires = "config")]
    check_config: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a storage node of a cluster that exists, and run it
    Join(join::Join),
}

impl Server {
    pub fn run(self) -> Result<()> {
        if let Some(Verb::Join(join)) = self.verb {
            return join.run();
        }
        let Some(path) = self.config else {
            let what = "which node? its configuration is not named";
            let failed = Failed::new(Exit::Usage, "NO_CONFIG", what);
            return Err(failed.next("cfs server --config FILE").into());
        };
        let config = Config::load(&path)?;
        if self.check_config {
            println!("{}: good, node {}", path.display(), config.node.name);
            return Ok(());
        }
        fsd::node::log_to_stderr();
        serve(config)
    }
}

/// Runs the node until it is told to stop.
fn serve(config: Config) -> Result<()> {
    let blockd = config.blockd.admin_socket();
    let mut advertised = Vec::new();
    fsd::node::serve(config, |ready| {
        let sockets = [(advertise::NAME, Some(ready.unix.clone())), (BLOCKD_SOCKET_NAME, blockd)];
        for (name, socket) in sockets {
            let Some(socket) = socket else { continue };
            match advertise(&runtime_dir(), name, &socket) {
                Ok(link) => advertised.extend(link),
                // Not root, usually: commands are told the socket then.
                Err(error) => {
                    tracing::info!(%error, name, "no link to the socket in the runtime directory")
                }
            }
        }
        println!("{ready}");
    })?;
    drop(advertised);
    Ok(())
}

/// The configuration in the file.
fn load(path: &Path) -> Result<Config> {
    Ok(Config::load(path)?)
}
