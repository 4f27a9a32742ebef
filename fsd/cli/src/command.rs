//! The verbs of `cfs`, one file each.

pub mod completion;
pub mod man;
pub mod server;
