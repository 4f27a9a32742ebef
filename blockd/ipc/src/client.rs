//! [`RemoteVolume`]: a volume of blockd.
//!
//! ```text
//! caller ── slot ── table[slot] = {SQE, buffer, waker} ── SQE ──> ring ── eventfd if blockd sleeps
//! completion thread: CQE ── table[slot] ── buffer back to the caller
//!                    nothing to do: spin, then sleep on the eventfd and the socket
//!                    socket hung up: connect again, same arena, submit the whole table again
//! ```
//! The table owns the buffer until the completion, whatever becomes of the caller's future. All
//! operations are idempotent, so what is in the table can be submitted again. Completions carry the
//! slot and its generation: a late one of a former connection finds nobody.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hugepages::{Arena, BUFFER_BYTES_MAX, Buffer, HUGE_PAGE_BYTES, Pages, Pool, fds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Kind};
use crate::event::Event;
use crate::handshake::{ANSWER_BYTES, Grant, Wish, decode_answer};
use crate::layout::{Cqe, Opcode, QUEUE_BYTES, Sqe};
use crate::patience::Patience;
use crate::ring::{self, CqConsumer, SqProducer};
use crate::volume::{Geometry, Volume};

/// How to reach a volume.
#[derive(Clone, Debug)]
pub struct Config {
    /// blockd's IPC socket.
    pub socket: PathBuf,
    /// Name of the volume.
    pub volume: String,
    /// Operations in flight at most, a power of two up to [`crate::layout::DEPTH_MAX`]; more wait.
    pub depth: u32,
    /// Memory for buffers, in bytes; rounded up to 2 MiB. Callers of `buffer` wait when it is used up.
    pub buffer_bytes: usize,
    /// How long operations wait for a blockd that went away before they fail with `Disconnected`.
    pub reconnect_max: Duration,
    /// How long the completion thread looks at the ring before it sleeps, at most, while anything is in flight; see
    /// [`Patience`].
    pub spin: Duration,
}

impl Config {
    /// The defaults for a volume: depth 128, 64 MiB, 30 s, 200 µs.
    pub fn new(socket: impl Into<PathBuf>, volume: impl Into<String>) -> Config {
        Config {
            socket: socket.into(),
            volume: volume.into(),
            depth: 128,
            buffer_bytes: 64 << 20,
            reconnect_max: Duration::from_secs(30),
            spin: Duration::from_micros(200),
        }
    }
}

/// A pause between attempts to reach a blockd that is away.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long blockd may take for its answer to a hello.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The completion thread looks at its volume at least this often, in nanoseconds: 1 s.
const SLEEP_NS_MAX: i64 = 1_000_000_000;

/// A volume of blockd over shared memory. Dropping it hangs up; operations in flight then fail with
/// `Disconnected`.
#[derive(Debug)]
pub struct RemoteVolume {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    grant: Grant,
    arena: Arc<Arena>,
    pool: Arc<Pool>,
    /// Wakes all who wait for memory when a buffer came back: what is too little for one is enough
    /// for another.
    freed: Arc<Notify>,
    sq_event: Event,
    cq_event: Event,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    link: Link,
    submissions: SqProducer,
    table: Vec<Slot>,
    free: Vec<u32>,
    in_flight: u32,
    /// blockd wrote an impossible index: the completion thread hangs up.
    broken: bool,
}

/// In the order of its life.
#[derive(Debug)]
enum Link {
    /// blockd is there.
    Up,
    /// blockd is away; operations gather in the table until it is back or the deadline passes.
    Away,
    /// Away for longer than `reconnect_max`: operations fail at once until it is back.
    Lost,
    /// The handle was dropped, or blockd came back with another volume. Final.
    Closed,
}

#[derive(Debug, Default)]
struct Slot {
    /// Counts the uses of the slot; part of the cookie.
    generation: u32,
    operation: Option<Operation>,
}

#[derive(Debug)]
struct Operation {
    sqe: Sqe,
    buffer: Option<Buffer>,
    answer: oneshot::Sender<Result<Option<Buffer>, Error>>,
    /// Room in the table, given back with the operation.
    _permit: OwnedSemaphorePermit,
}

impl RemoteVolume {
    /// Connects and asks for the volume; blocks for the handshake, at most a few seconds.
    ///
    /// # Errors
    /// `Disconnected` or `NotFound` when no blockd listens, blockd's refusal (`NotFound`, `Busy`),
    /// `Invalid` for a bad configuration, `Io` when there is no memory.
    pub fn connect(config: Config) -> Result<RemoteVolume, Error> {
        if !ring::depth_is_valid(config.depth) {
            let context = format!("queue depth {} is no power of two up to 4096", config.depth);
            return Err(Error::new(Kind::Invalid, context));
        }
        let buffer_bytes = config.buffer_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let arena = Arc::new(Arena::new(QUEUE_BYTES + buffer_bytes)?);
        let freed = Arc::new(Notify::new());
        let on_free = Arc::clone(&freed);
        let pool = Pool::new(Arc::clone(&arena), QUEUE_BYTES, move || on_free.notify_waiters());
        let (sq_event, cq_event) = (Event::new()?, Event::new()?);
        ring::format(&arena, config.depth);
        let (socket, grant) = shake_hands(&config, &arena, &sq_event, &cq_event)?;
        let (submissions, completions) = ring::client(&arena, config.depth);
        let slots = Arc::new(Semaphore::new(config.depth as usize));
        let state = State {
            link: Link::Up,
            submissions,
            table: (0..config.depth).map(|_| Slot::default()).collect(),
            free: (0..config.depth).rev().collect(),
            in_flight: 0,
            broken: false,
        };
        let shared = Arc::new(Shared {
            config,
            grant,
            arena,
            pool,
            freed,
            sq_event,
            cq_event,
            state: Mutex::new(state),
        });
        let patience = Patience::new(shared.config.spin);
        let completer = Completer { shared: Arc::clone(&shared), socket, completions, patience };
        thread::Builder::new()
            .name("blockd-completions".into())
            .spawn(move || completer.run())
            .map_err(|source| Error::with_source(Kind::Io, "completion thread", source))?;
        Ok(RemoteVolume { shared, slots })
    }

    /// What the shared memory is made of, for status.
    pub fn pages(&self) -> Pages {
        self.shared.arena.pages()
    }

    /// Whether blockd is there now, for status.
    pub fn is_connected(&self) -> bool {
        matches!(self.shared.state().link, Link::Up)
    }

    /// Zeroes a range without sending zeros.
    ///
    /// # Errors
    /// As of a write.
    pub async fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), Error> {
        self.shared.grant.geometry.check("write zeroes", lba, blocks)?;
        self.submit(self.sqe(Opcode::WriteZeroes, lba, blocks, fua), None).await.map(drop)
    }

    fn sqe(&self, opcode: Opcode, lba: u64, blocks: u64, fua: bool) -> Sqe {
        let volume = self.shared.grant.volume;
        Sqe { opcode, fua, volume, lba, blocks, buffer_offset: 0, cookie: 0 }
    }

    async fn transfer(
        &self,
        opcode: Opcode,
        lba: u64,
        buffer: Buffer,
        fua: bool,
    ) -> Result<Buffer, Error> {
        let geometry = self.shared.grant.geometry;
        let block_size = geometry.block_size as usize;
        let context = || format!("{opcode:?} of {} bytes at block {lba}", buffer.len());
        let offset = buffer.arena_offset().filter(|_| buffer.is_in(&self.shared.arena));
        let Some(offset) = offset else {
            let context = context() + ": the buffer is not one of this volume's";
            return Err(Error::new(Kind::Invalid, context));
        };
        if !buffer.len().is_multiple_of(block_size)
            || buffer.len() > geometry.transfer_bytes_max as usize
        {
            return Err(Error::new(Kind::Invalid, context()));
        }
        let blocks = (buffer.len() / block_size) as u64;
        geometry.check("transfer", lba, blocks)?;
        let sqe = Sqe { buffer_offset: offset as u64, ..self.sqe(opcode, lba, blocks, fua) };
        let buffer = self.submit(sqe, Some(buffer)).await?;
        Ok(buffer.expect("an operation with a buffer gives it back"))
    }

    async fn submit(&self, sqe: Sqe, buffer: Option<Buffer>) -> Result<Option<Buffer>, Error> {
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        let operation = Operation { sqe, buffer, answer, _permit: permit };
        let (announce, broken) = {
            let mut state = self.shared.state();
            (state.submit(operation)?, state.broken)
        };
        if announce {
            self.shared.sq_event.signal();
        }
        if broken {
            self.shared.cq_event.signal();
        }
        answered
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Disconnected, "the completion thread ended")))
    }
}

impl Volume for RemoteVolume {
    fn geometry(&self) -> Geometry {
        self.shared.grant.geometry
    }

    async fn buffer(&self, len: usize) -> Result<Buffer, Error> {
        let block_size = self.geometry().block_size as usize;
        let len = len.max(1).checked_next_multiple_of(block_size).unwrap_or(usize::MAX);
        if len > BUFFER_BYTES_MAX {
            return Err(Error::new(Kind::Invalid, format!("a buffer of {len} bytes")));
        }
        loop {
            // Made before looking, so that a buffer that comes back in between is not missed.
            let freed = self.shared.freed.notified();
            if let Some(buffer) = self.shared.pool.take(len) {
                return Ok(buffer);
            }
            freed.await;
        }
    }

    async fn read(&self, lba: u64, buffer: Buffer) -> Result<Buffer, Error> {
        self.transfer(Opcode::Read, lba, buffer, false).await
    }

    async fn write(&self, lba: u64, buffer: Buffer, fua: bool) -> Result<Buffer, Error> {
        self.transfer(Opcode::Write, lba, buffer, fua).await
    }

    async fn flush(&self) -> Result<(), Error> {
        self.submit(self.sqe(Opcode::Flush, 0, 0, false), None).await.map(drop)
    }

    async fn deallocate(&self, lba: u64, blocks: u64) -> Result<(), Error> {
        self.shared.grant.geometry.check("deallocate", lba, blocks)?;
        self.submit(self.sqe(Opcode::Deallocate, lba, blocks, false), None).await.map(drop)
    }
}

impl Drop for RemoteVolume {
    fn drop(&mut self) {
        self.shared.state().link = Link::Closed;
        self.shared.cq_event.signal();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Puts an operation into the table and, when blockd is there, into the ring. Whether blockd must
    /// be woken.
    fn submit(&mut self, operation: Operation) -> Result<bool, Error> {
        match self.link {
            Link::Up | Link::Away => {}
            Link::Lost | Link::Closed => return Err(disconnected()),
        }
        let slot = self.free.pop().expect("a permit is room in the table");
        let entry = &mut self.table[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.operation = Some(operation);
        self.in_flight += 1;
        if !matches!(self.link, Link::Up) {
            return Ok(false);
        }
        self.push(slot);
        Ok(self.submissions.must_announce())
    }

    /// Puts the operation of a slot into the ring. When blockd broke the ring the operation waits in
    /// the table, and the completion thread hangs up.
    fn push(&mut self, slot: u32) {
        let entry = &self.table[slot as usize];
        let operation = entry.operation.as_ref().expect("only full slots are submitted");
        let cookie = u64::from(entry.generation) << 32 | u64::from(slot);
        let pushed = self.submissions.push(Sqe { cookie, ..operation.sqe }.encode());
        if !matches!(pushed, Ok(true)) {
            tracing::warn!(?pushed, "blockd broke the submission ring");
            self.broken = true;
        }
    }

    /// Takes the operation that a completion is for; `None` for a stale or invented cookie.
    fn take(&mut self, cookie: u64) -> Option<Operation> {
        let (slot, generation) = (cookie as u32, (cookie >> 32) as u32);
        let entry = self.table.get_mut(slot as usize)?;
        if entry.generation != generation {
            return None;
        }
        let operation = entry.operation.take()?;
        self.free.push(slot);
        self.in_flight -= 1;
        Some(operation)
    }

    fn take_all(&mut self) -> Vec<Operation> {
        let mut taken = Vec::new();
        for (slot, entry) in (0..).zip(&mut self.table) {
            if let Some(operation) = entry.operation.take() {
                self.free.push(slot);
                taken.push(operation);
            }
        }
        self.in_flight = 0;
        taken
    }
}

fn disconnected() -> Error {
    Error::new(Kind::Disconnected, "operation on a volume")
}

/// The completion thread.
struct Completer {
    shared: Arc<Shared>,
    socket: UnixStream,
    completions: CqConsumer,
    patience: Patience,
}

impl Completer {
    fn run(mut self) {
        loop {
            match self.work() {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, volume = self.shared.config.volume, "lost blockd");
                    self.reconnect();
                }
            }
            if matches!(self.shared.state().link, Link::Closed) {
                // Hanging up first: blockd stops touching the buffers that are freed next.
                let _ = self.socket.shutdown(std::net::Shutdown::Both);
                return self.fail_all();
            }
        }
    }

    /// Delivers what is there; where nothing follows, looks again for a while and then sleeps once.
    fn work(&mut self) -> Result<(), Error> {
        while self.deliver()? {
            self.patience.found();
        }
        let (busy, broken) = {
            let state = self.shared.state();
            (state.in_flight > 0, state.broken)
        };
        if broken {
            return Err(Error::new(Kind::Invalid, "submission ring"));
        }
        while busy && self.patience.look_again() {
            if self.deliver()? {
                self.patience.found();
                return Ok(());
            }
        }
        if self.completions.prepare_sleep() {
            let timeout = Timespec { tv_sec: 0, tv_nsec: SLEEP_NS_MAX - 1 };
            let mut fds = [
                PollFd::from_borrowed_fd(self.shared.cq_event.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN | PollFlags::RDHUP),
            ];
            let _ = poll(&mut fds, Some(&timeout));
            let (rung, hung_up) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            // Others ring, too: whoever breaks or closes the queue.
            self.completions.wake();
            if rung {
                self.shared.cq_event.drain();
            }
            self.patience.slept();
            if hung_up {
                // What blockd completed before it went away counts.
                while self.deliver()? {}
                return Err(Error::new(Kind::Disconnected, "socket hung up"));
            }
        }
        Ok(())
    }

    /// Delivers one completion, if there is one.
    fn deliver(&mut self) -> Result<bool, Error> {
        let Some(words) = self.completions.pop()? else { return Ok(false) };
        let cqe = Cqe::decode(words);
        let Some(operation) = self.shared.state().take(cqe.cookie) else {
            tracing::debug!(cookie = cqe.cookie, "completion of nothing");
            return Ok(true);
        };
        let Operation { sqe, buffer, answer, _permit } = operation;
        let result = if cqe.status == 0 {
            Ok(buffer)
        } else {
            let context = format!("{:?} of {} blocks at {}", sqe.opcode, sqe.blocks, sqe.lba);
            Err(Error::new(Kind::from_status(cqe.status), context))
        };
        // Nobody waits for it any more: then the buffer is freed here.
        let _ = answer.send(result);
        Ok(true)
    }

    /// Until blockd is back with the same volume, or the handle is dropped.
    fn reconnect(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let since = Instant::now();
        {
            let mut state = self.shared.state();
            match state.link {
                Link::Closed => return,
                Link::Up | Link::Away | Link::Lost => state.link = Link::Away,
            }
        }
        loop {
            if matches!(self.shared.state().link, Link::Closed) {
                return;
            }
            match self.connect_again() {
                Ok(()) => return,
                Err(error) if error.kind() == Kind::Invalid => {
                    tracing::error!(%error, "blockd came back with something else");
                    self.shared.state().link = Link::Closed;
                    return;
                }
                Err(error) => tracing::debug!(%error, "blockd is still away"),
            }
            let lost = {
                let mut state = self.shared.state();
                let lost = since.elapsed() >= self.shared.config.reconnect_max
                    && matches!(state.link, Link::Away);
                if lost {
                    state.link = Link::Lost;
                }
                lost
            };
            if lost {
                self.fail_all();
            }
            thread::sleep(RETRY_PAUSE);
        }
    }

    fn connect_again(&mut self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let Shared { config, arena, sq_event, cq_event, .. } = &*shared;
        // While the link is not up nobody else touches the rings.
        ring::format(arena, config.depth);
        let (socket, grant) = shake_hands(config, arena, sq_event, cq_event)?;
        if grant.geometry != shared.grant.geometry || grant.volume != shared.grant.volume {
            let context = format!("volume {:?} has changed: {grant:?}", config.volume);
            return Err(Error::new(Kind::Invalid, context));
        }
        self.socket = socket;
        let mut state = shared.state();
        (state.submissions, self.completions) = ring::client(arena, config.depth);
        state.broken = false;
        match state.link {
            Link::Closed => return Ok(()),
            Link::Up | Link::Away | Link::Lost => state.link = Link::Up,
        }
        let full = |(slot, entry): (u32, &Slot)| entry.operation.is_some().then_some(slot);
        let again: Vec<u32> = (0..).zip(&state.table).filter_map(full).collect();
        tracing::info!(volume = config.volume, operations = again.len(), "blockd is back");
        for slot in again {
            state.push(slot);
        }
        if state.submissions.must_announce() {
            sq_event.signal();
        }
        Ok(())
    }

    fn fail_all(&self) {
        let operations = self.shared.state().take_all();
        for Operation { answer, buffer, .. } in operations {
            drop(buffer);
            let _ = answer.send(Err(disconnected()));
        }
    }
}

pub(crate) fn shake_hands(
    config: &Config,
    arena: &Arena,
    sq_event: &Event,
    cq_event: &Event,
) -> Result<(UnixStream, Grant), Error> {
    let wish =
        Wish { volume: config.volume.clone(), depth: config.depth, arena_bytes: arena.bytes() };
    let hello = wish.encode()?;
    let mut socket = UnixStream::connect(&config.socket).map_err(|source| {
        let context = format!("connecting to blockd at {}", config.socket.display());
        Error::with_source(Kind::Disconnected, context, source)
    })?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    socket.set_write_timeout(Some(ANSWER_MAX))?;
    socket.write_all(&hello)?;
    fds::send(&socket, &[arena.fd(), sq_event.fd(), cq_event.fd()])?;
    let mut answer = [0; ANSWER_BYTES];
    socket.read_exact(&mut answer)?;
    Ok((socket, decode_answer(answer)?))
}
