//! Making the mount: `mount(2)` as root.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

/// Where and how to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// First column of the mount table.
    pub source: String,
    pub read_only: bool,
    /// Other users than the one who mounts may use it.
    pub allow_other: bool,
    /// Set-id bits and file capabilities count for nothing.
    pub nosuid: bool,
    /// Devices on it cannot be opened.
    pub nodev: bool,
    /// Programs on it cannot be run.
    pub noexec: bool,
    /// Bytes of verified chunks kept in memory.
    pub cache_bytes: u64,
    /// Bytes written and not sent that all files together may hold.
    pub dirty_bytes_max: u64,
    /// Threads that serve the kernel, at least 2.
    pub threads: usize,
}

impl MountOptions {
    /// The usual options for this directory: for all users, without devices and set-id bits,
    /// 256 MiB of cache, 64 MiB of dirty bytes, 16 threads.
    pub fn new(mountpoint: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            source: "claudefs".to_owned(),
            read_only: false,
            allow_other: true,
            nosuid: true,
            nodev: true,
            noexec: false,
            cache_bytes: 256 << 20,
            dirty_bytes_max: 64 << 20,
            threads: 16,
        }
    }

    /// Divides what the whole data buffer may take (`CFS_IO_BUFFER_POOL_SIZE`): a quarter for dirty
    /// bytes, the rest for chunks.
    pub fn with_data_bytes(mut self, bytes: u64) -> MountOptions {
        self.dirty_bytes_max = bytes / 4;
        self.cache_bytes = bytes - bytes / 4;
        self
    }
}

/// Why there is no mount, or no good end of one.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot open /dev/fuse: {0}; load the kernel module `fuse` and run as root")]
    Device(Errno),
    #[error("cannot mount on {}: {error}; it must be an existing directory, and you root", path.display())]
    Mount { path: PathBuf, error: Errno },
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot unmount {}: {error}; `fuser -vm` with it shows who uses it", path.display())]
    Unmount { path: PathBuf, error: Errno },
    /// The mount has ended, and data that was written is not on the server.
    #[error("written data was lost: the last sync failed: {0}")]
    LastSync(Errno),
}

pub(crate) fn attach(options: &MountOptions) -> Result<OwnedFd, MountError> {
    let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(MountError::Device)?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        fd.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let chosen = [
        (options.read_only, MountFlags::RDONLY),
        (options.nosuid, MountFlags::NOSUID),
        (options.nodev, MountFlags::NODEV),
        (options.noexec, MountFlags::NOEXEC),
    ];
    let flags = chosen.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).collect();
    let data = CString::new(data).unwrap_or_default();
    rustix::mount::mount(
        options.source.as_str(),
        &options.mountpoint,
        "fuse.claudefs",
        flags,
        data.as_c_str(),
    )
    .map_err(|error| MountError::Mount { path: options.mountpoint.clone(), error })?;
    Ok(fd)
}
