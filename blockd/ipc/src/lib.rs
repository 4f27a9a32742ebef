//! The door of blockd: volumes over shared memory, without copies.
//!
//! - [`volume`] the seam: what a user of blocks sees
//! - [`sim`] a volume in memory with a volatile cache, for tests
//! - [`error`] what can go wrong
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod error;
pub mod sim;
pub mod volume;

pub use error::{Error, Kind};
pub use sim::SimVolume;
pub use volume::{Geometry, Volume};
