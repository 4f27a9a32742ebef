//! The NVMe structures that both sides need: the engines that drive devices, and the target that is one.
//!
//! ```text
//!  address     which device a configuration means, and which engine suits it
//!  opcode      commands by number
//!  command     submission queue entries to send
//!  status      what an entry's end means: retry, errno
//!  identify    controllers and namespaces, as they describe themselves; Limits for the engines
//!  plan        an operation of blockd cut into commands that the limits allow
//!  prp         where the data of a command is, page by page
//!  ring        who owns which entry of a queue: tail, head, phase bit
//! ```
//!
//! All of it is plain data and arithmetic: no I/O, no clock, no unsafe code. References are to NVMe base 2.0 and the NVM
//! command set 1.0.

pub mod address;
pub mod bytes;
pub mod command;
pub mod identify;
pub mod opcode;
pub mod plan;
pub mod prp;
pub mod ring;
pub mod status;

/// The page size that our controllers are set to (CC.MPS = 0), in bytes.
pub const PAGE_BYTES: u64 = 4096;
