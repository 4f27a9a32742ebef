//! How a command fails: what, why, the next command, a code, and the exit code that scripts branch on.

use std::fmt;
use std::process::ExitCode;

use fsd_rpc::client::CallError;
use fsd_rpc::frame::FrameError;
use fsd_rpc::message::Failure;
use raftmeta_types::MetaError;

/// Exit codes of every command. Wrong usage is 2, said by the parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok,
    Failed,
    Usage,
    HealthWarning,
    HealthError,
    NotFound,
    /// Something has to be done first.
    Precondition,
    Timeout,
    /// Some of it was done.
    Partial,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::HealthWarning => 3,
            Exit::HealthError => 4,
            Exit::NotFound => 5,
            Exit::Precondition => 6,
            Exit::Timeout => 7,
            Exit::Partial => 8,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// A failure as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub exit: Exit,
    /// `UPPER_CASE`, for search engines and scripts.
    pub code: String,
    /// What could not be done, and why.
    pub what: String,
    /// What to do next.
    pub next: Option<String>,
}

impl Failed {
    pub fn new(exit: Exit, code: &str, what: impl Into<String>) -> Failed {
        Failed { exit, code: code.to_owned(), what: what.into(), next: None }
    }

    /// What to do next.
    pub fn next(mut self, next: impl Into<String>) -> Failed {
        self.next = Some(next.into());
        self
    }
}

impl std::error::Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.code)?;
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

/// What a call to a storage node failed with, while `doing`.
pub fn call(doing: &str, error: CallError) -> Failed {
    let (exit, code, next) = match &error {
        CallError::Failure(failure) => return refused(doing, failure),
        CallError::Timeout(_) => {
            (Exit::Timeout, "TIMEOUT", Some("is the node up? `cfs admin status`, its log"))
        }
        CallError::Transport(FrameError::Io(_)) => (Exit::Failed, "CONNECTION", None),
        CallError::Transport(_) | CallError::UnexpectedAnswer => (
            Exit::Failed,
            "PROTOCOL",
            Some("the other end does not speak as a storage node of this version does"),
        ),
        CallError::Tls(_) => (Exit::Failed, "TLS", Some("enrol again: `cfs mount --token …`")),
        CallError::SessionLost => (Exit::Failed, "SESSION_LOST", None),
        CallError::Aborted => (Exit::Failed, "ABORTED", None),
    };
    let failed = Failed::new(exit, code, format!("{doing}: {error}"));
    Failed { next: next.map(str::to_owned), ..failed }
}

/// What a storage node refused, while `doing`.
pub fn refused(doing: &str, failure: &Failure) -> Failed {
    let (exit, code) = match failure {
        Failure::Admin { code, what, why, next } => {
            let failed = Failed::new(exit_of(code), code, format!("{doing}: {what}: {why}"));
            return if next.is_empty() { failed } else { failed.next(next.as_str()) };
        }
        Failure::Meta(MetaError::NotFound) => (Exit::NotFound, "NOT_FOUND"),
        Failure::Meta(MetaError::Token(_)) => (Exit::Failed, "TOKEN_REFUSED"),
        Failure::Meta(_) => (Exit::Failed, "METADATA"),
        Failure::NoSpace => (Exit::Failed, "NO_SPACE"),
        Failure::Damaged { .. } => (Exit::Failed, "DAMAGED"),
        Failure::NoChunk(_) => (Exit::NotFound, "NO_CHUNK"),
        Failure::Storage(_) => (Exit::Failed, "STORAGE"),
        Failure::NotReady(_) => (Exit::Precondition, "NOT_READY"),
        Failure::Refused(_) => (Exit::Failed, "REFUSED"),
        Failure::Protocol(_) => (Exit::Failed, "PROTOCOL"),
        Failure::Timeout => (Exit::Timeout, "TIMEOUT"),
    };
    Failed::new(exit, code, format!("{doing}: {failure}"))
}

/// The exit code of a code that the node gave.
fn exit_of(code: &str) -> Exit {
    match code {
        "NOT_FOUND" | "NO_SUCH_JOB" => Exit::NotFound,
        "NODE_UP" | "NO_MAJORITY" | "DATA_LOSS" | "NOT_CONFIRMED" => Exit::Precondition,
        "TOO_MANY_JOBS" | "JOB_LOST" | "BUSY" | "NOT_READY" => Exit::Precondition,
        "TIMEOUT" => Exit::Timeout,
        "INVALID" => Exit::Usage,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_next_and_its_code() {
        let failure = Failure::Admin {
            code: "NOT_FOUND".into(),
            what: "/src/x".into(),
            why: "no such file".into(),
            next: "list its directory".into(),
        };
        let failed = refused("cannot stat", &failure);
        assert_eq!(failed.exit, Exit::NotFound);
        let text = failed.to_string();
        for part in ["cannot stat", "/src/x", "no such file", "NOT_FOUND", "next: list"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let timeout = call("x", CallError::Timeout(std::time::Duration::from_secs(1)));
        assert_eq!(timeout.exit.code(), 7);
        assert_eq!(refused("x", &Failure::Meta(MetaError::NotFound)).exit.code(), 5);
        assert_eq!(refused("x", &Failure::NotReady("starting".into())).exit.code(), 6);
        assert_eq!(refused("x", &Failure::NoSpace).exit.code(), 1);
    }
}
