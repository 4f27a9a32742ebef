//! The storage node's daemon. So far what a node is told ([`config`]) and the directory it holds on this
//! machine ([`data_dir`]), and how it keeps its block daemon running ([`supervise`]).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod data_dir;
pub mod supervise;
