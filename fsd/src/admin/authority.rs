//! `CaRotate` and `CaStatus`: the replacement of the certificate authority.

use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, CaRotation, CaStatus};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;
use raftmeta::read;
use raftmeta_types::cluster::RotationStage;
use raftmeta_types::command::RotateStep;
use raftmeta_types::{Command, MetaError};

use super::refused;
use super::security::cert;
use crate::node::{Node, trust};
use crate::service::storage;

/// Begins a replacement, or, with `finish`, ends the waiting for clients of one that is under way.
pub(super) async fn rotate(
    node: &Arc<Node>,
    conn: &Conn,
    finish: bool,
) -> Result<AdminReply, Failure> {
    let what = "the replacement of the authority";
    let done = match finish {
        true => node.command(Command::Rotate(RotateStep::Finish), true).await.map(drop),
        false => trust::rotate(node).await,
    };
    match done {
        Ok(()) => {}
        Err(Failure::Meta(MetaError::Exists)) => {
            let why = "one is under way already";
            let next =
                "see how far it is: `cfs admin ca status`; end it: `cfs admin ca rotate --finish`";
            return Err(refused("BUSY", what, why, next));
        }
        Err(Failure::Meta(MetaError::NotFound)) => {
            let next = "begin one: `cfs admin ca rotate`";
            return Err(refused("PRECONDITION", what, "none is under way", next));
        }
        Err(failure) => return Err(failure),
    }
    tracing::warn!(finish, by = ?conn.peer, "the authority is replaced");
    status(node)
}

pub(super) fn status(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let rotation = read::rotation(&node.group.view()).map_err(storage)?;
    let authorities = node.authorities();
    let waited = trust::waited(node).map_err(storage)?;
    let rotation = rotation.map(|rotation| CaRotation {
        stage: match rotation.stage {
            RotationStage::Introduced => "introduced",
            RotationStage::Issuing => "issuing",
            RotationStage::Showing => "showing",
        }
        .to_owned(),
        begun: rotation.begun.into(),
        fingerprint: authorities.successor().map(|new| new.fingerprint().to_string()),
        finish: rotation.finish,
        nodes_waited_for: waited.nodes,
        clients_waited_for: waited.clients.into_iter().map(cert).collect(),
    });
    let fingerprint = authorities.shown().fingerprint().to_string();
    Ok(AdminReply::Ca(Box::new(CaStatus { fingerprint, rotation })))
}
