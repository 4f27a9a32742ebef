//! Shards on several nodes: each has a primary, whose store tells the other replicas what it does.
//!
//! ```text
//!   leader   ─ director: who shall hold what ──▶ cluster map (epochs, primaries, replicas in sync)
//!                                                    │ read by all
//!   primary  ─ keeper: begins the epochs of its shards, brings new replicas up
//!            ─ courier ── ops of its store, in order ──▶ other nodes ─▶ their stores
//! ```
//!
//! | module | what |
//! |---|---|
//! | `wire` | what replicas say to each other, and its bytes |
//! | `remote` | another node's store as the primary's store sees it |
//! | `courier` | the ops of this node's store, to each node in order |
//! | `courtesy` | copies give way to clients |
//! | `host` | the node below, real or simulated |
//! | `keeper` | what this node has to do about its shards |
//! | `mender` | what is damaged in this node's store, put right from the others |
//! | `director` | what the leader decides about all of them |
//!
//! Nothing is acknowledged under an epoch unless every replica in sync in it has it durable. Where one does not
//! answer, the primary stops taking puts for the shard and asks the leader for an epoch without it; the leader
//! refuses when too few would be left. The stores check the epochs again with every message.

mod courier;
mod courtesy;
mod director;
mod host;
mod keeper;
mod mender;
mod remote;
mod wire;

pub(crate) use courier::Courier;
pub use courier::Moved;
pub(crate) use director::{
    Cause, Director, Sizes, Work, copy_sizes, direct, held, led, new_epoch, reclaim,
};
pub(crate) use host::{Host, Telling, Wire, target_in};
pub(crate) use keeper::{bring_up, forget, keep};
pub(crate) use mender::{Mended, mend_chunk, mend_segment};
pub(crate) use wire::answer;
