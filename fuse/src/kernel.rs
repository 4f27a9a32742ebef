//! The kernel's side: protocol, mounting, the threads that serve `/dev/fuse`.

pub(crate) mod abi;
pub(crate) mod mount;
pub(crate) mod session;
