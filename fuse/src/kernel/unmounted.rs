//! A file system without a mount: requests are handed to it one by one. What the threads of a mount do later
//! is done at once.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::sync::Arc;

use super::mount::MountOptions;
use super::session::Shared;
use crate::Backend;
use crate::ops::Core;

pub(crate) struct Unmounted {
    shared: Shared,
    /// Stands for `/dev/fuse`: the answers are appended to it.
    answers: File,
}

impl Unmounted {
    pub(crate) fn new(options: &MountOptions, backend: impl Backend) -> std::io::Result<Unmounted> {
        let answers = rustix::fs::memfd_create("answers", rustix::fs::MemfdFlags::CLOEXEC)?;
        let fd = answers.as_fd().try_clone_to_owned()?;
        let core = Core::new(Arc::new(backend), options);
        Ok(Unmounted { shared: Shared::new(fd, core), answers: answers.into() })
    }

    /// Serves a request and gives all that was written for the kernel.
    pub(crate) fn request(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut answers = &self.answers;
        answers.set_len(0)?;
        answers.rewind()?;
        self.shared.request(request);
        self.shared.catch_up();
        answers.rewind()?;
        let mut written = Vec::new();
        answers.read_to_end(&mut written)?;
        Ok(written)
    }
}
