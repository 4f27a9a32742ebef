//! Foreign bytes for every parser that meets them: on the wire, on a disk, in a file.
//!
//! ```text
//!   seeds (code) ─┐
//!   regressions/ ─┼─▶ mutate ─▶ target(bytes): decodes, and asserts what must hold
//!   dictionary  ──┘     ▲            │
//!                     seed           └─ a panic: the input is kept, the test fails
//! ```
//!
//! A checksum would stop nearly every mutation at the door. So the targets whose format has one take a
//! byte first: if it is odd, they put the checksums right before they decode, and what lies behind the
//! checksum is reached, too. `docs/fuzzing.md` says how to run it.

#![forbid(unsafe_code)]
// A target panics: that is how it tells what it found.
#![allow(clippy::unwrap_used)]

pub mod cursor;
pub mod mutate;
pub mod targets;

pub use targets::{TARGETS, Target};
