//! Where a group lives: a runtime of its own, which is driven by whoever waits for it.
//!
//! A command passes through three tasks of openraft and a sync of the log. On the server's runtime each step
//! wakes another thread, and a switch between threads costs as much as the step. Here the thread that proposes
//! runs the steps itself: alone it needs no switch at all; together with others, one of them drives, the
//! others' commands meet in its next batch and share one sync, and when it has its own answer the next takes
//! over. What nobody waits for, such as Raft's clock, is driven now and then by a thread that does nothing else.
//!
//! With other replicas there is always something that nobody here waits for: heartbeats, votes, what is sent to
//! followers. Then that thread drives all the time, sleeping in the kernel while there is nothing to do, and
//! what the group is asked for becomes a task there.

use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::watch;

use crate::runtime::JoinHandle;
#[cfg(test)]
use crate::sim::executor::{self, Life};

/// How often the runtime is driven while nobody proposes anything.
const TICK: Duration = Duration::from_millis(100);

/// Who drives the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Whoever waits; the thread ticks.
    Lent,
    /// The thread, all the time.
    Driven,
    /// Nobody any more.
    Ended,
}

/// The runtime; it ends when this is dropped.
pub(super) struct Home {
    runtime: Option<Arc<Runtime>>,
    mode: watch::Sender<Mode>,
    thread: Thread,
    /// In a simulation, which is the runtime then.
    #[cfg(test)]
    life: Option<Life>,
}

impl Home {
    pub(super) fn make() -> io::Result<Arc<Home>> {
        let runtime = Arc::new(Builder::new_current_thread().enable_time().build()?);
        let (mode, changes) = watch::channel(Mode::Lent);
        let weak = Arc::downgrade(&runtime);
        let ticker = std::thread::Builder::new().name("raft-tick".to_owned());
        let thread = ticker.spawn(move || tick(&weak, changes))?.thread().clone();
        Ok(Arc::new(Home {
            runtime: Some(runtime),
            mode,
            thread,
            #[cfg(test)]
            life: None,
        }))
    }

    /// That of the replica whose life it is, if a simulation runs here.
    #[cfg(test)]
    pub(super) fn simulated() -> Option<Arc<Home>> {
        executor::is_on().then(|| {
            let mode = watch::channel(Mode::Driven).0;
            let (thread, life) = (std::thread::current(), Some(Life::current()));
            Arc::new(Home { runtime: None, mode, thread, life })
        })
    }

    fn runtime(&self) -> &Runtime {
        // It is only taken when this is dropped.
        self.runtime.as_ref().expect("a runtime")
    }

    /// Runs `work` to its end, and what else there is to do meanwhile, on this thread.
    pub(super) fn drive<T>(&self, work: impl Future<Output = T>) -> T {
        blocking(|| self.runtime().block_on(work))
    }

    /// Whether the thread drives all the time; else it ticks.
    pub(super) fn is_driven(&self) -> bool {
        *self.mode.borrow() == Mode::Driven
    }

    /// From now on the thread drives all the time, or ticks again.
    pub(super) fn set_driven(&self, driven: bool) {
        #[cfg(test)]
        if self.life.is_some() {
            return;
        }
        let wanted = if driven { Mode::Driven } else { Mode::Lent };
        self.mode.send_if_modified(|mode| std::mem::replace(mode, wanted) != wanted);
        self.thread.unpark();
    }
}

impl Home {
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        #[cfg(test)]
        let task = match self.life {
            Some(life) => JoinHandle::Simulated(life.spawn(work)),
            None => JoinHandle::Machine(self.runtime().spawn(work)),
        };
        #[cfg(not(test))]
        let task = self.runtime().spawn(work);
        task
    }

    /// Runs `work` in the group's runtime, to its end even if the caller gives up.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Home>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> io::Result<T> {
        let task = self.spawn(work);
        if self.is_driven() {
            return task.await.map_err(io::Error::other);
        }
        drive(self, task).await?.map_err(io::Error::other)
    }
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `work` in the group's runtime, for tasks of any runtime and threads of none. If the caller gives up, so does
/// `work`.
pub(super) async fn drive<T: Send + 'static>(
    home: &Arc<Home>,
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    if home.is_driven() {
        let mut task = Task(home.spawn(work));
        return (&mut task.0).await.map_err(io::Error::other);
    }
    // A runtime with a single thread cannot lend it.
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    if !matches!(flavor, Ok(RuntimeFlavor::CurrentThread)) {
        return Ok(home.drive(work));
    }
    let home = Arc::clone(home);
    tokio::task::spawn_blocking(move || home.drive(work)).await.map_err(io::Error::other)
}

impl Drop for Home {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Ended);
        self.thread.unpark();
        if let Some(runtime) = self.runtime.take() {
            end(runtime);
        }
    }
}

/// Whoever holds the runtime last ends it; never a task of its own.
fn end(runtime: Arc<Runtime>) {
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
}

fn tick(runtime: &Weak<Runtime>, mut changes: watch::Receiver<Mode>) {
    while let Some(runtime) = runtime.upgrade() {
        let mode = *changes.borrow_and_update();
        match mode {
            Mode::Lent => runtime.block_on(tokio::task::yield_now()),
            // An error means that the home is gone.
            Mode::Driven => {
                let _ = runtime.block_on(changes.wait_for(|mode| *mode != Mode::Driven));
            }
            Mode::Ended => {}
        }
        end(runtime);
        match mode {
            Mode::Lent => std::thread::park_timeout(TICK),
            Mode::Driven => {}
            Mode::Ended => return,
        }
    }
}

/// Lets the other tasks of the caller's runtime go on elsewhere while this thread is busy with `work`.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
