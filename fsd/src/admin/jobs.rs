//! Long work of administrators: started, polled, cancelled.
//!
//! ```text
//!   JobStart ─▶ Entry ◀── the task says how far it is, and asks whether it should go on
//!                 ▲
//!   JobPoll ──────┘   keeps it alive; nobody polls for a minute: it ends, and is forgotten
//! ```
//! A report is kept until nobody polls for it any more, so that a poll whose answer was lost may be repeated.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fsd_rpc::admin::{
    AdminReply, JOB_ABANDONED_SECS, JOBS_MAX, Job, JobReport, JobState, JobSummary,
    POLL_WAIT_MS_MAX, Progress, Target, Timestamp,
};
use fsd_rpc::message::Failure;
use parking_lot::Mutex;
use raftmeta_types::Time;
use tokio::sync::Notify;

use super::{du, fsck, gc, refused, scrub};
use crate::node::{Node, now};
use crate::pace::Pace;

const ABANDONED: Duration = Duration::from_secs(JOB_ABANDONED_SECS);
/// Reports kept at most; the oldest goes first.
const FINISHED_MAX: usize = 16;

/// The jobs of a node.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    jobs: BTreeMap<u64, Arc<Entry>>,
}

/// One job, as its task and its askers share it.
#[derive(Debug)]
pub(super) struct Entry {
    name: String,
    started: Time,
    cancelled: AtomicBool,
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    /// Of this phase.
    pace: Pace,
    polled: Instant,
    result: Option<Result<JobReport, Failure>>,
}

impl Entry {
    fn new(name: String) -> Entry {
        let progress = Progress { phase: "starting".into(), ..Progress::default() };
        Entry {
            name,
            started: now(),
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State {
                progress,
                pace: Pace::default(),
                polled: Instant::now(),
                result: None,
            }),
            ended: Notify::new(),
        }
    }

    /// Says how far the job is (`total` 0: not known), and fails when it should not go on.
    pub fn progress(&self, phase: &str, done: u64, total: u64, unit: &str) -> Result<(), Failure> {
        let mut state = self.state.lock();
        if state.progress.phase != phase {
            state.pace = Pace::default();
        }
        state.progress =
            Progress { phase: phase.to_owned(), done, total: total.max(done), unit: unit.into() };
        match total {
            0 => state.progress.total = 0,
            total => state.pace.note(Instant::now(), total.saturating_sub(done)),
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(refused("CANCELLED", &self.name, "it was cancelled", ""));
        }
        if state.polled.elapsed() > ABANDONED {
            return Err(refused("JOB_LOST", &self.name, "nobody asks for it any more", ""));
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.state.lock().result.is_none()
    }

    fn finish(&self, result: Result<JobReport, Failure>) {
        self.state.lock().result = Some(result);
        self.ended.notify_waiters();
    }
}

impl Jobs {
    fn add(&self, name: String) -> Result<(u64, Arc<Entry>), Failure> {
        let mut table = self.table.lock();
        table.forget();
        let running = table.jobs.values().filter(|entry| entry.is_running()).count();
        if running >= JOBS_MAX {
            let why = format!("{JOBS_MAX} jobs are running");
            return Err(refused("TOO_MANY_JOBS", name, why, "wait for one: `cfs admin status`"));
        }
        table.last += 1;
        let (id, entry) = (table.last, Arc::new(Entry::new(name)));
        table.jobs.insert(id, Arc::clone(&entry));
        Ok((id, entry))
    }

    fn entry(&self, job: u64) -> Result<Arc<Entry>, Failure> {
        let found = self.table.lock().jobs.get(&job).cloned();
        found.ok_or_else(|| {
            let why = "there is no such job: it ended long ago, or the node was restarted";
            refused("NO_SUCH_JOB", format!("job {job}"), why, "start it again")
        })
    }

    /// Waits for the end of the job, at most `wait_ms`.
    pub async fn poll(&self, job: u64, wait_ms: u32) -> Result<AdminReply, Failure> {
        let entry = self.entry(job)?;
        let ended = entry.ended.notified();
        tokio::pin!(ended);
        // Before the state is looked at, so that an end between the two is not missed.
        ended.as_mut().enable();
        entry.state.lock().polled = Instant::now();
        if entry.is_running() {
            let wait = Duration::from_millis(u64::from(wait_ms.min(POLL_WAIT_MS_MAX)));
            // Either is fine: the state is told as it is then.
            let _ = tokio::time::timeout(wait, ended).await;
        }
        let mut state = entry.state.lock();
        state.polled = Instant::now();
        let told = match &state.result {
            Some(result) => JobState::Finished(result.clone()?),
            None => JobState::Running(state.progress.clone()),
        };
        Ok(AdminReply::Job(Box::new(told)))
    }

    /// Ends the job at its next step. What it did stays done.
    pub fn cancel(&self, job: u64) -> Result<AdminReply, Failure> {
        self.entry(job)?.cancelled.store(true, Ordering::Relaxed);
        Ok(AdminReply::Done)
    }

    /// Those that are running, oldest first.
    pub fn running(&self) -> Vec<JobSummary> {
        let table = self.table.lock();
        let running = table.jobs.iter().filter(|(_, entry)| entry.is_running());
        running
            .map(|(job, entry)| {
                let state = entry.state.lock();
                let (name, progress) = (entry.name.clone(), state.progress.clone());
                let eta = state.pace.eta();
                summary(*job, name, entry.started.into(), progress, eta)
            })
            .collect()
    }
}

/// How far a job is, with what follows from that.
pub(super) fn summary(
    job: u64,
    name: String,
    started: Timestamp,
    progress: Progress,
    eta: Option<Duration>,
) -> JobSummary {
    let Progress { done, total, .. } = progress;
    let percent = (u128::from(done) * 100).checked_div(u128::from(total));
    let in_bytes = total > 0 && progress.unit == "bytes";
    let eta = eta.filter(|_| total > 0);
    JobSummary {
        job,
        name,
        node: None,
        started,
        percent: percent.map(|percent| u8::try_from(percent).unwrap_or(100).min(100)),
        bytes_left: in_bytes.then(|| total.saturating_sub(done)),
        eta_ms: eta.map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
        progress,
    }
}

impl Table {
    /// Drops reports that nobody asks for, and the oldest when there are too many.
    fn forget(&mut self) {
        self.jobs.retain(|_, entry| {
            let state = entry.state.lock();
            state.result.is_none() || state.polled.elapsed() <= ABANDONED
        });
        let finished: Vec<u64> =
            self.jobs.iter().filter(|(_, entry)| !entry.is_running()).map(|(id, _)| *id).collect();
        for id in finished.iter().take(finished.len().saturating_sub(FINISHED_MAX)) {
            self.jobs.remove(id);
        }
    }
}

/// Starts a job on a task of its own.
pub(super) fn start(node: &Arc<Node>, job: Job) -> Result<AdminReply, Failure> {
    let (id, entry) = node.admin.add(name(&job))?;
    tracing::info!(job = id, name = entry.name, "an administrator's job starts");
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let mut stopping = node.stopping();
        let result = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => {
                Err(Failure::NotReady("the node is stopping".into()))
            }
            result = run(&node, &entry, job) => result,
        };
        if let Err(failure) = &result {
            tracing::info!(job = id, name = entry.name, %failure, "an administrator's job failed");
        }
        entry.finish(result);
    });
    Ok(AdminReply::JobStarted { job: id })
}

async fn run(node: &Arc<Node>, entry: &Arc<Entry>, job: Job) -> Result<JobReport, Failure> {
    match job {
        Job::Du { target } => du::du(node, entry, target).await.map(JobReport::Du),
        Job::Fsck(options) => fsck::fsck(node, entry, options).await.map(JobReport::Fsck),
        Job::Gc { dry_run } => gc::gc(node, entry, dry_run).await.map(JobReport::Gc),
        Job::Scrub => scrub::scrub(node, entry).await.map(JobReport::Scrub),
    }
}

fn name(job: &Job) -> String {
    match job {
        Job::Du { target: Target::Path(path) } => format!("du {}", path.escape_ascii()),
        Job::Du { target: Target::Ino(ino) } => format!("du inode {ino}"),
        Job::Fsck(options) if options.repair => "fsck --repair".into(),
        Job::Fsck(_) => "fsck".into(),
        Job::Gc { dry_run: true } => "gc --dry-run".into(),
        Job::Gc { dry_run: false } => "gc".into(),
        Job::Scrub => "scrub".into(),
    }
}

/// Runs what keeps a processor busy away from the tasks that answer clients.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::Storage(format!("the work was cut off: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsd_rpc::admin::DuReport;

    #[tokio::test]
    async fn a_job_is_polled_to_its_end_and_may_be_asked_again() {
        let jobs = Jobs::default();
        let (id, entry) = jobs.add("du /".into()).unwrap();
        entry.progress("reading", 5, 10, "inodes").unwrap();
        match jobs.poll(id, 0).await.unwrap() {
            AdminReply::Job(state) => match *state {
                JobState::Running(progress) => assert_eq!((progress.done, progress.total), (5, 10)),
                JobState::Finished(_) => panic!("finished"),
            },
            _ => panic!("another reply"),
        }
        assert_eq!(jobs.running().len(), 1);
        let waiting = async { jobs.poll(id, POLL_WAIT_MS_MAX).await.unwrap() };
        let ending = async { entry.finish(Ok(JobReport::Du(DuReport::default()))) };
        let (reply, ()) = tokio::join!(waiting, ending);
        assert!(matches!(reply, AdminReply::Job(state) if matches!(*state, JobState::Finished(_))));
        let again = jobs.poll(id, 0).await.unwrap();
        assert!(matches!(again, AdminReply::Job(state) if matches!(*state, JobState::Finished(_))));
        assert!(jobs.running().is_empty());
    }

    #[tokio::test]
    async fn failures_limits_and_cancelling() {
        let jobs = Jobs::default();
        let started: Vec<_> = (0..JOBS_MAX).map(|_| jobs.add("gc".into()).unwrap()).collect();
        assert!(
            matches!(jobs.add("gc".into()), Err(Failure::Admin { code, .. }) if code == "TOO_MANY_JOBS")
        );
        let (id, entry) = &started[0];
        jobs.cancel(*id).unwrap();
        assert!(entry.progress("x", 0, 0, "").is_err());
        entry.finish(Err(Failure::Timeout));
        assert!(matches!(jobs.poll(*id, 0).await, Err(Failure::Timeout)));
        assert!(jobs.add("gc".into()).is_ok(), "a finished one makes room");
        assert!(
            matches!(jobs.poll(999, 0).await, Err(Failure::Admin { code, .. }) if code == "NO_SUCH_JOB")
        );
    }

    #[test]
    fn a_summary_says_what_follows_from_the_progress() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let told = |done, total, unit: &str, pace: &Pace| {
            let progress = Progress { phase: "x".into(), done, total, unit: unit.into() };
            let told = summary(1, "x".into(), Timestamp::default(), progress, pace.eta());
            (told.percent, told.bytes_left, told.eta_ms)
        };
        assert_eq!(told(0, 0, "bytes", &pace), (None, None, None));
        assert_eq!(told(3, 10, "chunks", &pace), (Some(30), None, None));
        pace.note(start, 100);
        pace.note(start + Duration::from_secs(30), 40);
        assert_eq!(told(60, 100, "bytes", &pace), (Some(60), Some(40), Some(20_000)));
        assert_eq!(told(60, 0, "bytes", &pace), (None, None, None));
        assert_eq!(told(u64::MAX, u64::MAX, "bytes", &pace).0, Some(100));
    }

    #[test]
    fn reports_are_bounded() {
        let jobs = Jobs::default();
        for _ in 0..FINISHED_MAX * 3 {
            let (_, entry) = jobs.add("du".into()).unwrap();
            entry.finish(Ok(JobReport::Du(DuReport::default())));
        }
        assert!(jobs.table.lock().jobs.len() <= FINISHED_MAX + 1);
    }
}
