//! Cleaning: live records of poor segments are copied forward, then the segment is freed.
//!
//! What cleaning can win of a segment are the bytes that are neither live nor lost to its header,
//! footer and the end that the next record did not fit into: copying would lose those again. The
//! cleaner may use the reserve: it takes at most one segment from it for each that it frees.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::ChunkHash;

use super::error::Error;
use super::format::{self, RecordHeader, SegmentId};
use super::index::{Location, Slot, SlotState};
use super::pack::Sealed;
use super::{ChunkStore, Inner};

/// What a cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub segments: u32,
    pub bytes_copied: u64,
}

/// A segment to clean.
#[derive(Clone, Copy)]
struct Victim {
    slot: u32,
    id: SegmentId,
    /// Tells it from the next one in the slot.
    born: u64,
}

/// Which segment is the next to be cleaned.
#[derive(Clone, Copy)]
enum Choice {
    /// Much to win and old, by (1 - u) · age / (1 + u); at least an eighth to win.
    Bargain,
    /// The most to win; at least a sixteenth.
    Poorest,
}

impl<V: Volume> ChunkStore<V> {
    /// Copies at most about `budget_bytes` forward; the best bargains first: much to free, and old.
    /// Segments made during the cleaning are left alone, so it ends.
    ///
    /// # Errors
    /// `NoSpace` when even the reserve is gone, `Io`, `Poisoned`. Nothing is lost by an error.
    pub async fn clean(&self, budget_bytes: u64) -> Result<Cleaned, Error> {
        let inner = &self.inner;
        let _turn = inner.cleaning.lock().await;
        let newest = inner.index.lock().born;
        let mut cleaned = Cleaned { segments: inner.free_dead().await?, bytes_copied: 0 };
        while cleaned.bytes_copied < budget_bytes
            && let Some(slot) = inner.victim(newest, Choice::Bargain)
        {
            cleaned.bytes_copied += inner.clean_segment(slot).await?;
            cleaned.segments += inner.free_dead().await?;
        }
        Ok(cleaned)
    }
}

impl<V: Volume> Inner<V> {
    /// Whether these could be put now, here and on the other replicas, as far as is known.
    fn has_room_for(&self, chunks: &[(ChunkHash, Bytes)]) -> bool {
        let shards = self.device.header.shard_count;
        self.index.lock().has_room()
            && chunks.iter().all(|(hash, _)| self.replicator.has_room(hash.shard(shards)))
    }

    /// Makes room for a put that found none; `false` when nothing can be won. `up_to` bounds all
    /// attempts of one put to the segments that there were at its first, so that it ends.
    pub(super) async fn make_room(
        self: &Arc<Self>,
        chunks: &[(ChunkHash, Bytes)],
        up_to: &mut Option<u64>,
    ) -> Result<bool, Error> {
        let _turn = self.cleaning.lock().await;
        self.free_dead().await?;
        if self.has_room_for(chunks) {
            return Ok(true);
        }
        let newest = *up_to.get_or_insert(self.index.lock().born);
        let mut progress = false;
        while let Some(slot) = self.victim(newest, Choice::Poorest) {
            self.clean_segment(slot).await?;
            progress |= self.free_dead().await? > 0;
            if self.has_room_for(chunks) {
                return Ok(true);
            }
        }
        // The shard may have got an open segment with room even so.
        Ok(progress)
    }

    /// Copies what lives in a segment and says how much that was. What cannot be read stays, and
    /// keeps the segment.
    async fn clean_segment(self: &Arc<Self>, victim: Victim) -> Result<u64, Error> {
        let Victim { slot, id, born } = victim;
        let start = self.device.slot_start(slot);
        let read = self.device.read(start, self.device.segment_bytes()).await;
        let mut records = Vec::new();
        if let Ok(bytes) = read {
            let bytes = Bytes::from(bytes);
            for entry in format::scan(&bytes, id, self.device.header.shard_count) {
                let from = Location::new(slot, &entry);
                let at = from.offset as usize;
                let live = {
                    let index = self.index.lock();
                    index.table.get(&entry.hash) == Some(from) && index.knows(&entry.hash)
                };
                if live && let Some((head, body)) = RecordHeader::decode(&bytes[at..], id.number) {
                    records.push(Sealed { head, body: bytes.slice_ref(body), from: Some(from) });
                }
            }
        } else if let Err(error) = read {
            tracing::warn!(slot, %error, "a segment that is to be cleaned cannot be read");
        }
        let copied = records.iter().map(|record| record.body.len() as u64).sum();
        self.submit(records).await?;
        let mut index = self.index.lock();
        index.change(slot, |entry| entry.stuck |= entry.born == born && entry.live_bytes > 0);
        Ok(copied)
    }

    /// Of the shards whose primary this store is.
    fn victim(&self, newest: u64, choice: Choice) -> Option<Victim> {
        let segment = self.device.segment_bytes() as u64;
        let least = match choice {
            Choice::Bargain => segment / 8,
            Choice::Poorest => segment / 16,
        };
        let gain =
            |slot: &Slot| segment.saturating_sub(u64::from(slot.live_bytes + slot.lost_bytes));
        let score = |slot: &Slot| match choice {
            Choice::Poorest => u128::from(gain(slot)),
            Choice::Bargain => {
                let age = u128::from(newest - slot.born + 1);
                let gain = u128::from(gain(slot));
                gain * age * 1024 / (2 * u128::from(segment) - gain)
            }
        };
        let index = self.index.lock();
        (0..)
            .zip(index.slots())
            .filter(|(_, slot)| {
                slot.state == SlotState::Closed
                    && !slot.stuck
                    && slot.born <= newest
                    && gain(slot) >= least
                    && index.shard(slot.shard).primary().is_some()
            })
            .max_by_key(|(_, slot)| score(slot))
            .map(|(at, slot)| Victim { slot: at, id: slot.id(), born: slot.born })
    }
}
