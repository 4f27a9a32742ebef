//! Waiting for something, with a limit and a reason.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

const POLL: Duration = Duration::from_millis(100);

/// Polls until the condition gives something. An error of it ends the wait.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            let what = format!("{what}: not within {} s", limit.as_secs());
            return Err(Error::new(Kind::Timeout, what).next("see `cfs-dev logs --no-follow`"));
        }
        std::thread::sleep(POLL);
    }
}
