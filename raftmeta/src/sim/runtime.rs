//! What openraft and the group run on under test: the simulation of this thread if there is one, else tokio.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use openraft::async_runtime::Instant as _;
use openraft::rt::deterministic_rng::DeterministicRng;
use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};

use super::executor::{self, Life};

type Seeded = DeterministicRng<TokioRuntime>;

/// Where the machine's clock begins to count, so that nothing is before it.
const BASE: Duration = Duration::from_secs(1_000_000);

#[derive(Debug)]
pub struct Runtime(TokioRuntime);

/// A moment by the clock of a replica, or of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl openraft::Instant for Instant {
    fn now() -> Instant {
        static START: OnceLock<tokio::time::Instant> = OnceLock::new();
        Instant(
            executor::clock()
                .unwrap_or_else(|| BASE + START.get_or_init(tokio::time::Instant::now).elapsed()),
        )
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, later: Duration) -> Instant {
        Instant(self.0 + later)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, later: Duration) {
        self.0 += later;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, earlier: Duration) -> Instant {
        Instant(self.0.saturating_sub(earlier))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, earlier: Duration) {
        self.0 = self.0.saturating_sub(earlier);
    }
}

/// See [`AsyncRuntime::sleep`].
#[derive(Debug)]
pub enum Sleep {
    Machine(Pin<Box<tokio::time::Sleep>>),
    Simulated(executor::Sleep),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Sleep::Machine(sleep) => sleep.as_mut().poll(context),
            Sleep::Simulated(sleep) => Pin::new(sleep).poll(context),
        }
    }
}

#[derive(Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time is over")
    }
}

/// See [`AsyncRuntime::timeout`].
#[allow(missing_debug_implementations, reason = "for tests")]
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(done) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(done));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// Why a task has no answer.
#[derive(Debug)]
pub struct JoinError(Option<tokio::task::JoinError>);

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(error) => error.fmt(f),
            None => f.write_str("the replica is dead"),
        }
    }
}

impl std::error::Error for JoinError {}

/// See [`AsyncRuntime::spawn`].
#[derive(Debug)]
pub enum JoinHandle<T> {
    Machine(tokio::task::JoinHandle<T>),
    Simulated(executor::Handle<T>),
}

impl<T> JoinHandle<T> {
    pub fn abort(&self) {
        match self {
            JoinHandle::Machine(task) => task.abort(),
            JoinHandle::Simulated(task) => task.abort(),
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            JoinHandle::Machine(task) => {
                Pin::new(task).poll(context).map_err(|error| JoinError(Some(error)))
            }
            JoinHandle::Simulated(task) => {
                Pin::new(task).poll(context).map(|done| done.ok_or(JoinError(None)))
            }
        }
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        match executor::is_on() {
            true => JoinHandle::Simulated(Life::current().spawn(future)),
            false => JoinHandle::Machine(tokio::spawn(future)),
        }
    }

    fn sleep(duration: Duration) -> Sleep {
        match executor::is_on() {
            true => Sleep::Simulated(executor::sleep(duration)),
            false => Sleep::Machine(Box::pin(tokio::time::sleep(duration))),
        }
    }

    fn sleep_until(deadline: Instant) -> Sleep {
        match executor::is_on() {
            true => Sleep::Simulated(executor::sleep_until(deadline.0)),
            false => Runtime::sleep(deadline - Instant::now()),
        }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Runtime::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Runtime::sleep_until(deadline) }
    }

    fn is_panic(error: &JoinError) -> bool {
        error.0.as_ref().is_some_and(tokio::task::JoinError::is_panic)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seed = match executor::is_on() {
            true => executor::roll(|dice| dice.next()),
            false => {
                use std::hash::BuildHasher;
                std::hash::RandomState::new().hash_one(Instant::now().0)
            }
        };
        let seeded = Seeded::scope(seed, async { Seeded::thread_rng() });
        seeded.now_or_never().expect("it waits for nothing")
    }

    fn new(threads: usize) -> Runtime {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        TokioRuntime::spawn_blocking(work)
    }
}
