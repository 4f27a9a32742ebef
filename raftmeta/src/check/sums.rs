//! Finding the few numbers that are wrong among many, in bounded memory.
//!
//! What is said and what is counted lie in different orders. Each is a 64-bit fingerprint of the thing and of what is
//! said of it, added to the bucket of the thing when it is counted and subtracted when it is said. A bucket that
//! comes to 0 is right: what differs does not come to 0, with all but certainty. Only the things of the others are
//! counted one by one, those of a bounded number of buckets at once.
//!
//! ```text
//!   pass 1:  said and counted ─▶ at most 2^20 sums ─▶ buckets that are not 0: none, in a healthy store
//!   pass 2…: the things in some of those buckets, each in a map
//! ```

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Most sums: 8 MiB of them.
const BUCKETS_MAX: usize = 1 << 20;
const BUCKETS_MIN: usize = 1 << 6;
/// Things that are counted one by one in one pass, about.
const AT_ONCE: u64 = 1 << 16;

/// A sum for each bucket.
pub(super) struct Sums(Vec<u64>);

fn bucket(thing: &[u8], buckets: usize) -> usize {
    xxh3_64(thing) as usize % buckets
}

/// Odd, so that few of it never come to 0.
fn fingerprint(thing: &[u8], what: &[u8]) -> u64 {
    xxh3_64_with_seed(what, xxh3_64(thing)) | 1
}

impl Sums {
    /// For about so many things; if it is more, it takes longer to find what is wrong.
    pub fn new(things: u64) -> Sums {
        let things = usize::try_from(things).unwrap_or(usize::MAX).min(BUCKETS_MAX);
        Sums(vec![0; things.next_power_of_two().max(BUCKETS_MIN)])
    }

    /// `what` was counted so often for the thing.
    pub fn counted(&mut self, thing: &[u8], what: &[u8], times: u64) {
        let sum = self.of(thing);
        *sum = sum.wrapping_add(fingerprint(thing, what).wrapping_mul(times));
    }

    /// `what` is said so often of the thing.
    pub fn said(&mut self, thing: &[u8], what: &[u8], times: u64) {
        let sum = self.of(thing);
        *sum = sum.wrapping_sub(fingerprint(thing, what).wrapping_mul(times));
    }

    fn of(&mut self, thing: &[u8]) -> &mut u64 {
        let bucket = bucket(thing, self.0.len());
        &mut self.0[bucket]
    }

    /// The buckets that differ, in groups for one pass each; there are so many things in all of them.
    pub fn suspects(&self, things: u64) -> impl Iterator<Item = Suspects> {
        let buckets = self.0.len();
        let differ: Vec<usize> = (0..buckets).filter(|&bucket| self.0[bucket] != 0).collect();
        let in_a_bucket = things / buckets as u64 + 1;
        let group = usize::try_from(AT_ONCE / in_a_bucket).unwrap_or(usize::MAX).max(1);
        let groups: Vec<_> = differ.chunks(group).map(<[usize]>::to_vec).collect();
        groups.into_iter().map(move |differ| Suspects { differ, buckets })
    }
}

/// Some buckets that differ.
pub(super) struct Suspects {
    /// Ascending.
    differ: Vec<usize>,
    buckets: usize,
}

impl Suspects {
    pub fn contains(&self, thing: &[u8]) -> bool {
        self.differ.binary_search(&bucket(thing, self.buckets)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_suspected_and_all_of_it() {
        let mut sums = Sums::new(1000);
        for thing in 0..100_000u32 {
            sums.counted(&thing.to_be_bytes(), b"links", 2);
            sums.said(&thing.to_be_bytes(), b"links", 1 + u64::from(thing != 77));
        }
        // Twice the same, said of others.
        sums.counted(&1u32.to_be_bytes(), b"parent", 1);
        sums.said(&2u32.to_be_bytes(), b"parent", 1);
        let groups: Vec<Suspects> = sums.suspects(100_000).collect();
        let suspected =
            |thing: u32| groups.iter().filter(|group| group.contains(&thing.to_be_bytes())).count();
        assert!([1, 2, 77].into_iter().all(|thing| suspected(thing) == 1));
        assert!((0..100_000).filter(|&thing| suspected(thing) > 0).count() < 1000);
    }

    #[test]
    fn many_suspects_come_in_groups() {
        let mut sums = Sums::new(BUCKETS_MAX as u64);
        let things = 4 * AT_ONCE;
        (0..things).for_each(|thing| sums.counted(&thing.to_be_bytes(), b"links", 1));
        let groups: Vec<Suspects> = sums.suspects(things).collect();
        assert!(groups.len() >= 3, "{}", groups.len());
        for thing in 0..1000u64 {
            let of = groups.iter().filter(|group| group.contains(&thing.to_be_bytes())).count();
            assert_eq!(of, 1);
        }
    }
}
