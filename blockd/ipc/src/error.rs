//! What can go wrong with a volume. Callers branch on the kind; the context is for the operator.

use std::fmt;
use std::io;
use std::sync::Arc;

/// What a caller can react to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The device failed the operation: what the range now holds is unknown.
    Io,
    /// No space in the pool for a thin volume's new extent, or no memory for queues.
    NoSpace,
    /// The range ends behind the end of the volume.
    OutOfRange,
    /// A flush failed before: reopen the volume and recover; nothing is retried.
    Poisoned,
    /// The other side is gone and did not come back in time.
    Disconnected,
    /// The other side is there but did not answer in time.
    Timeout,
    /// The request makes no sense: lengths, alignment, a foreign buffer, a protocol error.
    Invalid,
    /// No volume of this name.
    NotFound,
    /// The volume is in use by another client.
    Busy,
}

impl Kind {
    /// The status of a completion or an answer; 0 is success.
    pub fn status(self) -> u32 {
        match self {
            Kind::Io => 1,
            Kind::NoSpace => 2,
            Kind::OutOfRange => 3,
            Kind::Poisoned => 4,
            Kind::Disconnected => 5,
            Kind::Timeout => 6,
            Kind::Invalid => 7,
            Kind::NotFound => 8,
            Kind::Busy => 9,
        }
    }

    /// The kind of a status that is not 0. One that we do not know is an I/O error.
    pub fn from_status(status: u32) -> Kind {
        match status {
            2 => Kind::NoSpace,
            3 => Kind::OutOfRange,
            4 => Kind::Poisoned,
            5 => Kind::Disconnected,
            6 => Kind::Timeout,
            7 => Kind::Invalid,
            8 => Kind::NotFound,
            9 => Kind::Busy,
            _ => Kind::Io,
        }
    }
}

/// A failed operation. Cheap to clone: one failure can end many operations.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    context: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// `context` says what failed while doing what.
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// As [`Error::new`], with the error below.
    pub fn with_source(
        kind: Kind,
        context: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Error {
        Error { kind, context: context.into(), source: Some(Arc::new(source)) }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn context(&self) -> &str {
        &self.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            Kind::Io => "I/O error",
            Kind::NoSpace => "no space",
            Kind::OutOfRange => "out of range",
            Kind::Poisoned => "poisoned by a failed flush, reopen the volume",
            Kind::Disconnected => "disconnected from blockd",
            Kind::Timeout => "timed out",
            Kind::Invalid => "invalid",
            Kind::NotFound => "not found",
            Kind::Busy => "busy",
        };
        write!(f, "{}: {words}", self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<hugepages::Error> for Error {
    fn from(source: hugepages::Error) -> Error {
        let kind = match &source {
            hugepages::Error::Length { .. } | hugepages::Error::Descriptors { .. } => Kind::Invalid,
            // A peer that dies between its connection and our descriptors is gone like any other.
            hugepages::Error::System { source, .. } => kind_of(source),
        };
        Error::with_source(kind, "shared memory", source)
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Error {
        Error::with_source(kind_of(&source), "socket of blockd", source)
    }
}

fn kind_of(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Kind::Timeout,
        io::ErrorKind::StorageFull => Kind::NoSpace,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Kind::Disconnected,
        _ => Kind::Io,
    }
}
