//! `NodeList`: storage nodes, and their shards if asked for.

use std::sync::Arc;

use fsd_rpc::admin::{self, AdminReply};
use fsd_rpc::message::Failure;
use raftmeta::group::Member;
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, ShardInfo};

use crate::node::Node;
use crate::service::storage;

pub(super) fn list(node: &Arc<Node>, with_shards: bool) -> Result<AdminReply, Failure> {
    let view = node.group.view();
    let nodes = read::nodes(&view).map_err(storage)?;
    let shards = read::shards(&view).map_err(storage)?;
    let census = if with_shards { census(node) } else { Vec::new() };
    let leader = node.group.status().leader;
    let members = node.group.members();
    let shown = |info: &NodeInfo| {
        let primary = || shards.iter().filter(|shard| shard.primary == info.id);
        admin::Node {
            id: info.id.0,
            name: info.name.clone(),
            address: info.address.clone(),
            state: info.state.to_string(),
            capacity_bytes: info.capacity_bytes,
            seen: match info.id == node.id {
                true => "self".to_owned(),
                false => node.membership.seen(info.id).name().to_owned(),
            },
            role: role(info, leader, &members).to_owned(),
            shards_primary: primary().count() as u32,
            shards: if with_shards {
                primary().map(|info| shard(info, &census)).collect()
            } else {
                Vec::new()
            },
        }
    };
    Ok(AdminReply::Nodes(nodes.iter().map(shown).collect()))
}

fn role(info: &NodeInfo, leader: Option<u64>, members: &[Member]) -> &'static str {
    match members.iter().find(|member| member.id == info.id.0) {
        Some(_) if leader == Some(info.id.0) => "leader",
        Some(member) if member.voter => "voter",
        Some(_) => "learner",
        None => "",
    }
}

fn shard(info: &ShardInfo, census: &[(u64, u64)]) -> admin::Shard {
    let (chunks, stored_bytes) = census.get(usize::from(info.id.0)).copied().unwrap_or_default();
    admin::Shard {
        id: info.id.0,
        epoch: info.epoch.0,
        gc_epoch: info.gc_epoch.0,
        primary: info.primary.0,
        in_sync: info.in_sync.iter().map(|node| node.0).collect(),
        chunks,
        stored_bytes,
    }
}

/// Chunks of each shard on this node and what they take.
fn census(node: &Node) -> Vec<(u64, u64)> {
    let count = node.cluster.shard_count;
    let mut census = vec![(0, 0); count as usize];
    for hash in node.chunks.iter_hashes(None) {
        let (chunks, bytes) = &mut census[usize::from(hash.shard(count).0)];
        *chunks += 1;
        *bytes += u64::from(node.chunks.stored_len(&hash).unwrap_or(0));
    }
    census
}
