//! The server as a mount sees it.

use bytes::Bytes;
use fsd_rpc::client::{CallError, Client};
use fsd_rpc::message::{Event, Failure, Limits, Request, Response};
use raftmeta_types::{Command, Ino, Reply, SessionId};

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The server refused it.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// No answer before the deadline.
    #[error("no answer from the server in time")]
    Timeout,
    /// The connection is gone and could not be made again.
    #[error("connection to the server lost: {0}")]
    Lost(String),
}

/// The server as a mount sees it; blocking, to be called from many threads.
pub trait Backend: Send + Sync + 'static {
    /// Sends a request with its data parts; answers the response and its data part.
    fn call(&self, request: &Request, data: &[&[u8]]) -> Result<(Response, Bytes), BackendError>;
    /// Runs a command exactly once; with `durable` answers once it survives a power cut.
    fn mutate(&self, durable: bool, command: Command) -> Result<Reply, BackendError>;
    /// What the cluster told this client.
    fn limits(&self) -> Limits;
    /// The session of this mount, which owns its locks.
    fn session(&self) -> SessionId;
    /// Whom to tell of changes made elsewhere. Without any, caches live by their time alone.
    fn subscribe(&self, _notify: Box<dyn Fn(Event) + Send>) {}
    /// Whom to ask for the open inodes when a connection is made again.
    fn set_open_inodes(&self, _report: Box<dyn Fn() -> Vec<Ino> + Send + Sync>) {}
    /// Fails every call from now on, so that a forced unmount does not wait for a dead server.
    fn abort(&self) {}
    /// The mount ended in order.
    fn goodbye(&self) {}
}

impl From<CallError> for BackendError {
    fn from(error: CallError) -> BackendError {
        match error {
            CallError::Failure(failure) => BackendError::Failed(failure),
            CallError::Timeout(_) => BackendError::Timeout,
            other => BackendError::Lost(other.to_string()),
        }
    }
}

impl Backend for Client {
    fn call(&self, request: &Request, data: &[&[u8]]) -> Result<(Response, Bytes), BackendError> {
        Ok(Client::call(self, request, data)?)
    }

    fn mutate(&self, durable: bool, command: Command) -> Result<Reply, BackendError> {
        Ok(Client::mutate(self, durable, command)?)
    }

    fn limits(&self) -> Limits {
        Client::limits(self)
    }

    fn session(&self) -> SessionId {
        Client::session(self)
    }

    fn subscribe(&self, notify: Box<dyn Fn(Event) + Send>) {
        if let Err(error) = Client::subscribe(self, notify) {
            tracing::warn!(%error, "no thread for events: caches live by their time alone");
        }
    }

    fn set_open_inodes(&self, report: Box<dyn Fn() -> Vec<Ino> + Send + Sync>) {
        Client::set_open_inodes(self, report);
    }

    fn abort(&self) {
        Client::abort(self);
    }

    fn goodbye(&self) {
        Client::goodbye(self);
    }
}
