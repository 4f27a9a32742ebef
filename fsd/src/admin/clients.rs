//! `ClientList`, `ClientRevoke`: the sessions of mounts.

use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, Client};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;
use raftmeta::read;
use raftmeta_types::SessionId;
use raftmeta_types::cluster::SessionInfo;

use super::refused;
use crate::node::Node;
use crate::service::storage;

pub(super) fn list(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let sessions = read::sessions(&node.group.view()).map_err(storage)?;
    let now = node.uptime();
    let client = |info: SessionInfo| {
        let activity = node.sessions.lock().activity(info.session, now);
        let idle_ms = |(idle, _): (std::time::Duration, usize)| idle.as_millis() as u64;
        Client {
            session: info.session.0,
            client: info.client,
            identity: info.identity,
            opened: info.opened.into(),
            idle_ms: activity.map(idle_ms),
            open_files: activity.map_or(0, |(_, open)| open as u64),
        }
    };
    Ok(AdminReply::Clients(sessions.into_iter().map(client).collect()))
}

pub(super) async fn revoke(
    node: &Arc<Node>,
    conn: &Conn,
    session: SessionId,
) -> Result<AdminReply, Failure> {
    let known = read::session(&node.group.view(), session).map_err(storage)?;
    if session == SessionId::SERVER || known.is_none() {
        let why = "there is no such session";
        let next = "list them: `cfs admin client list`";
        return Err(refused("NOT_FOUND", format!("session {session}"), why, next));
    }
    tracing::warn!(%session, by = ?conn.peer, "a session is ended by an administrator");
    node.end_session(session).await?;
    Ok(AdminReply::Done)
}
