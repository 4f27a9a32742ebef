//! DMA-able memory: the only memory mapper of the project.
//!
//! ```text
//! Arena   one memfd mapping, of 2 MiB huge pages where the system has them
//!   └─ Pool   a buddy allocator over it: blocks of 4 KiB to 2 MiB
//!        └─ Buffer   one block, owned: exclusive until dropped
//! ```
//!
//! An arena's descriptor is passed over a Unix socket ([`fds`]), so that both ends of a queue see the
//! same bytes and a buffer that one side fills is the one that the device reads.

mod arena;
mod buddy;
mod buffer;
mod error;
pub mod fds;
mod pages;
mod pool;

pub use arena::{Arena, Backing};
pub use buffer::{BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, Buffer};
pub use error::Error;
pub use pages::Pages;
pub use pool::Pool;

/// Size of a huge page, and the granularity of arenas, in bytes.
pub const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;
