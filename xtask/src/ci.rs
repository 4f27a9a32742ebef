//! Everything that has to hold before a change lands, in order, stopping at the first stage that fails: format,
//! lints, tidiness, tests, the crash test with all its rounds, twelve nodes, NVMe in an emulated machine, and the
//! world's suites on a mount. Ten minutes of a cluster under its nemesis run beside all that comes after the tests.
//!
//! The last line says how many tests ran, whatever happened.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

mod beside;

use crate::tidy;
use beside::{Beside, Both};

/// Rounds of the crash test; `CRASH_ROUNDS` overrides.
const CRASH_ROUNDS: &str = "200";
/// Rounds within the workspace's tests, where the crash test only has to work.
const CRASH_ROUNDS_BRIEF: &str = "3";
/// A run of CI that takes longer than this hangs, and so does a stage that takes longer than its own.
const SECONDS_MAX: u64 = 80 * 60;
const BUILD_SECONDS_MAX: u64 = 30 * 60;
const TESTS_SECONDS_MAX: u64 = 35 * 60;
const CRASH_SECONDS_MAX: u64 = 20 * 60;
/// Seconds of accidents; `CFS_NEMESIS_SECONDS` overrides.
const NEMESIS_SECONDS: &str = "600";
/// Besides the seconds of accidents: starting, waiting for all copies, reading all of it.
const NEMESIS_SECONDS_MORE: u64 = 12 * 60;
const NEMESIS_LOG: &str = "target/nemesis.log";
/// Twelve nodes of which two die.
const TWELVE: &str = "twelve::twelve_nodes_are_balanced_and_any_two_may_die";
const TWELVE_SECONDS_MAX: u64 = 10 * 60;
/// Seeds of the simulations of whole sites, of chunk stores and of the metadata group; the variables override. A test by
/// hand runs fewer.
const SEEDS: [(&str, &str); 3] = [
    ("CLAUDEFS_SIM_SEEDS", "2000"),
    ("CLAUDEFS_CHUNK_SITE_SEEDS", "500"),
    ("CLAUDEFS_RAFT_SIM_SEEDS", "500"),
];
const SUITES_SECONDS_MAX: u64 = 25 * 60;
const GUEST_SECONDS_MAX: u64 = 25 * 60;
/// Operations of each of four fsx in CI; `scripts/suites` by itself does 100,000 each. `FSX_OPS` overrides.
const FSX_OPS: &str = "25000";
/// pjdfstest and fsx on a mount, beside the tests that cargo knows.
const SUITES: &str = "scripts/suites";
/// NVMe devices and hosts, in a machine that is emulated.
const GUEST: &str = "scripts/nvme-guest";

pub fn run(quick: bool) -> Result<()> {
    let mut tally = Tally::default();
    let result = stages(quick, &mut tally);
    if tally != Tally::default() {
        println!("tests: {tally}");
    }
    result
}

fn stages(quick: bool, tally: &mut Tally) -> Result<()> {
    let clock = Clock { started: Instant::now() };
    let mut run = Run { tally, both: None };
    let cargo = |seconds_max: u64| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        clock.bounded(&cargo, seconds_max)
    };
    run.stage("cargo fmt", cargo(BUILD_SECONDS_MAX).args(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--"];
    let mut clippy_all = cargo(BUILD_SECONDS_MAX);
    run.stage("cargo clippy", clippy_all.args(clippy).args(["--deny", "warnings"]))?;
    tidy::check()?;
    if !quick {
        // What a machine cannot have is told before it has worked for half an hour.
        let mut guest = clock.bounded(GUEST, GUEST_SECONDS_MAX);
        run.stage("preparing the guest", guest.arg("--prepare"))?;
    }
    // The integration tests start the daemons' binaries: all of them are built first.
    let build = ["build", "--locked", "--workspace", "--bins"];
    run.stage("cargo build", cargo(BUILD_SECONDS_MAX).args(build))?;
    let test = ["test", "--locked", "--workspace", "--no-fail-fast"];
    // Examples are compiled by clippy, and built by whoever runs them.
    let which: &[&str] = if quick { &["--lib", "--bins"] } else { &["--tests"] };
    // Compiling is not testing: its time is not theirs.
    let mut tests = cargo(BUILD_SECONDS_MAX);
    run.stage("building the tests", tests.args(test).args(which).arg("--no-run"))?;
    let mut tests = cargo(TESTS_SECONDS_MAX);
    tests.args(test).args(which);
    if quick {
        return run.stage("unit tests", &mut tests);
    }
    // They have stages of their own.
    tests.env("CRASH_ROUNDS", CRASH_ROUNDS_BRIEF);
    tests.env_remove("CFS_NEMESIS_SECONDS").env_remove("CFS_TWELVE");
    for (name, seeds) in SEEDS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        tests.env(name, seeds);
    }
    run.stage("tests", &mut tests)?;
    run.stage("tests of the documentation", cargo(TESTS_SECONDS_MAX).args(test).arg("--doc"))?;
    // It takes less than one core, and lasts about as long as what follows.
    let nemesis = nemesis(&clock)?;
    run.both = Some(nemesis.both());
    let rounds = std::env::var("CRASH_ROUNDS").unwrap_or_else(|_| CRASH_ROUNDS.to_owned());
    let mut crash = cargo(CRASH_SECONDS_MAX);
    crash.args(["test", "--locked", "--workspace", "--test", "crash"]);
    crash.args(["--", "--exact", "--nocapture", "crash"]).env("CRASH_ROUNDS", &rounds);
    run.beside(&nemesis, &format!("crash test, {rounds} rounds"), &mut crash)?;
    let mut twelve = cargo(TWELVE_SECONDS_MAX);
    twelve.args(["test", "--locked", "--workspace", "--test", "cluster"]);
    twelve.args(["--", "--exact", "--nocapture", TWELVE]).env("CFS_TWELVE", "1");
    run.beside(&nemesis, "twelve nodes", &mut twelve)?;
    let mut guest = clock.bounded(GUEST, GUEST_SECONDS_MAX);
    run.beside(&nemesis, "NVMe in the guest", guest.arg("--self-test"))?;
    if Path::new(SUITES).exists() {
        let operations = std::env::var("FSX_OPS").unwrap_or_else(|_| FSX_OPS.to_owned());
        let mut suites = clock.bounded(SUITES, SUITES_SECONDS_MAX);
        run.beside(&nemesis, "suites", suites.env("FSX_OPS", operations))?;
    }
    nemesis.join()?.lines().for_each(|line| run.tally.count(line));
    Ok(())
}

/// Starts the cluster under its nemesis.
fn nemesis(clock: &Clock) -> Result<Beside> {
    let seconds =
        std::env::var("CFS_NEMESIS_SECONDS").unwrap_or_else(|_| NEMESIS_SECONDS.to_owned());
    let lasts: u64 = seconds.parse().context("CFS_NEMESIS_SECONDS is not a number")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let limit = clock.left().min(lasts.saturating_add(NEMESIS_SECONDS_MORE)).to_string();
    let command = ["timeout", "--kill-after=10", &limit, &cargo, "test", "--locked", "--workspace"];
    let test = ["--test", "cluster", "--", "--exact", "--nocapture", "nemesis::nemesis"];
    let command: Vec<String> = command.into_iter().chain(test).map(str::to_owned).collect();
    let name = format!("nemesis, {seconds} s");
    Beside::start(&name, &command, &[("CFS_NEMESIS_SECONDS", &seconds)], Path::new(NEMESIS_LOG))
}

/// The stages that have run.
struct Run<'t> {
    tally: &'t mut Tally,
    /// Stops the stage under way if what runs beside it fails.
    both: Option<Both>,
}

impl Run<'_> {
    fn stage(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let started = Instant::now();
        eprintln!("+ {name}");
        let status = self.tally.follow(command, self.both.as_ref())?;
        eprintln!("+ {name}: {} s", started.elapsed().as_secs());
        ensure!(status.success(), "{name} failed: {status}");
        Ok(())
    }

    /// A stage that fails as well if the other one does meanwhile.
    fn beside(&mut self, other: &Beside, name: &str, command: &mut Command) -> Result<()> {
        let done = self.stage(name, command);
        other.check()?;
        done
    }
}

/// Since when the run lasts.
struct Clock {
    started: Instant,
}

impl Clock {
    /// In CI a stage that hangs is ended, with all that it started. Elsewhere somebody watches, and Ctrl-C has to
    /// reach it.
    fn bounded(&self, program: &str, seconds_max: u64) -> Command {
        if std::env::var_os("CI").is_none() {
            return Command::new(program);
        }
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", &seconds_max.min(self.left()).to_string(), program]);
        command
    }

    /// Seconds until the whole run takes too long.
    fn left(&self) -> u64 {
        SECONDS_MAX.saturating_sub(self.started.elapsed().as_secs()).max(1)
    }
}

/// Tests that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Tally {
    /// Runs a command, repeats its stdout and counts the tests that it tells of.
    fn follow(
        &mut self,
        command: &mut Command,
        both: Option<&Both>,
    ) -> Result<std::process::ExitStatus> {
        // Only `timeout` passes a signal on to all that it has started.
        let stoppable = command.get_program() == "timeout";
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        let stdout = child.stdout.take().context("the pipe that was asked for")?;
        if let Some(both) = both {
            both.begin(&child, stoppable);
        }
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("reading a command's output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            self.count(&line);
        }
        if let Some(both) = both {
            both.end();
        }
        child.wait().context("waiting for a command")
    }

    /// Adds what libtest's `test result:` lines, and lines of the form `WORD: N passed, N failed`, tell.
    fn count(&mut self, line: &str) {
        let line = line.strip_prefix("test result: ").unwrap_or(line);
        let Some((before, _)) = line.split_once(" passed") else { return };
        let words = before.split([' ', ':', '.']).filter(|word| !word.is_empty()).count();
        // Prose is no count: at most a word stands before the number.
        if words > 2 || !line.contains(" failed") {
            return;
        }
        for part in line.split([',', ';']) {
            let mut words = part.split_whitespace().rev();
            let (Some(kind), Some(number)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" | "skipped" => self.skipped += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
            "pjdfstest: 383 passed, 0 failed, 15 skipped",
            "4 passed, 2 failed",
            "a sentence in which 5 passed, 6 failed",
            "running 12 tests",
        ] {
            tally.count(line);
        }
        assert_eq!(tally, Tally { passed: 401, failed: 3, skipped: 16 });
        assert_eq!(tally.to_string(), "401 passed, 3 failed, 16 skipped");
    }

    #[test]
    fn a_failure_is_told_and_counted() {
        let mut tally = Tally::default();
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo 'test result: ok. 1 passed; 2 failed; 0 ignored'; exit 3"]);
        assert_eq!(tally.follow(&mut shell, None).unwrap().code(), Some(3));
        assert_eq!(tally, Tally { passed: 1, failed: 2, skipped: 0 });
    }
}
