//! The storage node's daemon. So far what a node is told ([`config`]) and the directory it holds on this
//! machine ([`data_dir`]).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod data_dir;
