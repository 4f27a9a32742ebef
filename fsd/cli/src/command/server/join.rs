//! `cfs server join`: a configuration if there is none, a place in the cluster for a token, and the node runs.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use fsd::config::Size;
use fsd_rpc::token::Invitation;
use serde::Serialize;

use crate::failed::{Exit, Failed};
use crate::{identity, units};

const CONFIG: &str = "/etc/claudefs/node.toml";
const DATA_DIR: &str = "/var/lib/claudefs";
/// What a pool in a file takes of the free space unless its size is given.
const POOL_PERCENT: u64 = 75;

#[derive(Debug, Args)]
#[command(after_help = "\
Without a configuration file one is written first, from the options below and what this machine is; with one
the options are not taken. A node that has joined is started again with `cfs server --config FILE`.

Example:
  cfs admin token create --node                                 # on a node of the cluster
  cfs server join --token cfsn1-… --seed n1:9400,n2:9400 --pool /dev/nvme1n1     # on the new machine")]
pub struct Join {
    /// Token of nodes: `cfs admin token create --node`
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Nodes of the cluster, any of them; port 9400 if none. Not needed if the token names them
    #[arg(long, value_name = "HOST[:PORT],…")]
    seed: Option<String>,
    /// The node's configuration; written if it is not there
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Name of the node [default: the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Directory of the metadata
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// Address of the network door
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9400")]
    listen: SocketAddr,
    /// Where the other nodes and clients reach it [default: the host's name, with the port of --listen]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Device or file of the data [default: a file beside the metadata]
    #[arg(long, value_name = "PATH")]
    pool: Option<PathBuf>,
    /// Size of a file [default: three quarters of the free space]
    #[arg(long, value_name = "SIZE")]
    pool_size: Option<Size>,
    /// Address of the metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9090")]
    metrics: SocketAddr,
    /// How long to wait for the cluster's answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::parse_duration)]
    timeout: Duration,
}

/// What is written, as `fsd::config` reads it.
#[derive(Serialize)]
struct Written {
    node: Node,
    door: Door,
    blockd: Blockd,
    metrics: Metrics,
}

#[derive(Serialize)]
struct Node {
    name: String,
    data_dir: PathBuf,
}

#[derive(Serialize)]
struct Door {
    unix: PathBuf,
    tcp: SocketAddr,
    advertise: String,
}

#[derive(Serialize)]
struct Blockd {
    socket: PathBuf,
    pool: Pool,
}

#[derive(Serialize)]
struct Pool {
    path: PathBuf,
    size: u64,
}

#[derive(Serialize)]
struct Metrics {
    listen: SocketAddr,
}

impl Join {
    pub fn run(self) -> Result<()> {
        let mut invitation: Invitation = self.token.parse().map_err(|error| {
            Failed::new(Exit::Usage, "TOKEN", format!("--token: {error}"))
                .next("make one on a node of the cluster: `cfs admin token create --node`")
        })?;
        if let Some(seed) = &self.seed {
            invitation.servers = seed.split(',').map(|server| server.trim().to_owned()).collect();
        }
        if !self.config.exists() {
            self.write_config()?;
            eprintln!("cfs: the node's configuration is in {}", self.config.display());
        }
        let config = super::load(&self.config)?;
        fsd::node::log_to_stderr();
        let node = fsd::node::join(&config, &invitation, self.timeout)?;
        eprintln!("cfs: this machine is node {node} of the cluster");
        super::serve(config)
    }

    fn write_config(&self) -> Result<()> {
        let host = identity::host();
        let pool = self.pool.clone().unwrap_or_else(|| self.data_dir.join("pool"));
        let port = self.listen.port();
        let advertise = match &self.advertise {
            Some(address) => address.clone(),
            None if self.listen.ip().is_unspecified() => format!("{host}:{port}"),
            None => self.listen.to_string(),
        };
        let written = Written {
            node: Node {
                name: self.name.clone().unwrap_or_else(|| host.clone()),
                // The directory itself is for the metadata alone.
                data_dir: self.data_dir.join("meta"),
            },
            door: Door { unix: self.data_dir.join("fsd.sock"), tcp: self.listen, advertise },
            blockd: Blockd {
                socket: self.data_dir.join("blockd.sock"),
                pool: Pool { size: self.size_of(&pool)?, path: pool },
            },
            metrics: Metrics { listen: self.metrics },
        };
        let text = toml::to_string(&written).context("writing the configuration")?;
        write(&self.config, &text).with_context(|| format!("writing {}", self.config.display()))
    }

    /// Bytes that the pool shall have.
    fn size_of(&self, pool: &Path) -> Result<u64> {
        if let Some(Size(bytes)) = self.pool_size {
            return Ok(bytes);
        }
        if let Ok(found) = std::fs::metadata(pool)
            && !found.is_dir()
            && !found.is_file()
        {
            return device_bytes(pool);
        }
        std::fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("making {}", self.data_dir.display()))?;
        let space = rustix::fs::statvfs(&self.data_dir)
            .with_context(|| format!("asking how much is free in {}", self.data_dir.display()))?;
        Ok(space.f_bavail * space.f_frsize / 100 * POOL_PERCENT)
    }
}

/// Bytes of a block device.
fn device_bytes(path: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let size = std::fs::File::open(path).and_then(|mut device| device.seek(SeekFrom::End(0)));
    match size.with_context(|| format!("asking for the size of {}", path.display()))? {
        // A character device, as `/dev/ng0n1`, tells nobody.
        0 => {
            let what = format!("the size of {} is not known", path.display());
            Err(Failed::new(Exit::Usage, "POOL_SIZE", what).next("say it: --pool-size SIZE").into())
        }
        bytes => Ok(bytes),
    }
}

/// New, and whole.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
