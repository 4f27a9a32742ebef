//! Devices as an administrator prepares them: what is on one, and how it is emptied or made a pool.
//!
//! A device that a running blockd has open is its pool's business ([`crate::pool::Pool::format`]). Here are the others:
//! they are opened for the time of one command, with the lock that keeps a second blockd away, and never while
//! the kernel uses them (mounted, swap, part of an array).

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use crate::config::{DeviceConfig, EngineKind};
use crate::daemon;
use crate::engine::{Action, Device, DeviceFacts, Memory, run};
use crate::error::{Error, FormatError, Result};
use crate::nvme::address::Place;
use crate::pool::format::{SUPERBLOCK_BYTES, Superblock};
use crate::pool::{Pool, erase};

mod raw;
mod reformat;
mod sysfs;

pub use raw::{Raw, raw_of};
pub use reformat::{Reformatted, Wish, reformat};
pub use sysfs::Nvme;

/// How much of a device's start is looked at for signatures.
const HEAD_BYTES: u64 = 128 << 10;

/// What a device says of itself. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    pub path: String,
    /// `file`, `block device`, `NVMe generic device`, `PCI device`, `memory`.
    pub kind: &'static str,
    #[serde(flatten)]
    pub facts: DeviceFacts,
    pub contents: Contents,
    /// The blockd that has it, if one has.
    pub used_by: Option<String>,
    /// Of the kernel's NVMe namespaces.
    pub nvme: Option<Nvme>,
    /// The structures that the controller fills, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Raw>,
}

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Contents {
    /// Its first bytes are zeros.
    Blank,
    /// A pool that can be opened.
    Pool { uuid: Uuid, generation: u64, volumes: Vec<String>, extents: u64, extents_free: u64 },
    /// A pool that cannot be opened.
    DamagedPool { why: String },
    /// Something of others.
    Foreign { signature: String },
}

impl Contents {
    /// Whether nothing is lost with it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Contents::Blank => true,
            Contents::Pool { volumes, .. } => volumes.is_empty(),
            Contents::DamagedPool { .. } | Contents::Foreign { .. } => false,
        }
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contents::Blank => write!(f, "nothing"),
            Contents::Pool { volumes, .. } if volumes.is_empty() => {
                write!(f, "a pool without volumes")
            }
            Contents::Pool { volumes, .. } => {
                write!(f, "a pool with the volumes {}", volumes.join(", "))
            }
            Contents::DamagedPool { why } => write!(f, "a pool that cannot be opened ({why})"),
            Contents::Foreign { signature } => write!(f, "{signature}"),
        }
    }
}

/// A device that is nobody's at the moment.
pub struct Spare {
    path: String,
    device: std::sync::Arc<dyn Device>,
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spare").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.device.shut_down();
    }
}

/// What kind of device a path names.
pub fn kind_of(path: &Path) -> Result<&'static str> {
    match Place::of(path) {
        Place::Pci { .. } => return Ok("PCI device"),
        Place::Generic(_) => return Ok("NVMe generic device"),
        Place::Path(_) => {}
    }
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoDevice(path.display().to_string()),
        _ => Error::Device { path: path.display().to_string(), doing: "looking at it", source },
    })?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        Ok("block device")
    } else if kind.is_file() {
        Ok("file")
    } else {
        Err(Error::Invalid(format!("{} is no device and no file", path.display())))
    }
}

/// The kernel's user of a block device: a mount, swap, an array. The kernel says only that there is one.
fn kernel_user(path: &Path) -> Result<Option<String>> {
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
        .open(path);
    match exclusive {
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {
            let number = std::fs::metadata(path).map(|m| m.rdev()).unwrap_or_default();
            Ok(Some(sysfs::user(number).unwrap_or_else(|| "the kernel".to_owned())))
        }
        Err(source) => {
            Err(Error::Device { path: path.display().to_string(), doing: "opening", source })
        }
    }
}

impl Spare {
    /// Opens a device that neither a blockd nor the kernel has.
    pub fn open(path: &Path) -> Result<Spare> {
        let kind = kind_of(path)?;
        if kind == "block device"
            && let Some(by) = kernel_user(path)?
        {
            return Err(Error::DeviceBusy { path: path.display().to_string(), by });
        }
        let device = daemon::open(&DeviceConfig::plain(path, EngineKind::Auto, None))?;
        Ok(Spare { path: path.display().to_string(), device })
    }

    /// The structures that its controller fills, where it is an NVMe namespace of our engines.
    pub fn raw(&self) -> Result<Raw> {
        raw_of(&self.path, self.device.as_ref())
    }

    /// What is on it.
    pub fn contents(&self) -> Result<Contents> {
        contents(&self.path, &self.device)
    }

    /// What it is and what is on it.
    pub fn identify(&self) -> Result<Identity> {
        let found = self.contents()?;
        Ok(identity_of(&self.path, &self.device, found, None))
    }

    /// Makes a pool without volumes. With anything on the device only if `force`.
    pub fn format(&self, force: bool) -> Result<()> {
        let found = self.contents()?;
        if !found.is_empty() && !force {
            return Err(Error::NotBlank { path: self.path.clone(), what: found.to_string() });
        }
        // A device that is too small is refused before it is touched.
        Superblock::for_device(self.device.bytes(), Uuid::nil())
            .map_err(|reason| Error::Format { path: self.path.clone(), reason })?;
        self.wipe(false)?;
        Pool::open(&self.path, std::sync::Arc::clone(&self.device), true).map(drop)
    }

    /// Removes what is on it; `zero` overwrites every byte.
    pub fn wipe(&self, zero: bool) -> Result<()> {
        let failed = |source| Error::Device { path: self.path.clone(), doing: "wiping", source };
        let bytes = self.device.bytes();
        let mut queue = self.device.queue().map_err(failed)?;
        let head = Superblock::for_device(bytes, Uuid::nil()).map_or(bytes, |s| s.data_start);
        erase(queue.as_mut(), bytes, head, zero).map_err(failed)
    }
}

/// What an open device is; `path` need not exist for one of RAM.
#[must_use]
pub fn identity_of(
    path: &str,
    device: &std::sync::Arc<dyn Device>,
    contents: Contents,
    used_by: Option<String>,
) -> Identity {
    let facts = device.facts();
    let of_path = || kind_of(Path::new(path)).unwrap_or("memory");
    let kind = if facts.engine == "mem" { "memory" } else { of_path() };
    let number = std::fs::metadata(path).map(|m| m.rdev()).unwrap_or_default();
    Identity {
        path: path.to_owned(),
        kind,
        facts,
        contents,
        used_by,
        nvme: if kind == "block device" { sysfs::nvme(number) } else { None },
        raw: None,
    }
}

/// Looks at what is on a device; changes nothing.
pub fn contents(path: &str, device: &std::sync::Arc<dyn Device>) -> Result<Contents> {
    let failed = |source| Error::Device { path: path.to_owned(), doing: "reading", source };
    let len = device.bytes().min(HEAD_BYTES) as usize;
    if len == 0 {
        return Ok(Contents::Blank);
    }
    let mut queue = device.queue().map_err(failed)?;
    let memory = Memory::zeroed(len);
    run(queue.as_mut(), Action::Read { offset: 0, memory: memory.clone() }).map_err(failed)?;
    drop(queue);
    let head = memory.to_vec();
    let is_pool = |copy: &[u8]| {
        !matches!(Superblock::decode(copy), Err(FormatError::OtherMagic | FormatError::Blank))
    };
    if !head.chunks(SUPERBLOCK_BYTES).take(2).any(is_pool) {
        return Ok(match signature(&head) {
            Some(signature) => Contents::Foreign { signature: signature.to_owned() },
            None if head.iter().all(|byte| *byte == 0) => Contents::Blank,
            None => Contents::Foreign { signature: "data of an unknown kind".to_owned() },
        });
    }
    Ok(match Pool::look(path, device) {
        Ok((superblock, volumes, extents_free)) => Contents::Pool {
            uuid: superblock.uuid,
            generation: superblock.generation,
            volumes,
            extents: superblock.extents,
            extents_free,
        },
        Err(Error::Format { reason, .. }) => Contents::DamagedPool { why: reason.to_string() },
        Err(error) => return Err(error),
    })
}

/// What others write at known places (util-linux's libblkid has the whole list).
fn signature(head: &[u8]) -> Option<&'static str> {
    const KNOWN: [(usize, &[u8], &str); 10] = [
        (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (0x1_0040, b"_BHRfS_M", "a Btrfs file system"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4086, b"SWAPSPACE2", "swap space"),
        (0x1000, b"\xfc\x4e\x2b\xa9", "a member of an MD array"),
        (0x200, b"EFI PART", "a GPT partition table"),
        (0x1000, b"EFI PART", "a GPT partition table"),
        (510, b"\x55\xaa", "an MBR partition table or a boot sector"),
    ];
    let found =
        KNOWN.iter().find(|(at, magic, _)| head[(*at).min(head.len())..].starts_with(magic));
    found.map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests;
