//! `cfs-dev fault`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::status::Format;
use super::{Place, columns, print};
use crate::cluster::{self, Cluster, Options};
use crate::error::{Doing, Error, Kind, Result};
use crate::fault::controller::{self, Asked, Reply, Request};
use crate::fault::run::{Order, Report};
use crate::fault::workload::Job;
use crate::fault::{self, plan_shape};
use crate::logs::Logs;

/// Version of the JSON documents; grows when a field goes or changes its meaning.
const VERSION: u32 = 1;
/// Longest run and accident: a run keeps in memory what was done.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Subcommand)]
pub enum Fault {
    /// Accidents for some time, work that checks itself meanwhile, then everything is checked
    Run(Run),
    /// One accident, undone after its time
    Inject(Inject),
    /// End what is under way, undo what is left, and wait until all is well
    Heal(Heal),
    /// What the fault controller does, and what came of the last run
    Status(Status),
    #[command(hide = true, about = "The fault controller itself; `up --phase 3` starts it")]
    Serve(Serve),
    #[command(hide = true, about = "The work of a run; the fault controller starts it")]
    Work(Work),
}

#[derive(Debug, Args)]
#[command(after_help = "\
On every mount workers write, append, rename and lock, and write down what was acknowledged. At the end all is healed,
every file is read again, `cfs admin scrub` and `fsck --read-data` run, and the histories are checked: linearizable, nothing
lost. The work is in a directory of its own, which is kept if something is wrong.

The accidents are a pure function of the seed and of what the cluster consists of; --dry-run shows them. Their moments
depend on the machine. Ctrl-C ends a run early; with --detach it goes on without a terminal (`fault status`, `logs
controller`, `fault heal`). Nobody else can change the cluster meanwhile.

Exit codes: 0 nothing is wrong, 1 something is, or the run failed; others as of `cfs-dev`.")]
pub struct Run {
    /// How long accidents happen: 90s, 10m, 2h
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time)]
    time: Duration,
    /// Which accidents, of all that are possible [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Only these sorts, separated by commas [default: all that are possible]
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<fault::Kind>,
    /// No work on the mounts, and no check at the end
    #[arg(long)]
    no_check: bool,
    /// Start it and return
    #[arg(long, conflicts_with = "dry_run")]
    detach: bool,
    /// Show the accidents, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfs-dev fault inject kill n2 --for 30s         n2 is killed, and started again after half a minute
  cfs-dev fault inject halves n1 n2 c1           these three cannot reach the other nodes, nor they them
  cfs-dev fault inject one-way n1 n3             nothing of n1 reaches n3
  cfs-dev fault inject client-alone c1 --for 2m

The command ends when the accident is undone and all is well again; Ctrl-C undoes it early.")]
pub struct Inject {
    /// What happens
    #[arg(value_enum)]
    kind: fault::Kind,
    /// Whom it meets; somebody is chosen if nobody is named
    #[arg(value_name = "MEMBER")]
    members: Vec<String>,
    /// How long it lasts: 500ms, 30s, 10m
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = time)]
    lasts: Duration,
}

#[derive(Debug, Args)]
pub struct Heal {}

#[derive(Debug, Args)]
pub struct Status {
    /// What to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Args)]
pub struct Serve {}

#[derive(Debug, Args)]
pub struct Work {}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    kind: &'static str,
    /// Nothing while the controller does not run.
    controller: Option<&'a controller::Status>,
    last_run: Option<&'a Report>,
}

impl Fault {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        match self {
            Fault::Run(run) => run.run(place),
            Fault::Inject(inject) => inject.run(place),
            Fault::Heal(Heal {}) => heal(place),
            Fault::Status(status) => status.run(place),
            Fault::Serve(Serve {}) => {
                log();
                let options = Options { say: |what| tracing::info!("{what}"), ..place.options()? };
                controller::serve(options).map(|()| ExitCode::SUCCESS)
            }
            Fault::Work(Work {}) => {
                log();
                Job::work().map(|()| ExitCode::SUCCESS)
            }
        }
    }
}

/// What the processes of the controller write is their log.
fn log() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
}

impl Run {
    fn run(self, place: &Place) -> Result<ExitCode> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let order = Order {
            seed: self.seed.unwrap_or(now as u64 % 1_000_000_007),
            seconds: self.time.as_secs().max(1),
            kinds: (!self.kinds.is_empty()).then_some(self.kinds),
            check: !self.no_check,
        };
        if self.dry_run {
            return plan(place, &order);
        }
        let directory = place.directory()?;
        cluster::view(&directory)?;
        let request = Request::Run { order, detach: self.detach, limit_secs: place.timeout };
        match follow(place, &request)? {
            Reply::Report(report) => {
                let text = match self.output {
                    Format::Table => told(&report),
                    Format::Json => json(&report)?,
                };
                print(&text)?;
                Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Reply::Started => {
                eprintln!(
                    "cfs-dev: started; see `cfs-dev fault status` and `cfs-dev logs controller`"
                );
                Ok(ExitCode::SUCCESS)
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// The accidents of a seed, as a table.
fn plan(place: &Place, order: &Order) -> Result<ExitCode> {
    let cluster = Cluster::open(place.options()?)?;
    let shape = plan_shape(&cluster)?;
    let (kinds, left_out) = order.kinds(&shape)?;
    for why in left_out {
        eprintln!("cfs-dev: left out: {why}");
    }
    let seconds = |time: Duration| format!("{:.1}", time.as_secs_f64());
    let (mut rows, mut at) = (Vec::new(), Duration::ZERO);
    for step in order.steps(&shape, &kinds) {
        at += step.peace;
        if at >= Duration::from_secs(order.seconds) {
            break;
        }
        rows.push(vec![
            seconds(at),
            seconds(step.lasts),
            step.kind.to_string(),
            step.accident.to_string(),
        ]);
        at += step.lasts;
    }
    eprintln!("cfs-dev: seed {}; starting and healing takes time, so fewer happen", order.seed);
    print(&columns(&["AT", "LASTS", "KIND", "WHOM"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

impl Inject {
    fn run(self, place: &Place) -> Result<ExitCode> {
        cluster::view(&place.directory()?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let request = Request::Inject {
            kind: self.kind,
            members: self.members,
            seed: now as u64,
            lasts_ms: self.lasts.as_millis() as u64,
            limit_secs: place.timeout,
        };
        match follow(place, &request)? {
            Reply::Findings(findings) if findings.is_empty() => Ok(ExitCode::SUCCESS),
            Reply::Findings(findings) => {
                print(&(findings.join("\n") + "\n"))?;
                Ok(ExitCode::FAILURE)
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn heal(place: &Place) -> Result<ExitCode> {
    cluster::view(&place.directory()?)?;
    match follow(place, &Request::Heal { limit_secs: place.timeout })? {
        Reply::Healed => Ok(ExitCode::SUCCESS),
        other => Err(unexpected(&other)),
    }
}

/// Asks, and repeats on stderr what the controller logs until it answers.
fn follow(place: &Place, request: &Request) -> Result<Reply> {
    let directory = place.directory()?;
    let state = cluster::view(&directory)?;
    let mut logs = Logs::of(&directory, &state, Some(crate::logs::CONTROLLER), None);
    // What is there already is of earlier.
    logs.next()?;
    let mut asked: Asked = controller::ask(&directory, request)?;
    loop {
        let reply = asked.look();
        for line in logs.next()? {
            eprintln!("{line}");
        }
        if let Some(reply) = reply? {
            return Ok(reply);
        }
    }
}

impl Status {
    fn run(self, place: &Place) -> Result<ExitCode> {
        let directory = place.directory()?;
        let state = cluster::view(&directory)?;
        let controller = match &state.controller {
            Some(process) if process.is_alive() => Some(controller::status(&directory)?),
            _ => None,
        };
        let last = Report::last(&controller::runs(&directory));
        let (controller, last_run) = (controller.as_ref(), last.as_ref());
        let text = match self.output {
            Format::Json => {
                json(&Document { version: VERSION, kind: "fault-status", controller, last_run })?
            }
            Format::Table => {
                let mut text = match controller {
                    None => "controller  stopped\n".to_owned(),
                    Some(controller::Status { job: None }) => "controller  idle\n".to_owned(),
                    Some(controller::Status { job: Some(job) }) => {
                        let controller::UnderWay { what, now, since_secs } = job;
                        format!("controller  {what}: {now} ({since_secs} s)\n")
                    }
                };
                match last_run {
                    Some(report) => text += &format!("\nlast run\n{}", told(report)),
                    None => text += "last run    none\n",
                }
                text
            }
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A report for people.
fn told(report: &Report) -> String {
    let mut counts: Vec<(fault::Kind, usize)> = Vec::new();
    for happened in &report.accidents {
        match counts.iter_mut().find(|(kind, _)| *kind == happened.kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((happened.kind, 1)),
        }
    }
    let counts: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut text = format!("seed        {}\n", report.seed);
    text += &format!("took        {} s\n", report.took_secs);
    text += &format!("accidents   {}: {}\n", report.accidents.len(), counts.join(", "));
    if report.checked {
        let errors: Vec<_> =
            report.errors.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let errors = if errors.is_empty() { "none".into() } else { errors.join(", ") };
        text += &format!(
            "operations  {} acknowledged, {} in doubt\nerrors      {errors}\n",
            report.acknowledged, report.in_doubt
        );
    }
    for finding in &report.findings {
        text += &format!("WRONG       {finding}\n");
    }
    text += &format!("verdict     {}\n", report.verdict());
    text += &format!("report      {}\n", report.directory.display());
    text
}

fn json<T: Serialize>(document: &T) -> Result<String> {
    Ok(serde_json::to_string_pretty(document).doing(|| "JSON".into())? + "\n")
}

fn unexpected(reply: &Reply) -> Error {
    let what = format!("the fault controller gave another answer than was asked for: {reply:?}");
    Error::new(Kind::Failed, what).next("are both programs of one build?")
}

/// A number and a unit.
fn time(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: say 500ms, 30s, 10m or 2h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let time = Duration::from_millis(number.checked_mul(unit_ms).ok_or_else(wrong)?);
    match time {
        Duration::ZERO => Err("it has to last".into()),
        time if time > TIME_MAX => Err("that is longer than 24 h".into()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "s", "5", "5d", "-1s", "0s", "1.5s", "25h", "99999999999999999999h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
