//! `NodeList`: storage nodes with their space, and their shards if asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use fsd_rpc::admin::{self, AdminReply};
use fsd_rpc::message::{Failure, NodeUsage, ShardUsage};
use raftmeta::group::Member;
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, ShardInfo};
use raftmeta_types::{NodeId, ShardId};

use super::status;
use crate::node::Node;
use crate::service::storage;

/// What each shard is on the node that says so.
type Census = BTreeMap<(NodeId, ShardId), ShardUsage>;

pub(super) async fn list(node: &Arc<Node>, with_shards: bool) -> Result<AdminReply, Failure> {
    let asked = if with_shards { node.ask_usages().await? } else { Vec::new() };
    let view = node.group.view();
    let nodes = read::nodes(&view).map_err(storage)?;
    let shards = read::shards(&view).map_err(storage)?;
    let census = census(&asked);
    // What was said at this moment, or else last.
    let mut data: BTreeMap<NodeId, NodeUsage> =
        node.heard(&nodes).into_iter().map(|(info, usage)| (info.id, usage)).collect();
    data.extend(asked.into_iter().map(|(info, usage)| (info.id, usage)));
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
            data: data.get(&info.id).map(status::data),
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

fn census(asked: &[(NodeInfo, NodeUsage)]) -> Census {
    let of = |(info, usage): &(NodeInfo, NodeUsage)| {
        let id = info.id;
        usage.shards.clone().into_iter().map(move |shard| ((id, shard.shard), shard))
    };
    asked.iter().flat_map(of).collect()
}

fn shard(info: &ShardInfo, census: &Census) -> admin::Shard {
    let told = census.get(&(info.primary, info.id));
    admin::Shard {
        id: info.id.0,
        epoch: info.epoch.0,
        gc_epoch: info.gc_epoch.0,
        primary: info.primary.0,
        in_sync: info.in_sync.iter().map(|node| node.0).collect(),
        chunks: told.map(|told| told.chunks),
        stored_bytes: told.map(|told| told.live_bytes),
    }
}
