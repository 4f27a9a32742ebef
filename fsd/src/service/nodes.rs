//! What other nodes of the cluster ask, and new ones that want to be.

use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::message::{Failure, Join, Joined, NodeRequest, Response, Role};
use fsd_rpc::server::{Conn, Peer};
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState, TokenRefusal};
use raftmeta_types::{Command, MetaError, NodeId};

use super::enrol::{note_token, token};
use super::read::storage;
use super::{Answer, data, plain};
use crate::authority::Issued;
use crate::config::check_node_name;
use crate::jobs;
use crate::node::skew::{CLOCK_OFF_MAX, Off, clock_now_ms};
use crate::node::{Node, members, now};
use crate::refusals::Why;
use crate::replication;

/// How often a number is tried that another node got first.
const TRIES: usize = 16;
/// Longest address of a node, in bytes.
const ADDRESS_BYTES_MAX: usize = 255;

fn asking(conn: &Conn) -> Result<NodeId, Failure> {
    match &conn.hello.role {
        Role::Node { id } => Ok(*id),
        Role::NewSession { .. }
        | Role::Session { .. }
        | Role::Admin
        | Role::Enrol
        | Role::Relayed { .. } => {
            Err(Failure::Refused("only nodes of the cluster may ask this".into()))
        }
    }
}

/// `Request::Raft`.
pub(super) async fn raft(node: &Arc<Node>, conn: &Conn, data: &Bytes) -> Answer {
    let answer = crate::node::raft(&node.group, asking(conn)?, data).await?;
    Ok((Response::Raft, vec![answer]))
}

/// `Request::Replica`.
pub(super) async fn replica(node: &Arc<Node>, conn: &Conn, data: &Bytes) -> Answer {
    let answer = replication::answer(&node.chunks, asking(conn)?, data).await?;
    Ok((Response::Replica, vec![answer]))
}

/// `Request::Node`.
pub(super) async fn answer(
    node: &Arc<Node>,
    conn: &Conn,
    request: NodeRequest,
    bytes: Bytes,
) -> Answer {
    let id = asking(conn)?;
    match request {
        NodeRequest::Announce { name, address, capacity_bytes, instance } => {
            node.may_answer()?;
            check(&name, &address)?;
            let state = NodeState::Up;
            let told = NodeInfo { id, name, address, state, capacity_bytes };
            members::refuse_twin(node, &conn.peer, &told, instance).await?;
            members::enter(node, told).await?;
            plain(Response::Done)
        }
        NodeRequest::PutChunks { chunks } => {
            let pieces = data::pieces(&chunks, &bytes)?;
            plain(Response::Receipts(node.put_here(pieces).await?))
        }
        NodeRequest::GetChunks { hashes } => data::get_here(node, &hashes).await,
        NodeRequest::DeleteChunks { shard, epoch, hashes } => {
            let bytes = node.delete_here(shard, epoch, &hashes).await?;
            plain(Response::Deleted { bytes })
        }
        NodeRequest::NewEpoch { shard, epoch, without } => {
            node.may_answer()?;
            replication::new_epoch(node, id, shard, epoch, without).await?;
            plain(Response::Done)
        }
        NodeRequest::Reclaim => {
            node.may_answer()?;
            plain(Response::Epochs(replication::reclaim(node, id).await?))
        }
        NodeRequest::BringUp { shard, epoch, node: other } => {
            replication::bring_up(node, shard, epoch, other).await?;
            plain(Response::Done)
        }
        NodeRequest::Forget { shard, epoch } => {
            replication::forget(&**node, shard, epoch).await?;
            plain(Response::Done)
        }
        NodeRequest::Sizes { hashes } => {
            plain(Response::Sizes(hashes.iter().map(|hash| node.size_here(hash)).collect()))
        }
        NodeRequest::Usage { with_shards } => plain(Response::Usage(node.usage(with_shards))),
        NodeRequest::Unreferenced { shard, hashes } => {
            node.may_answer()?;
            jobs::delete_unreferenced(&**node, shard, hashes).await?;
            plain(Response::Done)
        }
        NodeRequest::Clean => {
            jobs::clean_all(node).await?;
            plain(Response::Done)
        }
        NodeRequest::Scrub(ask) => {
            plain(Response::Scrub(node.upkeep.scrub.answer(ask, &node.chunks.shares())))
        }
    }
}

fn check(name: &str, address: &str) -> Result<(), Failure> {
    check_node_name(name).map_err(Failure::Refused)?;
    let plausible = |address: &str| {
        address.len() <= ADDRESS_BYTES_MAX
            && address.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
    };
    match plausible(address) {
        true => Ok(()),
        false => Err(Failure::Refused(format!("`{}` is not HOST:PORT", address.escape_default()))),
    }
}

/// `Request::Join`: gives a new node its number, its certificate and the cluster's keys.
pub(super) async fn join(node: &Arc<Node>, peer: &Peer, join: Join) -> Result<Response, Failure> {
    let joined = with_token(node, peer, join).await;
    if let Err(failure) = &joined {
        note_token(node, peer, failure);
    }
    joined
}

/// A node whose clock is far off would hand out certificates and times of another day.
fn check_clock(node: &Node, peer: &Peer, name: &str, clock_ms: i64) -> Result<(), Failure> {
    let off_ms = clock_ms.saturating_sub(clock_now_ms());
    if off_ms.unsigned_abs() <= CLOCK_OFF_MAX.as_millis() as u64 {
        return Ok(());
    }
    let why = format!(
        "the clock of node {name} is {} the leader's: set it (NTP), then join again with the same token",
        Off(off_ms)
    );
    node.refusals.note(Why::Clock, &peer.source(), &why);
    Err(Failure::Refused(why))
}

async fn with_token(node: &Arc<Node>, peer: &Peer, join: Join) -> Result<Response, Failure> {
    node.may_answer()?;
    let token_hash = token(node, peer, &join.token)?.hash();
    // Nothing is signed for strangers; whether the token is still good is decided by the command.
    if read::node_token(&node.group.view(), &token_hash).map_err(storage)?.is_none() {
        return Err(MetaError::Token(TokenRefusal::Unknown).into());
    }
    check(&join.name, &join.address)?;
    check_clock(node, peer, &join.name, join.clock_ms)?;
    let authorities = node.authorities();
    let (master_key, cluster_key) = node.keys()?;
    for _ in 0..TRIES {
        let known = read::nodes(&node.group.view()).map_err(storage)?;
        let id = NodeId(known.iter().map(|node| node.id.0).max().unwrap_or(0) + 1);
        let issued = authorities.shown().node_certificate(&join.csr_der, id, now());
        let Issued { certificate_pem, info } =
            issued.map_err(|error| Failure::Refused(error.to_string()))?;
        let entered = NodeInfo {
            id,
            name: join.name.clone(),
            address: join.address.clone(),
            state: NodeState::Joining,
            capacity_bytes: 0,
        };
        let command = Command::JoinNode { token_hash, certificate: info, node: entered };
        match node.command(command, true).await {
            Err(Failure::Meta(MetaError::Superseded)) => {}
            Err(failure) => return Err(failure),
            Ok(_) => {
                tracing::info!(node = %id, name = join.name, ?peer, "a node joins the cluster");
                return Ok(Response::Joined(Box::new(Joined {
                    node: id,
                    cluster: node.cluster.clone(),
                    certificate_pem,
                    ca_pem: authorities.trusted_pem(),
                    master_key: master_key.to_vec(),
                    cluster_key,
                })));
            }
        }
    }
    Err(Failure::NotReady("many nodes join at this moment".into()))
}
