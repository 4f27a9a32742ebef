//! The door of fsd.

#![forbid(unsafe_code)]

pub mod admin;
pub mod message;
