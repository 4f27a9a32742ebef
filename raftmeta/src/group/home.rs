//! Where a group lives: a runtime of its own, which is driven by whoever waits for it.
//!
//! A command passes through three tasks of openraft and a sync of the log. On the server's runtime each step
//! wakes another thread, and a switch between threads costs as much as the step. Here the thread that proposes
//! runs the steps itself: alone it needs no switch at all; together with others, one of them drives, the
//! others' commands meet in its next batch and share one sync, and when it has its own answer the next takes
//! over. What nobody waits for, such as Raft's clock, is driven now and then by a thread that does nothing else.

use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};

/// How often the runtime is driven while nobody proposes anything.
const TICK: Duration = Duration::from_millis(100);

/// The runtime; it ends when this is dropped.
pub(super) struct Home(Option<Runtime>);

impl Home {
    pub(super) fn make() -> io::Result<Arc<Home>> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let home = Arc::new(Home(Some(runtime)));
        let weak = Arc::downgrade(&home);
        std::thread::Builder::new().name("raft-tick".to_owned()).spawn(move || tick(&weak))?;
        Ok(home)
    }

    /// Runs `work` to its end, and what else there is to do meanwhile, on this thread.
    pub(super) fn drive<T>(&self, work: impl Future<Output = T>) -> T {
        // It is only taken when this is dropped.
        let runtime = self.0.as_ref().expect("a runtime");
        blocking(|| runtime.block_on(work))
    }
}

/// The same for tasks of any runtime: one with a single thread cannot lend it.
pub(super) async fn drive<T: Send + 'static>(
    home: &Arc<Home>,
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
    if !matches!(flavor, Ok(RuntimeFlavor::CurrentThread)) {
        return Ok(home.drive(work));
    }
    let home = Arc::clone(home);
    tokio::task::spawn_blocking(move || home.drive(work)).await.map_err(io::Error::other)
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn tick(home: &Weak<Home>) {
    while let Some(home) = home.upgrade() {
        home.drive(tokio::task::yield_now());
        drop(home);
        std::thread::sleep(TICK);
    }
}

/// Lets the other tasks of the caller's runtime go on elsewhere while this thread is busy with `work`.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
