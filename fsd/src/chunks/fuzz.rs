//! Parsers that have no other door, for the package `fuzz`.

pub use super::codec::{compress, decompress};
pub use super::format::*;
pub use super::replicate::SegmentNumber;
