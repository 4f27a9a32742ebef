//! Processes that outlive the one that started them, and are found again: by number and start time, because numbers
//! are used again.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Kind, Result};

/// How long a process that was killed may take to be gone; the kernel may have to finish its I/O first.
const GONE_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A process as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks after the boot.
    started_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`: no process lives through a boot.
    boot: String,
}

/// How a process ended that was to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was gone already.
    Before,
    /// By SIGTERM.
    Asked,
    /// By SIGKILL, after the time it had.
    Killed,
}

/// What is started.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Network namespace, by name.
    pub namespace: Option<&'a str>,
    pub program: &'a Path,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(&'static str, OsString)>,
    /// Where stdout and stderr are appended.
    pub log: &'a Path,
}

impl Launch<'_> {
    /// Starts it in a session of its own, so that no terminal takes it along.
    pub fn start(&self) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(self.log);
        let log = log.doing(|| format!("cannot write the log {}", self.log.display()))?;
        let errors = log.try_clone().doing(|| "cannot duplicate a descriptor".into())?;
        let mut command = Command::new("setsid");
        if let Some(namespace) = self.namespace {
            // Not `ip netns exec`: a mount has to be seen outside.
            command.arg("nsenter").arg(format!("--net=/run/netns/{namespace}"));
        }
        command.arg(self.program).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Neither setsid nor nsenter forks here: they become the program.
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        let child = child.doing(|| format!("cannot start {}", self.program.display()))?;
        Process::of(child.id()).ok_or_else(|| {
            let what = format!("{} ended at once", self.program.display());
            Error::new(Kind::Failed, what).next(format!("see {}", self.log.display()))
        })
    }
}

impl Process {
    /// The living process of this number.
    pub fn of(pid: u32) -> Option<Process> {
        let stat = Stat::read(pid)?;
        Some(Process { pid, started_ticks: stat.started_ticks, boot: boot() })
    }

    /// A child of ours that has ended is reaped.
    pub fn is_alive(&self) -> bool {
        match Stat::read(self.pid) {
            Some(stat) if stat.started_ticks != self.started_ticks || boot() != self.boot => false,
            Some(stat) if stat.is_dead() => {
                if let Some(pid) = self.number() {
                    // It may be the child of somebody else, who does it then.
                    let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
                }
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    fn number(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.pid).ok()?)
    }

    /// Sends a signal; `false` if the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = self.number() else { return Ok(false) };
        let doing = || format!("cannot send {signal:?} to process {}", self.pid);
        // The descriptor is of one process, whatever its number is used for later.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(error).doing(doing),
        };
        if !self.is_alive() {
            return Ok(false);
        }
        match pidfd_send_signal(process, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error).doing(doing),
        }
    }

    /// Waits until it is gone; `false` if it still is there after this time.
    pub fn wait_gone(&self, within: Duration) -> bool {
        let started = Instant::now();
        while self.is_alive() {
            if started.elapsed() > within {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// SIGTERM, and SIGKILL after `grace`.
    pub fn stop(&self, grace: Duration) -> Result<Stopped> {
        if !self.signal(Signal::TERM)? {
            return Ok(Stopped::Before);
        }
        // One that stands still would not hear it.
        self.signal(Signal::CONT)?;
        if self.wait_gone(grace) {
            return Ok(Stopped::Asked);
        }
        self.kill()?;
        Ok(Stopped::Killed)
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        if self.wait_gone(GONE_WITHIN) {
            return Ok(());
        }
        let what = format!("process {} is still there after SIGKILL", self.pid);
        Err(Error::new(Kind::Timeout, what).next("its I/O hangs: see `dmesg`"))
    }

    /// What it has started, and what they have started; living ones.
    pub fn descendants(&self) -> Vec<Process> {
        let all: Vec<(u32, Stat)> =
            pids().filter_map(|pid| Some((pid, Stat::read(pid)?))).collect();
        let mut family = vec![self.pid];
        let mut found = Vec::new();
        while let Some(parent) = family.pop() {
            for (pid, stat) in &all {
                if stat.parent == parent && !stat.is_dead() {
                    family.push(*pid);
                    found.extend(Process::of(*pid));
                }
            }
        }
        found
    }

    /// Name of its program.
    pub fn program(&self) -> Option<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let first = line.split(|byte| *byte == 0).next()?;
        Some(PathBuf::from(String::from_utf8_lossy(first).as_ref()).file_name()?.to_str()?.into())
    }
}

/// Living processes of these programs that have an argument within the directory.
pub fn with_argument_in(programs: &[&str], directory: &Path) -> Vec<Process> {
    let inside = |argument: &[u8]| {
        Path::new(String::from_utf8_lossy(argument).as_ref()).starts_with(directory)
    };
    let of = |pid: u32| {
        let process = Process::of(pid)?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let named = programs.contains(&process.program()?.as_str());
        (named && line.split(|byte| *byte == 0).skip(1).any(inside)).then_some(process)
    };
    pids().filter_map(of).filter(Process::is_alive).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: char,
    parent: u32,
    started_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name may hold spaces and parentheses; what follows the last one is field 3 and on.
        let mut fields = text.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started_ticks = fields.nth(17)?.parse().ok()?;
        Some(Stat { state, parent, started_ticks })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_a_strange_name() {
        let text = "17 (a) b (c) S 4 17 17 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started_ticks), ('S', 4, 777));
        assert!(Stat::parse("17 (a").is_none());
    }

    fn soon(condition: impl Fn() -> bool) {
        let what = "what a process does";
        crate::wait::until(what, GONE_WITHIN, || Ok(condition().then_some(()))).unwrap();
    }

    #[test]
    fn a_process_is_started_found_and_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let launch = |script: &str| {
            let arguments = vec!["-c".into(), script.into(), directory.path().into()];
            let program = Path::new("/bin/sh");
            let environment = vec![("SAID", "hello".into())];
            Launch { namespace: None, program, arguments, environment, log: &log }.start().unwrap()
        };
        let process = launch("echo $SAID; sleep 600 & wait");
        assert!(process.is_alive());
        let kept = serde_json::to_string(&process).unwrap();
        let process: Process = serde_json::from_str(&kept).unwrap();
        let said = |word: &str| fs::read_to_string(&log).unwrap().contains(word);
        soon(|| said("hello") && !process.descendants().is_empty());
        let child = process.descendants().remove(0);
        assert!(with_argument_in(&["sh"], directory.path()).contains(&process));
        assert_eq!(process.stop(GONE_WITHIN).unwrap(), Stopped::Asked);
        assert_eq!(process.stop(GONE_WITHIN).unwrap(), Stopped::Before);
        child.kill().unwrap();
        let deaf = launch("trap '' TERM; echo deaf; while :; do sleep 1; done");
        soon(|| said("deaf"));
        let children = deaf.descendants();
        assert_eq!(deaf.stop(Duration::from_millis(1)).unwrap(), Stopped::Killed);
        children.iter().for_each(|child| child.kill().unwrap());
        // Another one of the same number is not it.
        let other = Process { started_ticks: 1, ..Process::of(std::process::id()).unwrap() };
        assert!(!other.is_alive());
        assert!(!other.signal(Signal::KILL).unwrap());
    }
}
