//! What lies where, and the life of each slot. Everything here is durable already.

use std::collections::{BTreeMap, HashMap, HashSet};

use raftmeta_types::{ChunkHash, Epoch, ShardId};
use tokio::sync::watch;

use super::error::{Error, Kind};
use super::format::{self, BLOCK, SegmentId};
use super::replicate::SegmentNumber;
use super::shards::{Shard, Standing};
use super::table::Table;
use super::tally::Tally;

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
    pub fn new(slot: u32, entry: &format::Entry) -> Location {
        let format::Entry { offset, stored_len, plain_len, .. } = *entry;
        Location { slot, offset, stored_len, plain_len }
    }

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
    pub shard: ShardId,
    /// It has its footer, and this is a digest of it.
    pub sealed: Option<u64>,
    /// Holds live records that cannot be read: not cleaned, but freed when they are gone.
    pub stuck: bool,
    /// Something in it is being repaired: it is not freed now.
    pub pinned: bool,
    pub number: SegmentNumber,
    /// Which segment of this volume it was, counted from the opening of the store on.
    pub born: u64,
    /// Up to here, in whole blocks, every replica has the same; 0 before anything is acknowledged.
    pub len: u32,
    pub live_bytes: u32,
    /// What cleaning cannot win: header, footer, and the end of a full segment.
    pub lost_bytes: u32,
}

impl Slot {
    fn new(state: SlotState, id: SegmentId, born: u64) -> Slot {
        Slot {
            state,
            shard: id.shard,
            sealed: None,
            stuck: false,
            pinned: false,
            number: id.number,
            born,
            len: 0,
            live_bytes: 0,
            // A header, and a footer of one block.
            lost_bytes: 2 * BLOCK as u32,
        }
    }

    pub fn id(&self) -> SegmentId {
        SegmentId { shard: self.shard, number: self.number }
    }
}

const NOWHERE: SegmentId = SegmentId { shard: ShardId(0), number: SegmentNumber(0) };

#[cfg_attr(test, derive(Clone))]
pub(super) struct Index {
    pub table: Table,
    slots: Vec<Slot>,
    tally: Tally,
    pub free: Vec<u32>,
    /// Closed slots in which nothing lived when they came here.
    dead: Vec<u32>,
    /// Where the segments lie. Those that are being installed are not here yet.
    pub segments: BTreeMap<SegmentId, u32>,
    pub shards: Vec<Shard>,
    /// Found damaged by a read: the next put of one writes it again.
    pub damaged: HashSet<ChunkHash>,
    /// Being put now; the receiver hears when that put has ended, well or not.
    pub coming: HashMap<ChunkHash, watch::Receiver<()>>,
    /// Segments that were begun or found.
    pub born: u64,
}

impl Index {
    pub fn new(slots: usize, shard_count: u32, segment_bytes: u32) -> Index {
        let slots = vec![Slot::new(SlotState::Free, NOWHERE, 0); slots];
        let mut tally = Tally::new(segment_bytes, shard_count);
        slots.iter().for_each(|slot| tally.add(slot));
        Index {
            table: Table::default(),
            slots,
            tally,
            free: Vec::new(),
            dead: Vec::new(),
            segments: BTreeMap::new(),
            shards: vec![Shard::new(); shard_count as usize],
            damaged: HashSet::new(),
            coming: HashMap::new(),
            born: 0,
        }
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn slot(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }

    /// The one way to change a slot: the sums follow.
    pub fn change<T>(&mut self, slot: u32, change: impl FnOnce(&mut Slot) -> T) -> T {
        let entry = &mut self.slots[slot as usize];
        self.tally.take(entry);
        let done = change(entry);
        self.tally.add(entry);
        done
    }

    /// Sums over the slots.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub fn shard(&self, id: ShardId) -> &Shard {
        &self.shards[usize::from(id.0)]
    }

    pub fn shard_mut(&mut self, id: ShardId) -> &mut Shard {
        &mut self.shards[usize::from(id.0)]
    }

    pub fn shard_of(&self, hash: &ChunkHash) -> ShardId {
        hash.shard(self.shards.len() as u32)
    }

    /// Whether the chunk is here and, as far as is known, whole.
    pub fn knows(&self, hash: &ChunkHash) -> bool {
        self.table.get(hash).is_some() && !self.damaged.contains(hash)
    }

    pub fn insert(&mut self, hash: ChunkHash, at: Location) {
        self.damaged.remove(&hash);
        self.change(at.slot, |slot| slot.live_bytes += at.bytes());
        match self.table.insert(hash, at) {
            Some(old) => self.died(old),
            None => {
                let shard = self.shard_of(&hash);
                self.shard_mut(shard).live.add(&hash);
            }
        }
    }

    /// A good copy of a segment lies in `slot` now. What the index names in the one that it had before, and
    /// older records of these chunks, are named here; with `all` also chunks that it does not know.
    /// Gives the slot of the copy before.
    pub fn supersede(
        &mut self,
        id: SegmentId,
        slot: u32,
        entries: &[format::Entry],
        all: bool,
    ) -> Option<u32> {
        let before = self.segments.insert(id, slot);
        for entry in entries {
            let at = Location::new(slot, entry);
            let takes = match self.table.get(&entry.hash) {
                None => all,
                Some(known) if Some(known.slot) == before => true,
                Some(known) => {
                    let number = self.slots[known.slot as usize].number;
                    (number, known.offset) < (id.number, at.offset)
                }
            };
            if takes {
                self.insert(entry.hash, at);
            }
        }
        before
    }

    /// Inserts a record that was found on the volume, unless a newer one of the chunk is known.
    pub fn insert_found(&mut self, slot: u32, entry: &format::Entry) {
        let place = |at: &Location| (self.slots[at.slot as usize].number, at.offset);
        let at = Location::new(slot, entry);
        if self.table.get(&entry.hash).is_none_or(|known| place(&known) < place(&at)) {
            self.insert(entry.hash, at);
        }
    }

    pub fn remove(&mut self, hash: &ChunkHash) {
        self.damaged.remove(hash);
        if let Some(old) = self.table.remove(hash) {
            let shard = self.shard_of(hash);
            self.shard_mut(shard).live.remove(hash);
            self.died(old);
        }
    }

    fn died(&mut self, old: Location) {
        let is_dead = self.change(old.slot, |slot| {
            slot.live_bytes -= old.bytes();
            slot.live_bytes == 0 && slot.state == SlotState::Closed
        });
        if is_dead {
            self.dead.push(old.slot);
        }
    }

    /// Whether the slot still takes records of that segment.
    pub fn is_open(&self, slot: u32, id: SegmentId) -> bool {
        let entry = &self.slots[slot as usize];
        entry.state == SlotState::Open && entry.id() == id
    }

    /// The slot takes no more records.
    pub fn close(&mut self, slot: u32) {
        let is_dead = self.change(slot, |entry| {
            assert_eq!(entry.state, SlotState::Open, "slot {slot} is closed once");
            entry.state = SlotState::Closed;
            entry.live_bytes == 0
        });
        if is_dead {
            self.dead.push(slot);
        }
    }

    /// A closed segment takes records again: the stream of the primary goes on in it.
    pub fn reopen(&mut self, slot: u32) {
        self.change(slot, |entry| {
            if entry.state == SlotState::Closed {
                entry.state = SlotState::Open;
            }
        });
    }

    /// No segment of the shard takes more records.
    pub fn close_shard(&mut self, shard: ShardId) {
        let slots: Vec<u32> = self.segments_of(shard).map(|(_, slot)| slot).collect();
        for slot in slots {
            if self.slots[slot as usize].state == SlotState::Open {
                self.close(slot);
            }
        }
    }

    /// The segments of a shard by number, with their slots.
    pub fn segments_of(&self, shard: ShardId) -> impl Iterator<Item = (SegmentNumber, u32)> {
        let first = SegmentId { shard, number: SegmentNumber(0) };
        let last = SegmentId { shard, number: SegmentNumber(u64::MAX) };
        self.segments.range(first..=last).map(|(id, &slot)| (id.number, slot))
    }

    /// A segment that is on the volume. Its records are inserted, then it is closed.
    pub fn found(&mut self, slot: u32, id: SegmentId) {
        self.born += 1;
        let found = Slot::new(SlotState::Open, id, self.born);
        self.change(slot, |entry| *entry = found);
        self.segments.insert(id, slot);
        let shard = self.shard_mut(id.shard);
        shard.newest = shard.newest.max(id.number);
    }

    /// A slot with a worse copy of a segment that is elsewhere; it is the caller's to free.
    pub fn double(&mut self, slot: u32, id: SegmentId) {
        self.change(slot, |entry| *entry = Slot::new(SlotState::Freeing, id, 0));
    }

    /// The segment is full: these bytes of it hold no records.
    pub fn full(&mut self, slot: u32, lost_bytes: usize) {
        self.change(slot, |entry| entry.lost_bytes = lost_bytes as u32);
    }

    /// A free slot with the next number of the shard. The reserve is for cleaning alone.
    ///
    /// # Errors
    /// `NoSpace`; `Invalid` when the shard's epoch has no more numbers.
    pub fn start_segment(
        &mut self,
        shard: ShardId,
        reserve: bool,
    ) -> Result<(u32, SegmentId), Error> {
        let full = || Error::new(Kind::NoSpace, "no segment is free: delete, or add devices");
        if !self.can_start(reserve) {
            return Err(full());
        }
        let Some(number) = self.shard_mut(shard).take_number() else {
            let why = format!("no segment numbers are left in this epoch of shard {shard}");
            return Err(Error::new(Kind::Invalid, why));
        };
        let id = SegmentId { shard, number };
        let slot = self.take_slot(id, reserve).ok_or_else(full)?;
        self.segments.insert(id, slot);
        Ok((slot, id))
    }

    /// A free slot, open, for a segment that has its number from elsewhere. It is not named yet.
    pub fn take_slot(&mut self, id: SegmentId, reserve: bool) -> Option<u32> {
        if !self.can_start(reserve) {
            return None;
        }
        let slot = self.free.pop()?;
        self.born += 1;
        let fresh = Slot::new(SlotState::Open, id, self.born);
        self.change(slot, |entry| {
            assert!(entry.state == SlotState::Free && entry.live_bytes == 0);
            *entry = fresh;
        });
        let shard = self.shard_mut(id.shard);
        shard.newest = shard.newest.max(id.number);
        Some(slot)
    }

    /// Closed slots without life, of shards that are this store's to clean. They are the caller's to
    /// free: see [`Index::freed`].
    pub fn take_dead(&mut self) -> Vec<u32> {
        let mut taken = Vec::new();
        for slot in std::mem::take(&mut self.dead) {
            let entry = self.slots[slot as usize];
            if entry.state != SlotState::Closed || entry.live_bytes > 0 {
                continue;
            }
            let ours = self.shards[usize::from(entry.shard.0)].primary().is_some();
            if ours && !entry.pinned {
                self.change(slot, |entry| entry.state = SlotState::Freeing);
                taken.push(slot);
            } else {
                self.dead.push(slot);
            }
        }
        taken
    }

    /// A slot that is to be freed whatever it holds, if nobody frees it already. The caller takes out
    /// what lives.
    pub fn start_freeing(&mut self, slot: u32) -> bool {
        self.change(slot, |entry| {
            let held = matches!(entry.state, SlotState::Open | SlotState::Closed);
            if held {
                entry.state = SlotState::Freeing;
            }
            held
        })
    }

    /// Takes out what lives in a slot that is being freed, and says how much that was. `entries` are those
    /// records of it that can be read.
    pub fn forget_lines(&mut self, slot: u32, entries: &[format::Entry]) -> usize {
        let mut lost = 0;
        for entry in entries {
            if self.table.get(&entry.hash).is_some_and(|at| at.slot == slot) {
                self.remove(&entry.hash);
                lost += 1;
            }
        }
        if self.slots[slot as usize].live_bytes > 0 {
            // What is damaged is not listed.
            let lines = self.table.iter().filter(|line| line.1.slot == slot);
            let gone: Vec<ChunkHash> = lines.map(|line| line.0).collect();
            lost += gone.len();
            gone.iter().for_each(|hash| self.remove(hash));
        }
        lost
    }

    /// The end of a freeing: the slot is free, or stays dead for another attempt.
    pub fn freed(&mut self, slot: u32, done: bool) -> Option<SegmentId> {
        let id = self.change(slot, |entry| {
            assert!(entry.state == SlotState::Freeing && entry.live_bytes == 0);
            entry.state = if done { SlotState::Free } else { SlotState::Closed };
            entry.id()
        });
        if done {
            self.free.push(slot);
            if self.segments.get(&id) == Some(&slot) {
                self.segments.remove(&id);
                return Some(id);
            }
        } else {
            self.dead.push(slot);
        }
        None
    }

    /// Whether a put could start a segment.
    pub fn has_room(&self) -> bool {
        self.can_start(false)
    }

    fn can_start(&self, reserve: bool) -> bool {
        let kept = if reserve { 0 } else { self.reserve() };
        self.free.len() > kept
    }

    /// Segments that puts cannot take: a twentieth, at least four.
    pub fn reserve(&self) -> usize {
        self.slots.len().div_ceil(20).max(4)
    }

    /// After an op of this epoch did not reach all replicas: nothing more is sent under it.
    pub fn suspend(&mut self, shard: ShardId, epoch: Epoch) {
        if self.shard(shard).primary() == Some(epoch) {
            self.shard_mut(shard).standing = Standing::Suspended { epoch };
            self.close_shard(shard);
        }
    }
}
