//! One thread for all replicas: which task goes on is the seed's choice, and time passes when none can.
//!
//! ```text
//!   runnable ─ the dice choose one ─▶ polled to its next wait        nobody is runnable ─▶ the next moment for which
//!      ▲                                                                                  somebody waits is now
//!      └── wakers put tasks there: a set, so that who was woken first does not matter
//! ```
//! Every task belongs to a life: a replica from its start to its death, or the world. A life has a clock that runs at a
//! rate of its own, it can be stalled, as by SIGSTOP or a disk that does not answer, and when it ends all its tasks are
//! dropped at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::hash::{DefaultHasher, Hasher};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::dice::Dice;
use super::disk;

/// Whom tasks belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life(u64);

/// Clients, the network, what goes wrong.
pub(super) const WORLD: Life = Life(0);
/// The simulation itself among the tasks.
const MAIN: u64 = 0;
/// Clocks count from far apart: whoever compared two of them would be found out.
const APART: Duration = Duration::from_secs(100_000);
/// The rate of the world's clock; a clock of 1050 is five percent faster.
const RATE: u32 = 1000;
/// When it all begins.
const SINCE_1970: Duration = Duration::from_secs(1_800_000_000);
/// So many steps at one moment: somebody goes round in circles.
const STEPS_MAX: u64 = 2_000_000;

struct Clock {
    rate: u32,
    stalled_until: Duration,
}

struct Task {
    life: Life,
    /// Not here while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

struct Core {
    dice: Dice,
    now: Duration,
    /// Numbers tasks, sleepers and lives.
    next: u64,
    lives: BTreeMap<Life, Clock>,
    tasks: BTreeMap<u64, Task>,
    runnable: Arc<Mutex<BTreeSet<u64>>>,
    sleepers: BTreeMap<(Duration, u64), Waker>,
    steps: u64,
    trace: Trace,
}

/// What happened, in order.
struct Trace {
    digest: DefaultHasher,
    /// To be seen.
    print: bool,
}

struct Wakes {
    task: u64,
    runnable: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Wakes>) {
        self.runnable.lock().insert(self.task);
    }
}

thread_local! {
    static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
    static CURRENT: Cell<Life> = const { Cell::new(WORLD) };
    /// What is done now is done by a thread beside the replica's own, in the product.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// Nothing that is dropped or woken in here may come back.
fn with<T>(look: impl FnOnce(&mut Core) -> T) -> Option<T> {
    CORE.try_with(|core| core.borrow_mut().as_mut().map(look)).ok().flatten()
}

/// Whether a simulation runs on this thread.
pub(crate) fn is_on() -> bool {
    with(|_| ()).is_some()
}

/// Takes everything away again, also after a panic.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        // What is dropped now would like to write, to wait and to start tasks.
        disk::off();
        let lives = with(|core| core.lives.keys().copied().collect::<Vec<_>>());
        lives.into_iter().flatten().for_each(Life::end);
        drop(CORE.with(|core| core.borrow_mut().take()));
    }
}

enum Next {
    Step(u64),
    Wake(Vec<Waker>),
}

/// Runs a simulation on this thread, to its end; with a number that is the same if all of it was.
pub(super) fn run<T>(seed: u64, print: bool, simulation: impl Future<Output = T>) -> (T, u64) {
    let runnable = Arc::new(Mutex::new(BTreeSet::from([MAIN])));
    let core = Core {
        dice: Dice::new(seed),
        now: Duration::ZERO,
        next: 1,
        lives: BTreeMap::from([(WORLD, Clock { rate: RATE, stalled_until: Duration::ZERO })]),
        tasks: BTreeMap::new(),
        runnable: Arc::clone(&runnable),
        sleepers: BTreeMap::new(),
        steps: 0,
        trace: Trace { digest: DefaultHasher::new(), print },
    };
    CORE.with(|own| *own.borrow_mut() = Some(core));
    let _end = End;
    let mut simulation = pin!(simulation);
    loop {
        match with(Core::next).expect("it runs") {
            Next::Wake(wakers) => wakers.into_iter().for_each(Waker::wake),
            Next::Step(MAIN) => {
                CURRENT.set(WORLD);
                let waker = waker(MAIN, &runnable);
                if let Poll::Ready(done) =
                    simulation.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    let digest = with(|core| core.trace.digest.finish());
                    return (done, digest.expect("it runs"));
                }
            }
            Next::Step(task) => step(task, &runnable),
        }
    }
}

fn waker(task: u64, runnable: &Arc<Mutex<BTreeSet<u64>>>) -> Waker {
    Waker::from(Arc::new(Wakes { task, runnable: Arc::clone(runnable) }))
}

fn step(id: u64, runnable: &Arc<Mutex<BTreeSet<u64>>>) {
    let taken = with(|core| {
        let task = core.tasks.get_mut(&id)?;
        Some((task.life, task.future.take()?))
    });
    let Some((life, mut future)) = taken.flatten() else { return };
    CURRENT.set(life);
    let waker = waker(id, runnable);
    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
    // It may have been ended meanwhile, by itself too.
    let left = with(|core| match (polled, core.tasks.get_mut(&id)) {
        (Poll::Pending, Some(task)) => {
            task.future = Some(future);
            None
        }
        _ => {
            core.tasks.remove(&id);
            Some(future)
        }
    });
    drop(left);
    CURRENT.set(WORLD);
}

impl Core {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn next(&mut self) -> Next {
        let mut runnable = self.runnable.lock();
        let mut able = Vec::new();
        let mut stalled = None::<Duration>;
        runnable.retain(|id| {
            let life = match self.tasks.get(id) {
                Some(task) => task.life,
                None if *id == MAIN => WORLD,
                None => return false,
            };
            let until = self.lives.get(&life).map_or(Duration::ZERO, |clock| clock.stalled_until);
            if until <= self.now {
                able.push(*id);
            } else {
                stalled = Some(stalled.map_or(until, |known| known.min(until)));
            }
            true
        });
        if let Some(id) = self.dice.pick(&able) {
            runnable.remove(&id);
            self.steps += 1;
            assert!(self.steps < STEPS_MAX, "somebody goes round in circles");
            self.trace.digest.write_u128(self.now.as_nanos());
            self.trace.digest.write_u64(id);
            return Next::Step(id);
        }
        drop(runnable);
        let due = self.sleepers.first_key_value().map(|(key, _)| key.0);
        let Some(at) = due.into_iter().chain(stalled).min() else {
            panic!("everybody waits for somebody else, for ever")
        };
        (self.now, self.steps) = (self.now.max(at), 0);
        let later = self.sleepers.split_off(&(self.now + Duration::from_nanos(1), 0));
        Next::Wake(std::mem::replace(&mut self.sleepers, later).into_values().collect())
    }

    fn rate(&self, life: Life) -> u32 {
        self.lives.get(&life).map_or(RATE, |clock| clock.rate)
    }

    /// What the clock of `life` says.
    fn local(&self, life: Life) -> Duration {
        let nanos = self.now.as_nanos() * u128::from(self.rate(life)) / u128::from(RATE);
        APART * life.0 as u32 + Duration::from_nanos(nanos as u64)
    }

    /// When that clock says so, not earlier.
    fn global(&self, life: Life, local: Duration) -> Duration {
        let nanos = local.saturating_sub(APART * life.0 as u32).as_nanos() * u128::from(RATE);
        Duration::from_nanos(nanos.div_ceil(u128::from(self.rate(life))) as u64)
    }
}

/// Simulated time since the start.
pub(super) fn now() -> Duration {
    with(|core| core.now).unwrap_or_default()
}

/// What the clock of whoever asks says, if a simulation runs here.
pub(super) fn clock() -> Option<Duration> {
    with(|core| core.local(CURRENT.get()))
}

/// See [`crate::runtime::wall_clock`].
pub(crate) fn wall_clock() -> Option<Duration> {
    clock().map(|clock| SINCE_1970 + clock)
}

pub(super) fn roll<T>(roll: impl FnOnce(&mut Dice) -> T) -> T {
    let mut roll = Some(roll);
    let mut rolled = |dice: &mut Dice| roll.take().map(|roll| roll(dice));
    let seen = with(|core| rolled(&mut core.dice)).flatten();
    // What outlives a simulation that failed.
    seen.or_else(|| rolled(&mut Dice::new(0))).expect("it is rolled once")
}

/// Notes what happened.
pub(super) fn note(what: std::fmt::Arguments<'_>) {
    with(|core| {
        let line = format!("{:>11} {what}", core.now.as_micros());
        core.trace.digest.write(line.as_bytes());
        if core.trace.print {
            println!("{line}");
        }
    });
}

/// A life begins, with a clock of this rate.
pub(super) fn begin(rate: u32) -> Life {
    with(|core| {
        let life = Life(core.number());
        core.lives.insert(life, Clock { rate, stalled_until: Duration::ZERO });
        life
    })
    .expect("only in a simulation")
}

impl Life {
    /// The one that is going on here.
    pub(crate) fn current() -> Life {
        CURRENT.get()
    }

    /// It ends: none of its tasks takes another step.
    pub(super) fn end(self) {
        let tasks: Option<Vec<Task>> = with(|core| {
            core.lives.remove(&self);
            core.tasks.extract_if(.., |_, task| task.life == self).map(|(_, task)| task).collect()
        });
        drop(tasks);
    }

    /// None of its tasks takes a step for so long. Its clock goes on.
    pub(super) fn stall(self, duration: Duration) {
        with(|core| {
            let until = core.now + duration;
            if let Some(clock) = core.lives.get_mut(&self) {
                clock.stalled_until = clock.stalled_until.max(until);
            }
        });
    }

    /// Looks at something as this life sees it.
    pub(super) fn look<T>(self, look: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(self);
        let seen = look();
        CURRENT.set(before);
        seen
    }

    /// If it has ended, so has the task.
    pub(crate) fn spawn<T: 'static>(self, future: impl Future<Output = T> + 'static) -> Handle<T> {
        let (sender, answer) = oneshot::channel();
        let future = async move {
            let _nobody_waits = sender.send(future.await);
        };
        let mut future = Some(Box::pin(future) as Pin<Box<dyn Future<Output = ()>>>);
        let task = with(|core| {
            let id = core.number();
            if core.lives.contains_key(&self) {
                core.tasks.insert(id, Task { life: self, future: future.take() });
                core.runnable.lock().insert(id);
            }
            id
        });
        Handle { task: task.unwrap_or_default(), answer }
    }
}

/// Has the life that goes on here wait for its disk, unless another thread of it does.
pub(super) fn stall_here(duration: Duration) {
    if !ASIDE.get() {
        Life::current().stall(duration);
    }
}

/// Does what a thread beside the replica's own does.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let before = ASIDE.replace(true);
    let done = work();
    ASIDE.set(before);
    done
}

/// A task that may be waited for, or ended.
#[derive(Debug)]
pub struct Handle<T> {
    task: u64,
    answer: oneshot::Receiver<T>,
}

impl<T> Handle<T> {
    pub fn abort(&self) {
        let task = with(|core| core.tasks.remove(&self.task));
        drop(task);
    }
}

impl<T> Future for Handle<T> {
    /// `None`: it was ended.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.answer).poll(context).map(Result::ok)
    }
}

/// Until so much has passed by the clock of whoever waits.
pub(super) fn sleep(duration: Duration) -> Sleep {
    sleep_until(clock().unwrap_or_default() + duration)
}

/// Until the clock of whoever waits says so.
pub(super) fn sleep_until(local: Duration) -> Sleep {
    Sleep {
        until: with(|core| core.global(CURRENT.get(), local)).unwrap_or_default(),
        number: None,
    }
}

#[derive(Debug)]
pub struct Sleep {
    until: Duration,
    /// Once it is among the sleepers.
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Sleep { until, number } = *self;
        let slept = with(|core| {
            if core.now >= until {
                return None;
            }
            let number = number.unwrap_or_else(|| core.number());
            let before = core.sleepers.insert((until, number), context.waker().clone());
            Some((number, before))
        });
        match slept.flatten() {
            Some((number, _before)) => {
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
            drop(with(|core| core.sleepers.remove(&key)));
        }
    }
}
