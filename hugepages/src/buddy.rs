//! A buddy allocator of offsets; it touches no memory.
//!
//! Order 0 is a block of 4 KiB, order 9 one of 2 MiB. A block is split in two buddies that differ in
//! one bit of their offset; freeing joins a block with its buddy as long as that is free too.

use std::collections::BTreeSet;

/// Bytes of a block of order 0.
pub const BLOCK_BYTES: usize = 4096;
/// Highest order: 2 MiB.
pub const ORDER_MAX: usize = 9;

#[derive(Debug)]
pub struct Buddy {
    /// Offsets of free blocks by order.
    free: [BTreeSet<usize>; ORDER_MAX + 1],
}

impl Buddy {
    /// All of `bytes` (a multiple of 2 MiB) is free.
    pub fn new(bytes: usize) -> Buddy {
        assert!(bytes.is_multiple_of(BLOCK_BYTES << ORDER_MAX));
        let mut free: [BTreeSet<usize>; ORDER_MAX + 1] = Default::default();
        free[ORDER_MAX] = (0..bytes).step_by(BLOCK_BYTES << ORDER_MAX).collect();
        Buddy { free }
    }

    /// Offset of a block of this order, or none where even splitting finds none.
    pub fn take(&mut self, order: usize) -> Option<usize> {
        let found = (order..=ORDER_MAX).find(|&order| !self.free[order].is_empty())?;
        let offset = self.free[found].pop_first().expect("an order that is not empty");
        // The lower half is split on, the upper halves stay free.
        for split in (order..found).rev() {
            self.free[split].insert(offset + (BLOCK_BYTES << split));
        }
        Some(offset)
    }

    /// Gives a block of this order back.
    pub fn give(&mut self, mut offset: usize, mut order: usize) {
        while order < ORDER_MAX {
            let buddy = offset ^ (BLOCK_BYTES << order);
            if !self.free[order].remove(&buddy) {
                break;
            }
            offset = offset.min(buddy);
            order += 1;
        }
        let new = self.free[order].insert(offset);
        assert!(new, "block {offset:#x} of order {order} was freed twice");
    }

    /// Bytes that are free, in blocks of whatever order.
    pub fn free_bytes(&self) -> usize {
        self.free.iter().enumerate().map(|(order, free)| free.len() * (BLOCK_BYTES << order)).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Blocks never overlap, are aligned to their size, and all memory comes back whole.
        #[test]
        fn blocks_are_disjoint_and_come_back(
            steps in proptest::collection::vec((0..=ORDER_MAX, any::<prop::sample::Index>()), 1..200)
        ) {
            let bytes = 3 * (BLOCK_BYTES << ORDER_MAX);
            let mut buddy = Buddy::new(bytes);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (order, index) in steps {
                if held.len() > 12 {
                    let (offset, order) = held.swap_remove(index.index(held.len()));
                    buddy.give(offset, order);
                }
                if let Some(offset) = buddy.take(order) {
                    let len = BLOCK_BYTES << order;
                    prop_assert_eq!(offset % len, 0);
                    prop_assert!(offset + len <= bytes);
                    for &(other, other_order) in &held {
                        let other_end = other + (BLOCK_BYTES << other_order);
                        prop_assert!(offset + len <= other || other_end <= offset);
                    }
                    held.push((offset, order));
                }
                let used: usize = held.iter().map(|(_, order)| BLOCK_BYTES << order).sum();
                prop_assert_eq!(buddy.free_bytes(), bytes - used);
            }
            held.into_iter().for_each(|(offset, order)| buddy.give(offset, order));
            prop_assert_eq!(buddy.free[ORDER_MAX].len(), 3);
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_block_given_twice_is_a_programmers_error() {
        let mut buddy = Buddy::new(BLOCK_BYTES << ORDER_MAX);
        let _keep = buddy.take(0).expect("empty arena");
        let offset = buddy.take(0).expect("empty arena");
        buddy.give(offset, 0);
        buddy.give(offset, 0);
    }
}
