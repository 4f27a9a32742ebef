//! Frees, a bounded batch at a time, the extents that large unlinked files left behind.

use std::sync::Arc;

use fsd_rpc::message::Failure;
use raftmeta::read;
use raftmeta_types::{Command, Reply};

use super::Found;
use crate::node::Node;
use crate::service::storage;

/// Extents freed in one command: short enough not to hold other commands up.
const BATCH: u32 = 512;
/// Commands in one round; the others come in the next one.
const COMMANDS_MAX: usize = 64;

pub(super) async fn reap(node: &Arc<Node>) -> Result<Found, Failure> {
    for _ in 0..COMMANDS_MAX {
        if !batch(node).await? {
            return Ok(Found::Nothing);
        }
    }
    Ok(Found::More)
}

pub(super) async fn reap_all(node: &Arc<Node>) -> Result<(), Failure> {
    while batch(node).await? {}
    Ok(())
}

/// Whether there is more.
async fn batch(node: &Arc<Node>) -> Result<bool, Failure> {
    if !read::has_dead(&node.group.view()).map_err(storage)? {
        return Ok(false);
    }
    match node.command(Command::Reap { limit: BATCH }, false).await? {
        Reply::Reaped { more, .. } => Ok(more),
        _ => Ok(false),
    }
}
