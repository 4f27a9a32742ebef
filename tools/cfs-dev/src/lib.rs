//! Clusters on one machine: for development, and for tests that break them.
//!
//! ```text
//!   topology.rs (YAML) ─▶ cluster.rs ─┬─▶ process.rs    processes that are found again
//!                            │        ├─▶ net.rs        a namespace or an address for each member
//!                            │        └─▶ net/faults.rs who reaches whom
//!                            ▲
//!                         fault.rs                    what is done to it, and whether it endured that
//!                         state.rs (cluster.json)
//! ```
//! A node is a set of processes (`cfs server`, which starts `blockd`) in a network namespace of its own; without root,
//! at a loopback address of its own. A client is `cfs mount` in another one. The command `cfs-dev` (`command.rs`)
//! leaves them running and finds them again; a test uses [`Cluster`] itself, and `random.rs` for what it chooses. `agent.rs` and `logs.rs` are about their logs.
//!
//! Of ClaudeFS this uses the door of fsd (`fsd-rpc`) and the programs, nothing else.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
pub mod cluster;
pub mod command;
pub mod error;
pub mod fault;
mod instance;
mod logs;
pub mod net;
pub mod process;
mod programs;
pub mod random;
mod state;
pub mod topology;
mod wait;

pub use cluster::Cluster;
