//! A simulated clock: it stands while there is something to do, and jumps to the next moment that somebody waits for
//! when all have done what they can.
//!
//! ```text
//!   tokio, one thread ─ all tasks wait ─▶ about to park ─▶ the earliest sleeper is woken, and it is that late now
//! ```
//! Who sleeps until the same moment is woken one after the other, in the order in which they began to sleep. So a
//! run depends on nothing but its seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The clock of the simulation that runs on this thread.
struct Clock {
    start: Instant,
    now: Duration,
    /// Numbers sleepers.
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
}

fn with<T>(look: impl FnOnce(&mut Clock) -> T) -> Option<T> {
    // A sleeper may be dropped after the simulation, or with the thread.
    CLOCK.try_with(|clock| clock.borrow_mut().as_mut().map(look)).ok().flatten()
}

/// Runs a simulation on this thread, to its end.
pub(crate) fn run<T>(simulation: impl Future<Output = T>) -> T {
    let clock =
        Clock { start: Instant::now(), now: Duration::ZERO, next: 0, sleepers: BTreeMap::new() };
    CLOCK.with(|own| *own.borrow_mut() = Some(clock));
    let _end = End;
    let runtime = tokio::runtime::Builder::new_current_thread().on_thread_park(advance).build();
    runtime.expect("a runtime without threads").block_on(simulation)
}

/// Takes the clock away again, also after a panic.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        // Wakers are dropped when the clock is not borrowed any more.
        drop(CLOCK.with(|clock| clock.borrow_mut().take()));
    }
}

/// This moment, if a simulation runs here.
pub(super) fn now() -> Option<Instant> {
    with(|clock| clock.start + clock.now)
}

/// See [`super::chance`].
pub(super) fn chance() -> Option<u32> {
    with(|clock| {
        clock.next += 1;
        let seen = clock.next ^ clock.now.as_nanos() as u64;
        (seen.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    })
}

/// Simulated time since the start.
pub(crate) fn since_start() -> Duration {
    with(|clock| clock.now).unwrap_or_default()
}

/// All wait: it is the next moment at which one of them does not.
fn advance() {
    let next = with(|clock| {
        let (key, waker) = clock.sleepers.pop_first()?;
        clock.now = key.0;
        Some(waker)
    });
    match next.flatten() {
        Some(waker) => waker.wake(),
        None => panic!("everybody waits for somebody else, for ever"),
    }
}

pub(super) fn sleep(duration: Duration) -> Sleep {
    Sleep { until: since_start() + duration, number: None }
}

/// See [`sleep`].
pub(super) struct Sleep {
    until: Duration,
    /// Once it is among the sleepers.
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Sleep { until, number } = *self;
        let slept = with(|clock| {
            if clock.now >= until {
                return None;
            }
            let number = number.unwrap_or(clock.next);
            clock.next = clock.next.max(number + 1);
            clock.sleepers.insert((until, number), context.waker().clone());
            Some(number)
        });
        match slept.flatten() {
            Some(number) => {
                self.number = Some(number);
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let key = (self.until, number);
            drop(with(|clock| clock.sleepers.remove(&key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock;

    #[test]
    fn time_passes_when_all_wait_and_in_order() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let before = Instant::now();
        run(async {
            let sleepers = [(3, 50), (1, 3_600_000), (2, 50), (4, 10)];
            let tasks = sleepers.map(|(name, millis)| {
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    clock::sleep(Duration::from_millis(millis)).await;
                    log.lock().unwrap().push((name, since_start().as_millis()));
                })
            });
            let start = clock::now();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(clock::elapsed(start), Duration::from_secs(3600));
        });
        let expected = [(4, 10), (3, 50), (2, 50), (1, 3_600_000)];
        assert_eq!(*log.lock().unwrap(), expected);
        assert!(before.elapsed() < Duration::from_secs(3600), "and nobody really waits");
    }
}
