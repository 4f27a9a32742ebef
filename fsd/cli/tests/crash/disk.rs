//! A small ext4 of its own, in an image file, whose power can be cut.
//!
//! The cut is the kernel's (`EXT4_IOC_SHUTDOWN` without a flush of the journal): nothing that the page cache
//! holds reaches the image any more, as when a machine loses its power. What was synced is there after the
//! next mount, what was not may be missing, cut short or empty.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, wait_for};

/// `_IOR('X', 125, u32)` with `EXT4_GOING_FLAGS_NOLOGFLUSH`. perl, because an ioctl is unsafe code in Rust.
const CUT: &str = r#"
    use Fcntl;
    sysopen(my $dir, $ARGV[0], O_RDONLY) or die "$ARGV[0]: $!\n";
    defined ioctl($dir, 0x8004587d, my $flags = pack("I", 2)) or die "shutdown of $ARGV[0]: $!\n";
"#;

#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mountpoint: PathBuf,
}

impl Disk {
    /// Makes an image of `bytes` (sparse) in `dir` and mounts it on `dir/NAME`.
    pub fn make(dir: &Path, name: &str, bytes: u64) -> Disk {
        let image = dir.join(format!("{name}.img"));
        let mountpoint = dir.join(name);
        let file = std::fs::File::create(&image).expect("making the image");
        file.set_len(bytes).expect("sizing the image");
        std::fs::create_dir(&mountpoint).expect("making the mountpoint");
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&image);
        process::run(&mut mkfs);
        let disk = Disk { image, mountpoint };
        disk.mount();
        disk
    }

    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        process::run(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mountpoint));
    }

    /// From here on nothing reaches the image.
    pub fn cut(&self) {
        process::run(Command::new("perl").args(["-e", CUT]).arg(&self.mountpoint));
    }

    /// Mounts it again after [`Disk::cut`]. Who used it has to be gone.
    pub fn restore(&self) {
        self.unmount();
        self.mount();
    }

    pub fn unmount(&self) {
        wait_for("unmounting the metadata disk", || {
            Command::new("umount").arg(&self.mountpoint).output().is_ok_and(|o| o.status.success())
        });
    }
}
