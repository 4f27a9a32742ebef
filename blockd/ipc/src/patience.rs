//! [`Patience`]: how long to look for work before sleeping.
//!
//! A sleep costs a wake-up, tens of microseconds on a virtual machine; looking costs the core. So one looks for as long
//! as looking has lately paid, and ends at once when somebody else wants the core.

use std::time::{Duration, Instant};

/// Looks for each reading of the clock: it may be a call into the kernel, and on machines without a usable TSC it goes on to
/// a device. What is found before the first one was not waited for.
const LOOKS: u32 = 8;
/// Between two readings so much time passes only if the core was given to somebody else: there are too few of them for
/// looking. (Yielding would ask more directly, but Linux makes who yields wait for milliseconds.)
const CROWDED: Duration = Duration::from_micros(50);
/// The same as a part of the longest wait: who has cores for looking says so by a long one.
const CROWDED_SHARE: u32 = 4;
/// The window does not fall below this part of its maximum, so that it can grow again.
const SHARE_MIN: u32 = 16;

/// ```text
/// loop { if work() { patience.found() } else if !patience.look_again() { sleep(); patience.slept() } }
/// ```
#[derive(Debug)]
pub struct Patience {
    max: Duration,
    window: Duration,
    looks: u32,
    /// Since when there was nothing, and the last reading of the clock.
    since: Option<(Instant, Instant)>,
}

impl Patience {
    /// Looks for `max` at most; zero always sleeps.
    #[must_use]
    pub fn new(max: Duration) -> Patience {
        Patience { max, window: max, looks: 0, since: None }
    }

    /// There was work.
    pub fn found(&mut self) {
        self.looks = 0;
        if let Some((since, _)) = self.since.take() {
            self.learn(since.elapsed());
        }
    }

    /// There was none: whether to look again rather than to sleep.
    pub fn look_again(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS) && !self.max.is_zero() {
            return true;
        }
        // As seldom: hypervisors and emulators leave the guest for it.
        std::hint::spin_loop();
        let now = Instant::now();
        let (since, last) = *self.since.get_or_insert((now, now));
        self.since = Some((since, now));
        now - since < self.window && now - last < CROWDED.max(self.max / CROWDED_SHARE)
    }

    /// A sleep is over, with or without work.
    pub fn slept(&mut self) {
        self.found();
    }

    /// What would have paid: twice the wait if that is within bounds, else half of what there was.
    fn learn(&mut self, waited: Duration) {
        let floor = self.max / SHARE_MIN;
        self.window = if waited < self.max {
            (waited * 2).clamp(self.window.min(self.max), self.max).max(floor)
        } else {
            (self.window / 2).max(floor)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(160);

    #[test]
    fn long_waits_make_it_short_and_short_ones_long() {
        let mut patience = Patience::new(MAX);
        for _ in 0..10 {
            patience.learn(MAX * 100);
        }
        assert_eq!(patience.window, MAX / SHARE_MIN);
        patience.learn(Duration::from_micros(50));
        assert_eq!(patience.window, Duration::from_micros(100));
        patience.learn(Duration::from_micros(1));
        assert_eq!(patience.window, Duration::from_micros(100), "one quick answer says little");
        patience.learn(Duration::from_micros(159));
        assert_eq!(patience.window, MAX);
    }

    #[test]
    fn it_ends() {
        let mut patience = Patience::new(MAX);
        while patience.look_again() {}
        assert!(!Patience::new(Duration::ZERO).look_again());
    }
}
