//! Sums over all slots, kept where slots change: every sign of life asks for them, and a store may have half a million.

use raftmeta_types::ShardId;

use super::index::{Slot, SlotState};

/// What the segments of a shard come to, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// As far as they are filled; one that is sealed counts as a whole, as it is copied and read.
    pub bytes: u64,
    /// Of records that the index names.
    pub live: u64,
    pub segments: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    segment_bytes: u32,
    /// Slots by what they are.
    pub free: u64,
    pub open: u64,
    pub closed: u64,
    /// Bytes of records that the index names.
    pub live: u64,
    shards: Vec<Held>,
}

impl Tally {
    /// Of no slots.
    pub fn new(segment_bytes: u32, shard_count: u32) -> Tally {
        let shards = vec![Held::default(); shard_count as usize];
        Tally { segment_bytes, free: 0, open: 0, closed: 0, live: 0, shards }
    }

    pub fn of(&self, shard: ShardId) -> Held {
        self.shards[usize::from(shard.0)]
    }

    pub fn add(&mut self, slot: &Slot) {
        self.count(slot, |sum, by| *sum += by);
    }

    pub fn take(&mut self, slot: &Slot) {
        self.count(slot, |sum, by| *sum -= by);
    }

    fn count(&mut self, slot: &Slot, count: fn(&mut u64, u64)) {
        let (state, is_held) = match slot.state {
            SlotState::Free => (&mut self.free, false),
            SlotState::Open => (&mut self.open, true),
            SlotState::Closed => (&mut self.closed, true),
            SlotState::Freeing => (&mut self.closed, false),
        };
        count(state, 1);
        let live = u64::from(slot.live_bytes);
        count(&mut self.live, live);
        if is_held {
            let filled = if slot.sealed.is_some() { self.segment_bytes } else { slot.len };
            let held = &mut self.shards[usize::from(slot.shard.0)];
            count(&mut held.bytes, u64::from(filled));
            count(&mut held.live, live);
            count(&mut held.segments, 1);
        }
    }
}
