//! A stage that runs beside the others, because it takes less than a core and its time is given. Its output goes to a file, which is repeated in the
//! end. If it fails, the stage under way is stopped; if one of the others fails, it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Lines of its output that are repeated where all is well.
const LINES_MAX: usize = 20;

/// See the module. Stopped when dropped.
pub(super) struct Beside {
    name: String,
    log: PathBuf,
    started: Instant,
    both: Both,
}

/// The two processes that may have to be stopped. They are reaped while this is locked, so that no signal meets another
/// process with their number.
#[derive(Clone)]
pub(super) struct Both(Arc<Mutex<State>>);

struct State {
    /// It, until it has ended.
    child: Option<Child>,
    ended: Option<ExitStatus>,
    /// The stage under way beside it, if it can be stopped.
    stage: Option<u32>,
}

impl Beside {
    /// Starts a command, which ends with the process of the caller.
    pub fn start(
        name: &str,
        command: &[String],
        envs: &[(&str, &str)],
        log: &Path,
    ) -> Result<Beside> {
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory).context("making room for a log")?;
        }
        let file = File::create(log).with_context(|| format!("{}", log.display()))?;
        eprintln!("+ {name}, beside the next stages: {}", log.display());
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(command)
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("a log for two")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let state = State { child: Some(child), ended: None, stage: None };
        let both = Both(Arc::new(Mutex::new(state)));
        let watched = both.clone();
        thread::spawn(move || watched.watch());
        Ok(Beside { name: name.to_owned(), log: log.to_owned(), started: Instant::now(), both })
    }

    /// What stages beside it have to be known to.
    pub fn both(&self) -> Both {
        self.both.clone()
    }

    /// Fails if it has failed by now.
    pub fn check(&self) -> Result<()> {
        match self.both.lock().ended {
            Some(status) if !status.success() => self.report(status).map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// Waits until it has ended; the output.
    pub fn join(self) -> Result<String> {
        loop {
            if let Some(status) = self.both.lock().ended {
                return self.report(status);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn report(&self, status: ExitStatus) -> Result<String> {
        let log = std::fs::read(&self.log).with_context(|| format!("{}", self.log.display()))?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let from = if status.success() { lines.len().saturating_sub(LINES_MAX) } else { 0 };
        println!("{}", lines[from..].join("\n"));
        let name = &self.name;
        eprintln!("+ {name}: {} s", self.started.elapsed().as_secs());
        ensure!(status.success(), "{name} failed: {status}{}", self.seed());
        Ok(log)
    }

    /// How it is repeated, if it has said so.
    fn seed(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let seed = log.split_whitespace().find(|word| word.contains("_SEED="));
        seed.map(|seed| format!(", repeat it with {}", seed.trim_end_matches(',')))
            .unwrap_or_default()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if self.both.stop_beside() {
            let after = self.started.elapsed().as_secs();
            eprintln!("+ {}: stopped after {after} s{}", self.name, self.seed());
        }
    }
}

impl Both {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stage is under way; `stoppable` if a signal to it ends all that it has started.
    pub fn begin(&self, stage: &Child, stoppable: bool) {
        let mut state = self.lock();
        state.stage = stoppable.then(|| stage.id());
        if state.ended.is_some_and(|status| !status.success()) {
            state.stop_stage();
        }
    }

    /// It has closed its output, and is about to be reaped.
    pub fn end(&self) {
        self.lock().stage = None;
    }

    fn watch(&self) {
        loop {
            {
                let mut state = self.lock();
                let Some(child) = &mut state.child else { return };
                // An error means that there is no such process.
                if let Ok(Some(status)) = child.try_wait() {
                    state.child = None;
                    state.ended = Some(status);
                    if !status.success() {
                        eprintln!(
                            "+ what runs beside has failed: {status}; the stage under way is the last"
                        );
                        state.stop_stage();
                    }
                    return;
                }
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether there was something to stop.
    fn stop_beside(&self) -> bool {
        let mut state = self.lock();
        let Some(child) = &mut state.child else { return false };
        terminate(child.id());
        // It kills what does not end by itself.
        let ended = child.wait();
        state.child = None;
        state.ended = ended.ok();
        true
    }
}

impl State {
    fn stop_stage(&mut self) {
        if let Some(stage) = self.stage.take() {
            terminate(stage);
        }
    }
}

fn terminate(process: u32) {
    let told = Command::new("kill").args(["-TERM", &process.to_string()]).status();
    if let Err(error) = told {
        eprintln!("+ stopping process {process}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(script: &str) -> (Beside, PathBuf) {
        let log = std::env::temp_dir().join(format!(
            "cfs-xtask-{}-{:?}.log",
            std::process::id(),
            thread::current().id()
        ));
        let command = ["sh", "-c", script].map(str::to_owned);
        (Beside::start("a test", &command, &[("CFS_TEST_WORD", "word")], &log).unwrap(), log)
    }

    #[test]
    fn its_output_is_given_in_the_end() {
        let (beside, log) = start("echo $CFS_TEST_WORD; echo more >&2");
        assert_eq!(beside.join().unwrap(), "word\nmore\n");
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn its_failure_stops_the_stage_and_names_the_seed() {
        let (beside, log) = start("echo test: CFS_TEST_SEED=7, 60 s; exit 3");
        let mut stage = Command::new("sleep").arg("600").spawn().unwrap();
        beside.both().begin(&stage, true);
        assert!(!stage.wait().unwrap().success());
        beside.both().end();
        let told = beside.check().unwrap_err().to_string();
        assert!(told.contains("exit status: 3") && told.ends_with("CFS_TEST_SEED=7"), "{told}");
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn it_is_stopped_with_the_others() {
        let (beside, log) = start("exec sleep 600");
        let both = beside.both();
        beside.check().unwrap();
        drop(beside);
        assert!(both.lock().ended.is_some_and(|status| !status.success()));
        std::fs::remove_file(log).unwrap();
    }
}
