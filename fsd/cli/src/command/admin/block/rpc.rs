//! JSON-RPC with blockd: over its admin socket, or with a `blockd call` of our own where no daemon is needed.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use fsd::supervise::find_program;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failed::{Exit, Failed};

/// Longest answer: a thousand volumes and exports are far below.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where blockd is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Somebody said that it is there.
    Named(PathBuf),
    /// It is there if there is one.
    Usual(PathBuf),
}

/// See the module.
#[derive(Debug)]
pub struct Door {
    place: Place,
    timeout: Duration,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    result: Value,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    message: String,
    data: Option<RpcData>,
}

#[derive(Deserialize)]
struct RpcData {
    code: String,
}

impl Door {
    pub fn new(place: Place, timeout: Duration) -> Door {
        Door { place, timeout }
    }

    /// The same, which waits for that long if it is more.
    pub fn within(&self, time: Option<Duration>) -> Door {
        let timeout = time.unwrap_or_default().max(self.timeout);
        Door { place: self.place.clone(), timeout }
    }

    fn socket(&self) -> &PathBuf {
        match &self.place {
            Place::Named(socket) | Place::Usual(socket) => socket,
        }
    }

    /// Whether to ask a daemon: one was named, or the usual one is there.
    pub fn is_served(&self) -> bool {
        matches!(self.place, Place::Named(_)) || UnixStream::connect(self.socket()).is_ok()
    }

    /// Asks the daemon; `doing` begins the message of a failure.
    pub fn call<T: DeserializeOwned>(
        &self,
        doing: &str,
        method: &str,
        params: Value,
    ) -> Result<T, Failed> {
        let mut stream = UnixStream::connect(self.socket()).map_err(|error| self.absent(&error))?;
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let exchange = || -> std::io::Result<String> {
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            stream.write_all(format!("{call}\n").as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line)?;
            Ok(line)
        };
        let line = exchange().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let waited = crate::units::duration(self.timeout);
                Failed::new(Exit::Timeout, "TIMEOUT", format!("{doing}: no answer in {waited}"))
                    .next("it may still be done later: look again, or wait longer with --timeout")
            }
            _ => {
                let what = format!("{doing}: {}: {error}", self.socket().display());
                Failed::new(Exit::Failed, "CONNECTION", what)
            }
        })?;
        if line.is_empty() {
            let what = format!("{doing}: blockd ended before it answered");
            return Err(Failed::new(Exit::Failed, "CONNECTION", what)
                .next("it may have been done: look again when blockd is back"));
        }
        understand(doing, &line)
    }

    /// Asks the daemon, or, where none is, does it in a process of its own: for what needs no daemon.
    pub fn call_or_do<T: DeserializeOwned>(
        &self,
        doing: &str,
        method: &str,
        params: Value,
    ) -> Result<T, Failed> {
        if self.is_served() {
            self.call(doing, method, params)
        } else {
            act(doing, method, &params)
        }
    }

    fn absent(&self, error: &std::io::Error) -> Failed {
        let path = self.socket().display();
        let absent = |what| {
            Failed::new(Exit::Precondition, "NO_BLOCKD", what).next(
                "start one with `blockd --config FILE` or `cfs server`, or name its admin socket with \
                 --socket or CFS_BLOCKD_SOCKET",
            )
        };
        match error.kind() {
            ErrorKind::NotFound => absent(format!("no blockd on this host: no {path}")),
            ErrorKind::ConnectionRefused => {
                absent(format!("no blockd on this host: nobody serves {path}"))
            }
            ErrorKind::PermissionDenied => {
                Failed::new(Exit::Failed, "PERMISSION", format!("{path}: permission denied"))
                    .next("run as root, or as the user of blockd")
            }
            _ => Failed::new(Exit::Failed, "CONNECTION", format!("{path}: {error}")),
        }
    }
}

/// Performs a method in a `blockd` process of its own.
pub fn act<T: DeserializeOwned>(doing: &str, method: &str, params: &Value) -> Result<T, Failed> {
    let own = std::env::current_exe().unwrap_or_default();
    let search = std::env::var_os("PATH").unwrap_or_default();
    let program = find_program("blockd", &own, &search).ok_or_else(|| {
        let what = format!("{doing}: no program `blockd` beside {} or in PATH", own.display());
        Failed::new(Exit::Precondition, "NO_PROGRAM", what).next("install it there")
    })?;
    let output = Command::new(&program)
        .args(["call", method, &params.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            let what = format!("{doing}: {}: {error}", program.display());
            Failed::new(Exit::Failed, "PROGRAM", what)
        })?;
    understand(doing, &String::from_utf8_lossy(&output.stdout))
}

fn understand<T: DeserializeOwned>(doing: &str, line: &str) -> Result<T, Failed> {
    let stranger = |error: serde_json::Error| {
        let what = format!("{doing}: the answer is not understood: {error}");
        Failed::new(Exit::Failed, "PROTOCOL", what)
            .next("the other end does not speak as a blockd of this version does")
    };
    let answer: Answer = serde_json::from_str(line).map_err(stranger)?;
    match answer.error {
        None => serde_json::from_value(answer.result).map_err(stranger),
        Some(RpcError { message, data }) => {
            let code = data.map_or_else(|| "FAILED".to_owned(), |data| data.code);
            let failed = Failed::new(exit_of(&code), &code, format!("{doing}: {message}"));
            Err(Failed { next: next_of(&code).map(str::to_owned), ..failed })
        }
    }
}

/// The exit code of a code that blockd gave (`blockd/src/error.rs`).
fn exit_of(code: &str) -> Exit {
    match code {
        "NOT_FOUND" => Exit::NotFound,
        "BUSY" | "EXPORTED" | "EXISTS" | "NOT_BLANK" | "NO_TARGET" | "UNSUPPORTED" => {
            Exit::Precondition
        }
        "INVALID" => Exit::Usage,
        "TIMEOUT" => Exit::Timeout,
        _ => Exit::Failed,
    }
}

fn next_of(code: &str) -> Option<&'static str> {
    match code {
        "NOT_FOUND" => {
            Some("`cfsctl block volume list` and `cfsctl block device list` show what there is")
        }
        "BUSY" => Some(
            "USERS of `cfsctl block volume list` counts who is connected: disconnect them first",
        ),
        "EXPORTED" => Some("`cfsctl block unexport NAME`"),
        "NO_SPACE" => Some(
            "`cfsctl block device list` shows what is free; a --thin volume takes it only when written",
        ),
        "NO_TARGET" => Some("docs/nvme.md has an example; restart blockd afterwards"),
        "FORMAT" => Some("`cfsctl block device identify PATH` shows what is on it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_results_or_failures_with_their_exit_codes() {
        let text = r#"{"jsonrpc":"2.0","id":1,"result":{"a":1}}"#;
        assert_eq!(understand::<Value>("x", text).unwrap(), json!({ "a": 1 }));
        let none = r#"{"jsonrpc":"2.0","id":1,"result":null}"#;
        understand::<()>("x", none).unwrap();
        let cases = [("NOT_FOUND", 5), ("BUSY", 6), ("EXPORTED", 6), ("INVALID", 2), ("DEVICE", 1)];
        for (code, exit) in cases {
            let error =
                json!({ "error": { "code": -1, "message": "why", "data": { "code": code } } });
            let failed = understand::<Value>("cannot x", &error.to_string()).unwrap_err();
            assert_eq!((failed.exit.code(), failed.code.as_str()), (exit, code));
            assert_eq!(failed.what, "cannot x: why");
        }
        assert_eq!(understand::<Value>("x", "{").unwrap_err().code, "PROTOCOL");
    }
}
