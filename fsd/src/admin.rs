//! Answers what administrators ask (`cfs admin …`): one file per verb, and `jobs` for what takes long.

mod authority;
mod clients;
mod drain;
mod du;
mod fsck;
mod gc;
mod jobs;
mod lost;
mod nodes;
mod path;
mod protection;
mod room;
mod scrub;
pub(crate) mod security;
mod stat;
mod status;

use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, AdminRequest};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;

pub(crate) use jobs::Jobs;

use crate::node::Node;

/// Answers one request of a greeted connection, which the service has found allowed to ask.
pub async fn answer(
    node: &Arc<Node>,
    conn: &Conn,
    request: AdminRequest,
) -> Result<AdminReply, Failure> {
    match request {
        AdminRequest::Status => status::status(node),
        AdminRequest::NodeList { with_shards } => nodes::list(node, with_shards).await,
        AdminRequest::NodeDrain { node: named, dry_run } => {
            drain::drain(node, &named, dry_run).await
        }
        AdminRequest::NodeUndrain { node: named } => drain::undrain(node, &named).await,
        AdminRequest::NodeRemove { node: named } => drain::remove(node, &named).await,
        AdminRequest::NodeRecover { node: named } => drain::recover(node, &named),
        AdminRequest::ClientList => clients::list(node),
        AdminRequest::ClientRevoke { session } => clients::revoke(node, conn, session).await,
        AdminRequest::CertList => security::certs(node),
        AdminRequest::CertRevoke { serial } => security::revoke(node, conn, serial).await,
        AdminRequest::TokenCreate { ttl_secs, uses, purpose } => {
            security::create_token(node, conn, ttl_secs, uses, purpose).await
        }
        AdminRequest::TokenList => security::tokens(node),
        AdminRequest::CaStatus => authority::status(node),
        AdminRequest::CaRotate { finish } => authority::rotate(node, conn, finish).await,
        AdminRequest::Stat { target, from_offset_bytes, extents_max } => {
            stat::stat(node, &target, from_offset_bytes, extents_max).await
        }
        AdminRequest::Checkpoint => {
            let done = node.group.checkpoint().await;
            done.map_err(|error| Failure::Storage(error.to_string()))?;
            Ok(AdminReply::Done)
        }
        AdminRequest::JobStart(job) => jobs::start(node, job),
        AdminRequest::JobPoll { job, wait_ms } => node.admin.poll(job, wait_ms).await,
        AdminRequest::JobCancel { job } => node.admin.cancel(job),
        AdminRequest::NodeRemoveLost { node: named, confirm, accept_data_loss } => {
            lost::remove(node, &named, lost::Consent { confirm, accept_data_loss }).await
        }
        AdminRequest::Protection { replicas, in_sync_min } => {
            protection::set(node, replicas, in_sync_min).await
        }
    }
}

/// A refusal in words: what, why, what next.
fn refused(code: &str, what: impl Into<String>, why: impl Into<String>, next: &str) -> Failure {
    Failure::Admin {
        code: code.to_owned(),
        what: what.into(),
        why: why.into(),
        next: next.to_owned(),
    }
}
