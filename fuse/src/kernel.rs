//! The kernel's side: protocol, mounting, the threads that serve `/dev/fuse`.
//!
//! | module | what |
//! |---|---|
//! | `abi` | numbers of the protocol, reading and writing of its structures |
//! | `mount` | `mount(2)` and its options |
//! | `session` | threads from the mount to its end |
//! | `dispatch` | one request in, one answer out; a file per family |
//! | `reply` | the structures of answers |
//! | `unmounted` | the same without a mount, for fuzzing |
//! | `waiting` | lock requests that wait, and their interruption |
//! | `notify` | telling the kernel what to forget |

pub(crate) mod abi;
pub(crate) mod dispatch;
pub(crate) mod mount;
pub(crate) mod notify;
pub(crate) mod reply;
pub(crate) mod session;
pub(crate) mod unmounted;
pub(crate) mod waiting;
