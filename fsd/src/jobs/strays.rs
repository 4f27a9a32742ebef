//! Shards that this node has something of and does not hold: left by a replica that was taken out, or was never
//! brought up to the end. The leader hears of them with the node's space, and lets those go that nobody needs.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::ShardId;

use crate::clock;
use crate::replication::Host;

/// Between two looks while the map stays as it is.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What was found last, under which version of the map, and when.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<Option<(u64, Instant, Vec<ShardId>)>>);

impl Strays {
    /// Something was let go.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    pub fn of(&self, node: &impl Host) -> Vec<ShardId> {
        let view = node.view();
        let Ok(version) = read::map_version(&view) else { return Vec::new() };
        let mut last = self.0.lock();
        match &*last {
            Some((of, at, found)) if *of == version && clock::elapsed(*at) < LOOK_EVERY => {
                found.clone()
            }
            Some(_) | None => {
                let Ok(shards) = read::shards(&view) else { return Vec::new() };
                let here = node.chunks().held_shards();
                let strays = shards.iter().filter(|shard| !shard.in_sync.contains(&node.id()));
                let found: Vec<ShardId> =
                    strays.map(|shard| shard.id).filter(|id| here.contains(id)).collect();
                *last = Some((version, clock::now(), found.clone()));
                found
            }
        }
    }
}
