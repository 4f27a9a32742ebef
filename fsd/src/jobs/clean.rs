//! Copies the live rest of poor segments together, so that their space can be used again.

use std::sync::Arc;

use fsd_rpc::message::Failure;

use super::Found;
use crate::chunks::Usage;
use crate::node::Node;

/// Bytes copied in one round.
const BUDGET: u64 = 16 << 20;

/// Dead bytes in segments that are no longer written to.
fn dead(usage: &Usage) -> u64 {
    usage.used.saturating_sub(usage.live)
}

/// Worth it: a third of what is used is dead, or a tenth while free segments become few.
fn is_poor(usage: &Usage) -> bool {
    let tight = usage.free < usage.total / 8;
    dead(usage) > usage.used / if tight { 10 } else { 3 }
}

pub(super) async fn round(node: &Arc<Node>) -> Result<Found, Failure> {
    let usage = node.chunks.usage();
    // Open segments are not full yet, which is no reason to clean.
    let settled = usage.segments_closed > 2 * usage.segments_open;
    if !settled || !is_poor(&usage) {
        return Ok(Found::Nothing);
    }
    let _turn = node.upkeep.turn.lock().await;
    let cleaned = node.chunks.clean(BUDGET).await;
    let cleaned = cleaned.map_err(|error| node.chunk_failure(&error, None))?;
    let copied = cleaned.bytes_copied;
    tracing::debug!(segments = cleaned.segments, copied, "poor segments were cleaned");
    Ok(if cleaned.segments > 0 { Found::Something } else { Found::Nothing })
}
