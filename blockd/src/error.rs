//! What can go wrong, as an operator reads it.

use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// An error of the daemon outside the I/O path (there, a completion carries an errno).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not usable as written.
    #[error("configuration: {0}")]
    Config(String),
    /// The device could not be opened, locked, read or written.
    #[error("device {path}: {doing}: {source}")]
    Device { path: String, doing: &'static str, source: io::Error },
    /// Another process has the device open as a pool.
    #[error("device {path} is in use by another blockd; stop that one first")]
    InUse { path: String },
    /// What is on the device is not a pool that this program can use.
    #[error("device {path}: {reason}")]
    Format { path: String, reason: FormatError },
    /// No volume of that name.
    #[error("no volume named {0:?}")]
    NoVolume(String),
    /// A volume of that name exists.
    #[error("volume {0:?} exists already")]
    Exists(String),
    /// The volume is connected to; disconnect its users first.
    #[error("volume {0:?} is in use; disconnect its users first")]
    VolumeBusy(String),
    /// Not enough free extents.
    #[error("no space: {wanted} extents of 4 MiB wanted, {free} free")]
    NoSpace { wanted: u64, free: u64 },
    /// A parameter is out of its range.
    #[error("{0}")]
    Invalid(String),
}

/// Why a device's contents are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it holds something that is not a blockd pool; wipe its first 8 KiB to use it")]
    OtherMagic,
    #[error("pool format version {0} is newer than this program's; upgrade blockd")]
    NewerVersion(u32),
    #[error("both superblocks fail their checksum; restore the device from a replica")]
    Checksum,
    #[error("the device is {device} bytes, its superblock says {expected}; it was truncated")]
    Shorter { device: u64, expected: u64 },
    #[error("the volume table or extent map is damaged; restore the device from a replica")]
    Metadata,
    #[error("the device is blank; set `create = true` to make a pool on it")]
    Blank,
    #[error("the device has {0} bytes, fewer than a pool needs (16 MiB)")]
    TooSmall(u64),
}
