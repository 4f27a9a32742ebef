//! A controller in memory, for tests: it does what its doorbells say at once, and misbehaves when asked to.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

use super::bus::Bus;
use crate::nvme::bytes::{put16, put32, put64, u16_at, u32_at, u64_at};
use crate::nvme::opcode::{admin, io as commands};

const CQE: usize = 16;
const SQE: usize = 64;

#[derive(Debug, Default)]
pub struct Behaviour {
    /// I/O commands are fetched and never completed.
    pub hangs: bool,
    /// Abort says that it aborted.
    pub aborts: bool,
    /// Registers read all ones.
    pub is_gone: bool,
    /// It does not become ready again.
    pub stays_down: bool,
    pub is_fatal: bool,
    /// Status of the I/O commands to come.
    pub fails: Option<u16>,
    pub knows_zeroes: bool,
    /// Admin commands of this opcode are not answered, until a reset.
    pub ignores: Option<u8>,
    /// It has a second namespace, with the same blocks as the first.
    pub has_second: bool,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub resets: u32,
    pub shutdowns: u32,
    pub aborts: u32,
    pub interrupts: u32,
    pub flushes: u32,
    pub formats: u32,
    /// Writes to doorbells of I/O queues.
    pub rings: u32,
}

struct Pair {
    sq: u64,
    cq: u64,
    entries: u16,
    vector: Option<u16>,
    head: u16,
    tail: u16,
    phase: bool,
}

pub struct State {
    pub behaviour: Behaviour,
    pub counts: Counts,
    config: u32,
    status: u32,
    registers: BTreeMap<usize, u32>,
    pairs: BTreeMap<u16, Pair>,
    // Completion queues wait for their submission queue.
    completion_queues: BTreeMap<u16, (u64, Option<u16>)>,
    hanging: Vec<(u16, u16)>,
    vectors: BTreeMap<u16, RawFd>,
    storage: Vec<u8>,
    shift: u8,
    pub mapped: usize,
}

/// See the module.
pub struct Simulation(Mutex<State>);

impl Simulation {
    /// A namespace of `bytes` with blocks of `1 << shift`.
    pub fn new(bytes: usize, shift: u8) -> Simulation {
        Simulation(Mutex::new(State {
            behaviour: Behaviour { knows_zeroes: true, ..Behaviour::default() },
            counts: Counts::default(),
            config: 0,
            status: 0,
            registers: BTreeMap::new(),
            pairs: BTreeMap::new(),
            completion_queues: BTreeMap::new(),
            hanging: Vec::new(),
            vectors: BTreeMap::new(),
            storage: vec![0; bytes],
            shift,
            mapped: 0,
        }))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// The bytes at an address that `map` gave.
fn peek(address: u64, len: usize) -> Vec<u8> {
    // SAFETY: addresses are those of arenas which the driver keeps while a command names them: what is being tested.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }.to_vec()
}

fn poke(address: u64, bytes: &[u8]) {
    // SAFETY: as in `peek`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

/// The pieces of a command's data.
fn pieces(sqe: &[u8], len: usize) -> Vec<(u64, usize)> {
    let (first, second) = (u64_at(sqe, 24), u64_at(sqe, 32));
    let n = len.min(4096 - (first % 4096) as usize);
    let mut pieces = vec![(first, n)];
    let rest = len - n;
    if rest > 0 && rest <= 4096 {
        pieces.push((second, rest));
    } else if rest > 0 {
        let list = peek(second, rest.div_ceil(4096) * 8);
        pieces.extend(
            (0..rest.div_ceil(4096)).map(|i| (u64_at(&list, i * 8), 4096.min(rest - i * 4096))),
        );
    }
    pieces
}

impl State {
    fn reset(&mut self) {
        self.pairs.clear();
        self.completion_queues.clear();
        self.hanging.clear();
        self.counts.resets += 1;
    }

    fn configure(&mut self, value: u32) {
        let was = self.config;
        self.config = value;
        if was & 1 == 1 && value & 1 == 0 {
            self.reset();
            self.status = 0;
            self.behaviour.is_fatal = false;
            self.behaviour.ignores = None;
        }
        if was & 1 == 0 && value & 1 == 1 && !self.behaviour.stays_down {
            let register = |at: usize| u64::from(self.registers.get(&at).copied().unwrap_or(0));
            let entries = (register(0x24) & 0xfff) as u16 + 1;
            let sq = register(0x28) | register(0x2c) << 32;
            let cq = register(0x30) | register(0x34) << 32;
            self.pairs
                .insert(0, Pair { sq, cq, entries, vector: None, head: 0, tail: 0, phase: true });
            self.status = 1;
        }
        if value >> 14 & 3 == 1 {
            self.counts.shutdowns += 1;
            self.status |= 2 << 2;
        }
    }

    fn ring(&mut self, queue: u16, tail: u16) {
        loop {
            let Some(pair) = self.pairs.get_mut(&queue) else { return };
            if pair.head == tail {
                return;
            }
            let sqe = peek(pair.sq + u64::from(pair.head) * SQE as u64, SQE);
            pair.head = (pair.head + 1) % pair.entries;
            let id = u16_at(&sqe, 2);
            if queue > 0 && self.behaviour.hangs {
                self.hanging.push((queue, id));
                continue;
            }
            if queue == 0 && self.behaviour.ignores == Some(sqe[0]) {
                continue;
            }
            let (status, result) = if queue == 0 { self.admin(&sqe) } else { (self.io(&sqe), 0) };
            self.complete(queue, id, status, result);
        }
    }

    fn complete(&mut self, queue: u16, id: u16, status: u16, result: u32) {
        let Some(pair) = self.pairs.get_mut(&queue) else { return };
        let mut cqe = [0; CQE];
        put32(&mut cqe, 0, result);
        put16(&mut cqe, 8, pair.head);
        put16(&mut cqe, 12, id);
        put16(&mut cqe, 14, status << 1 | u16::from(pair.phase));
        poke(pair.cq + u64::from(pair.tail) * CQE as u64, &cqe);
        pair.tail += 1;
        if pair.tail == pair.entries {
            (pair.tail, pair.phase) = (0, !pair.phase);
        }
        if let Some(fd) = pair.vector.and_then(|v| self.vectors.get(&v)) {
            self.counts.interrupts += 1;
            // SAFETY: the queue that connected the descriptor holds it for as long as it is connected.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    fn admin(&mut self, sqe: &[u8]) -> (u16, u32) {
        let (low, high) = (u32_at(sqe, 40), u32_at(sqe, 44));
        let queue = low as u16;
        match sqe[0] {
            admin::IDENTIFY => match self.identify(low as u8, u32_at(sqe, 4)) {
                Some(page) => {
                    pieces(sqe, 4096).iter().for_each(|(at, n)| poke(*at, &page[..*n]));
                    (0, 0)
                }
                None => (0x4002, 0),
            },
            admin::GET_LOG_PAGE => (0, 0),
            admin::SET_FEATURES => (0, 3 << 16 | 3),
            admin::CREATE_CQ => {
                let vector = (high >> 1 & 1 == 1).then_some((high >> 16) as u16);
                self.completion_queues.insert(queue, (u64_at(sqe, 24), vector));
                (0, 0)
            }
            admin::CREATE_SQ => {
                let Some(&(cq, vector)) = self.completion_queues.get(&queue) else {
                    return (0x4100, 0);
                };
                let entries = (low >> 16) as u16 + 1;
                let sq = u64_at(sqe, 24);
                self.pairs
                    .insert(queue, Pair { sq, cq, entries, vector, head: 0, tail: 0, phase: true });
                (0, 0)
            }
            admin::DELETE_SQ => {
                self.pairs.remove(&queue);
                (0, 0)
            }
            admin::DELETE_CQ => {
                self.completion_queues.remove(&queue);
                (0, 0)
            }
            admin::ABORT => {
                self.counts.aborts += 1;
                let id = (low >> 16) as u16;
                if !self.behaviour.aborts {
                    return (0, 1);
                }
                self.hanging.retain(|h| *h != (queue, id));
                self.complete(queue, id, 0x07, 0);
                (0, 0)
            }
            admin::FORMAT => {
                self.counts.formats += 1;
                match low & 0xf {
                    n @ (0 | 1) => self.shift = 9 + 3 * n as u8,
                    _ => return (0x410a, 0),
                }
                self.storage.fill(0);
                (0, 0)
            }
            _ => (0x4001, 0),
        }
    }

    fn identify(&self, structure: u8, nsid: u32) -> Option<Vec<u8>> {
        let mut b = vec![0; 4096];
        match structure {
            0 if nsid == 1 || nsid == 2 && self.behaviour.has_second => {
                put64(&mut b, 0, self.storage.len() as u64 >> self.shift);
                // Two formats, of 512 and 4096 bytes.
                (b[25], b[26]) = (1, u8::from(self.shift == 12));
                (b[130], b[134]) = (9, 12);
            }
            1 => {
                b[4..10].copy_from_slice(b"serial");
                b[24..29].copy_from_slice(b"model");
                b[256] = 1 << 1;
                // 64 KiB.
                b[77] = 4;
                b[512] = 0x66;
                b[513] = 0x44;
                put16(&mut b, 520, 1 << 2 | u16::from(self.behaviour.knows_zeroes) << 3);
                b[525] = 1;
            }
            2 => {
                put32(&mut b, 0, 1);
                put32(&mut b, 4, u32::from(self.behaviour.has_second) * 2);
            }
            _ => return None,
        }
        Some(b)
    }

    fn io(&mut self, sqe: &[u8]) -> u16 {
        if let Some(status) = self.behaviour.fails {
            return status;
        }
        let (lba, blocks) = (u64_at(sqe, 40), usize::from(u16_at(sqe, 48)) + 1);
        let (at, len) = ((lba << self.shift) as usize, blocks << self.shift);
        let fits = at + len <= self.storage.len();
        match sqe[0] {
            commands::FLUSH => self.counts.flushes += 1,
            _ if sqe[0] != commands::DATASET && !fits => return 0x4080,
            commands::READ => {
                let mut from = at;
                for (address, n) in pieces(sqe, len) {
                    poke(address, &self.storage[from..from + n]);
                    from += n;
                }
            }
            commands::WRITE => {
                let mut to = at;
                for (address, n) in pieces(sqe, len) {
                    self.storage[to..to + n].copy_from_slice(&peek(address, n));
                    to += n;
                }
            }
            commands::WRITE_ZEROES if self.behaviour.knows_zeroes => {
                self.storage[at..at + len].fill(0)
            }
            commands::DATASET => {
                let range = peek(u64_at(sqe, 24), 16);
                let at = (u64_at(&range, 8) << self.shift) as usize;
                let len = (u32_at(&range, 4) as usize) << self.shift;
                self.storage[at..at + len].fill(0);
            }
            _ => return 0x4001,
        }
        0
    }
}

impl Bus for Simulation {
    fn read32(&self, offset: usize) -> u32 {
        let state = self.state();
        match offset {
            _ if state.behaviour.is_gone => u32::MAX,
            // 256 entries, half a second, doorbells of 4 bytes.
            0 => 1 << 24 | 255,
            4 => 1 << 5,
            0x14 => state.config,
            0x1c => state.status | u32::from(state.behaviour.is_fatal) << 1,
            _ => 0,
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        let mut state = self.state();
        match offset {
            _ if state.behaviour.is_gone => {}
            0x14 => state.configure(value),
            0x1000.. => {
                let number = (offset - 0x1000) / 4;
                state.counts.rings += u32::from(number >= 2);
                if number.is_multiple_of(2) {
                    state.ring((number / 2) as u16, value as u16);
                }
            }
            _ => {
                state.registers.insert(offset, value);
            }
        }
    }

    fn register_bytes(&self) -> usize {
        0x2000
    }

    fn map(&self, start: NonNull<u8>, _bytes: usize) -> io::Result<u64> {
        self.state().mapped += 1;
        Ok(start.as_ptr() as u64)
    }

    fn unmap(&self, _iova: u64, _bytes: usize) {
        self.state().mapped -= 1;
    }

    fn vectors(&self) -> u16 {
        8
    }

    fn connect(&self, vector: u16, fd: Option<RawFd>) -> io::Result<()> {
        let mut state = self.state();
        match fd {
            Some(fd) => state.vectors.insert(vector, fd),
            None => state.vectors.remove(&vector),
        };
        Ok(())
    }

    fn removal_fd(&self) -> Option<RawFd> {
        None
    }

    fn function_reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn release(&self) {}

    fn isolate(&self) {
        let mut state = self.state();
        state.behaviour.is_gone = true;
        state.pairs.clear();
        state.vectors.clear();
    }
}
