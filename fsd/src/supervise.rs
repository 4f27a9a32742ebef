//! Keeps the block daemon running as a child: starts it, starts it again when it ends, stops it in order.
//!
//! A child that ends at once is not started in a circle: the pause doubles from 100 ms to 10 s, and is
//! short again once a child has run for a minute.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

#[cfg(test)]
mod tests;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that ran for this long was well: the next pause is short.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// How long to wait before the next start.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: PAUSE_MIN }
    }
}

impl Backoff {
    /// The pause after a child that ran for `uptime`.
    pub fn pause(&mut self, uptime: Duration) -> Duration {
        if uptime >= WELL_AFTER {
            self.next = PAUSE_MIN;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// How long a stopping child has after SIGTERM before it is killed.
    pub stop_within: Duration,
}

/// What the child is doing, in the order of its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Running {
        pid: u32,
        /// How often it had to be started again.
        restarts: u64,
    },
    /// It ended, or could not be started, and is started again after the pause.
    Waiting { why: String },
    /// It was stopped and is not started again.
    Stopped,
}

/// A child kept running until [`Supervisor::stop`]. Dropped without it, the child is killed.
#[derive(Debug)]
pub struct Supervisor {
    stop: oneshot::Sender<()>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the child. That the first start succeeds is for the caller to see, so that a missing
    /// program is an error at once and not a circle of attempts.
    pub fn start(spec: Spec) -> io::Result<Supervisor> {
        let child = launch(&spec)?;
        let (stop, stopping) = oneshot::channel();
        let (report, state) = watch::channel(running(&child, 0));
        let task = tokio::spawn(keep(spec, child, report, stopping));
        Ok(Supervisor { stop, state, task })
    }

    /// The child's state, now and whenever it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Ends the child with SIGTERM, with SIGKILL after `stop_within`, and returns when it is gone.
    pub async fn stop(self) {
        // The task has ended already only if it panicked; there is nobody to tell then.
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the supervisor failed");
        }
    }
}

/// A child and the end of its stdin that we hold: when we are killed it closes, and a child that watches
/// it ends too.
struct Launched {
    child: Child,
    _lifeline: Option<ChildStdin>,
}

fn launch(spec: &Spec) -> io::Result<Launched> {
    let mut child = Command::new(&spec.program)
        .args(&spec.arguments)
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C is for us: we still need the child while we stop.
        .process_group(0)
        .spawn()?;
    // Waiting for a child would close its stdin.
    let lifeline = child.stdin.take();
    Ok(Launched { child, _lifeline: lifeline })
}

fn running(launched: &Launched, restarts: u64) -> State {
    State::Running { pid: launched.child.id().unwrap_or_default(), restarts }
}

async fn keep(
    spec: Spec,
    first: Launched,
    report: watch::Sender<State>,
    mut stopping: oneshot::Receiver<()>,
) {
    let name = spec.program.display().to_string();
    let mut backoff = Backoff::default();
    let mut restarts = 0;
    let mut started = Ok(first);
    loop {
        let since = Instant::now();
        let why = match started {
            Ok(mut launched) => {
                report.send_replace(running(&launched, restarts));
                tokio::select! {
                    ended = launched.child.wait() => describe(ended),
                    _ = &mut stopping => {
                        end(&mut launched.child, spec.stop_within).await;
                        break;
                    }
                }
            }
            Err(error) => format!("cannot start: {error}"),
        };
        let pause = backoff.pause(since.elapsed());
        tracing::warn!(program = name, why, pause_ms = pause.as_millis() as u64, "starting again");
        report.send_replace(State::Waiting { why });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stopping => break,
        }
        restarts += 1;
        started = launch(&spec);
    }
    report.send_replace(State::Stopped);
}

fn describe(ended: io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => format!("ended: {status}"),
        Err(error) => format!("lost: {error}"),
    }
}

async fn end(child: &mut Child, within: Duration) {
    if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
        // It may have ended this moment; the wait below sees that.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(within, child.wait()).await.is_err() {
        tracing::warn!(within_ms = within.as_millis() as u64, "did not stop in time: killed");
        let _ = child.kill().await;
    }
}

/// The program of this name: beside the running one if it is there, else from `search` (the value of
/// `PATH`).
pub fn find_program(name: &str, beside: &Path, search: &std::ffi::OsStr) -> Option<PathBuf> {
    let own = beside.parent().map(Path::to_path_buf);
    own.into_iter()
        .chain(std::env::split_paths(search))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}
