//! What can go wrong, as an operator reads it.

use std::io;

use blockd_ipc::Kind;

use crate::pool::format::VERSION;

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
    /// The volume is a namespace of a subsystem.
    #[error("volume {volume:?} is exported as {nqn}; unexport it first")]
    Exported { volume: String, nqn: String },
    /// No export of that volume or name.
    #[error("{0} is not exported")]
    NotExported(String),
    /// No device of that path.
    #[error("{0}: no such device")]
    NoDevice(String),
    /// The device must not be changed while somebody uses it.
    #[error("device {path} is in use: {by}")]
    DeviceBusy { path: String, by: String },
    /// The device holds what would be lost, and nobody said that it may be.
    #[error("device {path} holds {what}; nothing was changed")]
    NotBlank { path: String, what: String },
    /// The device cannot be formatted so.
    #[error("device {path} cannot be formatted: {why}")]
    NoFormat { path: String, why: String },
    /// Not enough free extents.
    #[error("no space: {wanted} extents of 4 MiB wanted, {free} free")]
    NoSpace { wanted: u64, free: u64 },
    /// A volume of a running blockd could not be used.
    #[error("{0}")]
    Ipc(#[from] blockd_ipc::Error),
    /// A parameter is out of its range.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A word that programs branch on; the admin door sends it with the message.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::Config(_) => "CONFIG",
            Error::Device { .. } => "DEVICE",
            Error::InUse { .. } | Error::VolumeBusy(_) | Error::DeviceBusy { .. } => "BUSY",
            Error::Format { .. } => "FORMAT",
            Error::NoVolume(_) | Error::NotExported(_) | Error::NoDevice(_) => "NOT_FOUND",
            Error::Exists(_) => "EXISTS",
            Error::Exported { .. } => "EXPORTED",
            Error::NotBlank { .. } => "NOT_BLANK",
            Error::NoFormat { .. } => "UNSUPPORTED",
            Error::NoSpace { .. } => "NO_SPACE",
            Error::Ipc(error) => match error.kind() {
                Kind::NotFound => "NOT_FOUND",
                Kind::Busy => "BUSY",
                Kind::Timeout => "TIMEOUT",
                Kind::Disconnected => "DISCONNECTED",
                Kind::NoSpace => "NO_SPACE",
                Kind::Invalid | Kind::OutOfRange => "INVALID",
                Kind::Io | Kind::Poisoned => "DEVICE",
            },
            Error::Invalid(_) => "INVALID",
        }
    }
}

/// Why a device's contents are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it holds something that is not a blockd pool; `cfsctl block device wipe` clears it")]
    OtherMagic,
    #[error("the pool has format {0}, this blockd reads {VERSION}; use the blockd that wrote it")]
    OtherVersion(u32),
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
