//! Tokens and certificates.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{AdminReply, Cert, Secret, Token, TokenPurpose};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;
use fsd_rpc::token::{Invitation, Purpose};
use raftmeta::read;
use raftmeta_types::cluster::{CertificateInfo, NodeState, TokenInfo};
use raftmeta_types::{Command, MetaError};

use super::refused;
use crate::node::{Node, now};
use crate::service::storage;

/// Bytes of a token's hash that name it in lists.
const ID_BYTES: usize = 6;

pub(super) fn certs(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let all = read::certificates(&node.group.view()).map_err(storage)?;
    Ok(AdminReply::Certs(all.into_iter().map(cert).collect()))
}

pub(super) fn cert(info: CertificateInfo) -> Cert {
    Cert {
        serial: info.serial,
        subject: info.subject,
        expires: info.expires.into(),
        revoked: info.revoked,
    }
}

pub(super) async fn revoke(
    node: &Arc<Node>,
    conn: &Conn,
    serial: u64,
) -> Result<AdminReply, Failure> {
    match node.command(Command::RevokeCertificate { serial }, true).await {
        Ok(_) => {}
        Err(Failure::Meta(MetaError::NotFound)) => {
            let why = "the cluster never issued it";
            let next = "list them: `cfs admin cert list`";
            return Err(refused("NOT_FOUND", format!("certificate {serial}"), why, next));
        }
        Err(failure) => return Err(failure),
    }
    tracing::warn!(serial, by = ?conn.peer, "a certificate was revoked");
    node.recheck_certificates();
    Ok(AdminReply::Done)
}

pub(super) async fn create_token(
    node: &Arc<Node>,
    conn: &Conn,
    ttl_secs: u64,
    uses: u32,
    purpose: TokenPurpose,
) -> Result<AdminReply, Failure> {
    let ttl = Duration::from_secs(ttl_secs);
    let authorities = node.authorities();
    let authority = authorities.shown();
    let (made, enter): (_, fn(TokenInfo) -> Command) = match purpose {
        TokenPurpose::Client => {
            (authority.new_token(now(), ttl, uses, Purpose::Client), Command::CreateToken)
        }
        TokenPurpose::Node => {
            (authority.new_token(now(), ttl, uses, Purpose::Node), Command::CreateNodeToken)
        }
    };
    let (token, info) =
        made.map_err(|error| refused("INVALID", "a token", error.to_string(), ""))?;
    let expires = info.expires;
    node.command(enter(info), true).await?;
    tracing::info!(ttl_secs, uses, ?purpose, by = ?conn.peer, "an enrolment token was created");
    // With the addresses, the token is all that a client needs.
    let servers = addresses(node)?;
    let token = Secret(Invitation { token, servers }.reveal().to_string());
    Ok(AdminReply::TokenCreated { token, expires: expires.into(), uses })
}

/// Where the cluster is reached: the nodes that are up, this one first.
pub(crate) fn addresses(node: &Node) -> Result<Vec<String>, Failure> {
    let known = read::nodes(&node.group.view()).map_err(storage)?;
    let others = known.into_iter().filter(|other| other.id != node.id);
    let others = others.filter(|other| other.state == NodeState::Up && !other.address.is_empty());
    let own = match others.clone().next() {
        // A node that is alone says only what it was told to say.
        None => node.config.door.advertise.clone(),
        Some(_) => crate::node::address(&node.config).ok(),
    };
    Ok(own.into_iter().chain(others.map(|other| other.address)).collect())
}

pub(super) fn tokens(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let view = node.group.view();
    let clients = read::tokens(&view).map_err(storage)?;
    let nodes = read::node_tokens(&view).map_err(storage)?;
    let token = |(info, purpose): (TokenInfo, TokenPurpose)| Token {
        purpose,
        id: info.hash[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect(),
        created: info.created.into(),
        expires: info.expires.into(),
        uses_left: info.uses_left,
    };
    let of = |purpose| move |info| (info, purpose);
    let clients = clients.into_iter().map(of(TokenPurpose::Client));
    let nodes = nodes.into_iter().map(of(TokenPurpose::Node));
    Ok(AdminReply::Tokens(clients.chain(nodes).map(token).collect()))
}
