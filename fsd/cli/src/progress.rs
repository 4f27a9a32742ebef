//! A long job of an administrator: started on the node, polled, shown while it runs.
//!
//! On a terminal it is a bar on stderr, else a line there every [`LINE_EVERY`].

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use fsd_rpc::admin::{AdminReply, AdminRequest, Job, JobReport, JobState, Progress};
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
}
