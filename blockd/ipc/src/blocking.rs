//! [`BlockingQueue`]: the client's half without a runtime, a thread or a lock, for benchmarks and
//! tools: one owner submits and polls. It does not reconnect.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hugepages::{Arena, Buffer, HUGE_PAGE_BYTES, Pool};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::{Config, shake_hands};
use crate::error::{Error, Kind};
use crate::event::Event;
use crate::handshake::Grant;
use crate::layout::{Cqe, Opcode, QUEUE_BYTES, Sqe};
use crate::ring::{self, CqConsumer, SqProducer};
use crate::volume::Geometry;

/// A queue pair with up to `depth` operations in flight.
///
/// Dropping it with operations in flight hangs up; their memory stays mapped in blockd until blockd
/// is done with it.
#[derive(Debug)]
pub struct BlockingQueue {
    grant: Grant,
    arena: Arc<Arena>,
    pool: Arc<Pool>,
    socket: UnixStream,
    sq_event: Event,
    cq_event: Event,
    submissions: SqProducer,
    completions: CqConsumer,
    /// By slot; the slot is the cookie.
    table: Vec<Option<Option<Buffer>>>,
    free: Vec<u32>,
}

/// A completed operation.
#[derive(Debug)]
pub struct Completed {
    /// As [`BlockingQueue::submit`] answered.
    pub slot: u32,
    /// The buffer that was submitted, also of an operation that failed.
    pub buffer: Option<Buffer>,
    pub result: Result<(), Error>,
}

impl BlockingQueue {
    /// # Errors
    /// As [`crate::RemoteVolume::connect`].
    pub fn connect(config: &Config) -> Result<BlockingQueue, Error> {
        if !ring::depth_is_valid(config.depth) {
            return Err(Error::new(Kind::Invalid, format!("queue depth {}", config.depth)));
        }
        let buffer_bytes = config.buffer_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let arena = Arc::new(Arena::new(QUEUE_BYTES + buffer_bytes)?);
        let pool = Pool::new(Arc::clone(&arena), QUEUE_BYTES, || {});
        let (sq_event, cq_event) = (Event::new()?, Event::new()?);
        ring::format(&arena, config.depth);
        let (socket, grant) = shake_hands(config, &arena, &sq_event, &cq_event)?;
        let (submissions, completions) = ring::client(&arena, config.depth);
        Ok(BlockingQueue {
            grant,
            arena,
            pool,
            socket,
            sq_event,
            cq_event,
            submissions,
            completions,
            table: (0..config.depth).map(|_| None).collect(),
            free: (0..config.depth).rev().collect(),
        })
    }

    pub fn geometry(&self) -> Geometry {
        self.grant.geometry
    }

    /// A buffer of exactly `len` bytes, 1 to 2 MiB, or `None` while memory is used up.
    pub fn buffer(&self, len: usize) -> Option<Buffer> {
        self.pool.take(len)
    }

    /// Operations that can be submitted now.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Submits a read or a write of the buffer's length. Gives the slot of the operation.
    ///
    /// # Errors
    /// `Busy` when the queue is full, `Invalid` for a foreign buffer or a bad length, `OutOfRange`.
    pub fn submit(
        &mut self,
        opcode: Opcode,
        lba: u64,
        buffer: Buffer,
        fua: bool,
    ) -> Result<u32, Error> {
        assert!(matches!(opcode, Opcode::Read | Opcode::Write), "{opcode:?} has no buffer");
        let Geometry { block_size, transfer_bytes_max, .. } = self.grant.geometry;
        let offset = buffer.arena_offset().filter(|_| buffer.is_in(&self.arena));
        let fits = buffer.len().is_multiple_of(block_size as usize)
            && buffer.len() <= transfer_bytes_max as usize;
        let (Some(offset), true) = (offset, fits) else {
            let context = format!("{opcode:?} of {} bytes at block {lba}", buffer.len());
            return Err(Error::new(Kind::Invalid, context));
        };
        let blocks = (buffer.len() / block_size as usize) as u64;
        self.grant.geometry.check("transfer", lba, blocks)?;
        let buffer_offset = offset as u64;
        let volume = self.grant.volume;
        let sqe = Sqe { opcode, fua, volume, lba, blocks, buffer_offset, cookie: 0 };
        self.push(sqe, Some(buffer))
    }

    /// Submits a flush. Gives the slot of the operation.
    ///
    /// # Errors
    /// `Busy` when the queue is full.
    pub fn submit_flush(&mut self) -> Result<u32, Error> {
        let (opcode, volume) = (Opcode::Flush, self.grant.volume);
        let sqe =
            Sqe { opcode, fua: false, volume, lba: 0, blocks: 0, buffer_offset: 0, cookie: 0 };
        self.push(sqe, None)
    }

    fn push(&mut self, sqe: Sqe, buffer: Option<Buffer>) -> Result<u32, Error> {
        let Some(&slot) = self.free.last() else {
            return Err(Error::new(Kind::Busy, "submission to a full queue"));
        };
        if !self.submissions.push(Sqe { cookie: u64::from(slot), ..sqe }.encode())? {
            return Err(Error::new(Kind::Busy, "submission to a full ring"));
        }
        self.free.pop();
        self.table[slot as usize] = Some(buffer);
        if self.submissions.must_announce() {
            self.sq_event.signal();
        }
        Ok(slot)
    }

    /// The next completed operation, if there is one: for a caller that spins.
    ///
    /// # Errors
    /// `Invalid` when blockd broke the queue.
    pub fn poll(&mut self) -> Result<Option<Completed>, Error> {
        let Some(words) = self.completions.pop()? else { return Ok(None) };
        let Cqe { cookie, status, .. } = Cqe::decode(words);
        let entry = usize::try_from(cookie).ok().and_then(|slot| self.table.get_mut(slot));
        let Some(buffer) = entry.and_then(Option::take) else {
            return Err(Error::new(Kind::Invalid, "completion of nothing"));
        };
        let slot = cookie as u32;
        self.free.push(slot);
        let failed = |status| Err(Error::new(Kind::from_status(status), "operation on a volume"));
        let result = if status == 0 { Ok(()) } else { failed(status) };
        Ok(Some(Completed { slot, buffer, result }))
    }

    /// Sleeps until there may be something to poll, at most for `timeout_max`.
    ///
    /// # Errors
    /// `Timeout`, `Disconnected` when blockd hung up.
    pub fn sleep(&mut self, timeout_max: Duration) -> Result<(), Error> {
        if !self.completions.prepare_sleep() {
            return Ok(());
        }
        let timeout = Timespec::try_from(timeout_max)
            .map_err(|_| Error::new(Kind::Invalid, "a wait of centuries"))?;
        let mut fds = [
            PollFd::from_borrowed_fd(self.cq_event.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN | PollFlags::RDHUP),
        ];
        let woken = poll(&mut fds, Some(&timeout));
        let (rung, hung_up) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        self.completions.wake();
        if rung {
            self.cq_event.drain();
        }
        match woken {
            Ok(0) => Err(Error::new(Kind::Timeout, "waiting for a completion")),
            Ok(_) if hung_up && !rung => {
                Err(Error::new(Kind::Disconnected, "waiting for a completion"))
            }
            // A signal: there may be nothing.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Sleeps until an operation is completed, at most for `timeout_max` at a time, then polls.
    ///
    /// # Errors
    /// `Timeout`, `Disconnected` when blockd hung up, `Invalid` when it broke the queue.
    pub fn wait(&mut self, timeout_max: Duration) -> Result<Completed, Error> {
        loop {
            if let Some(completed) = self.poll()? {
                return Ok(completed);
            }
            if let Err(error) = self.sleep(timeout_max) {
                // What blockd did before it went is done.
                return self.poll()?.ok_or(error);
            }
        }
    }
}
