//! Why a node did not start, or stopped on its own.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use fsd_rpc::credentials::CredentialsError;
use fsd_rpc::server::ServerError;
use raftmeta::{GroupError, KvError};
use raftmeta_types::MetaError;

use crate::chunks;
use crate::data_dir::DataDirError;

/// Each names what it is about and what to do.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{path}: {source} while {doing}")]
    File { path: PathBuf, doing: &'static str, source: io::Error },
    #[error(
        "{path}: format {found} is newer than {reads}, the newest that this program reads: start the one that wrote it, \
         or newer"
    )]
    NewerFormat { path: PathBuf, found: u32, reads: u32 },
    #[error("{path} does not say who this node is: {why}")]
    Identity { path: PathBuf, why: String },
    #[error(
        "data directory {path} holds files and no identity.toml: it is not a node's, or parts of it \
         are lost"
    )]
    NotANode { path: PathBuf },
    #[error("blockd: {0}")]
    Blockd(String),
    #[error("pool of this node: {0}")]
    Pool(#[from] chunks::Error),
    #[error("pool of this node: {0}")]
    Volume(#[from] blockd_ipc::Error),
    #[error(
        "pool of this node: its volume is damaged or holds something else, and no cluster was made \
         on it: configure another pool, or remove this one if nothing in it is wanted"
    )]
    PoolNotBlank,
    #[error(
        "pool of this node: it holds volume {found}, and the data of this node is on volume {expected}: it is the pool of \
         another node, or a new one. Configure the right one; if that is lost for good, have another node say \
         `cfs admin node remove --lost` and let this one join again with a blank data directory"
    )]
    WrongPool { found: uuid::Uuid, expected: uuid::Uuid },
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Metadata(#[from] KvError),
    #[error("the metadata group refused {doing}: {source}")]
    Refused { doing: &'static str, source: MetaError },
    #[error("the metadata is of cluster {found}, this node of {expected}")]
    ForeignMetadata { found: uuid::Uuid, expected: uuid::Uuid },
    #[error(transparent)]
    Door(#[from] ServerError),
    #[error("metrics: cannot listen on {address}: {source}")]
    MetricsListen { address: SocketAddr, source: io::Error },
    #[error("door.tcp: cannot listen for datagrams on {address} (UDP): {source}")]
    Datagrams { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Authority(#[from] crate::authority::AuthorityError),
    #[error("network door: {0}")]
    Tls(#[from] fsd_rpc::tls::TlsError),
    #[error("this node cannot be reached by others: {why}")]
    NoAddress { why: &'static str },
    #[error("{path} is a node's already: start it with `cfs server --config`")]
    JoinedAlready { path: PathBuf },
    #[error("joining: {0}")]
    Join(#[from] CredentialsError),
    #[error("metrics: {0}")]
    Metrics(String),
    #[error("systemd: NOTIFY_SOCKET cannot be used: {0}")]
    Manager(io::Error),
    #[error("signals: {0}")]
    Signals(io::Error),
    #[error("no threads to run on: {0}")]
    Threads(io::Error),
    /// What happened is in the message; a restart recovers.
    #[error("stopped: {0}")]
    Fatal(String),
}
