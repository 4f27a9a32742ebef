//! The door of blockd: volumes over shared memory, without copies.
//!
//! ```text
//!   client process                    shared arena                        blockd
//!   RemoteVolume ── SQE ──> submission ring ──────────> ServerQueue ──> engine ──> device
//!        │  ▲                 data buffers <──────── DMA ──────────────────────────┘
//!        │  └─── CQE ──────── completion ring <──────── ServerQueue
//!        └── Unix socket: hello, three descriptors, then a sign of life
//! ```
//! - [`volume`] the seam: what a user of blocks sees
//! - [`layout`] the bytes both sides share; `ring`, one direction of them; `handshake`, the socket
//! - [`client`] the user's half, [`blocking`] the same without a runtime; [`server`], blockd's half
//! - [`patience`] how long either side looks at a ring before it sleeps
//! - [`sim`] a volume in memory with a volatile cache, for tests
//! - [`error`] what can go wrong
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod blocking;
pub mod client;
pub mod error;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
pub mod layout;
pub mod patience;
mod ring;
pub mod server;
pub mod sim;
pub mod volume;

pub use blocking::BlockingQueue;
pub use client::RemoteVolume;
pub use error::{Error, Kind};
pub use layout::{Cqe, Opcode, Sqe};
pub use patience::Patience;
pub use server::{Greeting, Listener, Request, ServerQueue};
pub use sim::SimVolume;
pub use volume::{Geometry, Volume};
