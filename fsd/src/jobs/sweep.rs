//! Finds chunks that nothing ever referenced: put by a client that died before it committed, or left by a
//! deletion that a crash interrupted (docs/decisions.md, D7).
//!
//! A chunk that was put a moment ago and waits for its commit looks the same. Deleting it would be safe,
//! for the commit is refused then and the chunk put again, but it would be a nuisance: so a chunk is
//! deleted only if the sweep before found it unreferenced, too.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest};
use raftmeta::read;
use raftmeta_types::{ChunkHash, ShardId};

use super::{Found, gc};
use crate::clock;
use crate::replication::Host;
use crate::service::storage;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(600);
/// Chunks looked up without a pause.
const STRIDE: usize = 256;
/// Candidates remembered between two sweeps; more wait for later sweeps.
const CANDIDATES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// End of the last sweep; of the start before the first.
    last: Option<Instant>,
    /// Next shard of the sweep under way.
    next: Option<u32>,
    candidates: HashSet<ChunkHash>,
    found: HashSet<ChunkHash>,
}

impl Sweep {
    /// Begins, if none is under way: a simulation has no time to wait for it.
    #[cfg(test)]
    pub fn hurry(&mut self) {
        self.next = self.next.or(Some(0));
    }

    /// Whether it is time, and something was put since the last one or has to be confirmed.
    pub fn is_due(&self, node: &impl Host) -> bool {
        self.next.is_some()
            || (self.last.is_some_and(|at| clock::elapsed(at) >= EVERY)
                && (node.upkeep().puts.load(Ordering::Relaxed) || !self.candidates.is_empty()))
    }

    /// One shard of a sweep that is due.
    pub async fn step(&mut self, node: &impl Host) -> Result<Found, Failure> {
        if self.last.is_none() {
            self.last = Some(clock::now());
        }
        if !self.is_due(node) {
            return Ok(Found::Nothing);
        }
        let id = self.next.unwrap_or_else(|| {
            node.upkeep().puts.store(false, Ordering::Relaxed);
            0
        });
        let shard = ShardId(id as u16);
        let unreferenced = look(node, shard).await?;
        let (again, new): (Vec<ChunkHash>, Vec<ChunkHash>) =
            unreferenced.into_iter().partition(|hash| self.candidates.contains(hash));
        self.found.extend(new);
        for some in again.chunks(gc::BATCH) {
            delete(node, shard, some.to_vec()).await?;
        }
        self.next = Some(id + 1).filter(|next| *next < node.chunks().shard_count());
        if self.next.is_none() {
            self.candidates = std::mem::take(&mut self.found);
            self.last = Some(clock::now());
            return Ok(Found::Nothing);
        }
        Ok(Found::Something)
    }
}

/// The leader decides, by what is referenced in the log's order.
async fn delete(node: &impl Host, shard: ShardId, hashes: Vec<ChunkHash>) -> Result<(), Failure> {
    if node.leads() {
        return super::delete_unreferenced(node, shard, hashes).await;
    }
    let request = NodeRequest::Unreferenced { shard, hashes };
    node.ask(&node.leader()?, request, ANSWER_WITHIN).await.map(drop)
}

/// Chunks of the shard without references, as far as this node knows; those that are known garbage are left to gc.
/// Those of another primary are its own to find.
async fn look(node: &impl Host, shard: ShardId) -> Result<Vec<ChunkHash>, Failure> {
    let info = read::shard(&node.view(), shard).map_err(storage)?;
    if info.is_none_or(|info| info.primary != node.id()) {
        return Ok(Vec::new());
    }
    let mut unreferenced = Vec::new();
    for hashes in node.chunks().iter_hashes(Some(shard)).chunks(STRIDE) {
        let since = clock::now();
        let view = node.view();
        for hash in hashes {
            if unreferenced.len() < CANDIDATES_MAX
                && read::references(&view, hash).map_err(storage)? == 0
            {
                unreferenced.push(*hash);
            }
        }
        drop(view);
        // Nine tenths of the time for others.
        clock::sleep(clock::elapsed(since) * 9).await;
    }
    // The store names them in no order.
    unreferenced.sort_unstable();
    Ok(unreferenced)
}
