//! Cleaning: live records of poor segments are copied forward, then the segment is freed.

use blockd_ipc::volume::Volume;
use raftmeta_types::ChunkHash;

use super::append::Sealed;
use super::error::Error;
use super::format::{self, RecordHeader};
use super::{ChunkStore, Location, SlotState};

/// What a cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub segments: u32,
    pub bytes_copied: u64,
}

impl<V: Volume> ChunkStore<V> {
    /// Copies at most about `budget_bytes` forward; the best bargains first: much to free, and old.
    /// Segments made during the cleaning are left alone, so it ends.
    ///
    /// # Errors
    /// `NoSpace` when even the reserve is gone, `Io`, `Poisoned`. Nothing is lost by an error.
    pub async fn clean(&self, budget_bytes: u64) -> Result<Cleaned, Error> {
        let inner = &self.inner;
        let newest = inner.index.lock().sequence;
        let mut cleaned = Cleaned::default();
        let free_before = inner.index.lock().free.len();
        inner.free_dead(&mut *inner.appender.lock().await).await?;
        cleaned.segments += inner.index.lock().free.len().saturating_sub(free_before) as u32;
        while cleaned.bytes_copied < budget_bytes {
            let Some((slot, sequence)) = self.victim(newest) else { break };
            let segment = inner.device.header.segment_bytes as usize;
            let bytes = inner.device.read(inner.device.slot_start(slot), segment).await?;
            let mut hashes: Vec<ChunkHash> = Vec::new();
            let mut records = Vec::new();
            for entry in format::scan(&bytes, sequence) {
                let (offset, stored_len) = (entry.offset, entry.stored_len);
                let from = Location { slot, offset, stored_len, plain_len: entry.plain_len };
                if inner.index.lock().map.get(&entry.hash) != Some(&from) {
                    continue;
                }
                if let Some((head, body)) =
                    RecordHeader::decode(&bytes[entry.offset as usize..], sequence)
                {
                    cleaned.bytes_copied += body.len() as u64;
                    records.push(Sealed { head, body: body.to_vec(), from: Some(from) });
                }
            }
            // No receipts are wanted, so no names are given.
            inner.submit(std::mem::take(&mut hashes), records).await?;
            inner.free_dead(&mut *inner.appender.lock().await).await?;
            let mut index = inner.index.lock();
            let entry = &mut index.slots[slot as usize];
            if entry.sequence == sequence && entry.state == SlotState::Closed {
                // What could not be read is not thrown away.
                entry.stuck = true;
            } else {
                cleaned.segments += 1;
            }
        }
        Ok(cleaned)
    }

    /// The closed segment with the highest (1 - u) · age / (1 + u), where u ≤ 7/8.
    fn victim(&self, newest: u64) -> Option<(u32, u64)> {
        let segment = u64::from(self.inner.device.header.segment_bytes);
        let index = self.inner.index.lock();
        let score = |live: u32, sequence: u64| {
            let live = u64::from(live);
            let age = u128::from(newest - sequence + 1);
            u128::from(segment - live) * age * 1024 / u128::from(segment + live)
        };
        (0..)
            .zip(&index.slots)
            .filter(|(_, slot)| {
                slot.state == SlotState::Closed
                    && !slot.stuck
                    && slot.sequence <= newest
                    && u64::from(slot.live_bytes) <= segment / 8 * 7
            })
            .max_by_key(|(_, slot)| score(slot.live_bytes, slot.sequence))
            .map(|(at, slot)| (at, slot.sequence))
    }
}
