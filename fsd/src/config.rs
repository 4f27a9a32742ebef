//! The configuration of a storage node: one TOML file, read once at start.
//!
//! A key nobody knows is refused by its name, and so is a value that cannot work: a typing error must
//! not become a silent default. Everything here is checked without touching the system, so a file can
//! be checked on any machine (`cfs server --config FILE --check-config`).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use raftmeta_types::cluster;
use serde::Deserialize;

#[cfg(test)]
mod tests;

/// Longest path of a Unix socket in bytes: `sun_path` without its closing zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest name of a node or cluster in bytes; they appear in certificates and directory names.
pub const NAME_BYTES_MAX: usize = 63;
/// Smallest pool in bytes: room for superblocks, some segments and the reserve.
pub const POOL_BYTES_MIN: u64 = 256 << 20;
/// Smallest bound of a chunk in bytes; smaller ones cost more index than they save.
pub const CHUNK_BYTES_MIN: u64 = 4 << 10;
/// Largest chunk in bytes: a chunk must fit in a segment with its header.
pub const CHUNK_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    #[serde(default)]
    pub cluster: Cluster,
    pub door: Door,
    pub blockd: Blockd,
    #[serde(default)]
    pub chunks: Chunks,
    #[serde(default)]
    pub metrics: Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// 1 to 63 of `a-z A-Z 0-9 - _ .`, not starting with a dot or a dash.
    pub name: String,
    /// Directory of the metadata log and its checkpoints, on a local file system.
    pub data_dir: PathBuf,
}

/// What is fixed when a cluster is created; used at its first start only.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Same rules as the node's name.
    pub name: String,
    /// Power of two, 1 to 65536.
    pub shard_count: u32,
    pub protection: Protection,
    /// Copies in sync that a shard needs to acknowledge writes when others fail, 1 to those of `protection`; half of
    /// them, rounded up, where nothing is said.
    pub in_sync_min: Option<u8>,
}

impl Cluster {
    /// As the cluster keeps it.
    pub fn protected(&self) -> cluster::Protection {
        let protection = cluster::Protection::of(self.protection.replicas);
        let in_sync_min = self.in_sync_min.unwrap_or(protection.in_sync_min);
        cluster::Protection { in_sync_min, ..protection }
    }
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            name: "claudefs".into(),
            shard_count: 256,
            protection: Protection { replicas: 1 },
            in_sync_min: None,
        }
    }
}

/// `replica:N`: every chunk is kept on N nodes, 1 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Protection {
    pub replicas: u8,
}

impl TryFrom<String> for Protection {
    type Error = String;

    fn try_from(text: String) -> Result<Protection, String> {
        let replicas = text.strip_prefix("replica:").and_then(|n| n.parse().ok());
        match replicas {
            Some(replicas @ 1..=7) => Ok(Protection { replicas }),
            Some(_) | None => Err(format!("`{text}` is not `replica:N` with N from 1 to 7")),
        }
    }
}

/// Where clients come in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Door {
    /// Unix socket for clients of this host; who they are is read from the socket.
    pub unix: PathBuf,
    /// Address for clients of other hosts, always under mutual TLS. Without it there is no network door.
    pub tcp: Option<SocketAddr>,
    /// `host:port` under which others reach `tcp`.
    pub advertise: Option<String>,
    /// Users who may connect to the Unix socket, besides root and the node's own user.
    #[serde(default)]
    pub allow_uids: Vec<u32>,
}

/// The block daemon this node stands on: started from a `config` of its own, with a `pool` written
/// here, or neither when something else runs it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blockd {
    pub socket: PathBuf,
    pub config: Option<PathBuf>,
    pub pool: Option<Pool>,
}

impl Blockd {
    /// The admin socket of the block daemon that is started with a `pool`: beside its other one. One with a
    /// configuration of its own says there where it is.
    #[must_use]
    pub fn admin_socket(&self) -> Option<PathBuf> {
        self.pool.as_ref()?;
        let mut path = self.socket.clone().into_os_string();
        path.push(".admin");
        Some(path.into())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// A file, made at the first start, or a block device.
    pub path: PathBuf,
    /// Size of the file in bytes; a number, or text such as `4GiB`.
    pub size: Size,
}

/// How data is cut in chunks (FastCDC), in bytes. Each a power of two, in rising order.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chunks {
    pub min: Size,
    pub avg: Size,
    pub max: Size,
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks { min: Size(16 << 10), avg: Size(64 << 10), max: Size(256 << 10) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `/metrics` is served over HTTP.
    pub listen: SocketAddr,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics { listen: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

/// A number of bytes, written as a number or as text: `512`, `"64KiB"`, `"100M"`, `"4 GiB"`. `K`, `M`, `G` and
/// `T` are powers of 1024, with or without `iB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of bytes, or text such as \"4GiB\"")]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Size, String> {
        match text {
            SizeText::Number(bytes) => Ok(Size(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => {
                return Err(format!("`{text}` is not a size: a number with B, K, M, G, T, KiB, …"));
            }
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| format!("`{text}` is not a size that fits in 64 bits"))
    }
}

/// Why a configuration was refused. Names the file, and the key or the line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration {path} is refused: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("configuration {path} is refused: {key}: {why}")]
    Value { path: PathBuf, key: &'static str, why: String },
}

impl Config {
    /// Reads and checks the file. Relative paths in it are taken from the directory of the file, so that a
    /// node does not depend on where it was started.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let absolute = std::path::absolute(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let mut config = Config::parse(&text, path)?;
        config.anchor(absolute.parent().unwrap_or(Path::new("/")));
        config.check().map_err(|(key, why)| ConfigError::Value { path: path.into(), key, why })?;
        Ok(config)
    }

    fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })
    }

    /// Makes relative paths absolute. `Path::join` leaves absolute ones as they are.
    fn anchor(&mut self, directory: &Path) {
        let mut paths = vec![&mut self.node.data_dir, &mut self.door.unix, &mut self.blockd.socket];
        paths.extend(self.blockd.config.as_mut());
        paths.extend(self.blockd.pool.as_mut().map(|pool| &mut pool.path));
        for path in paths {
            *path = directory.join(&*path);
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        check_name("node.name", &self.node.name)?;
        check_name("cluster.name", &self.cluster.name)?;
        let shards = self.cluster.shard_count;
        if !shards.is_power_of_two() || shards > 65536 {
            return Err((
                "cluster.shard_count",
                format!("{shards} is not a power of two up to 65536"),
            ));
        }
        let cluster::Protection { replicas, in_sync_min } = self.cluster.protected();
        if !(1..=replicas).contains(&in_sync_min) {
            let why = format!("{in_sync_min} is not from 1 to {replicas}, the copies there are");
            return Err(("cluster.in_sync_min", why));
        }
        check_socket("door.unix", &self.door.unix)?;
        check_socket("blockd.socket", &self.blockd.socket)?;
        if self.door.unix == self.blockd.socket {
            return Err(("blockd.socket", "is the same path as door.unix".into()));
        }
        if self.door.advertise.is_some() && self.door.tcp.is_none() {
            return Err((
                "door.advertise",
                "says where door.tcp is reached, which is not set".into(),
            ));
        }
        if self.blockd.config.is_some() && self.blockd.pool.is_some() {
            return Err(("blockd.pool", "is for a blockd without blockd.config: keep one".into()));
        }
        if let Some(pool) = &self.blockd.pool
            && pool.size.0 < POOL_BYTES_MIN
        {
            let why = format!("{} bytes are too few: at least {POOL_BYTES_MIN}", pool.size.0);
            return Err(("blockd.pool.size", why));
        }
        self.chunks.check()
    }
}

impl Chunks {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes = [("chunks.min", self.min), ("chunks.avg", self.avg), ("chunks.max", self.max)];
        for (key, Size(bytes)) in sizes {
            if !bytes.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&bytes) {
                let range = format!("from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}");
                return Err((key, format!("{bytes} bytes are not a power of two {range}")));
            }
        }
        if self.min >= self.avg {
            return Err(("chunks.avg", "must be larger than chunks.min".into()));
        }
        if self.avg >= self.max {
            return Err(("chunks.max", "must be larger than chunks.avg".into()));
        }
        Ok(())
    }
}

/// Why this is no name of a node.
pub fn check_node_name(name: &str) -> Result<(), String> {
    check_name("node.name", name).map_err(|(_, why)| why)
}

fn check_name(key: &'static str, name: &str) -> Result<(), (&'static str, String)> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err((key, format!("`{name}` is not 1 to {NAME_BYTES_MAX} characters long")));
    }
    if name.starts_with(['.', '-']) || !name.bytes().all(allowed) {
        return Err((
            key,
            format!("`{name}` may hold only letters, digits, `-`, `_` and `.` inside"),
        ));
    }
    Ok(())
}

fn check_socket(key: &'static str, path: &Path) -> Result<(), (&'static str, String)> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        let why = format!(
            "{} is {bytes} bytes long; a Unix socket may have {SOCKET_PATH_BYTES_MAX}",
            path.display()
        );
        return Err((key, why));
    }
    Ok(())
}
