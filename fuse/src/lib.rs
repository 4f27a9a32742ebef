//! ClaudeFS as a mounted file system: the kernel's protocol on one side, the metadata group and the
//! chunk store on the other.
//!
//! ```text
//!   /dev/fuse ──▶ kernel: requests taken apart ──▶ ops: what they mean ──▶ Backend (a fsd-rpc client)
//!                   │ invalidations                  │ buffer   written, not committed
//!                   ▼                                │ budget   how much of it all files may hold
//!                 page cache, dentries               │ layout   extents known of a file
//!                                                    │ cache    verified chunks
//!                                                    └ queue    write-back and read-ahead threads
//! ```
//!
//! | module | what |
//! |---|---|
//! | `kernel` | the FUSE protocol, mounting, the threads that serve it |
//! | `ops` | the operations, one file per family; they know nothing of the protocol |
//! | [`backend`] | the server as a mount sees it |
//! | `errno` | which errno each refusal becomes |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(test)]
extern crate self as fuse;

mod attrs;
pub mod backend;
mod budget;
mod buffer;
mod cache;
mod errno;
#[doc(hidden)]
pub mod fuzz;
mod kernel;
mod layout;
mod ops;
mod queue;
#[cfg(test)]
mod tests;

pub use backend::{Backend, BackendError};
pub use kernel::mount::{MountError, MountOptions};
pub use kernel::session::{Session, Unmounter, mount};
