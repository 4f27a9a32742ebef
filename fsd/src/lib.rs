//! The daemon of a storage node.
//!
//! ```text
//!   fsd-rpc ──▶ service ──▶ node ──▶ raftmeta (metadata)
//!                 jobs  ──▶  │
//!                 admin ──▶  └─────▶ chunks ──▶ blockd-ipc (data)
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`config`] | what a node is told |
//! | [`node`] | everything a process holds, its start and its end |
//! | [`service`] | what clients ask |
//! | [`admin`] | what administrators ask |
//! | [`jobs`] | what a node does by itself |
//! | [`chunks`] | the chunk store |
//! | [`placement`] | which nodes shall hold which shards |
//! | [`replication`] | shards on several nodes |
//! | [`data_dir`] | the directory it holds on this machine |
//! | [`supervise`] | keeps the block daemon running |
//! | [`sessions`] | who has what open |
//! | [`events`] | who hears of changes |
//! | [`health`], [`metrics`] | how it is, and what it measures |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod authority;
pub mod chunks;
mod clock;
pub mod config;
pub mod data_dir;
pub mod events;
pub mod health;
pub mod jobs;
pub mod metrics;
pub mod node;
mod pace;
pub mod placement;
mod refusals;
pub mod replication;
pub mod sd_notify;
pub mod service;
pub mod sessions;
#[cfg(test)]
mod sim;
pub mod supervise;
