//! `cfs server`: for now it checks the configuration of a storage node, and says so.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fsd::config::Config;

#[derive(Debug, Args)]
pub struct Server {
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the file, name what is wrong in it, and start nothing
    #[arg(long, required = true)]
    check_config: bool,
}

impl Server {
    pub fn run(self) -> Result<()> {
        assert!(self.check_config, "clap requires the flag");
        let config = Config::load(&self.config)?;
        println!("{}: good, node {}", self.config.display(), config.node.name);
        Ok(())
    }
}
