//! `cfs server`: runs a storage node in this process, and its block daemon as a child.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fsd::config::Config;

use crate::advertise::{self, advertise};
use crate::command::admin::BLOCKD_SOCKET_NAME;
use crate::mount::control::runtime_dir;

#[derive(Debug, Args)]
pub struct Server {
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the file, name what is wrong in it, and start nothing
    #[arg(long)]
    check_config: bool,
}

impl Server {
    pub fn run(self) -> Result<()> {
        let config = Config::load(&self.config)?;
        if self.check_config {
            println!("{}: good, node {}", self.config.display(), config.node.name);
            return Ok(());
        }
        fsd::node::log_to_stderr();
        let blockd = config.blockd.admin_socket();
        let mut advertised = Vec::new();
        fsd::node::serve(config, |ready| {
            let sockets =
                [(advertise::NAME, Some(ready.unix.clone())), (BLOCKD_SOCKET_NAME, blockd)];
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
}
