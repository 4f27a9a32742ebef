//! Certificates of clients: given for a token, renewed, and looked up at the door.

use std::sync::Arc;

use fsd_rpc::message::{Enrolment, Failure, Response};
use fsd_rpc::server::Peer;
use fsd_rpc::tls::Facts;
use fsd_rpc::token::Token;
use raftmeta::read;
use raftmeta_types::cluster::{NodeState, TokenRefusal};
use raftmeta_types::{Command, MetaError, NodeId};

use super::read::storage;
use crate::authority::{Authorities, AuthorityError, Issued};
use crate::node::{Node, now};
use crate::refusals::Why;

/// Whether the cluster knows the certificate and has not revoked it.
pub(super) fn admits(node: &Node, peer: &Peer) -> bool {
    let Peer::Tls { certificate, .. } = peer else { return true };
    if let Some(id) = certificate.subject.strip_prefix("node:").and_then(|id| id.parse().ok()) {
        // Nodes make their own certificates; one that is not known here may have joined meanwhile.
        let known = read::node(&node.group.view(), NodeId(id)).ok().flatten();
        return known.is_none_or(|known| known.state != NodeState::Removed);
    }
    match read::certificate(&node.group.view(), certificate.serial) {
        Ok(known) => known.is_some_and(|known| !known.revoked),
        Err(error) => {
            tracing::error!(%error, subject = certificate.subject, "looking up a certificate");
            false
        }
    }
}

pub(super) async fn enrol(
    node: &Arc<Node>,
    peer: &Peer,
    enrolment: Enrolment,
) -> Result<Response, Failure> {
    let given = with_token(node, peer, enrolment).await;
    if let Err(failure) = &given {
        note_token(node, peer, failure);
    }
    let (subject, answer) = given?;
    tracing::info!(subject, ?peer, "a client is enrolled");
    Ok(answer)
}

/// What was refused because of a token is counted.
pub(super) fn note_token(node: &Node, peer: &Peer, failure: &Failure) {
    if let Failure::Meta(MetaError::Token(refusal)) = failure {
        node.refusals.note(Why::Token(Some(*refusal)), &peer.source(), failure);
    }
}

/// What somebody shows as a token.
pub(super) fn token(node: &Node, peer: &Peer, text: &str) -> Result<Token, Failure> {
    text.parse::<Token>().map_err(|error| {
        node.refusals.note(Why::Token(None), &peer.source(), &error);
        Failure::Refused(format!("{error}"))
    })
}

async fn with_token(
    node: &Arc<Node>,
    peer: &Peer,
    enrolment: Enrolment,
) -> Result<(String, Response), Failure> {
    let token = token(node, peer, &enrolment.token)?;
    let hash = token.hash();
    // Nothing is signed for strangers; whether the token is still good is decided by the command.
    if read::token(&node.group.view(), &hash).map_err(storage)?.is_none() {
        return Err(MetaError::Token(TokenRefusal::Unknown).into());
    }
    let authorities = node.authorities();
    let issued =
        authorities.signer().client_certificate(&enrolment.csr_der, &enrolment.name, now());
    let Issued { certificate_pem, info } = issued.map_err(refusal)?;
    let subject = info.subject.clone();
    let command = Command::UseToken { token_hash: hash, certificate: info };
    node.command(command, true).await?;
    Ok((subject, enrolled(node, &authorities, certificate_pem)))
}

pub(super) async fn renew(
    node: &Arc<Node>,
    certificate: &Facts,
    csr_der: &[u8],
) -> Result<Response, Failure> {
    let Some(name) = certificate.subject.strip_prefix("client:") else {
        return Err(Failure::Refused(format!("{} is no client", certificate.subject)));
    };
    let authorities = node.authorities();
    let issued = authorities.signer().client_certificate(csr_der, name, now()).map_err(refusal)?;
    let replaced = certificate.serial;
    let command = Command::RenewCertificate { replaced, certificate: issued.info };
    node.command(command, true).await?;
    tracing::info!(subject = certificate.subject, "a certificate is renewed");
    Ok(enrolled(node, &authorities, issued.certificate_pem))
}

fn enrolled(node: &Node, authorities: &Authorities, certificate_pem: String) -> Response {
    Response::Enrolled {
        certificate_pem,
        ca_pem: authorities.trusted_pem(),
        cluster_uuid: node.cluster.uuid,
        cluster_name: node.cluster.name.clone(),
    }
}

fn refusal(error: AuthorityError) -> Failure {
    Failure::Refused(error.to_string())
}
