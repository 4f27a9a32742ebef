//! Bytes written to a file and not committed yet: disjoint ranges, the newest byte wins.

use std::collections::BTreeMap;
use std::ops::Range;

use parking_lot::Mutex;

/// Memory of large ranges that were sent, to be written into again: fresh memory costs a page fault for every
/// 4 KiB, a tenth of the whole way of a byte.
static SPARE: Mutex<Spare> = Mutex::new(Spare { vectors: Vec::new(), bytes: 0, used: false });
/// Smaller ranges come from the allocator.
const SPARE_BYTES_MIN: usize = 256 << 10;
const SPARE_BYTES_MAX: usize = 64 << 20;

struct Spare {
    vectors: Vec<Vec<u8>>,
    /// Capacity of all.
    bytes: usize,
    /// Since the last [`trim`].
    used: bool,
}

/// Gives a spare back to the system if none was needed since the last call.
pub(crate) fn trim() {
    let mut spare = SPARE.lock();
    if !std::mem::take(&mut spare.used)
        && let Some(vector) = spare.vectors.pop()
    {
        spare.bytes -= vector.capacity();
    }
}

/// A vector that holds `data`.
fn holding(data: &[u8]) -> Vec<u8> {
    if data.len() < SPARE_BYTES_MIN {
        return data.to_vec();
    }
    let mut vector = {
        let mut spare = SPARE.lock();
        spare.used = true;
        let vector = spare.vectors.pop().unwrap_or_default();
        spare.bytes -= vector.capacity();
        vector
    };
    vector.extend_from_slice(data);
    vector
}

fn keep(mut vector: Vec<u8>) {
    let mut spare = SPARE.lock();
    let bytes = spare.bytes + vector.capacity();
    if vector.capacity() >= SPARE_BYTES_MIN && bytes <= SPARE_BYTES_MAX {
        vector.clear();
        spare.bytes = bytes;
        spare.vectors.push(vector);
    }
}

#[derive(Default)]
pub(crate) struct Dirty {
    ranges: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// First byte after all that is held; 0 if nothing is.
    pub(crate) fn end(&self) -> u64 {
        self.ranges.last_key_value().map_or(0, |(at, data)| at + data.len() as u64)
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.ranges.iter().map(|(offset, data)| (*offset, data.as_slice()))
    }

    /// Writes `data` at `offset`, over what is there. `offset + data.len()` must fit in 63 bits.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.cut(offset, offset + data.len() as u64);
        self.bytes += data.len();
        if let Some((start, before)) = self.ranges.range_mut(..offset).next_back()
            && start + before.len() as u64 == offset
        {
            before.extend_from_slice(data);
            return;
        }
        self.ranges.insert(offset, holding(data));
    }

    /// Puts `data` at `offset`, under what is there: newer bytes stay.
    pub(crate) fn write_under<'a>(&mut self, older: impl Iterator<Item = (u64, &'a [u8])>) {
        let newer = std::mem::take(self);
        older.for_each(|(offset, data)| self.write(offset, data));
        newer.ranges().for_each(|(offset, data)| self.write(offset, data));
    }

    /// Forgets the bytes of `start..end`.
    pub(crate) fn cut(&mut self, start: u64, end: u64) {
        let mut touched: Vec<u64> = self.ranges.range(start..end).map(|(at, _)| *at).collect();
        if let Some((at, data)) = self.ranges.range(..start).next_back()
            && at + data.len() as u64 > start
        {
            touched.push(*at);
        }
        for at in touched {
            let Some(mut data) = self.ranges.remove(&at) else { continue };
            self.bytes -= data.len();
            if at + data.len() as u64 > end {
                let tail = data.split_off((end - at) as usize);
                self.bytes += tail.len();
                self.ranges.insert(end, tail);
            }
            if at < start {
                data.truncate((start - at) as usize);
                self.bytes += data.len();
                self.ranges.insert(at, data);
            }
        }
    }

    /// The parts of `range` that are held, ascending.
    pub(crate) fn parts(&self, range: &Range<u64>) -> Vec<(u64, &[u8])> {
        let before = self.ranges.range(..range.start).next_back();
        let within = self.ranges.range(range.start..range.end.max(range.start));
        let part = |(at, data): (&u64, &'_ Vec<u8>)| {
            let from = range.start.max(*at);
            let to = range.end.min(at + data.len() as u64);
            (from < to).then_some((from, (from - at) as usize..(to - at) as usize))
        };
        before
            .into_iter()
            .chain(within)
            .filter_map(|entry| part(entry).map(|(from, slice)| (from, &entry.1[slice])))
            .collect()
    }
}

impl Drop for Dirty {
    fn drop(&mut self) {
        std::mem::take(&mut self.ranges).into_values().for_each(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_given_back_when_idle() {
        let mut dirty = Dirty::default();
        dirty.write(0, &[1; SPARE_BYTES_MIN]);
        drop(dirty);
        let mut dirty = Dirty::default();
        dirty.write(7, &[2; SPARE_BYTES_MIN]);
        assert_eq!(dirty.parts(&(0..1 << 30)), [(7, &[2; SPARE_BYTES_MIN][..])]);
        drop(dirty);
        // Others may use spares at the same time; without any use they go one by one.
        let mut calls = 0;
        while SPARE.lock().bytes > 0 {
            trim();
            calls += 1;
            assert!(calls < 1_000_000, "spares stay");
        }
    }
}
