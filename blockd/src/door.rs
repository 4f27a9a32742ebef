//! The data door: clients' hellos on the ipc socket, and [`Client`] over their shared memory.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockd_ipc::{Cqe, Geometry, Greeting, Kind, Listener, Opcode, ServerQueue};

use crate::daemon::{Daemon, clear_socket};
use crate::engine::{BLOCK_BYTES, Memory, wait_readable};
use crate::error::{Error, Result};
use crate::reactor::{Ask, Client, Request, Share};

/// A client that has not said its hello by then is dropped.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Clients whose hello is awaited; further ones wait in the socket's backlog.
const GREETINGS_MAX: usize = 64;
/// Longest read or write.
const TRANSFER_BYTES_MAX: u32 = 4 << 20;

/// Listens on the ipc socket, for this user only.
pub fn bind(path: &Path) -> Result<Listener> {
    clear_socket(path)?;
    let failed = |doing: &str, e: &dyn std::fmt::Display| {
        Error::Config(format!("{doing} {}: {e}", path.display()))
    };
    let listener = Listener::bind(path).map_err(|e| failed("binding", &e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| failed("protecting", &e))?;
    Ok(listener)
}

/// Serves hellos until the process ends.
pub fn serve(listener: &Listener, daemon: &Arc<Daemon>) {
    let mut greetings: Vec<(Greeting, Instant)> = Vec::new();
    loop {
        let mut fds: Vec<RawFd> = greetings.iter().map(|(g, _)| g.fd().as_raw_fd()).collect();
        if greetings.len() < GREETINGS_MAX {
            fds.push(listener.fd().as_raw_fd());
        }
        // A timeout only while a hello may be late.
        let timeout_ms = (!greetings.is_empty()).then_some(1000);
        if let Err(error) = wait_readable(&fds, timeout_ms) {
            tracing::error!(%error, "waiting for clients failed");
            std::thread::sleep(Duration::from_millis(100));
        }
        while greetings.len() < GREETINGS_MAX {
            match listener.accept() {
                Ok(Some(greeting)) => greetings.push((greeting, Instant::now())),
                Ok(None) => break,
                Err(error) => {
                    // Out of descriptors, most likely; they come back when a client ends.
                    tracing::error!(%error, "accepting a client failed");
                    std::thread::sleep(Duration::from_millis(100));
                    break;
                }
            }
        }
        greetings.retain_mut(|(greeting, since)| match greeting.poll() {
            Ok(Some(request)) => {
                admit(request, daemon);
                false
            }
            Ok(None) => since.elapsed() < HELLO_TIME,
            Err(error) => {
                tracing::debug!(%error, "a client's hello was refused");
                false
            }
        });
    }
}

fn admit(request: blockd_ipc::Request, daemon: &Daemon) {
    let share = match daemon.connect(request.volume()) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "a client was refused");
            request.refuse(Kind::NotFound);
            return;
        }
    };
    let volume = &share.volume;
    if volume.is_poisoned() {
        request.refuse(Kind::Poisoned);
        return;
    }
    let geometry = Geometry {
        block_size: BLOCK_BYTES as u32,
        blocks: volume.bytes / BLOCK_BYTES,
        transfer_bytes_max: TRANSFER_BYTES_MAX,
    };
    let number = (share.pool as u64) << 32 | u64::from(volume.id);
    match request.accept(number, geometry) {
        Ok(queue) => {
            tracing::debug!(volume = volume.name, "a client connected");
            daemon.serve(Box::new(Shared { queue, share, broken: false }));
        }
        Err(error) => tracing::debug!(%error, "a client went away during its hello"),
    }
}

/// A client over shared memory.
struct Shared {
    queue: ServerQueue,
    share: Arc<Share>,
    /// It broke its queue, or has hung up.
    broken: bool,
}

impl Client for Shared {
    fn next(&mut self) -> Option<Request> {
        if self.broken {
            return None;
        }
        let sqe = match self.queue.poll() {
            Ok(sqe) => sqe?,
            Err(error) => {
                tracing::warn!(%error, "a client broke its queue");
                self.broken = true;
                return None;
            }
        };
        let (offset, len) = (sqe.lba * BLOCK_BYTES, sqe.blocks * BLOCK_BYTES);
        let memory = || {
            Memory::of_arena(self.queue.arena(), sqe.buffer_offset, len)
                .expect("the queue has checked the buffer against the arena")
        };
        let ask = match sqe.opcode {
            Opcode::Read => Ask::Read { offset, memory: memory() },
            Opcode::Write => Ask::Write { offset, memory: memory(), fua: sqe.fua },
            Opcode::Flush => Ask::Flush,
            Opcode::Deallocate => Ask::Deallocate { offset, len },
            Opcode::WriteZeroes => Ask::WriteZeroes { offset, len, fua: sqe.fua },
        };
        Some(Request { tag: sqe.cookie, share: Arc::clone(&self.share), ask })
    }

    fn complete(&mut self, tag: u64, errno: i32) {
        let result = match errno {
            0 => Ok(()),
            libc::ENOSPC => Err(Kind::NoSpace),
            libc::EINVAL => Err(Kind::Invalid),
            libc::ESHUTDOWN => Err(Kind::Poisoned),
            _ => Err(Kind::Io),
        };
        if let Err(error) = self.queue.complete(Cqe::of(tag, result)) {
            tracing::warn!(%error, "a client broke its queue");
            self.broken = true;
        }
    }

    fn wait_fds(&self) -> [RawFd; 2] {
        [self.queue.event_fd().as_raw_fd(), self.queue.socket_fd().as_raw_fd()]
    }

    fn arm(&mut self) -> bool {
        self.queue.prepare_sleep()
    }

    fn disarm(&mut self, ready: [bool; 2]) {
        self.queue.wake();
        self.broken |= ready[1] && self.queue.is_gone();
    }

    fn is_gone(&mut self, look: bool) -> bool {
        self.broken || look && self.queue.is_gone()
    }

    fn is_looking(&self) -> bool {
        true
    }
}
