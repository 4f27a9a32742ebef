//! What Prometheus is told of this node, and of the cluster as this node sees it.
//!
//! Made anew for each scrape: a look at the table of segments and at the records of nodes and shards, never at chunks.

use raftmeta::read;
use raftmeta_types::cluster::{Protection, ShardInfo};

use super::Node;
use crate::health::Redundancy;
use crate::metrics::{Gauges, JOBS, NODE_STATES};
use crate::replication::Cause;

impl Node {
    /// Brings the gauges up to date.
    pub(crate) fn measure(&self) {
        self.metrics.set(self.gauges());
    }

    fn gauges(&self) -> Gauges {
        let view = self.group.view();
        let counters = read::counters(&view).unwrap_or_default();
        let nodes = read::nodes(&view).unwrap_or_default();
        let shards = read::shards(&view).unwrap_or_default();
        let protection = read::protection(&view).unwrap_or(Protection::SINGLE);
        let redundancy = Redundancy::of(&shards, protection, &self.down(&nodes));
        let usage = self.chunks.usage();
        let count = |is_meant: &dyn Fn(&ShardInfo) -> bool| {
            shards.iter().filter(|shard| is_meant(shard)).count() as u64
        };
        Gauges {
            inodes: counters.inodes,
            logical_bytes: counters.logical_bytes,
            capacity_bytes: usage.total,
            available_bytes: self.available_bytes(),
            used_bytes: usage.used,
            live_bytes: usage.live,
            chunks: usage.chunks,
            damaged_chunks: self.chunks.damaged_count() as u64,
            taken: self.chunks.taken(),
            moved: self.courier.moved(),
            raft_term: self.group.status().term,
            is_leader: self.leads(),
            shards_in_sync: count(&|shard| shard.in_sync.contains(&self.id)),
            shards_primary: count(&|shard| shard.primary == self.id),
            cluster_shards: shards.len() as u64,
            cluster_shards_short: redundancy.lacking.len() as u64,
            cluster_nodes: NODE_STATES
                .map(|state| nodes.iter().filter(|node| node.state == state).count() as u64),
            job_left_bytes: self.job_left_bytes(),
            health: self.health().word,
        }
    }

    /// Of each of [`JOBS`]. What is moved between nodes the leader knows.
    fn job_left_bytes(&self) -> [u64; JOBS.len()] {
        let scrub = self.scrub_state().left_bytes;
        if !self.leads() {
            return [0, 0, 0, scrub];
        }
        let director = self.director.lock();
        let left = |cause| director.works.get(&cause).map_or(0, |work| work.left.bytes);
        [left(Cause::Copies), left(Cause::Drain), left(Cause::Balance), scrub]
    }
}
