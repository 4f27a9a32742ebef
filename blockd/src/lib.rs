//! blockd: the daemon that owns block devices and serves volumes over shared memory and NVMe/TCP.
//!
//! ```text
//!  host ──NVMe/TCP────────┐
//!  client ──ipc rings──► reactor (one thread per core) ──► engine queue ──► device
//!                          │  translates volume offsets            uring | passthru | vfio | mem | fault
//!                          ▼
//!                        volume (lock-free extent map) ◄── pool (superblocks, extent map on disk)
//!                                                            ▲
//!  operator ──JSON-RPC──► admin ─────────────────────────────┘
//! ```
//!
//! It knows volumes and offsets, nothing of files. No lock is taken on the path of a read or of a write into
//! an extent that exists; allocation of a thin extent takes the pool's.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod bench;
pub mod config;
pub mod daemon;
pub mod device;
pub mod door;
pub mod engine;
pub mod error;
pub mod nvme;
pub mod nvmet;
pub mod pool;
pub mod reactor;
pub mod volume;

pub use error::{Error, Result};
