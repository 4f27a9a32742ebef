//! Where a block device is and who uses it, from sysfs and procfs.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where an NVMe namespace is, beside what the engine's facts say. Empty where the kernel does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Nvme {
    /// `pcie`, `tcp`, …
    pub transport: String,
    /// PCI or network address of the controller.
    pub address: String,
    pub nsid: u32,
    /// UUID, NGUID or EUI-64 of the namespace.
    pub wwid: String,
}

fn directory(device_number: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device_number), rustix::fs::minor(device_number));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

fn line(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The NVMe namespace behind the block device with that number, or behind the disk that it is a partition of.
pub fn nvme(device_number: u64) -> Option<Nvme> {
    let at = directory(device_number);
    let disk = if at.join("partition").exists() { at.join("..") } else { at };
    let nsid = line(&disk.join("nsid"))?.parse().ok()?;
    let device = disk.join("device");
    Some(Nvme {
        transport: line(&device.join("transport")).unwrap_or_default(),
        address: line(&device.join("address")).unwrap_or_default(),
        nsid,
        wwid: line(&disk.join("wwid")).unwrap_or_default(),
    })
}

/// Who uses the block device with that number, as far as it can be told.
pub fn user(device_number: u64) -> Option<String> {
    let id = format!("{}:{}", rustix::fs::major(device_number), rustix::fs::minor(device_number));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some(&id)).then(|| words.nth(1).map(str::to_owned)).flatten()
    });
    if let Some(place) = mounted {
        return Some(format!("it is mounted on {place}; umount it first"));
    }
    let holders = fs::read_dir(directory(device_number).join("holders")).ok()?;
    let names: Vec<String> =
        holders.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    (!names.is_empty()).then(|| format!("it is part of {}", names.join(", ")))
}
