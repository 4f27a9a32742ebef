//! The metadata group: a deterministic state machine over an ordered key-value store.
//!
//! ```text
//!   Envelope ──▶ apply(kv, index, envelope) ──▶ MetaResult<Reply>
//!                   │  reads and writes only `kv`: no clock, no randomness, no socket
//!                   ▼
//!                 Kv  (the node's store, a map in tests, an Overlay for one command)
//!                   ▲
//!   queries ─────── read.rs          fsck ─────── check.rs
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`kv`] | the store as the state machine sees it |
//! | [`apply`] | the state machine, one file per family of commands |
//! | [`keys`] | every key, one table |
//! | [`records`] | every value, versioned |
//! | [`read`] | queries |
//! | [`check`] | fsck of the namespace |
//! | [`group`] | a replica: propose, view, checkpoint |
//! | [`log_store`] | the Raft log in files of our own, group commit |
//! | [`store`] | the applied state in fjall |
//! | [`checkpoint`] | the applied state as one file |
//! | [`network`] | how replicas reach each other |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod apply;
pub mod check;
pub mod checkpoint;
mod format;
mod fs;
#[doc(hidden)]
pub mod fuzz;
pub mod group;
pub mod keys;
pub mod kv;
pub mod log_store;
pub mod network;
pub mod read;
pub mod records;
mod runtime;
#[cfg(test)]
mod sim;
pub mod store;

pub use apply::apply;
pub use group::{Group, GroupConfig, GroupError, Leadership, Member, Status, blocking};
pub use kv::{Kv, KvError, KvRead, MemKv, Overlay};
pub use network::{Answering, MessageError, Peer, RaftAnswer, RaftMessage, Transport};
