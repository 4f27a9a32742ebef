//! The kernel's side without a kernel, for the package `fuzz`.

use crate::kernel::unmounted::Unmounted;
use crate::{Backend, MountOptions};

/// A file system that is not mounted: requests are given to it, its answers are collected.
pub struct Kernel(Unmounted);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl Kernel {
    /// # Errors
    /// There is no memory file for the answers.
    pub fn new(options: &MountOptions, backend: impl Backend) -> std::io::Result<Kernel> {
        Unmounted::new(options, backend).map(Kernel)
    }

    /// Serves one request, and does at once what other threads do for a mount. Gives all that was
    /// written to the kernel.
    ///
    /// # Errors
    /// The memory file failed.
    pub fn request(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.request(request)
    }
}
