//! One queue of one host: PDUs in, responses, data and requests to the volume out.
//!
//! ```text
//! command ─► admitted ─┬─ no data from the host ────────────────────────► executed ─► response
//!                      ├─ data in its capsule ──────────────────────────►     │
//!                      └─ buffer (or waits for one) ─► R2T ─► H2CData … ─►    └─ requests ─► completions ─► response
//! ```
//! `commands` has the slots of the commands and their buffers. Nothing here does I/O: `receive` and `completed` are the events, `outbox`, `next_request` and `is_ended` the effects.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::auth::Authentication;
use super::buffers::{BUFFER_BYTES_MAX, Buffers};
use super::capsule::{Cqe, Sgl, Sqe};
use super::commands::{Command, Commands, Fetched, Stage, TRANSFER_BYTES_MAX};
use super::controller::{Controller, ErrorEntry, Link};
use super::outbox::{Outbox, WAITING_BYTES_MAX};
use super::pdu::{self, DataHeader, Fatal, IcRequest, Pdu};
use super::receiver::{Item, Receiver, Sink};
use super::registry::{Namespace, Registry};
use super::status::Status;
use super::{abort, admin, fabrics, io};
use crate::engine::Memory;
use crate::reactor::{Ask, Request};

/// Longest data in a command capsule.
pub const CAPSULE_DATA_MAX: usize = 8192;
/// R2Ts of one command at once, whatever the host allows.
const R2T_MAX: u32 = 16;

/// What executing a command came to.
#[derive(Debug)]
pub enum Reply {
    /// It succeeded; dword 0 and 1 of the completion.
    Done(u64),
    /// It succeeded with data for the host, as long as the host asked for.
    Data(Vec<u8>),
    /// Requests are on their way, or an event is waited for.
    Pending,
}

pub type Outcome = Result<Reply, Status>;

/// The queue that this connection is.
#[derive(Clone, Copy, Debug)]
pub struct Queue {
    pub id: u16,
    pub depth: u16,
    head: u16,
    /// The host wants to know the queue's head.
    pub flow: bool,
}

#[derive(Clone, Copy, Debug)]
enum Incoming {
    Capsule { slot: usize, len: usize },
    Transfer { slot: usize, len: u32 },
}

/// Where the connection came in.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub local: SocketAddr,
    /// Only the discovery controller is here.
    pub discovery_only: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    pub registry: Arc<Registry>,
    pub link: Arc<Link>,
    pub place: Place,
    pub controller: Option<Arc<Controller>>,
    pub authentication: Authentication,
    /// The host need not, or did, and may again without being stopped meanwhile.
    pub authenticated: bool,
    pub queue: Queue,
    /// Slots of event requests.
    pub events: Vec<usize>,
    /// Aborts that are under way.
    pub aborting: usize,
    receiver: Receiver,
    outbox: Outbox,
    commands: Commands,
    incoming: Option<Incoming>,
    requests: VecDeque<Request>,
    r2t_max: u32,
    namespaces: Option<(u64, Vec<Arc<Namespace>>)>,
    ended: bool,
    lingers: bool,
}

impl Connection {
    pub fn new(registry: Arc<Registry>, link: Arc<Link>, place: Place) -> Connection {
        let buffers = Buffers::new(registry.limits.buffer_bytes);
        registry.watch(&link);
        Connection {
            registry,
            link,
            place,
            controller: None,
            authentication: Authentication::NotNeeded,
            authenticated: false,
            // Until Connect, one command at a time.
            queue: Queue { id: 0, depth: 1, head: 0, flow: true },
            events: Vec::new(),
            aborting: 0,
            receiver: Receiver::new(CAPSULE_DATA_MAX, TRANSFER_BYTES_MAX as usize),
            outbox: Outbox::default(),
            commands: Commands::new(buffers),
            incoming: None,
            requests: VecDeque::new(),
            r2t_max: 1,
            namespaces: None,
            ended: false,
            lingers: false,
        }
    }

    /// Bytes of the host.
    pub fn receive(&mut self, mut bytes: &[u8]) {
        while !self.ended {
            let outcome = match self.receiver.feed(&mut bytes) {
                Ok(None) => return,
                Ok(Some(item)) => self.item(item),
                Err(fatal) => Err(fatal),
            };
            if let Err(fatal) = outcome {
                self.fail(fatal);
            }
        }
    }

    /// Where the next bytes may be received directly: memory, offset, length.
    pub fn direct(&self) -> Option<(&Memory, usize, usize)> {
        if self.ended { None } else { self.receiver.direct() }
    }

    /// `n` bytes were received where `direct` said.
    pub fn received_direct(&mut self, n: usize) {
        if let Some(item) = self.receiver.received_direct(n)
            && let Err(fatal) = self.item(item)
        {
            self.fail(fatal);
        }
    }

    /// The volume is done with a request.
    pub fn completed(&mut self, tag: u64, errno: i32) {
        if self.ended {
            return;
        }
        let slot = tag as usize;
        let command = self.command(slot);
        if errno != 0 && command.status.is_success() {
            command.status = Status::of_errno(errno, io::is_writing(command));
        }
        command.outstanding -= 1;
        if command.outstanding == 0 {
            let outcome = if command.sqe.opcode() == fabrics::OPCODE {
                fabrics::advance(self, slot)
            } else {
                io::advance(self, slot)
            };
            self.settle(slot, outcome);
            self.resume();
        }
    }

    /// Events of the controller, and whether somebody wants the connection closed.
    pub fn poll(&mut self) {
        if self.link.is_closed() {
            self.ended = true;
        }
        let subsystem = self.controller.as_ref().and_then(|c| c.subsystem.as_ref());
        let version = subsystem.map_or(0, |s| s.version());
        self.namespaces.take_if(|(seen, _)| *seen != version);
        if !self.ended {
            abort::poll(self);
        }
        if self.ended || self.events.is_empty() {
            return;
        }
        while let Some(controller) = self.controller.clone().filter(|c| c.has_event()) {
            let Some(slot) = self.events.pop() else { return };
            match controller.next_event() {
                Some(event) => self.finish(slot, Status::SUCCESS, admin::event_result(event)),
                None => self.events.push(slot),
            }
        }
    }

    pub fn next_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    pub fn has_request(&self) -> bool {
        !self.requests.is_empty()
    }

    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Bytes of the outbox were sent.
    pub fn sent(&mut self, n: usize) {
        self.outbox.advance(n, &mut self.commands.buffers);
        self.resume();
    }

    /// The host does not take what it asked for: nothing more is received until it does.
    pub fn is_stuffed(&self) -> bool {
        self.outbox.waiting() > WAITING_BYTES_MAX
    }

    #[cfg(test)]
    pub fn buffers_used(&self) -> usize {
        self.commands.buffers.used_bytes()
    }

    /// To be closed once the outbox is sent.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// After a C2HTermReq: the socket stays until the host has read it and closes, but not for long.
    pub fn lingers(&self) -> bool {
        self.lingers && !self.link.is_closed()
    }

    fn fail(&mut self, fatal: Fatal) {
        tracing::debug!(?fatal, "a host broke the protocol");
        let term = pdu::c2h_term(fatal, self.receiver.offender());
        self.outbox.raw(&term);
        self.ended = true;
        self.lingers = true;
        self.leave();
        self.link.expel();
        self.registry.watch(&self.link);
    }

    fn leave(&mut self) {
        if let Some(controller) = self.controller.take() {
            self.registry.leave(&controller, self.queue.id);
        }
    }

    fn item(&mut self, item: Item) -> Result<(), Fatal> {
        match item {
            Item::Header { pdu, data_len } => match pdu {
                Pdu::Connect(request) => self.handshake(request),
                Pdu::Terminate { status, information } => {
                    tracing::debug!(status, information, "a host ended its connection");
                    self.ended = true;
                    Ok(())
                }
                Pdu::Command(sqe) => self.start(Sqe(sqe), data_len),
                Pdu::Data(header) => self.transfer(header),
            },
            Item::Data { sound } => {
                match self.incoming.take() {
                    None => {}
                    Some(Incoming::Capsule { slot, len }) => self.capsule_end(slot, len, sound),
                    Some(Incoming::Transfer { slot, len }) => self.transfer_end(slot, len, sound),
                }
                Ok(())
            }
        }
    }

    fn handshake(&mut self, request: IcRequest) -> Result<(), Fatal> {
        if request.version != 0 {
            return Err(Fatal::Unsupported(8));
        }
        if request.alignment > 31 {
            return Err(Fatal::HeaderField(10));
        }
        if request.digests & !(pdu::DIGEST_HEADER | pdu::DIGEST_DATA) != 0 {
            return Err(Fatal::HeaderField(11));
        }
        let header_digest = request.digests & pdu::DIGEST_HEADER != 0;
        let data_digest = request.digests & pdu::DIGEST_DATA != 0;
        self.outbox.raw(&pdu::ic_response(request.digests, TRANSFER_BYTES_MAX));
        self.outbox.header_digest = header_digest;
        self.outbox.data_digest = data_digest;
        self.outbox.alignment = (usize::from(request.alignment) + 1) * 4;
        self.r2t_max = request.r2t_max.saturating_add(1).min(R2T_MAX);
        self.receiver.establish(header_digest, data_digest);
        Ok(())
    }

    fn start(&mut self, sqe: Sqe, data_len: usize) -> Result<(), Fatal> {
        if self.commands.len() >= usize::from(self.queue.depth) {
            return Err(Fatal::Limit);
        }
        self.queue.head = (self.queue.head + 1) % self.queue.depth.max(2);
        let slot = self.commands.add(sqe, data_len);
        if let Some(memory) = self.command(slot).memory.clone() {
            self.receiver.data_to(Sink::Memory { memory, at: 0 });
        }
        if data_len > 0 {
            self.incoming = Some(Incoming::Capsule { slot, len: data_len });
        } else {
            self.capsule_end(slot, 0, true);
        }
        Ok(())
    }

    fn capsule_end(&mut self, slot: usize, in_capsule: usize, sound: bool) {
        let admitted = if sound { self.admit(slot, in_capsule) } else { Err(Status::TRANSIENT) };
        match admitted {
            Err(status) => self.finish(slot, status, 0),
            Ok(()) => self.begin(slot),
        }
    }

    /// Everything about a command that can be checked before its data is fetched.
    fn admit(&mut self, slot: usize, in_capsule: usize) -> Result<(), Status> {
        let sqe = self.command(slot).sqe;
        sqe.check_flags()?;
        let sgl = sqe.sgl(in_capsule)?;
        fabrics::authorize(self, &sqe)?;
        let from_host = match direction(&sqe) {
            Direction::None if sgl.len() > 0 => return Err(Status::INVALID_FIELD),
            Direction::None => false,
            Direction::ToHost if in_capsule > 0 => return Err(Status::INVALID_FIELD),
            Direction::ToHost => false,
            Direction::FromHost => true,
        };
        if sgl.len() as usize > BUFFER_BYTES_MAX {
            return Err(Status::INVALID_FIELD);
        }
        let command = self.command(slot);
        command.len = sgl.len() as usize;
        command.fetch = from_host && command.len > 0 && matches!(sgl, Sgl::Transport { .. });
        if command.fetch {
            command.need[0] = command.len;
        }
        if self.queue.id > 0 && sqe.opcode() != fabrics::OPCODE {
            io::check(self, slot)?;
        }
        Ok(())
    }

    /// Gets the buffers, or has the command wait its turn for them.
    fn begin(&mut self, slot: usize) {
        if self.commands.acquire(slot) {
            self.proceed(slot);
        }
    }

    fn proceed(&mut self, slot: usize) {
        if self.command(slot).fetch {
            self.command(slot).stage = Stage::Fetching;
            self.ask(slot);
        } else {
            self.execute(slot);
        }
    }

    /// Buffers may be free again: those that waited longest go on.
    fn resume(&mut self) {
        while let Some(slot) = self.commands.next_ready() {
            self.proceed(slot);
        }
    }

    /// A command that is being executed wants a second buffer, and is executed again when it has it.
    pub fn want_second(&mut self, slot: usize, bytes: usize) {
        let command = self.command(slot);
        command.need[1] = bytes;
        command.fetch = false;
        self.begin(slot);
    }

    /// Sends R2Ts for what is not yet asked for, as many as the host allows at once.
    fn ask(&mut self, slot: usize) {
        let command = self.commands.get(slot);
        while let Some((offset, len)) = command.ask(self.r2t_max) {
            let mut header = pdu::r2t(command.sqe.id(), slot as u16, offset, len);
            self.outbox.header(pdu::R2T, &mut header);
        }
    }

    fn transfer(&mut self, header: DataHeader) -> Result<(), Fatal> {
        let (slot, memory) = self.commands.destination(&header)?;
        self.receiver.data_to(Sink::Memory { memory, at: header.offset as usize });
        self.incoming = Some(Incoming::Transfer { slot, len: header.len });
        Ok(())
    }

    fn transfer_end(&mut self, slot: usize, len: u32, sound: bool) {
        match self.command(slot).received(len, sound) {
            Fetched::Coming => {}
            Fetched::Part => self.ask(slot),
            Fetched::Whole => self.execute(slot),
            Fetched::Failed(status) => {
                self.finish(slot, status, 0);
                self.resume();
            }
        }
    }

    /// Ends a command without executing it, now or when what it fetches has come; `false` if it is too late.
    pub fn abort(&mut self, id: u16) -> bool {
        let Some(slot) = self.commands.find(id) else { return false };
        match self.command(slot).stage {
            Stage::Waiting => {
                self.commands.forget_waiting(slot);
                self.finish(slot, Status::ABORT_REQUESTED, 0);
                // Those behind it may have waited for no more than their turn.
                self.resume();
                true
            }
            Stage::Fetching => {
                self.command(slot).status = Status::ABORT_REQUESTED;
                true
            }
            Stage::Capsule | Stage::First | Stage::Second | Stage::Event | Stage::Abort => false,
        }
    }

    fn execute(&mut self, slot: usize) {
        let opcode = self.command(slot).sqe.opcode();
        let outcome = if opcode == fabrics::OPCODE {
            fabrics::execute(self, slot)
        } else if self.queue.id == 0 {
            admin::execute(self, slot)
        } else {
            io::execute(self, slot)
        };
        self.settle(slot, outcome);
    }

    fn settle(&mut self, slot: usize, outcome: Outcome) {
        match outcome {
            Ok(Reply::Pending) => {}
            Ok(Reply::Done(result)) => self.finish(slot, Status::SUCCESS, result),
            Ok(Reply::Data(bytes)) => {
                let command = self.command(slot);
                if bytes.len() != command.len {
                    return self.finish(slot, Status::SGL_LENGTH, 0);
                }
                let id = command.sqe.id();
                if !bytes.is_empty() {
                    self.outbox.data_bytes(id, bytes, false);
                }
                self.finish(slot, Status::SUCCESS, 0);
            }
            Err(status) => self.finish(slot, status, 0),
        }
    }

    /// The data of a read, and its response.
    pub fn finish_read(&mut self, slot: usize) {
        let silent = !self.queue.flow;
        let command = self.command(slot);
        let (id, len) = (command.sqe.id(), command.len);
        let memory = command.memory.take().expect("a read has its buffer");
        self.outbox.data(id, memory, len, silent);
        if silent {
            self.commands.remove(slot);
        } else {
            self.finish(slot, Status::SUCCESS, 0);
        }
    }

    /// Sends the response and frees the slot.
    pub fn finish(&mut self, slot: usize, status: Status, result: u64) {
        let sqe = self.commands.remove(slot);
        let queue_head = if self.queue.flow { self.queue.head } else { 0xffff };
        if !status.is_success() {
            self.log(&sqe, status);
        }
        let cqe = Cqe { result, queue_head, id: sqe.id(), status };
        self.outbox.response(&cqe.encode());
    }

    fn log(&self, sqe: &Sqe, status: Status) {
        tracing::debug!(queue = self.queue.id, opcode = sqe.opcode(), ?status, "a command failed");
        if let Some(controller) = &self.controller {
            let is_io = self.queue.id > 0;
            controller.log_error(ErrorEntry {
                count: 0,
                queue: self.queue.id,
                command: sqe.id(),
                status,
                lba: if is_io { sqe.lba() } else { 0 },
                nsid: sqe.nsid(),
            });
        }
    }

    pub fn command(&mut self, slot: usize) -> &mut Command {
        self.commands.get(slot)
    }

    /// Sends a request of the command to a volume.
    pub fn request(&mut self, slot: usize, namespace: &Namespace, ask: Ask) {
        self.command(slot).outstanding += 1;
        let share = Arc::clone(&namespace.share);
        self.requests.push_back(Request { tag: slot as u64, share, ask });
    }

    /// The namespaces, as fresh as the subsystem's version; a lock only after a change.
    pub fn namespaces(&mut self) -> &[Arc<Namespace>] {
        let subsystem = self.controller.as_ref().and_then(|c| c.subsystem.as_ref());
        let Some(subsystem) = subsystem else { return &[] };
        let version = subsystem.version();
        if self.namespaces.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.namespaces = Some(subsystem.namespaces());
        }
        self.namespaces.as_ref().map_or(&[], |(_, list)| list)
    }

    pub fn namespace(&mut self, nsid: u32) -> Option<Arc<Namespace>> {
        self.namespaces().iter().find(|n| n.nsid == nsid).cloned()
    }

    /// The queue is what Connect asked for.
    pub fn become_queue(&mut self, controller: Arc<Controller>, id: u16, depth: u16, flow: bool) {
        // The Connect command itself was the queue's first.
        self.queue = Queue { id, depth, head: 1, flow };
        self.commands.buffers.reserve(depth.into(), CAPSULE_DATA_MAX);
        self.controller = Some(controller);
    }

    /// A copy of the data that came with the command, at most its first `len` bytes.
    pub fn data(&mut self, slot: usize, len: usize) -> Vec<u8> {
        let command = self.command(slot);
        let mut bytes = vec![0; command.len.min(len)];
        if let Some(memory) = &command.memory {
            memory.read(0, &mut bytes);
        }
        bytes
    }

    /// A sign of life of the host.
    pub fn alive(&self) {
        if let Some(controller) = &self.controller {
            controller.alive.store(true, Ordering::Release);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave();
    }
}

enum Direction {
    None,
    FromHost,
    ToHost,
}

/// The direction is in the low bits of the opcode, of fabrics commands in those of their type.
fn direction(sqe: &Sqe) -> Direction {
    let code = if sqe.opcode() == fabrics::OPCODE { sqe.fabrics_type() } else { sqe.opcode() };
    match code & 3 {
        1 => Direction::FromHost,
        2 => Direction::ToHost,
        // No command that we know goes both ways.
        _ => Direction::None,
    }
}
