//! Tokens and certificates.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{AdminReply, Cert, Secret, Token};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;
use fsd_rpc::token::Invitation;
use raftmeta::read;
use raftmeta_types::cluster::{CertificateInfo, TokenInfo};
use raftmeta_types::{Command, MetaError};

use super::refused;
use crate::node::{Node, now};
use crate::service::storage;

/// Bytes of a token's hash that name it in lists.
const ID_BYTES: usize = 6;

pub(super) fn certs(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let all = read::certificates(&node.group.view()).map_err(storage)?;
    let cert = |info: CertificateInfo| Cert {
        serial: info.serial,
        subject: info.subject,
        expires: info.expires.into(),
        revoked: info.revoked,
    };
    Ok(AdminReply::Certs(all.into_iter().map(cert).collect()))
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
) -> Result<AdminReply, Failure> {
    let made = node.authority.new_token(now(), Duration::from_secs(ttl_secs), uses);
    let (token, info) =
        made.map_err(|error| refused("INVALID", "a token", error.to_string(), ""))?;
    let expires = info.expires;
    node.command(Command::CreateToken(info), true).await?;
    tracing::info!(ttl_secs, uses, by = ?conn.peer, "an enrolment token was created");
    // With the address, the token is all that a client needs.
    let servers = node.config.door.advertise.iter().cloned().collect();
    let token = Secret(Invitation { token, servers }.reveal().to_string());
    Ok(AdminReply::TokenCreated { token, expires: expires.into(), uses })
}

pub(super) fn tokens(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let all = read::tokens(&node.group.view()).map_err(storage)?;
    let token = |info: TokenInfo| Token {
        id: info.hash[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect(),
        created: info.created.into(),
        expires: info.expires.into(),
        uses_left: info.uses_left,
    };
    Ok(AdminReply::Tokens(all.into_iter().map(token).collect()))
}
