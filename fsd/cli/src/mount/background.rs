//! Into the background without `fork`: the command starts itself again and waits for a line.
//!
//! The second process serves the mount. Until that is up its stdout and stderr are pipes to the first one,
//! which shows what comes and ends with the same code; afterwards it writes to its log file alone.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::failed::{Exit, Failed};

/// Set for the second process.
pub const ENV: &str = "CFS_MOUNT_BACKGROUND";
/// What the second process says on stdout once the mount is up.
const READY: &str = "ready";

/// How the first process ends.
#[derive(Debug)]
pub enum Started {
    /// The mount is up.
    Ready,
    /// The second process failed, said why, and ended with this code.
    Failed(u8),
}

/// Starts this program again with these arguments.
pub fn start(arguments: &[OsString]) -> Result<Started, Failed> {
    let failed = |doing: &str, error: std::io::Error| {
        Failed::new(Exit::Failed, "BACKGROUND", format!("cannot {doing}: {error}"))
            .next("try with --foreground")
    };
    let program = std::env::current_exe().map_err(|error| failed("find this program", error))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env(ENV, "1")
        // All that they said is in the arguments.
        .env_remove("CFS_SOCKET")
        .env_remove("CFS_SERVER")
        .env_remove("CFS_IDENTITY")
        .env_remove("CFS_TOKEN")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("start the background process", error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let relay = std::thread::spawn(move || {
        let mut rest = stderr?;
        let mut buffer = [0; 4096];
        loop {
            match rest.read(&mut buffer) {
                Ok(0) | Err(_) => return Some(()),
                // Nobody is left to tell that stderr is closed.
                Ok(n) => drop(std::io::stderr().write_all(&buffer[..n])),
            }
        }
    });
    let mut line = String::new();
    if let Some(stdout) = stdout {
        // An error is like an end: the exit code tells more.
        let _ = BufReader::new(stdout).read_line(&mut line);
    }
    if line.trim_end() == READY {
        return Ok(Started::Ready);
    }
    let status = child.wait().map_err(|error| failed("wait for the background process", error))?;
    // Its stderr has ended with it: what it said is shown before we end.
    let _ = relay.join();
    match status.code() {
        Some(code) if code != 0 => Ok(Started::Failed(code as u8)),
        Some(_) => Err(Failed::new(Exit::Failed, "BACKGROUND", "the mount ended at once")),
        None => {
            let what = format!("the background process died: {status}");
            Err(Failed::new(Exit::Failed, "BACKGROUND", what).next("try with --foreground"))
        }
    }
}

/// Whether this is the second process; then it leaves the first one's session and directory.
pub fn entered() -> bool {
    if std::env::var_os(ENV).is_none() {
        return false;
    }
    // It fails only for the leader of a group, which a started process is not.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    true
}

/// Says to the first process that the mount is up.
pub fn ready() {
    let mut out = std::io::stdout();
    if writeln!(out, "{READY}").and_then(|()| out.flush()).is_err() {
        tracing::warn!("who started this mount is gone");
    }
}
