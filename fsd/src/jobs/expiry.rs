//! Ends sessions without a sign of life.

use std::sync::Arc;

use fsd_rpc::message::Failure;

use crate::node::Node;

pub(super) async fn expire(node: &Arc<Node>) -> Result<(), Failure> {
    let expired = node.sessions.lock().expired(node.uptime());
    for session in expired {
        tracing::info!(%session, "a session without a sign of life ends");
        node.end_session(session).await?;
    }
    Ok(())
}
