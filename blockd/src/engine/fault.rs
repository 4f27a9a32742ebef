//! A device that behaves badly on purpose, over one that does not.
//!
//! Writes stay in this process' memory until a flush (or FUA) covers them, so killing the process loses all of them,
//! as a power cut does to a volatile write cache. [`Fault::power_cut`] lets a random subset of the 512-byte sectors
//! through first: torn and reordered. The rest is by rates, in units of one in a million operations.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::{Action, BLOCK_BYTES, Completion, Device, DeviceFacts, Memory, Op, Queue, run};

const SECTOR: usize = 512;
/// One write to the inner device while flushing carries at most this many bytes.
const FLUSH_RUN_BYTES_MAX: usize = 1 << 20;

/// How often what goes wrong, per million operations of the kind. All zero: only the write cache is volatile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultSettings {
    pub seed: u64,
    /// Reads that come back with one bit flipped.
    pub read_corrupt_ppm: u32,
    /// Reads that fail with EIO.
    pub read_fail_ppm: u32,
    /// Writes that fail with EIO, having changed nothing.
    pub write_fail_ppm: u32,
    /// Writes that succeed and change nothing.
    pub write_lost_ppm: u32,
    /// Writes that land one block off.
    pub write_misdirected_ppm: u32,
    /// Flushes that fail with EIO, losing what they covered.
    pub flush_fail_ppm: u32,
    /// Operations that complete only after `delay_polls` polls.
    pub delay_ppm: u32,
    pub delay_polls: u32,
    /// Operations that are done but never end.
    pub hang_ppm: u32,
}

/// See the module.
#[derive(Clone)]
pub struct Fault {
    state: Arc<Mutex<State>>,
    // A device that nobody holds is shut down, and then its queues serve nothing.
    inner: Arc<dyn Device>,
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fault").field("over", &self.inner.engine()).finish_non_exhaustive()
    }
}

struct State {
    inner: Box<dyn Queue>,
    unflushed: BTreeMap<u64, [u8; SECTOR]>,
    settings: FaultSettings,
    random: u64,
    // After a power cut nothing completes: what arrives is kept here until the process is gone.
    limbo: Option<Vec<Op>>,
}

impl Fault {
    /// Wraps `inner`, which must have no other user, and holds it.
    pub fn new(inner: Arc<dyn Device>, settings: FaultSettings) -> io::Result<Fault> {
        let random = settings.seed;
        let queue = inner.queue()?;
        let state =
            State { inner: queue, unflushed: BTreeMap::new(), settings, random, limbo: None };
        Ok(Fault { state: Arc::new(Mutex::new(state)), inner })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Replaces the rates; the sequence of random numbers starts over from the seed.
    pub fn set(&self, settings: FaultSettings) {
        let mut state = self.lock();
        state.random = settings.seed;
        state.settings = settings;
    }

    /// The rates in force.
    #[must_use]
    pub fn settings(&self) -> FaultSettings {
        self.lock().settings.clone()
    }

    /// What a power cut leaves: of the unflushed sectors a random half reaches the device, the rest is gone.
    /// No later operation completes; the caller ends the process or opens the device beneath.
    pub fn power_cut(&self, seed: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.limbo = Some(Vec::new());
        state.random = seed;
        let all = std::mem::take(&mut state.unflushed);
        let survivors = all.into_iter().filter(|_| state.next() & 1 == 0).collect();
        state.write_out(survivors)?;
        run(state.inner.as_mut(), Action::Flush)
    }
}

impl State {
    /// splitmix64: all that is needed is that a seed repeats.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn hits(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.next() % 1_000_000 < u64::from(ppm)
    }

    /// Writes sectors to the inner device. It is block-addressed, so a part of a block is read, changed and written.
    fn write_out(&mut self, sectors: BTreeMap<u64, [u8; SECTOR]>) -> io::Result<()> {
        let mut blocks: BTreeMap<u64, Vec<(usize, [u8; SECTOR])>> = BTreeMap::new();
        for (sector, bytes) in sectors {
            let at = sector * SECTOR as u64;
            let within = (at % BLOCK_BYTES) as usize;
            blocks.entry(at / BLOCK_BYTES).or_default().push((within, bytes));
        }
        let whole = BLOCK_BYTES as usize / SECTOR;
        let mut pending: Option<(u64, Vec<u8>)> = None;
        for (block, parts) in blocks {
            let offset = block * BLOCK_BYTES;
            let memory = Memory::zeroed(BLOCK_BYTES as usize);
            if parts.len() < whole {
                let action = Action::Read { offset, memory: memory.clone() };
                run(self.inner.as_mut(), action)?;
            }
            for (within, bytes) in parts {
                memory.write(within, &bytes);
            }
            match &mut pending {
                Some((start, run_bytes))
                    if *start + run_bytes.len() as u64 == offset
                        && run_bytes.len() < FLUSH_RUN_BYTES_MAX =>
                {
                    run_bytes.extend_from_slice(&memory.to_vec());
                }
                _ => {
                    if let Some((start, bytes)) = pending.replace((offset, memory.to_vec())) {
                        self.write_run(start, &bytes)?;
                    }
                }
            }
        }
        pending.map_or(Ok(()), |(start, bytes)| self.write_run(start, &bytes))
    }

    fn write_run(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let memory = Memory::copy_of(bytes);
        run(self.inner.as_mut(), Action::Write { offset, memory, fua: false })
    }

    fn perform(&mut self, action: Action, bytes: u64) -> io::Result<()> {
        match action {
            Action::Read { offset, memory } => self.read(offset, &memory),
            Action::Write { offset, memory, fua } => self.write(offset, &memory, fua, bytes),
            Action::Flush => self.flush(),
            Action::Deallocate { offset, len } => {
                self.forget(offset, len);
                run(self.inner.as_mut(), Action::Deallocate { offset, len })
            }
            Action::Zero { offset, len } => {
                self.forget(offset, len);
                run(self.inner.as_mut(), Action::Zero { offset, len })
            }
        }
    }

    fn forget(&mut self, offset: u64, len: u64) {
        let first = offset / SECTOR as u64;
        let last = (offset + len) / SECTOR as u64;
        let gone: Vec<u64> = self.unflushed.range(first..last).map(|(s, _)| *s).collect();
        for sector in gone {
            self.unflushed.remove(&sector);
        }
    }

    fn read(&mut self, offset: u64, memory: &Memory) -> io::Result<()> {
        if self.hits(self.settings.read_fail_ppm) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        run(self.inner.as_mut(), Action::Read { offset, memory: memory.clone() })?;
        let first = offset / SECTOR as u64;
        let last = first + (memory.len() / SECTOR) as u64;
        for (sector, bytes) in self.unflushed.range(first..last) {
            memory.write((sector - first) as usize * SECTOR, bytes);
        }
        if self.hits(self.settings.read_corrupt_ppm) {
            let at = (self.next() % memory.len() as u64) as usize;
            let mut byte = [0];
            memory.read(at, &mut byte);
            byte[0] ^= 1 << (self.next() % 8);
            memory.write(at, &byte);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, memory: &Memory, fua: bool, bytes: u64) -> io::Result<()> {
        let len = memory.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > bytes) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if self.hits(self.settings.write_fail_ppm) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if self.hits(self.settings.write_lost_ppm) {
            return Ok(());
        }
        let mut offset = offset;
        if self.hits(self.settings.write_misdirected_ppm) && offset + len + BLOCK_BYTES <= bytes {
            offset += BLOCK_BYTES;
        }
        if fua {
            self.forget(offset, len);
            let memory = memory.clone();
            return run(self.inner.as_mut(), Action::Write { offset, memory, fua: true });
        }
        for i in 0..memory.len() / SECTOR {
            let mut sector = [0; SECTOR];
            memory.read(i * SECTOR, &mut sector);
            self.unflushed.insert(offset / SECTOR as u64 + i as u64, sector);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sectors = std::mem::take(&mut self.unflushed);
        if self.hits(self.settings.flush_fail_ppm) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.write_out(sectors)?;
        run(self.inner.as_mut(), Action::Flush)
    }
}

impl Device for Fault {
    fn engine(&self) -> &'static str {
        "fault"
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }

    /// A cache of its own lies over whatever is beneath, and a cut tears by sector.
    fn facts(&self) -> DeviceFacts {
        DeviceFacts {
            engine: self.engine(),
            volatile_cache: true,
            atomic_bytes: SECTOR as u64,
            ..self.inner.facts()
        }
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        let bytes = self.bytes();
        let fault = self.clone();
        Ok(Box::new(FaultQueue { fault, bytes, done: VecDeque::new(), hanging: 0 }))
    }

    fn reset(&self) -> io::Result<()> {
        self.inner.reset()
    }

    /// What was not flushed is lost, as by a device that does not keep its promise.
    fn shut_down(&self) {
        self.inner.shut_down();
    }

    fn fault(&self) -> Option<&Fault> {
        Some(self)
    }
}

struct FaultQueue {
    fault: Fault,
    bytes: u64,
    done: VecDeque<(u32, Completion)>,
    hanging: usize,
}

impl Queue for FaultQueue {
    fn submit(&mut self, op: Op) {
        let mut state = self.fault.lock();
        if let Some(limbo) = &mut state.limbo {
            limbo.push(op);
            return;
        }
        let result = state.perform(op.action, self.bytes);
        let ppm = state.settings.hang_ppm;
        if state.hits(ppm) {
            self.hanging += 1;
            return;
        }
        let ppm = state.settings.delay_ppm;
        let polls = if state.hits(ppm) { state.settings.delay_polls } else { 0 };
        self.done.push_back((polls, Completion { tag: op.tag, result }));
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        for _ in 0..self.done.len() {
            let Some((polls, completion)) = self.done.pop_front() else { break };
            match polls {
                0 => done.push(completion),
                _ => self.done.push_back((polls - 1, completion)),
            }
        }
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len() + self.hanging
    }
}
