//! The door of fsd: frames, messages, TLS, and both halves of the connection.
//!
//! ```text
//!   fuse, cfs admin ── client.rs (blocking) ──┐             ┌── server.rs (tokio) ── fsd's Handler
//!                                             ├─ frame.rs ──┤
//!   nodes.rs (tokio): node to node ───────────┘             │
//!   message.rs: what is said                                │
//!   tls.rs: who may say it (Unix sockets know by peer credentials)
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod client;
pub mod credentials;
pub mod frame;
pub mod message;
pub mod nodes;
pub mod server;
pub mod tls;
pub mod token;
mod versions;

pub use client::{CallError, Client, ConnectOptions, Endpoint};
