//! The verbs of `cfs`, one file each.

pub mod admin;
pub mod completion;
pub mod man;
pub mod mount;
pub mod server;
pub mod umount;
