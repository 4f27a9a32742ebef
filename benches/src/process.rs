//! Starting daemons, waiting for them, and what the kernel says about them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// After this a wait has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lines of a failed command's stderr that are shown.
const ERROR_LINES_MAX: usize = 5;

/// Polls until `done` or the end of patience.
pub fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done()? {
        ensure!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Runs a command that has to succeed; its stdout.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = errors.lines().rev().take(ERROR_LINES_MAX).collect();
        let last: String = last.iter().rev().map(|line| format!("\n  {line}")).collect();
        bail!("{command:?}: {}{last}", output.status);
    }
    Ok(output.stdout)
}

/// A daemon that ends with the value: in order if [`Daemon::stop`] is called, else by a kill.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it with its output in `log`; it dies with this thread.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> Result<Daemon> {
        let log = std::fs::File::options().create(true).append(true).open(log);
        let log = log.context("opening a daemon's log")?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Daemon { name: program.display().to_string(), child })
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended: {status}", self.name),
            None => Ok(()),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and its end.
    pub fn stop(mut self) -> Result<()> {
        // It may have ended by itself; the wait sees that.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        self.wait()
    }

    /// Its end, which somebody else brings about.
    pub fn wait(&mut self) -> Result<()> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), || Ok(self.child.try_wait()?.is_some()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process and its children, at any depth.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if stat_fields(other).and_then(|fields| fields.get(1)?.parse().ok()) == Some(pid) {
            family.extend(self::family(other));
        }
    }
    family
}

/// The name of its program.
pub fn name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// The fields of `/proc/PID/stat` from the state on.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// CPU time it has used, user and system, in clock ticks (a hundredth of a second).
pub fn cpu_ticks(pid: u32) -> Result<u64> {
    let fields = stat_fields(pid).with_context(|| format!("process {pid} is gone"))?;
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Ok(field(11) + field(12))
}

/// Resident memory in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    Ok(kib.with_context(|| format!("process {pid} tells no VmRSS"))? / 1024.0)
}
