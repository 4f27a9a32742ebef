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

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod apply;
pub mod check;
pub mod keys;
pub mod kv;
pub mod read;
pub mod records;

pub use apply::apply;
pub use kv::{Kv, KvError, KvRead, MemKv, Overlay};
