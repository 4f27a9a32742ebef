//! A reactor: one thread that serves its share of the clients.
//!
//! ```text
//! loop:  clients' requests ─► parts, one an extent ─► engine queues
//!        parts without an extent ─► the pool's mapper ─► inbox ─► engine queues
//!        engine completions ─► the request's last part ─► client, who tells its host at the end of the round
//!        nothing for a while: sleep in poll(2) on clients, rings and the inbox
//! ```
//!
//! How long the while is, the reactor learns from how soon there has lately been work: [`Patience`], at most `idle_us`. With hosts
//! behind sockets alone it may be nothing at all ([`Lull`]).
//!
//! Nothing here waits: not for a device, not for a pool's metadata. A range that is zeroed or given back may be the whole
//! volume; it is gone through in steps ([`Rest`]), each as short as that of others.
//!
//! A request keeps its extents pinned and its memory alive until its last part ends, whether or not its client is
//! still there. A volume counts its users until the last request of each has ended.

mod later;
mod lull;
mod slab;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockd_ipc::Patience;
use rustix::event::{EventfdFlags, eventfd};

use crate::engine::{Action, Completion, LOOK_MS, Memory, Op, Polled, Queue};
use crate::pool::format::EXTENT_BYTES;
use crate::pool::{Job, Mapper, Pool, Want};
use crate::volume::Volume;
use later::{Parked, Rest, RestKind, Then};
use lull::Lull;
use slab::Slab;

/// Requests taken from one client before the next has its turn.
const BURST: usize = 32;

/// Poll ignores it.
const NO_FD: RawFd = -1;

/// A reactor that never sleeps looks this often for clients that are gone.
const BURY_ROUNDS: u32 = 1 << 16;

/// What a client asks for. Offsets and lengths are bytes in its volume; memory has the length.
#[derive(Debug)]
pub enum Ask {
    Read { offset: u64, memory: Memory },
    Write { offset: u64, memory: Memory, fua: bool },
    Flush,
    Deallocate { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, fua: bool },
}

/// A use of a volume: it counts as one of the volume's users until it is dropped, so that nobody can delete or resize
/// what is still read or written. Clients and requests share it.
#[derive(Debug)]
pub struct Share {
    /// Index of the pool in the daemon's list.
    pub pool: usize,
    pub volume: Arc<Volume>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.volume.leave();
    }
}

/// One request; `tag` goes back with the answer.
#[derive(Debug)]
pub struct Request {
    pub tag: u64,
    pub share: Arc<Share>,
    pub ask: Ask,
}

/// The server's end of a client's queue. The seam between the reactor and the doors: shared memory and NVMe/TCP.
pub trait Client: Send {
    /// The next request. Malformed ones are answered inside and not seen here.
    fn next(&mut self) -> Option<Request>;
    /// Answers a request, waking its client if it sleeps, with 0 or an errno; `ESHUTDOWN` is a poisoned volume.
    fn complete(&mut self, tag: u64, errno: i32);
    /// The round ends: what is to be said goes out, all of it together. For who has not said it in `complete`.
    fn flush(&mut self) {}
    /// Becomes readable when there is a request and `arm` was called, or when the client is gone.
    fn wait_fds(&self) -> [RawFd; 2];
    /// Asks to be woken; `false` if there is a request already.
    fn arm(&mut self) -> bool;
    /// No longer asleep; which of `wait_fds` may be readable.
    fn disarm(&mut self, ready: [bool; 2]);
    /// The client is gone. With `look` by a look at its socket as well, which is a call; without, a hang-up is noticed when its
    /// descriptor ends a sleep.
    fn is_gone(&mut self, look: bool) -> bool;
    /// It looks for our answers as we look for its requests: a sleep here makes it sleep there.
    fn is_looking(&self) -> bool {
        false
    }
}

/// Counters of one reactor.
#[derive(Debug, Default)]
pub struct Stats {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub write_bytes: AtomicU64,
    pub flushes: AtomicU64,
    pub deallocates: AtomicU64,
    pub errors: AtomicU64,
    pub sleeps: AtomicU64,
    pub clients: AtomicU64,
}

/// What others send to a reactor.
enum Inbound {
    Client(Box<dyn Client>),
    /// A change of a map has ended, with 0 or an errno.
    Mapped {
        parked: usize,
        errno: i32,
    },
}

/// A running reactor. Dropping it does not stop it.
pub struct Handle {
    inbox: Sender<Inbound>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    pub stats: Arc<Stats>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Handle {
    /// Gives the reactor a client.
    pub fn admit(&self, client: Box<dyn Client>) {
        // A reactor ends only when it is told to stop; its clients are gone then anyway.
        let _ = self.inbox.send(Inbound::Client(client));
        self.wake();
    }

    fn wake(&self) {
        signal(&self.wake);
    }

    /// Ends it after what is in flight.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("a reactor panicked");
        }
    }
}

/// Ends a sleep. Fails only when the counter is full, and then it is readable.
fn signal(wake: &OwnedFd) {
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

/// Starts a reactor with its own queue on each pool's device; the mappers are those of the pools.
pub fn start(
    core: usize,
    pools: &[Arc<Pool>],
    mappers: &[Mapper],
    idle: Duration,
) -> io::Result<Handle> {
    assert_eq!(pools.len(), mappers.len(), "one for each pool");
    let mut queues = Vec::with_capacity(pools.len());
    for pool in pools {
        queues.push(pool.device().queue()?);
    }
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (inbox, arrivals) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let stats = Arc::new(Stats::default());
    let reactor = Reactor {
        inbox: inbox.clone(),
        arrivals,
        wake: Arc::clone(&wake),
        stop: Arc::clone(&stop),
        stats: Arc::clone(&stats),
        patience: Patience::new(idle),
        lull: Lull::new(idle),
        pools: pools.to_vec(),
        mappers: mappers.iter().map(Mapper::jobs).collect(),
        queues,
        sessions: Vec::new(),
        requests: Slab::default(),
        parts: Slab::default(),
        parked: Slab::default(),
        unfinished: VecDeque::new(),
        done: Vec::new(),
        polled: Polled::default(),
    };
    let thread =
        std::thread::Builder::new().name(format!("reactor-{core}")).spawn(move || reactor.run())?;
    Ok(Handle { inbox, wake, stop, stats, thread: Some(thread) })
}

/// CPU time of each reactor of a blockd process by its core, as the kernel accounts it to the thread. Empty where
/// procfs does not say.
#[must_use]
pub fn cpu_times(pid: u32) -> BTreeMap<usize, Duration> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let time = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let core = name.trim().strip_prefix("reactor-")?.parse().ok()?;
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let ran_ns = text.split_whitespace().next()?.parse().ok()?;
        Some((core, Duration::from_nanos(ran_ns)))
    };
    tasks.filter_map(time).collect()
}

struct Session {
    client: Box<dyn Client>,
    pending: usize,
    gone: bool,
}

struct Pending {
    session: usize,
    share: Arc<Share>,
    tag: u64,
    parts: usize,
    errno: i32,
    is_flush: bool,
    // The engine zeroes without FUA: a flush follows before the answer.
    then_flush: bool,
    rest: Option<Rest>,
}

struct Part {
    request: usize,
    pinned: Option<u64>,
}

struct Reactor {
    inbox: Sender<Inbound>,
    arrivals: Receiver<Inbound>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    stats: Arc<Stats>,
    patience: Patience,
    lull: Lull,
    pools: Vec<Arc<Pool>>,
    mappers: Vec<Sender<Job>>,
    queues: Vec<Box<dyn Queue>>,
    sessions: Vec<Option<Session>>,
    requests: Slab<Pending>,
    parts: Slab<Part>,
    parked: Slab<Parked>,
    // Requests with a rest that goes on now.
    unfinished: VecDeque<usize>,
    done: Vec<Completion>,
    polled: Polled,
}

impl Reactor {
    fn run(mut self) {
        let mut rounds = 0_u32;
        loop {
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(BURY_ROUNDS) {
                self.bury(true);
            }
            let stopping = self.stop.load(Ordering::Acquire);
            let mut worked = self.complete();
            worked |= self.arrive(stopping);
            if stopping && self.requests.used == 0 {
                break;
            }
            let mut began = !stopping && self.take_requests();
            began |= self.go_on();
            if began {
                // Some engines are done at once.
                self.complete();
            }
            for session in self.sessions.iter_mut().flatten() {
                session.client.flush();
            }
            if worked || began {
                self.patience.found();
                if !self.sleeps_at_once() {
                    continue;
                }
            } else if self.patience.look_again() {
                continue;
            }
            let since = Instant::now();
            self.sleep();
            self.patience.slept();
            self.lull.slept(since);
        }
    }

    /// Whether there is no need to find out that there is nothing more.
    fn sleeps_at_once(&self) -> bool {
        let mut clients = self.sessions.iter().flatten();
        self.lull.is_on()
            && self.unfinished.is_empty()
            && !clients.any(|session| session.client.is_looking())
    }

    fn arrive(&mut self, stopping: bool) -> bool {
        let mut any = false;
        while let Ok(inbound) = self.arrivals.try_recv() {
            any = true;
            match inbound {
                Inbound::Mapped { parked, errno } => self.mapped(parked, errno),
                Inbound::Client(_) if stopping => {}
                Inbound::Client(client) => self.admit(client),
            }
        }
        any
    }

    fn admit(&mut self, client: Box<dyn Client>) {
        let session = Session { client, pending: 0, gone: false };
        self.stats.clients.fetch_add(1, Ordering::Relaxed);
        match self.sessions.iter_mut().find(|s| s.is_none()) {
            Some(free) => *free = Some(session),
            None => self.sessions.push(Some(session)),
        }
    }

    fn take_requests(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.sessions.len() {
            for _ in 0..BURST {
                let Some(session) = &mut self.sessions[index] else { break };
                if session.gone {
                    break;
                }
                let Some(request) = session.client.next() else { break };
                session.pending += 1;
                any = true;
                self.begin(index, request);
            }
        }
        any
    }

    fn begin(&mut self, index: usize, request: Request) {
        let share = request.share;
        let is_flush = matches!(request.ask, Ask::Flush);
        // One part more than there are, so that the request cannot end while it is being started.
        let id = self.requests.insert(Pending {
            session: index,
            share: Arc::clone(&share),
            tag: request.tag,
            parts: 1,
            errno: 0,
            is_flush,
            then_flush: false,
            rest: None,
        });
        let outcome = if share.volume.is_poisoned() {
            Err(libc::ESHUTDOWN)
        } else {
            self.start(id, &share, request.ask)
        };
        let request = self.requests.get(id);
        if let Err(errno) = outcome {
            request.errno = errno;
        }
        if request.rest.is_some() {
            self.unfinished.push_back(id);
        } else {
            self.end_part(id);
        }
    }

    fn start(&mut self, id: usize, share: &Share, ask: Ask) -> Result<(), i32> {
        let (pool, volume) = (share.pool, share.volume.as_ref());
        let inside = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= volume.bytes => Ok(()),
            _ => Err(libc::EINVAL),
        };
        match ask {
            Ask::Read { offset, memory } => {
                count(&self.stats.reads, 1);
                count(&self.stats.read_bytes, memory.len() as u64);
                inside(offset, memory.len() as u64)?;
                for piece in pieces(offset, memory.len() as u64) {
                    let memory = memory.part((piece.offset - offset) as usize, piece.len as usize);
                    match volume.pin(piece.extent) {
                        None => memory.clear(),
                        Some(physical) => {
                            let offset = self.pools[pool].extent_offset(physical) + piece.within;
                            let pinned = Some(piece.extent);
                            self.submit(id, pool, pinned, Action::Read { offset, memory });
                        }
                    }
                }
            }
            Ask::Write { offset, memory, fua } => {
                count(&self.stats.writes, 1);
                count(&self.stats.write_bytes, memory.len() as u64);
                inside(offset, memory.len() as u64)?;
                for piece in pieces(offset, memory.len() as u64) {
                    let memory = memory.part((piece.offset - offset) as usize, piece.len as usize);
                    self.write(id, share, &piece, memory, fua);
                }
            }
            Ask::Flush => {
                count(&self.stats.flushes, 1);
                self.submit(id, pool, None, Action::Flush);
            }
            Ask::Deallocate { offset, len } => {
                count(&self.stats.deallocates, 1);
                inside(offset, len)?;
                let released = if volume.thin { offset } else { offset + len };
                let kind = RestKind::Deallocate;
                let rest = Rest { at: offset, end: offset + len, released, kind };
                self.requests.get(id).rest = Some(rest);
            }
            Ask::WriteZeroes { offset, len, fua } => {
                self.requests.get(id).then_flush = fua;
                count(&self.stats.writes, 1);
                inside(offset, len)?;
                let end = offset + len;
                let rest = Rest { at: offset, end, released: end, kind: RestKind::Zero };
                self.requests.get(id).rest = Some(rest);
            }
        }
        Ok(())
    }

    /// Writes into an extent, which is allocated first if it has to be.
    fn write(&mut self, id: usize, share: &Share, piece: &Piece, memory: Memory, fua: bool) {
        match share.volume.pin(piece.extent) {
            Some(physical) => {
                let offset = self.pools[share.pool].extent_offset(physical) + piece.within;
                let pinned = Some(piece.extent);
                self.submit(id, share.pool, pinned, Action::Write { offset, memory, fua });
            }
            None => {
                let then = Then::Write { piece: *piece, memory, fua };
                self.park(id, Want::Allocate(piece.extent), then);
            }
        }
    }

    fn submit(&mut self, request: usize, pool: usize, pinned: Option<u64>, action: Action) {
        self.requests.get(request).parts += 1;
        let tag = self.parts.insert(Part { request, pinned }) as u64;
        self.queues[pool].submit(Op { tag, action });
    }

    fn complete(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        for queue in &mut self.queues {
            // A tag is unique in the reactor, so one list serves all queues.
            queue.poll(&mut done);
        }
        let any = !done.is_empty();
        for Completion { tag, result } in done.drain(..) {
            let part = self.parts.remove(tag as usize);
            let request = self.requests.get(part.request);
            if let Some(extent) = part.pinned {
                request.share.volume.unpin(extent);
            }
            if let Err(error) = result {
                request.errno = error.raw_os_error().unwrap_or(libc::EIO);
                let (volume, is_flush) = (&request.share.volume.name, request.is_flush);
                tracing::warn!(volume, is_flush, %error, "the device failed an operation");
                if request.is_flush {
                    self.pools[request.share.pool].poison();
                }
            }
            self.end_part(part.request);
        }
        self.done = done;
        any
    }

    fn end_part(&mut self, id: usize) {
        let request = self.requests.get(id);
        request.parts -= 1;
        if request.parts > 0 {
            return;
        }
        if request.then_flush && request.errno == 0 {
            request.then_flush = false;
            request.is_flush = true;
            let pool = request.share.pool;
            self.submit(id, pool, None, Action::Flush);
            return;
        }
        let request = self.requests.remove(id);
        if request.errno != 0 {
            count(&self.stats.errors, 1);
        }
        let slot = &mut self.sessions[request.session];
        let session = slot.as_mut().expect("it has a request");
        session.pending -= 1;
        if !session.gone {
            session.client.complete(request.tag, request.errno);
        }
    }

    /// Removes clients that are gone, once nothing of theirs is in flight.
    fn bury(&mut self, look: bool) {
        for slot in &mut self.sessions {
            let Some(session) = slot else { continue };
            session.gone = session.gone || session.client.is_gone(look);
            if session.gone && session.pending == 0 {
                self.stats.clients.fetch_sub(1, Ordering::Relaxed);
                *slot = None;
            }
        }
    }

    fn sleep(&mut self) {
        self.bury(false);
        let is_waiting = self.queues.iter().any(|queue| queue.in_flight() > 0);
        self.polled.clear();
        let wake = self.polled.add(self.wake.as_raw_fd());
        let mut last = wake;
        for queue in &self.queues {
            match queue.wait_fd() {
                Some(fd) => last = self.polled.add(fd),
                None if queue.in_flight() > 0 => return,
                None => {}
            }
        }
        let first = last + 1;
        let mut work = false;
        for session in self.sessions.iter_mut().flatten() {
            // Of one that is gone nothing is waited for but what is in flight.
            work |= !session.gone && !session.client.arm();
            for fd in session.client.wait_fds() {
                self.polled.add(if session.gone { NO_FD } else { fd });
            }
        }
        let mut slept = !work;
        if slept {
            count(&self.stats.sleeps, 1);
            if let Err(error) = self.polled.wait(is_waiting.then_some(LOOK_MS)) {
                tracing::error!(%error, "waiting for work failed");
                slept = false;
            }
        }
        if slept && self.polled.is_ready(wake) {
            // Empties the counter.
            let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        }
        for (place, session) in self.sessions.iter_mut().flatten().enumerate() {
            // Without a sleep nobody has looked.
            let ready = |end| !slept || self.polled.is_ready(first + 2 * place + end);
            session.client.disarm([ready(0), ready(1)]);
        }
    }
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[derive(Clone, Copy)]
struct Piece {
    extent: u64,
    /// Offset in the extent.
    within: u64,
    /// Offset in the volume.
    offset: u64,
    len: u64,
}

/// A range of a volume, cut at the borders of extents.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let within = at % EXTENT_BYTES;
            let len = (EXTENT_BYTES - within).min(end - at);
            let piece = Piece { extent: at / EXTENT_BYTES, within, offset: at, len };
            at += len;
            piece
        })
    })
}

#[cfg(test)]
mod tests;
