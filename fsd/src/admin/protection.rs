//! `Protection`: how often data is kept, and with how few copies in sync writes go on.
//!
//! The leader does what follows from a change round by round: shards get further copies, or lose some.

use std::sync::Arc;

use fsd_rpc::admin::{self, AdminReply};
use fsd_rpc::message::Failure;
use raftmeta::read;
use raftmeta_types::Command;
use raftmeta_types::cluster::{NodeState, Protection};

use super::refused;
use super::room::{self, Wanted};
use crate::node::Node;
use crate::service::storage;

/// As administrators see it.
pub(super) fn told(Protection { replicas, in_sync_min }: Protection) -> admin::Protection {
    admin::Protection { replicas, in_sync_min }
}

pub(super) async fn set(
    node: &Arc<Node>,
    replicas: Option<u8>,
    in_sync_min: Option<u8>,
) -> Result<AdminReply, Failure> {
    node.may_answer()?;
    let (before, nodes) = {
        let view = node.group.view();
        (read::protection(&view).map_err(storage)?, read::nodes(&view).map_err(storage)?)
    };
    let after = changed(before, replicas, in_sync_min);
    let Protection { replicas, in_sync_min } = after;
    let doing = "setting the protection";
    if !(1..=replicas).contains(&in_sync_min) {
        let why =
            format!("{in_sync_min} copies in sync are not from 1 to the {replicas} there are");
        return Err(refused("INVALID", doing, why, ""));
    }
    let up = nodes.iter().filter(|info| info.state == NodeState::Up).count();
    if replicas > before.replicas && up < usize::from(replicas) {
        let why = format!("{up} nodes are up for {replicas} copies of everything");
        return Err(refused("REDUNDANCY", doing, why, "add a node first: `cfs server join`"));
    }
    if replicas > before.replicas {
        room::check(node, doing, Wanted { replicas, without: None }).await?;
    }
    if after != before {
        node.command(Command::SetProtection(after), true).await?;
        tracing::info!(?before, ?after, "an administrator changes the protection");
    }
    Ok(AdminReply::Protection(told(after)))
}

/// What was not named stays; the least number in sync follows the copies while it is the usual one for them.
fn changed(before: Protection, replicas: Option<u8>, in_sync_min: Option<u8>) -> Protection {
    let replicas = replicas.unwrap_or(before.replicas);
    let kept = match before == Protection::of(before.replicas) {
        true => Protection::of(replicas).in_sync_min,
        false => before.in_sync_min.min(replicas),
    };
    Protection { replicas, in_sync_min: in_sync_min.unwrap_or(kept) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_or_follows() {
        let of = |replicas, in_sync_min| Protection { replicas, in_sync_min };
        for (before, replicas, in_sync_min, after) in [
            (of(3, 2), None, None, of(3, 2)),
            (of(3, 2), None, Some(1), of(3, 1)),
            (of(1, 1), Some(3), None, of(3, 2)),
            (of(3, 2), Some(2), None, of(2, 1)),
            (of(3, 3), Some(2), None, of(2, 2)),
            (of(3, 1), Some(5), None, of(5, 1)),
            (of(3, 2), Some(5), Some(4), of(5, 4)),
        ] {
            let found = changed(before, replicas, in_sync_min);
            assert_eq!(found, after, "{before:?} {replicas:?} {in_sync_min:?}");
        }
    }
}
