//! Copies of segments give way to what clients are served.
//!
//! While a node serves somebody, it rests after each segment that it sends to bring a replica up, for as long as the
//! sending took times the copies under way: all copies together take no more than one at full speed would, and a single
//! one half of that. A node that serves nobody copies as fast as it can. What an epoch begins with is not of this:
//! writers wait for it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;

/// Who was served longer ago than this is served no more.
const SERVED_FOR: Duration = Duration::from_secs(1);
/// A segment that took long because the other node hardly answers says nothing about what this one can do.
const REST_MAX: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Courtesy {
    /// When a client's chunks were last read or written here.
    served: Mutex<Option<Instant>>,
}

impl Courtesy {
    /// Somebody is served.
    pub fn note(&self) {
        *self.served.lock() = Some(clock::now());
    }

    /// How long to rest after a segment that took so long, with so many copies under way.
    fn rest_after(&self, took: Duration, copies: usize) -> Duration {
        let served = self.served.lock().is_some_and(|at| clock::elapsed(at) < SERVED_FOR);
        match served {
            true => took.saturating_mul(copies.max(1) as u32).min(REST_MAX),
            false => Duration::ZERO,
        }
    }

    /// Gives way after a segment.
    pub async fn rest(&self, took: Duration, copies: usize) {
        let rest = self.rest_after(took, copies);
        if !rest.is_zero() {
            clock::sleep(rest).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_rest_while_somebody_is_served() {
        let courtesy = Courtesy::default();
        let took = Duration::from_millis(10);
        assert_eq!(courtesy.rest_after(took, 4), Duration::ZERO);
        courtesy.note();
        assert_eq!(courtesy.rest_after(took, 1), took);
        assert_eq!(courtesy.rest_after(took, 4), 4 * took);
        assert_eq!(courtesy.rest_after(Duration::from_secs(60), 16), REST_MAX);
        *courtesy.served.lock() = Instant::now().checked_sub(SERVED_FOR);
        assert_eq!(courtesy.rest_after(took, 4), Duration::ZERO);
    }
}
