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
    /// Bytes of verified chunks kept in memory.
    pub cache_bytes: u64,
    /// Threads that serve the kernel, at least 2.
    pub threads: usize,
}

impl MountOptions {
    /// The usual options for this directory: 256 MiB of cache, 6 threads.
    pub fn new(mountpoint: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            source: "claudefs".to_owned(),
            read_only: false,
            cache_bytes: 256 << 20,
            threads: 6,
        }
    }
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot open /dev/fuse: {0}")]
    Device(Errno),
    #[error("cannot mount on {path}: {error}")]
    Mount { path: PathBuf, error: Errno },
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot unmount {path}: {error}")]
    Unmount { path: PathBuf, error: Errno },
}

pub(crate) fn attach(options: &MountOptions) -> Result<OwnedFd, MountError> {
    let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(MountError::Device)?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        fd.as_raw_fd()
    );
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
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
