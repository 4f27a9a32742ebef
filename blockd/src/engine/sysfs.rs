//! What the kernel says of a device, in sysfs. What is not there is left empty.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{BLOCK_BYTES, DeviceFacts, Health};

/// A file of one line, without white space around it; empty if it cannot be read.
pub fn line(path: &Path) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// A file of one number.
pub fn number(path: &Path) -> Option<u64> {
    line(path).parse().ok()
}

/// Facts of a file or block device that the uring engine has open.
pub fn block_facts(file: &File, bytes: u64) -> DeviceFacts {
    let metadata = file.metadata().ok();
    let block = metadata.as_ref().filter(|m| m.file_type().is_block_device()).map(|m| {
        let (major, minor) = (rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev()));
        PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
    });
    let mut facts = DeviceFacts {
        engine: "uring",
        model: String::new(),
        serial: String::new(),
        firmware: String::new(),
        bytes,
        lba_bytes: metadata.map_or(BLOCK_BYTES as u32, |m| m.blksize() as u32),
        transfer_bytes_max: 0,
        // A file's writes stay in caches until they are flushed, whatever is below.
        volatile_cache: true,
        atomic_bytes: 512,
        controller: None,
        health: Health::Ok,
    };
    let Some(block) = block else { return facts };
    // A partition's queue and device are those of its disk.
    let disk = if block.join("queue").exists() { block.clone() } else { block.join("..") };
    facts.model = line(&disk.join("device/model"));
    facts.serial = line(&disk.join("device/serial"));
    facts.firmware = line(&disk.join("device/firmware_rev"));
    let queue = disk.join("queue");
    facts.lba_bytes = number(&queue.join("logical_block_size")).unwrap_or(512) as u32;
    facts.atomic_bytes = u64::from(facts.lba_bytes);
    facts.transfer_bytes_max = number(&queue.join("max_hw_sectors_kb")).unwrap_or(0) * 1024;
    facts.volatile_cache = line(&queue.join("write_cache")) != "write through";
    if !block.exists() {
        facts.health = Health::Failed("the kernel has removed the device".to_owned());
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_facts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, " 12 \n").unwrap();
        assert_eq!((line(&path).as_str(), number(&path)), ("12", Some(12)));
        assert_eq!(number(&dir.path().join("none")), None);
        let facts = block_facts(&File::open(&path).unwrap(), 4096);
        assert_eq!((facts.engine, facts.bytes, facts.volatile_cache), ("uring", 4096, true));
        assert!(facts.lba_bytes >= 512);
    }
}
