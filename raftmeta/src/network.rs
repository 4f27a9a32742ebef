//! How replicas reach each other. Nothing here opens a socket: a [`Transport`] carries the messages.
//!
//! ```text
//!   openraft ──▶ Link ──▶ Transport::call ═════▶ Group::handle ──▶ checks ──▶ openraft
//!                  └── checkpoints: begin, parts, end ═══▶ Inbox ──▶ verified file ──▶ openraft
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`message`] | messages and answers, their bytes and bounds |
//! | [`link`] | openraft's side of the sender |
//! | [`outbox`] | sends a checkpoint in parts |
//! | [`inbox`] | puts the parts of a checkpoint together again |
//! | [`checks`] | what a received message must fulfil before openraft sees it |

pub(crate) mod checks;
pub(crate) mod inbox;
pub(crate) mod link;
pub mod message;
pub(crate) mod outbox;

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

pub use message::{MESSAGE_MAX, MessageError, PROTOCOL_VERSION, RaftAnswer, RaftMessage};

/// A replica to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: u64,
    /// As it was given when the replica was added or last updated.
    pub address: String,
}

/// An answer to come.
pub type Answering = Pin<Box<dyn Future<Output = io::Result<RaftAnswer>> + Send>>;

/// Carries messages to other replicas. The seam for the server's connections, and for simulations.
///
/// It may lose, repeat, delay and reorder messages, and it may answer with an error although the message arrives;
/// it must not alter them, nor give one message's answer to another. An error means that the replica cannot be
/// reached now; the group tries again by itself, more and more rarely.
pub trait Transport: Debug + Send + Sync + 'static {
    /// Takes `message` to `target` and returns what its `Group::handle` answers. The future is polled by a thread of
    /// the group, on a runtime with timers and without sockets: I/O belongs to a task of the transport's own. It is
    /// dropped when `timeout` has passed.
    fn call(&self, target: Peer, message: RaftMessage, timeout: Duration) -> Answering;
}

#[cfg(test)]
mod tests;
