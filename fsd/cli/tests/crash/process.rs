//! Starting, watching and killing processes. Nothing here depends on how fast the machine is: waits
//! end when what they wait for is there, the limit only tells a hang.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// After this a wait is a hang. An operation that fails by its deadline is told as that.
const HANG_AFTER: Duration = Duration::from_secs(400);

/// Polls until `done`, and panics with `what` if that takes as long as a hang.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < HANG_AFTER, "{what}: not within {HANG_AFTER:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Where `cfs mount` keeps the sockets by which `cfs umount` finds it.
pub const RUNTIME_DIR: &str = "CFS_RUNTIME_DIR";

/// Starts a daemon that dies with the calling thread and writes to `log`.
pub fn daemon(program: &Path, arguments: &[&str], runtime_dir: &str, log: &Path) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).expect("opening a log");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .args(arguments)
        .env(RUNTIME_DIR, runtime_dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second descriptor of a log"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("starting {}: {error}", program.display()))
}

/// The last lines of a daemon's log, for the message of a failure.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 20;
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_else(|error| format!("{}: {error}", log.display()));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

pub fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Sends a signal; that the process is gone already is fine.
pub fn signal(pid: Pid, signal: Signal) {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {signal:?} to {pid:?}: {error}"),
    }
}

/// Kills a child and reaps it.
pub fn kill(mut child: Child) {
    signal(pid(&child), Signal::KILL);
    child.wait().expect("waiting for a killed child");
}

/// Asks a child to end and waits until it did; it has to succeed.
pub fn stop(mut child: Child, what: &str) {
    signal(pid(&child), Signal::TERM);
    let mut status = None;
    wait_for(&format!("the end of {what} after SIGTERM"), || {
        status = child.try_wait().expect("waiting for a child");
        status.is_some()
    });
    let status = status.expect("the wait ended with it");
    assert!(status.success(), "{what} ended with {status} after SIGTERM");
}

/// The state letter of a process (`R`, `S`, `T`, `Z`, …); `None` if there is none.
pub fn state(pid: Pid) -> Option<char> {
    state_in(Path::new(&format!("/proc/{}/stat", pid.as_raw_nonzero())))
}

fn state_in(stat: &Path) -> Option<char> {
    fs::read_to_string(stat).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// Stops a process; on return no thread of it is in the middle of a system call.
pub fn freeze(child: &Child) {
    signal(pid(child), Signal::STOP);
    let tasks = format!("/proc/{}/task", child.id());
    wait_for("a process to stand still", || {
        let Ok(entries) = fs::read_dir(&tasks) else { return true };
        let mut states = entries.flatten().map(|task| state_in(&task.path().join("stat")));
        states.all(|state| state.is_none_or(|state| matches!(state, 'T' | 'Z' | 'X')))
    });
}

/// Living processes with `word` in their command line, without this one.
pub fn with_argument(program: &str, word: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(pid) = Pid::from_raw(number) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = line.split(|byte| *byte == 0);
        let named = arguments.next().is_some_and(|first| first.ends_with(program.as_bytes()));
        let given = arguments.any(|argument| argument == word.as_bytes());
        if named && given && state(pid).is_some_and(|state| state != 'Z') {
            found.push(pid);
        }
    }
    found
}

/// Kills a process that is no child of ours, or became one when its parent died, and waits until it is gone.
pub fn kill_foreign(pid: Pid) {
    signal(pid, Signal::KILL);
    wait_gone(pid);
}

pub fn wait_gone(pid: Pid) {
    wait_for("the death of a process", || {
        // Orphans come to us, for the test is the first process of its namespace.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        state(pid).is_none_or(|state| state == 'Z')
    });
}

/// Runs this test again as the first process of namespaces of its own (processes and mounts), so that whatever
/// it starts and mounts ends with it. `true` inside; outside the result of the inner run is asserted.
pub fn in_namespace(test: &str) -> bool {
    const INSIDE: &str = "CRASH_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"])
        .arg(std::env::current_exe().expect("the test's own binary"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        // The outer run reports this test; panics and progress go to stderr.
        .stdout(Stdio::null());
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{test} failed in its namespaces: {status}");
    false
}

/// Whether this process may mount and make namespaces; says so aloud if not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: it needs root, for mounts and namespaces");
    }
    root
}

/// Adds a path to the message of an I/O error.
pub fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
