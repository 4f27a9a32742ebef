//! Bytes written to a file and not committed yet: disjoint ranges, the newest byte wins.

use std::collections::BTreeMap;

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

    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.ranges.iter().map(|(offset, data)| (*offset, data.as_slice()))
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.bytes = 0;
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
        self.ranges.insert(offset, data.to_vec());
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

    /// Lays what is held over `buffer`, which shows the file from `offset` on.
    pub(crate) fn overlay(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        for (at, data) in self.ranges.range(..end) {
            let from = offset.max(*at);
            let to = end.min(at + data.len() as u64);
            if from < to {
                buffer[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&data[(from - at) as usize..(to - at) as usize]);
            }
        }
    }
}
