//! How a new node becomes one of the cluster's.
//!
//! ```text
//!   join      token ─▶ any node ─▶ leader: number, certificate, keys ─▶ files; identity.toml says `joining`
//!   catch_up  door open for nodes alone ◀─ the leader adds this replica and sends it the metadata ─▶ closed again
//!   open      the metadata is here: as every start, with a pool that is formatted first
//! ```
//! The token counts once. What it gave is kept before anything else is done, so a crash later on costs nothing:
//! the next start goes on where it was.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::credentials::{self, Joining};
use fsd_rpc::message::{
    Enrolment, Event, Failure, Hello, Join, Limits, Request, Response, Role, Welcome,
};
use fsd_rpc::server::{Conn, Handler, Peer, Server, ServerConfig};
use fsd_rpc::tls::{self, Facts};
use fsd_rpc::token::Invitation;
use raftmeta::group::{Group, GroupConfig};
use raftmeta::network::RaftMessage;
use raftmeta::read;
use raftmeta_types::cluster::ClusterInfo;
use raftmeta_types::{NodeId, SessionId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use zeroize::{Zeroize, Zeroizing};

use super::identity::{FORMAT, Identity, Stage, check_format, replace};
use super::open::{CHECKPOINT_ENTRIES, CLUSTER_KEY, MASTER_KEY};
use super::peers::Peers;
use super::skew::clock_now_ms;
use super::{Node, NodeError};
use crate::chunks::seal::write_secret;
use crate::config::Config;
use crate::data_dir::DataDir;

/// File in the data directory with what the cluster gave, until the node has the metadata itself.
const JOINED: &str = "joined.toml";
/// How often it says that it waits.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// As it lies in the file, for its owner only.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default)]
    format: u32,
    certificate: String,
    key: String,
    ca: String,
    cluster: ClusterInfo,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Where the other nodes reach this one.
pub(crate) fn address(config: &Config) -> Result<String, NodeError> {
    let door = &config.door;
    match (&door.advertise, door.tcp) {
        (Some(address), Some(_)) => Ok(address.clone()),
        (None, Some(address)) if !address.ip().is_unspecified() && address.port() != 0 => {
            Ok(address.to_string())
        }
        (None, Some(_)) => Err(NodeError::NoAddress {
            why: "door.advertise has to say under which HOST:PORT the others reach door.tcp",
        }),
        (_, None) => Err(NodeError::NoAddress { why: "door.tcp is not set" }),
    }
}

/// Asks the cluster of the token for a place, and keeps what it gives: after this the node starts like any
/// other. Blocks.
pub fn join(
    config: &Config,
    invitation: &Invitation,
    deadline: Duration,
) -> Result<NodeId, NodeError> {
    let directory = DataDir::lock(&config.node.data_dir)?;
    let path = directory.path();
    if Identity::exists(path) {
        return Err(NodeError::JoinedAlready { path: path.into() });
    }
    if !directory.is_blank()? {
        return Err(NodeError::NotANode { path: path.into() });
    }
    let address = address(config)?;
    let build = env!("CARGO_PKG_VERSION");
    let (name, clock_ms) = (config.node.name.as_str(), clock_now_ms());
    let joining = Joining { name, address: &address, build, clock_ms };
    let (joined, identity) = credentials::join(invitation, joining, deadline)?;
    write_secret(&path.join(MASTER_KEY), &joined.master_key)?;
    write_secret(&path.join(CLUSTER_KEY), &joined.cluster_key)?;
    let kept = Kept {
        format: FORMAT,
        certificate: identity.certificate_pem.clone(),
        key: identity.key_pem.to_string(),
        ca: identity.ca_pem.clone(),
        cluster: joined.cluster.clone(),
    };
    let text = Zeroizing::new(toml::to_string(&kept).expect("plain data always serialises"));
    replace(&path.join(JOINED), text.as_bytes())?;
    // Last of all: from now on the directory is a node's.
    let node = joined.node;
    let (format, cluster) = (FORMAT, joined.cluster.uuid);
    let state = Stage::Joining;
    let own = Identity { format, cluster, node: node.0, state, volume: None, starts: 0 };
    own.save(path)?;
    tracing::info!(%node, cluster = joined.cluster.name, "joined; the metadata comes next");
    Ok(node)
}

/// Waits until this replica of the metadata has caught up. Returns what is fixed in the cluster.
pub(super) async fn catch_up(
    config: &Config,
    directory: &DataDir,
    identity: &Identity,
) -> Result<(), NodeError> {
    let path = directory.path().join(JOINED);
    let kept = load(&path)?;
    let shown = tls::Identity {
        certificate_pem: kept.certificate.clone(),
        key_pem: Zeroizing::new(kept.key.clone()),
        ca_pem: kept.ca.clone(),
    };
    let peers = Arc::new(Peers::new(identity.node_id()));
    peers.show(&shown)?;
    let group = Group::open(GroupConfig {
        dir: directory.path().join("meta"),
        node_id: identity.node,
        bootstrap: false,
        checkpoint_entries: CHECKPOINT_ENTRIES,
        address: address(config)?,
        transport: Some(peers),
    })
    .await?;
    let tcp =
        config.door.tcp.map(|address| Ok::<_, NodeError>((address, tls::server_config(&shown)?)));
    let server =
        Server::bind(ServerConfig { tcp: tcp.transpose()?, ..ServerConfig::default() }).await?;
    let (stop, stopped) = watch::channel(false);
    let handler = Arc::new(OnlyNodes { group: group.clone(), cluster: kept.cluster.clone() });
    let door = tokio::spawn(server.run(handler, stopped));
    let caught_up = until_caught_up(&group, identity.node_id()).await;
    stop.send_replace(true);
    // It ends by itself within seconds.
    let _ = door.await;
    group.shutdown().await?;
    caught_up
}

async fn until_caught_up(group: &Group, own: NodeId) -> Result<(), NodeError> {
    loop {
        match group.wait_until_caught_up(SAY_EVERY).await {
            Ok(()) => {
                let view = group.view();
                if read::authority(&view)?.is_some() && read::node(&view, own)?.is_some() {
                    return Ok(());
                }
                // Of an empty checkpoint, most likely: the rest follows at once.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => match group.failure() {
                Some(_) => return Err(error.into()),
                None => tracing::info!("waiting for the leader to send the metadata"),
            },
        }
    }
}

fn load(path: &std::path::Path) -> Result<Kept, NodeError> {
    let text = std::fs::read_to_string(path).map_err(|source| NodeError::File {
        path: path.into(),
        doing: "reading it",
        source,
    })?;
    let text = Zeroizing::new(text);
    check_format(path, &text)?;
    // The parser's own message would show the line, which may be of the key.
    toml::from_str(&text)
        .map_err(|error| NodeError::Identity { path: path.into(), why: error.message().to_owned() })
}

/// The file is of no use any more.
pub(super) fn forget(directory: &DataDir) -> Result<(), NodeError> {
    let path = directory.path().join(JOINED);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(NodeError::File { path, doing: "removing it", source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The door of a node that has no metadata yet: for messages of the metadata group alone. Whose certificates
/// are revoked it cannot know; TLS has made sure that they are of the cluster.
struct OnlyNodes {
    group: Group,
    cluster: ClusterInfo,
}

fn not_yet() -> Failure {
    Failure::NotReady("this node is joining".into())
}

impl Handler for OnlyNodes {
    fn admits(&self, _peer: &Peer) -> bool {
        true
    }

    async fn hello(&self, _peer: &Peer, hello: &Hello) -> Result<Welcome, Failure> {
        if !matches!(hello.role, Role::Node { .. }) {
            return Err(not_yet());
        }
        Ok(Welcome {
            protocol: 0,
            build: env!("CARGO_PKG_VERSION").into(),
            cluster_uuid: self.cluster.uuid,
            cluster_name: self.cluster.name.clone(),
            session: SessionId::SERVER,
            secret: [0; 16],
            resumed: false,
            limits: Limits::default(),
            servers: Vec::new(),
            signer: None,
            signs_alone: false,
        })
    }

    async fn enrol(&self, _peer: &Peer, _enrolment: Enrolment) -> Result<Response, Failure> {
        Err(not_yet())
    }

    async fn join(&self, _peer: &Peer, _join: Join) -> Result<Response, Failure> {
        Err(not_yet())
    }

    async fn renew(&self, _certificate: &Facts, _csr_der: Bytes) -> Result<Response, Failure> {
        Err(not_yet())
    }

    async fn call(&self, conn: &Conn, request: Request, data: Bytes) -> (Response, Vec<Bytes>) {
        match (request, &conn.hello.role) {
            (Request::Raft, Role::Node { id }) => match raft(&self.group, *id, &data).await {
                Ok(answer) => (Response::Raft, vec![answer]),
                Err(failure) => (Response::Failed(failure), vec![]),
            },
            _ => (Response::Failed(not_yet()), vec![]),
        }
    }

    fn subscribe(&self, _conn: &Conn) -> Result<mpsc::Receiver<Event>, Failure> {
        Err(not_yet())
    }

    fn disconnected(&self, _conn: &Conn) {}
}

/// Hands a message of node `from` to the metadata group.
pub(crate) async fn raft(group: &Group, from: NodeId, data: &[u8]) -> Result<Bytes, Failure> {
    let message = RaftMessage::decode(data).map_err(|e| Failure::Refused(e.to_string()))?;
    let answer = group.handle(from.0, message).await;
    answer.encode().map_err(|error| Failure::Storage(error.to_string()))
}

impl Node {
    /// Where the network door is, for `NodeInfo`; empty without one.
    pub(super) fn door_address(config: &Config) -> String {
        let tcp = || config.door.tcp.as_ref().map(SocketAddr::to_string);
        config.door.advertise.clone().or_else(tcp).unwrap_or_default()
    }
}
