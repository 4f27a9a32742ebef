//! Latencies: counted in buckets that are at most 1/64 of their value wide, so that a day of operations takes 30 KiB.

use std::time::Duration;

use serde::Serialize;

const MANTISSA_BITS: u32 = 6;
const BUCKETS: usize = 3776;

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

/// What a histogram says. Percentiles are the upper end of their bucket; nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub operations: u64,
    pub mean_ns: f64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    #[serde(rename = "p99.9_ns")]
    pub p99_9_ns: u64,
    #[serde(rename = "p99.99_ns")]
    pub p99_99_ns: u64,
    pub max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let buckets = vec![0; BUCKETS].into_boxed_slice();
        Histogram { buckets, count: 0, sum_ns: 0, max_ns: 0 }
    }
}

/// Values below 128 have a bucket each, then 64 buckets a power of two.
fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    let shift = bits.saturating_sub(MANTISSA_BITS + 1);
    ((shift as usize) << MANTISSA_BITS) + (ns >> shift) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket >> MANTISSA_BITS).saturating_sub(1);
    let mantissa = (bucket - (shift << MANTISSA_BITS)) as u128;
    u64::try_from(((mantissa + 1) << shift) - 1).unwrap_or(u64::MAX)
}

impl Histogram {
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that `per_100k` of 100,000 operations do not exceed.
    fn percentile(&self, per_100k: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(per_100k)).div_ceil(100_000).max(1);
        let mut seen = 0_u128;
        for (at, n) in self.buckets.iter().enumerate() {
            seen += u128::from(*n);
            if seen >= rank {
                return upper(at).min(self.max_ns);
            }
        }
        self.max_ns
    }

    /// `None` of no operations.
    #[must_use]
    pub fn latency(&self) -> Option<Latency> {
        (self.count > 0).then(|| Latency {
            operations: self.count,
            mean_ns: self.sum_ns as f64 / self.count as f64,
            p50_ns: self.percentile(50_000),
            p90_ns: self.percentile(90_000),
            p99_ns: self.percentile(99_000),
            p99_9_ns: self.percentile(99_900),
            p99_99_ns: self.percentile(99_990),
            max_ns: self.max_ns,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_join_without_gap() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(BUCKETS - 1), u64::MAX);
        for at in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(at)), at);
            assert_eq!(bucket(upper(at) + 1), at + 1);
        }
    }

    proptest! {
        /// Against sorting: never below the true percentile, never more than 1/64 above it.
        #[test]
        fn percentiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0..10_000_000_u64, 1..500)
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
            values.sort_unstable();
            for per_100k in [50_000, 90_000, 99_000, 99_900, 99_990] {
                let rank = (values.len() as u64 * per_100k).div_ceil(100_000).max(1) as usize;
                let (exact, told) = (values[rank - 1], histogram.percentile(per_100k));
                prop_assert!(told >= exact && told <= exact + exact / 64, "{told} for {exact}");
            }
            let latency = histogram.latency().unwrap();
            prop_assert_eq!(latency.max_ns, *values.last().unwrap());
            prop_assert_eq!(latency.operations, values.len() as u64);
        }
    }
}
