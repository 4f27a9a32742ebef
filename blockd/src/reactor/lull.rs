//! [`Lull`]: whether to look for work at all before a sleep.
//!
//! [`blockd_ipc::Patience`] looks for some microseconds even where that has not paid, since two sides that look for each other's
//! work through shared memory must not both give up. A host behind a socket does not look for us: where its answers take longer
//! than looking may last, looking is calls into the kernel for nothing, on a core that the host may be waiting for.

use std::time::{Duration, Instant};

/// So many sleeps in a row that were longer than looking may last make a lull.
const LONG_RUN: u32 = 4;

/// See the module.
#[derive(Debug)]
pub struct Lull {
    max: Duration,
    long: u32,
}

impl Lull {
    /// `max` is how long looking may last.
    pub fn new(max: Duration) -> Lull {
        Lull { max, long: 0 }
    }

    /// There was work, and who was waiting for it might as well sleep again at once.
    pub fn is_on(&self) -> bool {
        self.long >= LONG_RUN
    }

    /// A sleep that began then is over.
    pub fn slept(&mut self, since: Instant) {
        self.learn(since.elapsed());
    }

    fn learn(&mut self, slept: Duration) {
        self.long = if slept < self.max { 0 } else { self.long.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sleeps_bring_it_and_a_short_one_ends_it() {
        let max = Duration::from_micros(200);
        let mut lull = Lull::new(max);
        for _ in 0..LONG_RUN {
            assert!(!lull.is_on());
            lull.learn(max);
        }
        assert!(lull.is_on());
        lull.learn(max - Duration::from_nanos(1));
        assert!(!lull.is_on());
        lull.slept(Instant::now() - max);
        assert_eq!(lull.long, 1);
    }
}
