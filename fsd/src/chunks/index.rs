//! What lies where, and the life of each slot. Everything here is durable already.

use std::collections::{HashMap, HashSet};

use raftmeta_types::{ChunkHash, Epoch};
use tokio::sync::watch;

use super::format::{self, BLOCK, SEQUENCE_MAX};
use super::table::Table;

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Location {
    pub slot: u32,
    /// Bytes from the start of the segment.
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
}

impl Location {
    fn bytes(&self) -> u32 {
        format::record_bytes(self.stored_len) as u32
    }
}

/// The life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    /// Takes records, or waits for its footer.
    Open,
    /// Takes no more; freed when nothing in it lives.
    Closed,
    /// Its header is being zeroed. Nobody else touches it until it is free.
    Freeing,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub state: SlotState,
    pub sequence: u64,
    pub live_bytes: u32,
    /// What cleaning cannot win: header, footer, and the end of a full segment.
    pub lost_bytes: u32,
    /// Holds live records that cannot be read: not cleaned, but freed when they are gone.
    pub stuck: bool,
}

impl Slot {
    fn new(state: SlotState, sequence: u64) -> Slot {
        // A header, and a footer of one block.
        Slot { state, sequence, live_bytes: 0, lost_bytes: 2 * BLOCK as u32, stuck: false }
    }
}

#[cfg_attr(test, derive(Clone))]
pub(super) struct Index {
    pub table: Table,
    pub slots: Vec<Slot>,
    pub free: Vec<u32>,
    /// Closed slots in which nothing lives.
    dead: Vec<u32>,
    pub epochs: Vec<Epoch>,
    /// Found damaged by a read: the next put of one writes it again.
    pub damaged: HashSet<ChunkHash>,
    /// Being put now; the receiver hears when that put has ended, well or not.
    pub coming: HashMap<ChunkHash, watch::Receiver<()>>,
    /// Of the newest segment.
    pub sequence: u64,
}

impl Index {
    pub fn new(slots: usize, shard_count: u32) -> Index {
        Index {
            table: Table::default(),
            slots: vec![Slot::new(SlotState::Free, 0); slots],
            free: Vec::new(),
            dead: Vec::new(),
            epochs: vec![Epoch(0); shard_count as usize],
            damaged: HashSet::new(),
            coming: HashMap::new(),
            sequence: 0,
        }
    }

    /// Whether the chunk is here and, as far as is known, whole.
    pub fn knows(&self, hash: &ChunkHash) -> bool {
        self.table.get(hash).is_some() && !self.damaged.contains(hash)
    }

    pub fn insert(&mut self, hash: ChunkHash, at: Location) {
        self.damaged.remove(&hash);
        self.slots[at.slot as usize].live_bytes += at.bytes();
        if let Some(old) = self.table.insert(hash, at) {
            self.died(old);
        }
    }

    pub fn remove(&mut self, hash: &ChunkHash) {
        self.damaged.remove(hash);
        if let Some(old) = self.table.remove(hash) {
            self.died(old);
        }
    }

    fn died(&mut self, old: Location) {
        let slot = &mut self.slots[old.slot as usize];
        slot.live_bytes -= old.bytes();
        if slot.live_bytes == 0 && slot.state == SlotState::Closed {
            self.dead.push(old.slot);
        }
    }

    /// The slot takes no more records.
    pub fn close(&mut self, slot: u32) {
        let entry = &mut self.slots[slot as usize];
        assert_eq!(entry.state, SlotState::Open, "slot {slot} is closed once");
        entry.state = SlotState::Closed;
        if entry.live_bytes == 0 {
            self.dead.push(slot);
        }
    }

    /// A segment that recovery found. Its records are inserted, then it is closed.
    pub fn found(&mut self, slot: u32, sequence: u64) {
        self.slots[slot as usize] = Slot::new(SlotState::Open, sequence);
        self.sequence = self.sequence.max(sequence);
    }

    /// The segment is full: these bytes of it hold no records.
    pub fn full(&mut self, slot: u32, lost_bytes: usize) {
        self.slots[slot as usize].lost_bytes = lost_bytes as u32;
    }

    /// A free slot with the next sequence, if there is one of either. The reserve is for cleaning alone.
    pub fn start_segment(&mut self, cleaning: bool) -> Option<(u32, u64)> {
        let kept = if cleaning { 0 } else { self.reserve() };
        if self.free.len() <= kept || self.sequence >= SEQUENCE_MAX {
            return None;
        }
        let slot = self.free.pop()?;
        self.sequence += 1;
        let entry = &mut self.slots[slot as usize];
        assert!(entry.state == SlotState::Free && entry.live_bytes == 0);
        let sequence = self.sequence;
        *entry = Slot::new(SlotState::Open, sequence);
        Some((slot, sequence))
    }

    /// Closed slots without life. They are the caller's to free: see [`Index::freed`].
    pub fn take_dead(&mut self) -> Vec<u32> {
        let dead = std::mem::take(&mut self.dead);
        for &slot in &dead {
            let entry = &mut self.slots[slot as usize];
            assert!(entry.state == SlotState::Closed && entry.live_bytes == 0);
            entry.state = SlotState::Freeing;
        }
        dead
    }

    /// The end of a freeing: the slot is free, or stays dead for another attempt.
    pub fn freed(&mut self, slot: u32, done: bool) {
        let entry = &mut self.slots[slot as usize];
        assert!(entry.state == SlotState::Freeing && entry.live_bytes == 0);
        if done {
            entry.state = SlotState::Free;
            self.free.push(slot);
        } else {
            entry.state = SlotState::Closed;
            self.dead.push(slot);
        }
    }

    /// Whether a put could start a segment.
    pub fn has_room(&self) -> bool {
        self.free.len() > self.reserve()
    }

    /// Segments that puts cannot take: a twentieth, at least four.
    pub fn reserve(&self) -> usize {
        self.slots.len().div_ceil(20).max(4)
    }
}
