//! `cfs admin node list | drain | undrain | remove [--lost] | recover`.

mod change;
mod remove;

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{self, AdminReply, AdminRequest, DataStatus};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::units;

#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the storage nodes
    List(List),
    /// Move everything off a node; then it may be switched off
    Drain(change::Drain),
    /// Take a drain back: the node holds data again
    Undrain(change::Named),
    /// Forget a node that is drained, or lost and made up for
    Remove(remove::Remove),
    /// Make good what a lost node held, from the other replicas
    Recover(change::Recover),
}

#[derive(Debug, Args)]
pub struct List {
    /// And every shard: epochs, primary, replicas in sync, chunks
    #[arg(long)]
    show_shards: bool,
}

#[derive(Serialize)]
struct View {
    items: Vec<admin::Node>,
}

impl Node {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Node::List(list) => list.run(context),
            Node::Drain(drain) => drain.run(context),
            Node::Undrain(named) => named.undrain(context),
            Node::Remove(remove) => remove.run(context),
            Node::Recover(recover) => recover.run(context),
        }
    }
}

impl List {
    fn run(self, context: &Context) -> Result<Exit> {
        let doing = "cannot list the nodes";
        let List { show_shards } = self;
        let request = AdminRequest::NodeList { with_shards: show_shards };
        let items = match context.connect()?.ask(doing, request)? {
            AdminReply::Nodes(items) => items,
            _ => return Err(unexpected(doing).into()),
        };
        output::print(context.format, &View { items })?;
        Ok(Exit::Ok)
    }
}

impl Shown for View {
    const KIND: &'static str = "node-list";

    fn table(&self, wide: bool) -> String {
        let row = |node: &admin::Node| {
            let mut row = vec![
                format!("n{}", node.id),
                node.name.clone(),
                node.state.clone(),
                node.role.clone(),
                used(node).map_or("-".into(), units::bytes),
                percent(node).map_or("-".into(), |percent| format!("{percent}%")),
                units::bytes(node.capacity_bytes),
                node.shards_primary.to_string(),
                node.address.clone(),
            ];
            if wide {
                let data = node.data.as_ref();
                let bytes = |of: fn(&DataStatus) -> u64| {
                    data.map_or("-".into(), |data| units::bytes(of(data)))
                };
                row.push(bytes(|data| data.live_bytes));
                row.push(bytes(|data| data.free_bytes));
                row.push(node.seen.clone());
            }
            row
        };
        let mut head = vec![
            "NODE", "NAME", "STATE", "METADATA", "USED", "USE%", "CAPACITY", "SHARDS", "ADDRESS",
        ];
        if wide {
            head.extend(["LIVE", "FREE", "SEEN"]);
        }
        let mut text =
            output::columns(&head, &[4, 5, 6, 7, 9, 10], self.items.iter().map(row).collect());
        let shards: Vec<Vec<String>> =
            self.items.iter().flat_map(|node| &node.shards).map(shard).collect();
        if !shards.is_empty() {
            let head = ["SHARD", "PRIMARY", "IN SYNC", "EPOCH", "GC EPOCH", "CHUNKS", "STORED"];
            text += "\n";
            text += &output::columns(&head, &[0, 3, 4, 5, 6], shards);
        }
        text
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|node| node.name.clone()).collect()
    }
}

/// In segments that hold something.
fn used(node: &admin::Node) -> Option<u64> {
    Some(node.data.as_ref()?.used_bytes)
}

/// Of what is not kept for cleaning.
fn percent(node: &admin::Node) -> Option<u64> {
    let data = node.data.as_ref()?;
    let writable = data.total_bytes.saturating_sub(data.reserve_bytes);
    Some(units::percent(data.used_bytes, writable).min(100))
}

fn shard(shard: &admin::Shard) -> Vec<String> {
    let in_sync: Vec<String> = shard.in_sync.iter().map(|node| format!("n{node}")).collect();
    vec![
        shard.id.to_string(),
        format!("n{}", shard.primary),
        in_sync.join(","),
        shard.epoch.to_string(),
        shard.gc_epoch.to_string(),
        shard.chunks.map_or("-".into(), units::count),
        shard.stored_bytes.map_or("-".into(), units::bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_their_shards() {
        let shard = admin::Shard {
            id: 3,
            epoch: 1,
            gc_epoch: 4,
            primary: 1,
            in_sync: vec![1, 2],
            chunks: Some(1200),
            stored_bytes: Some(4096),
        };
        let node = admin::Node {
            id: 1,
            name: "dev".into(),
            address: "127.0.0.1:9400".into(),
            state: "up".into(),
            capacity_bytes: 4 << 30,
            data: Some(DataStatus {
                nodes: 1,
                total_bytes: 5 << 30,
                used_bytes: 3 << 30,
                reserve_bytes: 1 << 30,
                live_bytes: 2 << 30,
                ..DataStatus::default()
            }),
            seen: "suspect".into(),
            role: "leader".into(),
            shards_primary: 16,
            shards: vec![shard],
        };
        let view = View { items: vec![node] };
        assert!(view.table(true).contains("suspect"), "{}", view.table(true));
        let text = view.table(false);
        assert!(!text.contains("suspect"), "{text}");
        for part in ["n1", "up", "leader", "3.0 GiB", "75%", "4.0 GiB", "n1,n2", "1,200"] {
            assert!(text.contains(part), "{text}");
        }
        let View { mut items } = view;
        (items[0].data, items[0].shards[0].chunks) = (None, None);
        let text = View { items }.table(true);
        assert!(!text.contains("75%") && !text.contains("1,200"), "{text}");
    }
}
