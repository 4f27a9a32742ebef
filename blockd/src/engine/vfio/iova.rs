//! Addresses on the device's side of the IOMMU: first fit, in steps of a huge page.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

const STEP: u64 = hugepages::HUGE_PAGE_BYTES as u64;

/// What the IOMMU takes, and what of it is in use.
#[derive(Debug)]
pub struct Space {
    // First and last address, aligned to steps, without address 0.
    ranges: Vec<(u64, u64)>,
    taken: Mutex<BTreeMap<u64, u64>>,
}

impl Space {
    /// Of ranges of first and last addresses.
    pub fn new(ranges: Vec<(u64, u64)>) -> Space {
        let aligned = ranges.into_iter().filter_map(|(first, last)| {
            let start = first.max(STEP).checked_next_multiple_of(STEP)?;
            let end = last.saturating_add(1) / STEP * STEP;
            (start < end).then_some((start, end))
        });
        Space { ranges: aligned.collect(), taken: Mutex::new(BTreeMap::new()) }
    }

    /// An address with `bytes` behind it that nobody else has.
    pub fn take(&self, bytes: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(STEP)?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for &(start, end) in &self.ranges {
            let mut at = start;
            for (&used, &len) in taken.range(start..end) {
                if used - at >= bytes {
                    break;
                }
                at = used + len;
            }
            if end.checked_sub(at).is_some_and(|room| room >= bytes) {
                taken.insert(at, bytes);
                return Some(at);
            }
        }
        None
    }

    /// All that is in use: addresses and lengths.
    pub fn taken(&self) -> Vec<(u64, u64)> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().map(|(address, bytes)| (*address, *bytes)).collect()
    }

    /// Gives back what `take` gave.
    pub fn give(&self, address: u64) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(taken.remove(&address).is_some(), "{address:#x} was not taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_gaps_are_used() {
        let space = Space::new(vec![(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        let a = space.take(4 << 20).unwrap();
        let b = space.take(1).unwrap();
        assert_eq!((a, b), (2 << 20, 6 << 20));
        space.give(a);
        assert_eq!(space.take(8 << 20), Some(8 << 20));
        assert_eq!(space.take(2 << 20), Some(2 << 20));
        assert_eq!(space.taken(), [(2 << 20, 2 << 20), (6 << 20, 2 << 20), (8 << 20, 8 << 20)]);
        // Too large for what is below the interrupts.
        assert_eq!(space.take(8 << 30), Some(0xff00_0000));
        assert_eq!(space.take(1 << 40), None);
        assert!(Space::new(vec![(5, 4), (0, 100)]).take(1).is_none());
    }
}
