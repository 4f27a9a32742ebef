//! The NVMe/TCP target: volumes as namespaces for any NVMe-oF host (NVMe base 2.0, NVMe/TCP transport 1.0).
//!
//! ```text
//!  bytes ─► receiver ─► connection ─┬─ connect, auth, properties ─► controller ─► registry (subsystems, hosts)
//!  (socket)  PDUs       one queue   ├─ commands: slots, buffers, R2T
//!                                   ├─ admin: identify, features, log pages, events
//!                                   └─ io: commands ─► requests ─► reactor ─► volume
//!  bytes ◄── outbox ◄───────────────┴──────────────────── completions ◄──┘
//! ```
//!
//! Everything but `socket` (descriptors) and `listener` (its thread) is without I/O and without a clock: a connection
//! takes bytes and completions and leaves bytes and requests behind. A connection lives in one reactor; controllers and
//! the registry are shared between them, and an I/O command takes no lock of theirs.
//! A PDU that breaks the protocol ends its connection with a C2HTermReq; a command that is wrong gets a status.

mod abort;
mod admin;
mod auth;
mod buffers;
mod capsule;
mod commands;
mod connection;
mod controller;
mod dh;
mod digest;
mod discovery;
mod export;
mod fabrics;
mod features;
#[doc(hidden)]
pub mod fuzz;
mod identify;
mod io;
mod listener;
mod log_page;
mod outbox;
pub mod pdu;
mod receiver;
mod registry;
mod secret;
mod socket;
mod target;
mod text;

use crate::nvme::status;
pub use export::{Export, Host};
pub use listener::{Listeners, serve};
pub use registry::{Limits, Registry};
pub use target::Target;

#[cfg(test)]
mod tests;
