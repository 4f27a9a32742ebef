//! The clock, waiting by it, and chance, as the protocols between nodes see them: the machine's, or in a simulation of a
//! whole site simulated ones. What is measured for people and what clients wait for takes the machine's directly.

use std::time::{Duration, Instant};

#[cfg(test)]
pub(crate) mod simulated;

/// This moment.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    Instant::now()
}

/// Time since a moment that [`now`] gave.
pub(crate) fn elapsed(since: Instant) -> Duration {
    now().saturating_duration_since(since)
}

/// Something that nobody could have foreseen; in a simulation the same every time.
pub(crate) fn chance() -> u32 {
    #[cfg(test)]
    if let Some(chance) = simulated::chance() {
        return chance;
    }
    uuid::Uuid::new_v4().as_fields().0
}

/// Waits that long.
pub(crate) async fn sleep(duration: Duration) {
    #[cfg(test)]
    if simulated::now().is_some() {
        return simulated::sleep(duration).await;
    }
    tokio::time::sleep(duration).await;
}
