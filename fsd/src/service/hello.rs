//! How sessions begin and come back.

use std::sync::Arc;

use fsd_rpc::message::{Failure, Hello, Limits, Role, Welcome};
use fsd_rpc::server::Peer;
use raftmeta::read;
use raftmeta_types::cluster::{NodeState, SessionInfo};
use raftmeta_types::{Command, Ino, NodeId, SessionId};
use uuid::Uuid;

use super::read::storage;
use crate::node::{Node, now};
use crate::refusals::Why;
use crate::sessions::LEASE;

/// Largest flush that travels in its command (docs/decisions.md, D3).
const INLINE_MAX: u32 = 32 << 10;
/// Sessions at once; a further one is refused.
const SESSIONS_MAX: usize = 4096;
/// Longest name that a client gives itself, in bytes.
const CLIENT_BYTES_MAX: usize = 4096;

pub(super) async fn hello(
    node: &Arc<Node>,
    peer: &Peer,
    hello: &Hello,
) -> Result<Welcome, Failure> {
    match &hello.role {
        Role::NewSession { client } => new_session(node, peer, client).await,
        Role::Session { session, secret, client, open } => {
            resume(node, peer, (*session, secret), client, open).await
        }
        Role::Admin => Ok(welcome(node, SessionId::SERVER, [0; 16], false)),
        Role::Node { id } => of_node(node, peer, *id),
        Role::Enrol => Err(Failure::Protocol("who is known need not enrol".into())),
        Role::Relayed { .. } => Err(Failure::Protocol("passed on twice".into())),
    }
}

/// Another node. One that is not known here may have joined while this node was away.
fn of_node(node: &Node, peer: &Peer, id: NodeId) -> Result<Welcome, Failure> {
    let known = read::node(&node.group.view(), id).map_err(storage)?;
    if known.is_some_and(|known| known.state == NodeState::Removed) {
        let why = format!("node {id} was removed from the cluster");
        node.refusals.note(Why::Stranger, &peer.source(), &why);
        return Err(Failure::Refused(why));
    }
    Ok(welcome(node, SessionId::SERVER, [0; 16], false))
}

fn welcome(node: &Node, session: SessionId, secret: [u8; 16], resumed: bool) -> Welcome {
    let chunks = &node.config.chunks;
    let bytes = |size: crate::config::Size| u32::try_from(size.0).unwrap_or(u32::MAX);
    let authorities = node.authorities();
    Welcome {
        // The door fills it in.
        protocol: 0,
        build: env!("CARGO_PKG_VERSION").into(),
        cluster_uuid: node.cluster.uuid,
        cluster_name: node.cluster.name.clone(),
        session,
        secret,
        resumed,
        limits: Limits {
            shard_count: node.cluster.shard_count,
            chunk_min: bytes(chunks.min),
            chunk_avg: bytes(chunks.avg),
            chunk_max: bytes(chunks.max),
            inline_max: INLINE_MAX,
            lease_ms: LEASE.as_millis() as u32,
        },
        // Who does not hear of them goes on with those that it knows.
        servers: crate::admin::security::addresses(node).unwrap_or_default(),
        signer: Some(authorities.signer().fingerprint()),
        signs_alone: authorities.successor().is_none(),
    }
}

/// Who may come back to a session: who opened it.
fn identity(peer: &Peer) -> String {
    match peer {
        Peer::Unix { uid, .. } => format!("uid={uid}"),
        Peer::Tls { certificate, .. } => certificate.subject.clone(),
        Peer::TlsAnonymous { address } => format!("anonymous {address}"),
    }
}

async fn new_session(node: &Arc<Node>, peer: &Peer, client: &str) -> Result<Welcome, Failure> {
    if client.len() > CLIENT_BYTES_MAX {
        let why = format!("a client's name has at most {CLIENT_BYTES_MAX} bytes");
        return Err(Failure::Refused(why));
    }
    if node.sessions.lock().count() >= SESSIONS_MAX {
        return Err(Failure::Refused(format!("{SESSIONS_MAX} clients are connected already")));
    }
    let random = Uuid::new_v4().as_u128();
    let info = SessionInfo {
        // Never 0: the version bits of the UUID lie in this half.
        session: SessionId((random >> 64) as u64),
        client: client.to_owned(),
        identity: identity(peer),
        opened: now(),
        secret: *Uuid::new_v4().as_bytes(),
    };
    let (session, secret) = (info.session, info.secret);
    // Known here first: a session in the state machine that nobody awaits would never end.
    let entered = node.sessions.lock().hello(session, [], node.uptime());
    entered.map_err(|error| Failure::Refused(error.to_string()))?;
    if let Err(failure) = node.command(Command::OpenSession(info), false).await {
        node.sessions.lock().end(session);
        return Err(failure);
    }
    tracing::info!(%session, client, peer = identity(peer), "a session begins");
    Ok(welcome(node, session, secret, false))
}

async fn resume(
    node: &Arc<Node>,
    peer: &Peer,
    (session, secret): (SessionId, &[u8; 16]),
    client: &str,
    open: &[Ino],
) -> Result<Welcome, Failure> {
    node.may_answer()?;
    let info = read::session(&node.group.view(), session).map_err(storage)?;
    let Some(info) = info.filter(|_| session != SessionId::SERVER) else {
        return new_session(node, peer, client).await;
    };
    if !same(&info.secret, secret) || info.identity != identity(peer) {
        let why = format!("session {session} is somebody else's");
        node.refusals.note(Why::Session, &peer.source(), &why);
        return Err(Failure::Refused(why));
    }
    let back = {
        let mut sessions = node.sessions.lock();
        if !sessions.is_known(session) {
            // It is being ended at this moment.
            return Err(Failure::NotReady(format!("session {session} is ending")));
        }
        sessions.hello(session, open.iter().copied(), node.uptime())
    };
    let back = back.map_err(|error| Failure::Refused(error.to_string()))?;
    if back {
        tracing::info!(%session, client = info.client, open = open.len(), "a session is back");
        release_what_it_does_not_hold(node, session).await?;
    }
    Ok(welcome(node, session, *secret, true))
}

/// While a session was awaited it counted as a holder of whatever was unlinked.
async fn release_what_it_does_not_hold(
    node: &Arc<Node>,
    session: SessionId,
) -> Result<(), Failure> {
    let orphans = read::orphans_of(&node.group.view(), session).map_err(storage)?;
    let inos: Vec<Ino> = {
        let sessions = node.sessions.lock();
        orphans.into_iter().filter(|ino| !sessions.holds(session, *ino)).collect()
    };
    if inos.is_empty() {
        return Ok(());
    }
    node.command(Command::ReleaseOrphans { session, inos }, false).await?;
    node.upkeep.kick();
    Ok(())
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
