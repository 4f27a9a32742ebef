//! [`Patience`]: how long to look for work before sleeping.
//!
//! A sleep costs a wake-up, tens of microseconds on a virtual machine; looking costs the core. So one looks for as long
//! as looking has lately paid, not at all where it has not, and ends at once when somebody else wants the core. Who has had to give
//! the core away while looking looks at every other wait only, then at every fourth and so on: whom it waits for may be who wants it.

use std::time::{Duration, Instant};

/// Looks for each reading of the clock: it may be a call into the kernel, and on machines without a usable TSC it goes on to
/// a device. What is found before the first one was not waited for.
const LOOKS: u32 = 8;
/// Between two readings so much time passes only if the core was given to somebody else: there are too few of them for
/// looking. (Yielding would ask more directly, but Linux makes who yields wait for milliseconds.)
const CROWDED: Duration = Duration::from_micros(50);
/// The same as a part of the longest wait: who has cores for looking says so by a long one.
const CROWDED_SHARE: u32 = 4;
/// A window below this part of its maximum is none.
const SHARE_MIN: u32 = 16;
/// Of so many waits one is looked through at least, as a power of two, however often the core was given away.
const CROWDS_MAX: u32 = 6;

/// ```text
/// loop { if work() { patience.found() } else if !patience.look_again() { sleep(); patience.slept() } }
/// ```
#[derive(Debug)]
pub struct Patience {
    max: Duration,
    /// Zero while looking does not pay: then the waits themselves, from sleep to sleep, say when it would again.
    window: Duration,
    looks: u32,
    /// Looks that ended for somebody else since one has paid, and waits that are passed for it.
    crowds: u32,
    passes: u32,
    /// Since when there was nothing, and the last reading of the clock.
    since: Option<(Instant, Instant)>,
}

impl Patience {
    /// Looks for `max` at most; zero always sleeps.
    #[must_use]
    pub fn new(max: Duration) -> Patience {
        Patience { max, window: max, looks: 0, crowds: 0, passes: 0, since: None }
    }

    /// Whether the next wait begins with looking. If not, there is no need to find out that there is nothing: sleep.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.passes == 0 && !self.window.is_zero()
    }

    /// There was work.
    pub fn found(&mut self) {
        if std::mem::take(&mut self.looks) > 0 {
            self.crowds = 0;
        }
        self.end_wait();
    }

    /// There was none: whether to look again rather than to sleep.
    pub fn look_again(&mut self) -> bool {
        if self.max.is_zero() {
            return false;
        }
        if !self.looks() {
            let now = Instant::now();
            self.since.get_or_insert((now, now));
            self.passes = self.passes.saturating_sub(1);
            return false;
        }
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS) {
            return true;
        }
        // As seldom: hypervisors and emulators leave the guest for it.
        std::hint::spin_loop();
        let now = Instant::now();
        let (since, last) = *self.since.get_or_insert((now, now));
        self.since = Some((since, now));
        if now - last >= CROWDED.max(self.max / CROWDED_SHARE) {
            self.crowded();
            return false;
        }
        now - since < self.window
    }

    /// A sleep is over, with or without work.
    pub fn slept(&mut self) {
        self.looks = 0;
        self.end_wait();
    }

    fn end_wait(&mut self) {
        if let Some((since, _)) = self.since.take() {
            self.learn(since.elapsed());
        }
    }

    fn crowded(&mut self) {
        self.crowds = (self.crowds + 1).min(CROWDS_MAX);
        self.passes = (1 << self.crowds) - 1;
    }

    /// What would have paid: twice the wait if that is within bounds, else half of what there was.
    fn learn(&mut self, waited: Duration) {
        let least = self.max / SHARE_MIN;
        self.window = if waited < self.max {
            (waited * 2).max(least).clamp(self.window.min(self.max), self.max)
        } else if self.window / 2 < least {
            Duration::ZERO
        } else {
            self.window / 2
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
        for _ in 0..4 {
            patience.learn(MAX * 100);
        }
        assert_eq!(patience.window, MAX / SHARE_MIN);
        assert!(patience.looks());
        patience.learn(MAX);
        assert!(!patience.looks(), "it has not paid for long");
        patience.learn(Duration::ZERO);
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
        assert!(!Patience::new(Duration::ZERO).looks());
    }

    #[test]
    fn who_takes_the_core_is_left_alone() {
        let mut patience = Patience::new(Duration::from_secs(3600));
        for passed in [1, 3, 7, 15, 31, 63, 63] {
            patience.crowded();
            for _ in 0..passed {
                assert!(!patience.looks() && !patience.look_again());
                patience.slept();
            }
            assert!(patience.looks());
        }
        assert!(patience.look_again(), "the first look reads no clock");
        patience.found();
        patience.crowded();
        assert_eq!(patience.passes, 1, "looking has paid in between");
    }

    #[test]
    fn sleeps_say_when_looking_would_pay() {
        let mut patience = Patience::new(Duration::from_secs(3600));
        patience.window = Duration::ZERO;
        assert!(!patience.look_again());
        patience.slept();
        assert!(patience.looks(), "that was less than an hour");
    }
}
