//! `cfs server`: runs a storage node in this process, and its block daemon as a child.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fsd::config::Config;
use tracing_subscriber::EnvFilter;

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
        let filter = EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,raft_engine=warn"));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
        fsd::node::serve(config, |ready| println!("{ready}"))?;
        Ok(())
    }
}
