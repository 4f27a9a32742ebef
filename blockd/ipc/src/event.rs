//! An eventfd: a bell that one side rings and the other side polls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{read, write};

use crate::error::Error;

#[derive(Debug)]
pub(crate) struct Event {
    fd: OwnedFd,
}

impl Event {
    pub(crate) fn new() -> Result<Event, Error> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Event { fd: fd.map_err(std::io::Error::from)? })
    }

    /// A descriptor that a peer sent; it may be anything, so it is made non-blocking.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Event, Error> {
        let flags = fcntl_getfl(&fd).map_err(std::io::Error::from)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(std::io::Error::from)?;
        Ok(Event { fd })
    }

    /// Rings. A bell that rings already (EAGAIN) or that the peer broke is left alone.
    pub(crate) fn signal(&self) {
        let _ = write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Silences the bell.
    pub(crate) fn drain(&self) {
        let _ = read(&self.fd, &mut [0u8; 8]);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
