//! How fast something goes on: from what was left of it during the last minute to when there will be nothing left.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What was left longer ago says nothing about how fast it goes now.
const WINDOW: Duration = Duration::from_secs(60);
/// Between two looks that are kept: 61 at most.
const STEP: Duration = Duration::from_secs(1);
/// A shorter time says nothing.
const LEAST: Duration = Duration::from_secs(3);
/// Longer than this is not told.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What was left when, in any unit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    looks: VecDeque<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Pace {
    /// So much is left now. Where that is more than before, everything begins anew.
    pub fn note(&mut self, now: Instant, left: u64) {
        if self.last.is_some_and(|(_, before)| left > before) {
            self.looks.clear();
        }
        self.last = Some((now, left));
        if self.looks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            self.looks.push_back((now, left));
        }
        let old = |at: &Instant| now.saturating_duration_since(*at) > WINDOW;
        while self.looks.pop_front_if(|(at, _)| old(at)).is_some() {}
    }

    /// How long the rest will take; nothing while that is not known, or nothing goes on.
    pub fn eta(&self) -> Option<Duration> {
        let ((since, before), (now, left)) = (*self.looks.front()?, self.last?);
        let (took, done) = (now.saturating_duration_since(since), before - left);
        if took < LEAST || done == 0 {
            return None;
        }
        let seconds = took.as_secs_f64() * left as f64 / done as f64;
        (seconds < LONGEST.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_last_minute_says() {
        let (start, at) = (Instant::now(), Duration::from_secs);
        let mut pace = Pace::default();
        assert_eq!(pace.eta(), None);
        pace.note(start, 1000);
        pace.note(start + at(1), 900);
        assert_eq!(pace.eta(), None, "too early");
        pace.note(start + at(10), 800);
        assert_eq!(pace.eta(), Some(at(40)));
        // Nothing for a minute: what was before counts no more.
        for second in 11..=75 {
            pace.note(start + at(second), 800);
        }
        assert_eq!(pace.eta(), None);
        pace.note(start + at(85), 400);
        assert_eq!(pace.eta(), Some(at(60)), "in a minute");
        assert!(pace.looks.len() <= 62);
        // There is more to do than was known.
        pace.note(start + at(86), 5000);
        assert_eq!(pace.eta(), None);
        pace.note(start + at(96), 4000);
        assert_eq!(pace.eta(), Some(at(40)));
        pace.note(start + at(97), 0);
        assert_eq!(pace.eta(), Some(Duration::ZERO));
    }

    #[test]
    fn what_would_take_for_ever_is_not_told() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.note(start, u64::MAX);
        pace.note(start + Duration::from_secs(30), u64::MAX - 2000);
        assert_eq!(pace.eta(), None);
    }
}
