//! [`Admin`]: the admin commands that an administrator asks for, on a namespace that this process has.
//!
//! A namespace may have a format that blockd cannot use; [`claim`] takes it all the same, so that it can be looked at and
//! given another one.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::{passthru, vfio};
use crate::nvme::address::Place;
use crate::nvme::command::Command;
use crate::nvme::identify;

/// See the module.
pub trait Admin: Send + Sync {
    /// The namespace.
    fn nsid(&self) -> u32;

    /// Runs a command that fills a page.
    ///
    /// # Errors
    /// The device is gone, does not answer, or refuses the command and says why.
    fn fetch(&self, command: &Command) -> io::Result<[u8; identify::BYTES]>;

    /// Runs a command without data that may take as long as that.
    ///
    /// # Errors
    /// As [`Admin::fetch`].
    fn perform(&self, command: &Command, within: Duration) -> io::Result<()>;
}

/// Takes a namespace for this process alone, whatever its format is. `None` if the path names no NVMe namespace.
///
/// # Errors
/// As those of the engines; `WouldBlock` if another process has it.
pub fn claim(path: &Path) -> io::Result<Option<Box<dyn Admin>>> {
    Ok(match Place::of(path) {
        Place::Generic(path) => Some(Box::new(passthru::Claim::take(&path)?)),
        Place::Pci { address, nsid } => Some(Box::new(vfio::Claim::take(address, nsid)?)),
        Place::Path(_) => None,
    })
}
