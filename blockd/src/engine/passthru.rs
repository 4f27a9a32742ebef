//! NVMe commands through the kernel's driver and past its block layer: `/dev/ngXnY` with `IORING_OP_URING_CMD`.
//!
//! ```text
//! operation ─► commands ─► big SQE (64 + 80 bytes) ─► nvme driver ─► device
//!                │                                                    │
//!                └ fixed buffers where the memory is an arena         └► big CQE: status, or an errno
//! ```
//!
//! The kernel owns the controller: it resets a device that hangs, and what it aborted comes back and is sent again until the
//! operation's deadline. The block device of the same namespace is held exclusively, so that nobody mounts it meanwhile,
//! and a mounted one is refused.

mod ioctl;
mod queue;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fixed::Mode;
use super::{
    Admin, BLOCK_BYTES, ControllerFacts, Device, DeviceFacts, Health, HealthCell, Memory, Queue,
    lock, sysfs,
};
use crate::nvme::command::Command;
use crate::nvme::identify::{self, Controller, Limits, Namespace, smart_warning};

/// Pages that the kernel's driver takes in one command, whatever the device takes, where sysfs does not say.
const SEGMENTS_MAX: u64 = 127;

/// What the queues of a device share.
#[derive(Debug)]
struct Shared {
    path: String,
    claim: Claim,
    limits: Limits,
    timeout: Duration,
    fixed: Mode,
    polled: bool,
    health: HealthCell,
    errors: AtomicU64,
    // The driver's word for the controller's state, where it has to be asked; none where several controllers lead to the
    // namespace.
    state: Option<File>,
    // What a device without Write Zeroes is written with.
    zeros: Memory,
}

impl Shared {
    fn trouble(&self, health: Health) {
        self.health.set(&self.path, health);
    }

    /// Whether the driver has the controller in use. Asked after successes: kernels before 6.16 give success for commands that they drop while a device is being removed (liburing issues 1273 and 1386).
    fn is_live(&self) -> bool {
        let Some(state) = &self.state else { return true };
        let mut word = [0; 8];
        std::os::unix::fs::FileExt::read_at(state, &mut word, 0)
            .is_ok_and(|n| word[..n].starts_with(b"live"))
    }

    /// It answers again; what went wrong for good meanwhile stays visible.
    fn recovered(&self) {
        let errors = self.errors.load(Ordering::Relaxed);
        self.trouble(if errors == 0 {
            Health::Ok
        } else {
            Health::Degraded(format!("{errors} commands failed since blockd was started"))
        });
    }
}

/// A namespace that this process has for itself.
#[derive(Debug)]
pub struct Claim {
    file: File,
    nsid: u32,
    // Held, not used.
    _block: Option<File>,
}

impl Claim {
    /// # Errors
    /// As [`Passthru::open`].
    pub fn take(path: &Path) -> io::Result<Claim> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::other("it is no character device: /dev/ngXnY is wanted"));
        }
        lock(&file)?;
        let nsid = ioctl::namespace_id(&file)?;
        let block = claim(&disk_of(path))?;
        Ok(Claim { file, nsid, _block: block })
    }
}

impl Admin for Claim {
    fn nsid(&self) -> u32 {
        self.nsid
    }

    fn fetch(&self, command: &Command) -> io::Result<[u8; identify::BYTES]> {
        let mut page = [0; identify::BYTES];
        ioctl::admin(&self.file, command, &mut page)?;
        Ok(page)
    }

    fn perform(&self, command: &Command, within: Duration) -> io::Result<()> {
        ioctl::admin_within(&self.file, command, &mut [], within)
    }
}

/// Name of the block device of a namespace.
fn disk_of(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.replacen("ng", "nvme", 1)
}

/// See the module.
#[derive(Debug)]
pub struct Passthru {
    shared: Arc<Shared>,
    controller: Controller,
    namespace: Namespace,
}

impl Passthru {
    /// Opens the device, finds out what it and the kernel can do, and takes it for this process alone. `polled` asks for
    /// polled queues; without a wish they are used where the driver has them.
    ///
    /// # Errors
    /// `WouldBlock` if another blockd has it; `ResourceBusy` if it is mounted or otherwise in use.
    pub fn open(path: &Path, polled: Option<bool>, timeout: Duration) -> io::Result<Passthru> {
        let claim = Claim::take(path)?;
        let disk = disk_of(path);
        let name = disk.replacen("nvme", "ng", 1);
        let controller = Controller::parse(&claim.fetch(&Command::identify(1, 0, 0))?);
        let namespace = Namespace::parse(&claim.fetch(&Command::identify(0, 0, claim.nsid))?)
            .ok_or_else(|| io::Error::other("the namespace is inactive"))?;
        // Not every device knows this one.
        let zeroes_exponent = claim.fetch(&Command::identify(6, 0, 0)).map_or(0, |page| page[1]);
        let sys = PathBuf::from(format!("/sys/block/{disk}/queue"));
        let segments = sysfs::number(&sys.join("max_segments")).unwrap_or(SEGMENTS_MAX);
        let transfer = sysfs::number(&sys.join("max_hw_sectors_kb")).unwrap_or(512) * 1024;
        let host_max = transfer.min(segments * BLOCK_BYTES);
        let limits = Limits::of(&controller, &namespace, zeroes_exponent, host_max)
            .map_err(io::Error::other)?;
        let can_poll = sysfs::number(&sys.join("io_poll")) == Some(1);
        if polled == Some(true) && !can_poll {
            return Err(io::Error::other(
                "polled = true, but the driver has no poll queues: load it with nvme.poll_queues=N",
            ));
        }
        let mut shared = Shared {
            path: path.display().to_string(),
            claim,
            limits,
            timeout,
            fixed: Mode::Off,
            polled: polled.unwrap_or(can_poll),
            health: HealthCell::default(),
            errors: AtomicU64::new(0),
            state: if drops_silently(&sysfs::line(Path::new("/proc/sys/kernel/osrelease"))) {
                File::open(format!("/sys/class/nvme-generic/{name}/device/state")).ok()
            } else {
                None
            },
            zeros: Memory::zeroed(identify::ZEROS_BYTES as usize),
        };
        shared.fixed = queue::probe(&shared);
        tracing::info!(
            path = shared.path,
            model = controller.model,
            fixed = ?shared.fixed,
            polled = shared.polled,
            "NVMe passthrough"
        );
        Ok(Passthru { shared: Arc::new(shared), controller, namespace })
    }

    fn health(&self) -> Health {
        let known = self.shared.health.get();
        if known != Health::Ok {
            return known;
        }
        match ioctl::smart(&self.shared.claim.file) {
            Ok(page) => smart_warning(&page).map_or(Health::Ok, Health::Degraded),
            Err(error) if is_gone(&error) => Health::Failed("the kernel has removed it".to_owned()),
            Err(error) => Health::Degraded(format!("it does not answer for its health: {error}")),
        }
    }
}

/// Whether a kernel of this release may give success for commands that it has dropped.
fn drops_silently(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 16)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

/// Takes the block device of the namespace exclusively. There may be none, where the kernel cannot use its format.
fn claim(disk: &str) -> io::Result<Option<File>> {
    let path = format!("/dev/{disk}");
    let exclusive =
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(&path);
    match exclusive {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{path} is mounted or in use by the kernel: unmount it first (lsblk {path})"),
        )),
        Err(error) => Err(error),
    }
}

impl Device for Passthru {
    fn engine(&self) -> &'static str {
        "passthru"
    }

    fn bytes(&self) -> u64 {
        self.shared.limits.bytes()
    }

    fn facts(&self) -> DeviceFacts {
        let limits = &self.shared.limits;
        let atomic = self.namespace.atomic_blocks.unwrap_or(self.controller.atomic_blocks);
        DeviceFacts {
            engine: self.engine(),
            model: self.controller.model.clone(),
            serial: self.controller.serial.clone(),
            firmware: self.controller.firmware.clone(),
            bytes: limits.bytes(),
            lba_bytes: 1 << limits.lba_shift,
            transfer_bytes_max: u64::from(limits.transfer_blocks_max) << limits.lba_shift,
            volatile_cache: limits.volatile_cache,
            atomic_bytes: u64::from(atomic) << limits.lba_shift,
            controller: Some(ControllerFacts::new(
                &self.controller,
                &self.namespace,
                self.shared.claim.nsid,
            )),
            health: self.health(),
        }
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(queue::PassthruQueue::new(Arc::clone(&self.shared))?))
    }

    fn admin(&self) -> Option<&dyn Admin> {
        Some(&self.shared.claim)
    }

    fn reset(&self) -> io::Result<()> {
        let name = self.shared.path.trim_start_matches("/dev/ng");
        let number = name.split('n').next().unwrap_or_default();
        ioctl::reset(Path::new(&format!("/dev/nvme{number}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_need_a_second_look() {
        for (release, expected) in [
            ("6.1.0-13-amd64", true),
            ("6.12.95+deb12", true),
            ("6.16.0", false),
            ("7.0", false),
            ("", true),
        ] {
            assert_eq!(drops_silently(release), expected, "{release}");
        }
    }

    #[test]
    fn a_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Passthru::open(file.path(), None, Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/dev/ngXnY"), "{error}");
    }
}
