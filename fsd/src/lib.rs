//! The storage node's daemon, as far as it is: what a node is told ([`config`]), the directory it holds on
//! this machine ([`data_dir`]), how it keeps its block daemon running ([`supervise`]), how it judges
//! its health ([`health`]), what it measures ([`metrics`]) and who has what open ([`sessions`]).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod authority;
pub mod chunks;
pub mod config;
pub mod data_dir;
pub mod health;
pub mod metrics;
pub mod node;
pub mod sessions;
pub mod supervise;
