//! What the group runs on: tasks, time and chance are tokio's, by way of openraft's trait for them. The seam for a
//! simulation, which is all of that itself (`sim`).
//!
//! Whatever the group waits for or starts it gets from here, by `Types::sleep`, `Types::spawn` and so on.

use std::time::Duration;

#[cfg(test)]
pub(crate) use crate::sim::runtime::{JoinHandle, Runtime};
#[cfg(not(test))]
pub type Runtime = openraft::TokioRuntime;
/// What `Types::spawn` returns. By openraft's name for it the compiler could not tell that what waits for a task here may
/// move between threads.
#[cfg(not(test))]
pub(crate) use tokio::task::JoinHandle;

/// The time that people tell each other, since 1970.
pub(crate) fn wall_clock() -> Duration {
    #[cfg(test)]
    if let Some(now) = crate::sim::executor::wall_clock() {
        return now;
    }
    #[allow(clippy::disallowed_methods, reason = "the leader stamps the time into commands")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
