//! A long job of an administrator: started on the node, polled, shown while it runs.
//!
//! On a terminal it is a bar on stderr, else a line there every [`LINE_EVERY`].

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use fsd_rpc::admin::{AdminReply, AdminRequest, Job, JobReport, JobState, JobSummary, Progress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::connect::{Admin, unexpected};
use crate::failed::Failed;
use crate::units;

const LINE_EVERY: Duration = Duration::from_secs(10);
const POLL_WAIT_MS: u32 = 250;

/// Runs the job to its end. Interrupted, the node ends the job by itself.
pub fn run(admin: &Admin, doing: &str, job: Job) -> Result<JobReport, Failed> {
    let job = match admin.ask(doing, AdminRequest::JobStart(job))? {
        AdminReply::JobStarted { job } => job,
        _ => return Err(unexpected(doing)),
    };
    let mut display = Display::new();
    loop {
        let poll = AdminRequest::JobPoll { job, wait_ms: POLL_WAIT_MS };
        match admin.ask(doing, poll)? {
            AdminReply::Job(state) => match *state {
                JobState::Running(progress) => display.show(&progress),
                JobState::Finished(report) => {
                    display.end();
                    return Ok(report);
                }
            },
            _ => return Err(unexpected(doing)),
        }
    }
}

enum Display {
    Bar(ProgressBar),
    Lines(Instant),
}

impl Display {
    fn new() -> Display {
        if std::io::stderr().is_terminal() {
            Display::Bar(ProgressBar::new(0))
        } else {
            Display::Lines(Instant::now())
        }
    }

    fn show(&mut self, progress: &Progress) {
        match self {
            Display::Bar(bar) => {
                let template = if progress.total == 0 {
                    "{spinner} {msg}"
                } else {
                    "[{bar:30}] {percent:>3} %  {msg}  eta {eta}"
                };
                // The templates are constants; a bar without style is still a bar.
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("#--"));
                }
                bar.set_length(progress.total);
                bar.set_position(progress.done);
                bar.set_message(line(progress));
            }
            Display::Lines(last) => {
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    eprintln!("{}", line(progress));
                }
            }
        }
    }

    fn end(&self) {
        if let Display::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.end();
    }
}

const BAR: usize = 10;

/// `[#####-----] 52%  41.0 GiB left  eta 6m10s`; without a whole as [`line`].
pub fn summary(job: &JobSummary) -> String {
    let Progress { done, total, unit, .. } = &job.progress;
    let Some(percent) = job.percent else { return line(&job.progress) };
    let full = usize::from(percent) * BAR / 100;
    let bar = "#".repeat(full) + &"-".repeat(BAR.saturating_sub(full));
    let left = match job.bytes_left {
        Some(bytes) => units::bytes(bytes),
        None => format!("{} {unit}", units::count(total.saturating_sub(*done))),
    };
    let eta = job.eta_ms.map_or("-".into(), |ms| units::duration(Duration::from_millis(ms)));
    format!("[{bar}] {percent}%  {left} left  eta {eta}")
}

/// `reading chunks: 1,200 of 50,000 chunks`.
pub fn line(progress: &Progress) -> String {
    let Progress { phase, done, total, unit } = progress;
    let number = |n: u64| if unit == "bytes" { units::bytes(n) } else { units::count(n) };
    let unit = if unit == "bytes" { "" } else { unit.as_str() };
    let text = match (done, total) {
        (0, 0) => phase.clone(),
        (done, 0) => format!("{phase}: {} {unit}", number(*done)),
        (done, total) => format!("{phase}: {} of {} {unit}", number(*done), number(*total)),
    };
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsd_rpc::admin::Timestamp;

    #[test]
    fn lines_say_phase_and_counts() {
        let text = |done, total, unit: &str| {
            line(&Progress { phase: "reading".into(), done, total, unit: unit.into() })
        };
        assert_eq!(text(0, 0, "chunks"), "reading");
        assert_eq!(text(1200, 0, "chunks"), "reading: 1,200 chunks");
        assert_eq!(text(1200, 50_000, "chunks"), "reading: 1,200 of 50,000 chunks");
        assert_eq!(text(1024, 2048, "bytes"), "reading: 1.0 KiB of 2.0 KiB");
    }

    #[test]
    fn a_job_of_the_status_says_percent_rest_and_time() {
        let mut job = JobSummary {
            job: 0,
            name: "drain n4".into(),
            node: None,
            started: Timestamp::default(),
            progress: Progress {
                phase: "copying".into(),
                done: 52 << 30,
                total: 100 << 30,
                unit: "bytes".into(),
            },
            percent: Some(52),
            bytes_left: Some(48 << 30),
            eta_ms: Some(370_000),
        };
        assert_eq!(summary(&job), "[#####-----] 52%  48.0 GiB left  eta 6m10s");
        (job.percent, job.eta_ms) = (Some(100), None);
        assert_eq!(summary(&job), "[##########] 100%  48.0 GiB left  eta -");
        job.progress = Progress { done: 1, total: 2000, unit: "shards".into(), ..job.progress };
        (job.percent, job.bytes_left) = (Some(0), None);
        assert_eq!(summary(&job), "[----------] 0%  1,999 shards left  eta -");
        (job.percent, job.progress.total) = (None, 0);
        assert_eq!(summary(&job), "copying: 1 shards");
    }
}
