//! Answers what administrators ask (`cfs admin …`).

use std::sync::Arc;

use fsd_rpc::admin::{AdminReply, AdminRequest};
use fsd_rpc::message::Failure;
use fsd_rpc::server::Conn;

use crate::node::Node;

/// Answers one request of a greeted connection, which the service has found allowed to ask.
pub async fn answer(
    node: &Arc<Node>,
    conn: &Conn,
    request: AdminRequest,
) -> Result<AdminReply, Failure> {
    match request {
        AdminRequest::Status => {
            tracing::debug!(connection = conn.id, uptime = ?node.uptime(), "status");
            Ok(AdminReply::Done)
        }
    }
}
