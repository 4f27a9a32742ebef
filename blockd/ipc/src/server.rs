//! The server's half: no threads, no runtime, nothing blocks. A reactor owns it and polls.
//!
//! ```text
//! Listener::accept ─> Greeting::poll ─> Request ─ accept(volume, geometry) ─> ServerQueue
//!                                              └ refuse(kind)
//! ServerQueue::poll ─> Sqe ... the device ... ─> ServerQueue::complete(Cqe)
//! ```
//! What a client writes is checked before a reactor sees it: an entry that makes no sense is
//! completed with `Invalid` here, impossible indexes end the queue.
//!
//! A client that reconnects brings the same arena. Refuse it with `Busy` (it tries again) while a
//! former queue of its volume has operations in flight: they could still write into its buffers.

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use hugepages::{Arena, fds};

use crate::error::{Error, Kind};
use crate::event::Event;
use crate::handshake::{self, FDS, Grant, HELLO_BYTES, Wish};
use crate::layout::{Cqe, Opcode, QUEUE_BYTES, Sqe};
use crate::ring::{self, CqProducer, SqConsumer};
use crate::volume::Geometry;

/// A Unix socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
}

impl Listener {
    /// Listens at the path, replacing a socket that a dead server left there. Only the server's own
    /// user may connect: who can connect can read and write volumes.
    ///
    /// # Errors
    /// `Busy` when another server listens there, `Invalid` when the path is something else than a
    /// socket, and those of bind(2).
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let context = format!("{} is there and is no socket", path.display());
                return Err(Error::new(Kind::Invalid, context));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                let context = format!("another blockd listens at {}", path.display());
                return Err(Error::new(Kind::Busy, context));
            }
            Ok(_) => std::fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        Ok(Listener { socket })
    }

    /// The next client, if one waits.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> Result<Option<Greeting>, Error> {
        match self.socket.accept() {
            Ok((socket, _)) => Greeting::new(socket).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Readable when a client waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A client whose hello has not arrived whole. Drop it after a time of your choice.
#[derive(Debug)]
pub struct Greeting {
    socket: UnixStream,
    hello: [u8; HELLO_BYTES],
    received: usize,
}

impl Greeting {
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(socket: UnixStream) -> Result<Greeting, Error> {
        socket.set_nonblocking(true)?;
        Ok(Greeting { socket, hello: [0; HELLO_BYTES], received: 0 })
    }

    /// Readable when more of the hello is there.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads on; the request once everything is there, `None` while it is not.
    ///
    /// # Errors
    /// `Invalid` or `Disconnected`: drop the greeting.
    pub fn poll(&mut self) -> Result<Option<Request>, Error> {
        while self.received < HELLO_BYTES {
            match self.socket.read(&mut self.hello[self.received..]) {
                Ok(0) => return Err(Error::new(Kind::Disconnected, "hello of a client")),
                Ok(bytes) => self.received += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let wish = Wish::decode(self.hello)?;
        let fds = match fds::receive(&self.socket, FDS) {
            Ok(fds) => fds,
            Err(hugepages::Error::System { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let [arena, sq_event, cq_event]: [OwnedFd; FDS] =
            fds.try_into().expect("receive gives exactly as many as asked for");
        if wish.arena_bytes <= QUEUE_BYTES {
            return Err(Error::new(Kind::Invalid, "hello of a client: arena without buffers"));
        }
        let arena = Arc::new(Arena::from_fd(arena, wish.arena_bytes)?);
        ring::check_format(&arena, wish.depth)?;
        let (sq_event, cq_event) = (Event::from_fd(sq_event)?, Event::from_fd(cq_event)?);
        let socket = self.socket.try_clone()?;
        Ok(Some(Request { socket, wish, arena, sq_event, cq_event }))
    }
}

/// A client that asks for a volume.
#[derive(Debug)]
pub struct Request {
    socket: UnixStream,
    wish: Wish,
    arena: Arc<Arena>,
    sq_event: Event,
    cq_event: Event,
}

impl Request {
    /// Name of the volume that it wants.
    pub fn volume(&self) -> &str {
        &self.wish.volume
    }

    /// Entries of its queues.
    pub fn depth(&self) -> u32 {
        self.wish.depth
    }

    /// The client's memory, to register with an engine before accepting.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Grants the volume under a number that submissions will carry.
    ///
    /// # Errors
    /// `Disconnected` when the client is gone.
    pub fn accept(mut self, volume: u64, geometry: Geometry) -> Result<ServerQueue, Error> {
        let (submissions, completions) = ring::server(&self.arena, self.wish.depth);
        self.socket.write_all(&handshake::encode_answer(Ok(Grant { volume, geometry })))?;
        Ok(ServerQueue {
            socket: self.socket,
            arena: self.arena,
            sq_event: self.sq_event,
            cq_event: self.cq_event,
            submissions,
            completions,
            depth: self.wish.depth,
            in_flight: 0,
            volume,
            geometry,
        })
    }

    /// Tells the client why not. It may already be gone, which is as well.
    pub fn refuse(mut self, kind: Kind) {
        let _ = self.socket.write_all(&handshake::encode_answer(Err(kind)));
    }
}

/// The queue pair of one client. Dropping it hangs up.
#[derive(Debug)]
pub struct ServerQueue {
    socket: UnixStream,
    arena: Arc<Arena>,
    sq_event: Event,
    cq_event: Event,
    submissions: SqConsumer,
    completions: CqProducer,
    depth: u32,
    /// Taken and not completed.
    in_flight: u32,
    volume: u64,
    geometry: Geometry,
}

impl ServerQueue {
    /// The next submission, checked: its volume is the granted one, its range lies in the volume, its
    /// buffer lies in the arena behind the queues, is aligned to the block size and is no longer than
    /// a transfer may be. Takes at most as many as the completion queue has room for.
    ///
    /// # Errors
    /// `Invalid`: the client broke the queue; drop it once nothing is in flight.
    pub fn poll(&mut self) -> Result<Option<Sqe>, Error> {
        while self.in_flight + self.completions.used()? < self.depth {
            let Some(words) = self.submissions.pop()? else { return Ok(None) };
            self.in_flight += 1;
            match Sqe::decode(words).and_then(|sqe| self.check(&sqe).map(|()| sqe)) {
                Ok(sqe) => return Ok(Some(sqe)),
                Err(error) => {
                    tracing::debug!(%error, "submission refused");
                    self.complete(Cqe::of(Sqe::cookie_of(&words), Err(error.kind())))?;
                }
            }
        }
        Ok(None)
    }

    fn check(&self, sqe: &Sqe) -> Result<(), Error> {
        let invalid = |what: &str| Err(Error::new(Kind::Invalid, format!("submission: {what}")));
        if sqe.volume != self.volume {
            return invalid("foreign volume");
        }
        match sqe.opcode {
            Opcode::Flush => return Ok(()),
            Opcode::Deallocate | Opcode::WriteZeroes => {
                return self.geometry.check("submission", sqe.lba, sqe.blocks);
            }
            Opcode::Read | Opcode::Write => {}
        }
        self.geometry.check("submission", sqe.lba, sqe.blocks)?;
        let block_size = u64::from(self.geometry.block_size);
        let Some(bytes) = sqe.blocks.checked_mul(block_size) else { return invalid("length") };
        if bytes == 0 || bytes > u64::from(self.geometry.transfer_bytes_max) {
            return invalid("length");
        }
        let end = sqe.buffer_offset.checked_add(bytes);
        let inside = sqe.buffer_offset >= QUEUE_BYTES as u64
            && end.is_some_and(|end| end <= self.arena.bytes() as u64);
        if !inside || !sqe.buffer_offset.is_multiple_of(block_size) {
            return invalid("buffer");
        }
        Ok(())
    }

    /// Answers a submission that [`ServerQueue::poll`] gave, and wakes a sleeping client.
    ///
    /// # Errors
    /// `Invalid` when the client broke the queue.
    pub fn complete(&mut self, cqe: Cqe) -> Result<(), Error> {
        assert!(self.in_flight > 0, "a completion without a submission");
        self.in_flight -= 1;
        if !self.completions.push(cqe.encode())? {
            // Only a client that moved its index back can have made the room disappear.
            return Err(Error::new(Kind::Invalid, "completion queue overrun"));
        }
        if self.completions.must_announce() {
            self.cq_event.signal();
        }
        Ok(())
    }

    /// Submissions taken and not completed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The memory that buffer offsets point into.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The number under which the volume was granted.
    pub fn volume(&self) -> u64 {
        self.volume
    }

    /// Asks the client to announce its next submission on [`ServerQueue::event_fd`]. False when one
    /// is there already: then poll, do not sleep.
    pub fn prepare_sleep(&self) -> bool {
        self.submissions.prepare_sleep()
    }

    /// After sleeping: takes back the request, or empties the eventfd if it was met.
    pub fn wake(&self) {
        if self.submissions.wake() {
            self.sq_event.drain();
        }
    }

    /// Readable when a submission was announced.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.sq_event.fd()
    }

    /// Readable when the client hung up.
    pub fn socket_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the client hung up: tear the queue down once nothing is in flight.
    pub fn is_gone(&self) -> bool {
        // A client says nothing after its hello; bytes are a hang-up too.
        let read = (&self.socket).read(&mut [0]);
        !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock
            || error.kind() == io::ErrorKind::Interrupted)
    }
}
