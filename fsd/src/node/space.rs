//! The space of the nodes, and how their stores do: what this node says of its own with every sign of life, and what
//! the leader has heard of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::message::{Device, Failure, NodeRequest, NodeUsage, Response, ScrubState};
use fsd_rpc::nodes::Target;
use raftmeta::read;
use raftmeta_types::NodeId;
use raftmeta_types::cluster::{NodeInfo, NodeState};

use super::{Node, members, skew};
use crate::chunks::all::all;
use crate::health::Flash;
use crate::replication;
use crate::service::storage;
use crate::supervise;

/// Devices that are not well of which a sign of life tells, and the characters in which it says what they have.
const DEVICES_MAX: usize = 16;
const WHY_CHARS_MAX: usize = 200;
/// A node that is asked for what it holds and takes longer is left out.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Space for what clients write, in bytes: each counted once, however many copies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub total: u64,
    pub available: u64,
    pub reserve: u64,
}

impl Node {
    /// What the leader is told of this node's store.
    pub(crate) fn usage(&self, with_shards: bool) -> NodeUsage {
        let usage = self.chunks.usage();
        let stalled = self.chunks.stalled().as_millis();
        NodeUsage {
            total_bytes: usage.total,
            used_bytes: usage.used,
            live_bytes: usage.live,
            available_bytes: self.available_bytes(),
            reserve_bytes: usage.reserve,
            free_bytes: usage.free,
            segments_free: usage.segments_free,
            segments_open: usage.segments_open,
            segments_closed: usage.segments_closed,
            chunks: usage.chunks,
            damaged_chunks: self.chunks.damaged_count() as u64,
            stalled_ms: u64::try_from(stalled).unwrap_or(u64::MAX),
            blockd_down: self.blockd_down().map(|why| cut(&why)),
            devices: self.devices.lock().iter().take(DEVICES_MAX).map(told).collect(),
            strays: self.upkeep.strays.of(self),
            clock_ms: skew::clock_now_ms(),
            instance: self.instance,
            authority_step: self.authorities().step(),
            scrub: self.scrub_state(),
            shards: if with_shards { replication::led(self) } else { Vec::new() },
        }
    }

    /// How far the scrub of this node's store is.
    pub(crate) fn scrub_state(&self) -> ScrubState {
        self.upkeep.scrub.state(&self.chunks.shares())
    }

    /// What writers can still get: free segments outside the reserve, and what cleaning gives back.
    pub(crate) fn available_bytes(&self) -> u64 {
        let usage = self.chunks.usage();
        // A segment of which more than 7/8 lives is not cleaned.
        let reclaimable = usage.used.saturating_sub(usage.live) / 8 * 7;
        usage.total.min(usage.free + reclaimable)
    }

    /// Why the block daemon of this node does not run, if so.
    fn blockd_down(&self) -> Option<String> {
        let unreached = || {
            let socket = self.config.blockd.socket.display();
            (!self.chunks.volume().is_connected()).then(|| format!("nobody answers on {socket}"))
        };
        match self.blockd.as_ref().map(|state| state.borrow().clone()) {
            Some(supervise::State::Waiting { why }) => Some(why),
            Some(supervise::State::Stopped) => Some("it was stopped".into()),
            Some(supervise::State::Running { .. }) | None => unreached(),
        }
    }

    /// The nodes that are there, with what each has said last; this one with what is so now. On a node that does not
    /// lead this one only.
    pub(crate) fn heard<'a>(&self, nodes: &'a [NodeInfo]) -> Vec<(&'a NodeInfo, NodeUsage)> {
        let usage = |info: &NodeInfo| match info.id == self.id {
            true => Some(self.usage(false)),
            false => {
                let beats = self.beats.lock();
                let beat = beats.get(&info.id).filter(|beat| !beat.is_silent())?;
                beat.usage.clone()
            }
        };
        let members = nodes.iter().filter(|info| info.state != NodeState::Removed);
        members.filter_map(|info| Some((info, usage(info)?))).collect()
    }

    /// The same, asked for at this moment, with what each says of the shards that it leads. Who does not answer is
    /// left out.
    pub(crate) async fn ask_usages(
        self: &Arc<Node>,
    ) -> Result<Vec<(NodeInfo, NodeUsage)>, Failure> {
        let nodes = read::nodes(&self.group.view()).map_err(storage)?;
        let asked = nodes.into_iter().filter(is_asked).map(|info| async {
            if info.id == self.id {
                return Some((info, self.usage(true)));
            }
            let target = Target { node: info.id, address: info.address.clone() };
            let request = NodeRequest::Usage { with_shards: true };
            match self.peers.ask(&target, request, &[], ANSWER_WITHIN).await {
                Ok((Response::Usage(usage), _)) => Some((info, usage)),
                Ok(_) => None,
                Err(failure) => {
                    tracing::debug!(%target, %failure, "asking what a node holds");
                    None
                }
            }
        });
        Ok(all(asked).await.into_iter().flatten().collect())
    }

    /// Chunks that are known to be damaged on this node, and where it leads on the others.
    pub(super) fn damaged_chunks(&self) -> u64 {
        let beats = self.beats.lock();
        let others = beats.values().filter_map(|beat| beat.usage.as_ref());
        let there: u64 = others.map(|usage| usage.damaged_chunks).sum();
        self.chunks.damaged_count() as u64 + there
    }

    /// The space of the cluster. Chunks spread evenly over shards, so the node that is full first, for what it
    /// holds of them, is the limit.
    pub(crate) fn space(&self) -> Result<Space, raftmeta::KvError> {
        let own = self.usage(false);
        let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
        let shards = read::shards(&self.group.view())?;
        for id in shards.iter().flat_map(|shard| &shard.in_sync) {
            *held.entry(*id).or_default() += 1;
        }
        let mut space = Space { total: u64::MAX, available: u64::MAX, reserve: u64::MAX };
        let beats = self.beats.lock();
        for (id, held) in held {
            let told = beats.get(&id).and_then(|beat: &members::Beat| beat.usage.as_ref());
            let Some(usage) = (if id == self.id { Some(&own) } else { told }) else { continue };
            let scaled = |bytes: u64| {
                let all = u128::from(bytes) * shards.len() as u128 / u128::from(held);
                u64::try_from(all).unwrap_or(u64::MAX)
            };
            space.total = space.total.min(scaled(usage.total_bytes));
            space.available = space.available.min(scaled(usage.available_bytes));
            space.reserve = space.reserve.min(scaled(usage.reserve_bytes));
        }
        if space.total == u64::MAX {
            // Nothing is known of those who hold the data.
            space = Space { total: 0, available: 0, reserve: 0 };
        }
        Ok(space)
    }
}

/// One that is down keeps whoever asks it waiting; one that joins holds nothing.
pub(crate) fn is_asked(info: &NodeInfo) -> bool {
    match info.state {
        NodeState::Up | NodeState::Draining | NodeState::Drained => true,
        NodeState::Joining | NodeState::Down | NodeState::Removed => false,
    }
}

/// What of a node's flash writers cannot get any more.
pub(super) fn flash(info: &NodeInfo, usage: &NodeUsage) -> Flash {
    Flash {
        node: info.name.clone(),
        used_bytes: usage.total_bytes.saturating_sub(usage.available_bytes),
        total_bytes: usage.total_bytes,
    }
}

fn told(device: &Device) -> Device {
    Device { path: cut(&device.path), why: cut(&device.why), has_failed: device.has_failed }
}

fn cut(text: &str) -> String {
    text.chars().take(WHY_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_has_is_cut_where_it_is_long() {
        let why = "ü".repeat(WHY_CHARS_MAX + 7);
        let told = told(&Device { path: "p".into(), why, has_failed: true });
        assert_eq!((told.path.as_str(), told.has_failed), ("p", true));
        assert_eq!(told.why.chars().count(), WHY_CHARS_MAX);
    }
}
