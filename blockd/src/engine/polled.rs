//! [`Polled`]: the descriptors that a thread sleeps for, and which of them have ended its sleep.

use std::io;
use std::os::fd::RawFd;

/// See the module. It is kept from sleep to sleep, and with it its memory.
#[derive(Debug, Default)]
pub struct Polled {
    fds: Vec<libc::pollfd>,
}

impl Polled {
    pub fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds one, and says its index.
    pub fn add(&mut self, fd: RawFd) -> usize {
        self.fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        self.fds.len() - 1
    }

    /// Sleeps until one is readable or the time is over. A signal ends it early, and none is readable then.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait(&mut self, timeout_ms: Option<i32>) -> io::Result<()> {
        let count = self.fds.len() as libc::nfds_t;
        // SAFETY: the pointer and the length describe `fds`, which outlives the call.
        let n = unsafe { libc::poll(self.fds.as_mut_ptr(), count, timeout_ms.unwrap_or(-1)) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the descriptor that was added as that one is readable, or has failed.
    pub fn is_ready(&self, index: usize) -> bool {
        self.fds[index].revents != 0
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_says_which() {
        let (a, b) = UnixStream::pair().unwrap();
        let (c, _d) = UnixStream::pair().unwrap();
        drop(b);
        let mut polled = Polled::default();
        for _ in 0..2 {
            polled.clear();
            assert_eq!((polled.add(c.as_raw_fd()), polled.add(a.as_raw_fd())), (0, 1));
            polled.wait(Some(60_000)).unwrap();
            assert!(!polled.is_ready(0) && polled.is_ready(1));
        }
    }
}
