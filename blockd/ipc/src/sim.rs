//! A volume in memory with a volatile write cache, for tests and simulation.
//!
//! ```text
//! write ──> versions since the last flush, per block ──flush──> durable image
//!                    │
//!                power_cut(seed): each block keeps its durable content or one of the versions,
//!                or a mixture of two at 512-byte granularity (a torn write)
//! ```
//!
//! Choosing per block covers lost, reordered and torn writes at once. A flush, and FUA for its own
//! blocks, is a promise that no cut breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hugepages::{BUFFER_BYTES_MAX, Buffer};

use crate::error::{Error, Kind};
use crate::volume::{Geometry, Volume};

/// Bytes that a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Memory that behaves like a volume. Clones are handles of the same one.
#[derive(Clone)]
pub struct SimVolume {
    geometry: Geometry,
    state: Arc<Mutex<State>>,
}

/// Contents of a block; absent blocks are zeros.
type Block = Arc<[u8]>;

#[derive(Clone, Default)]
struct State {
    /// What a power cut cannot take. `None` was deallocated.
    durable: BTreeMap<u64, Block>,
    /// Blocks changed since the last flush, oldest version first; `None` reads as zeros.
    versions: BTreeMap<u64, Vec<Option<Block>>>,
    /// Operations since the start.
    ops: u64,
    flushes: u64,
    /// Operation numbers that fail with `Io`.
    failing: Vec<u64>,
    flush_fails: bool,
    /// Blocks that cannot be read.
    unreadable: BTreeSet<u64>,
    /// From this operation number on everything fails with `Disconnected`.
    halted_from: Option<u64>,
    poisoned: bool,
}

impl SimVolume {
    /// Zeroed, of `blocks` blocks of `block_size` bytes (512 or 4096).
    pub fn new(block_size: u32, blocks: u64) -> SimVolume {
        assert!(block_size == 512 || block_size == 4096, "block size {block_size}");
        let transfer_bytes_max = BUFFER_BYTES_MAX as u32;
        SimVolume {
            geometry: Geometry { block_size, blocks, transfer_bytes_max },
            state: Arc::default(),
        }
    }

    /// Cuts the power: gives the volume as it is found afterwards, by the dice of `seed`. Operations
    /// on the old handles fail with `Disconnected` from now on.
    pub fn power_cut(&self, seed: u64) -> SimVolume {
        let mut state = self.state();
        state.halted_from = Some(0);
        let mut dice = Dice(seed);
        let mut image = state.durable.clone();
        for (&lba, versions) in &state.versions {
            let before = state.durable.get(&lba).cloned();
            match self.survivor(&mut dice, before, versions) {
                Some(block) => image.insert(lba, block),
                None => image.remove(&lba),
            };
        }
        self.with_image(image)
    }

    /// As after a clean stop: everything that was written is there, and nothing is poisoned. Old
    /// handles fail with `Disconnected` from now on.
    pub fn reopen(&self) -> SimVolume {
        let mut state = self.state();
        state.halted_from = Some(0);
        state.settle();
        self.with_image(state.durable.clone())
    }

    /// Makes the operation `ahead` operations from now fail with `Io` (0 is the next one). A write
    /// that fails leaves its range as after a torn write; a failing flush poisons.
    pub fn fail_op(&self, ahead: u64) {
        let mut state = self.state();
        let op = state.ops + ahead;
        state.failing.push(op);
    }

    /// Makes the next flush fail, which poisons the volume.
    pub fn fail_flush(&self) {
        self.state().flush_fails = true;
    }

    /// Nothing that was to fail later fails.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        state.failing.clear();
        state.flush_fails = false;
    }

    /// Lets `ops` more operations pass, then everything fails with `Disconnected`: the moment to
    /// call [`SimVolume::power_cut`] at.
    pub fn halt_after(&self, ops: u64) {
        let mut state = self.state();
        state.halted_from = Some(state.ops + ops);
    }

    /// Flips bits of one byte of a block, durably, behind the writer's back.
    pub fn corrupt(&self, lba: u64, offset: usize, mask: u8) {
        assert!(lba < self.geometry.blocks && offset < self.block_bytes());
        let mut state = self.state();
        let mut block = state.current(lba).map_or_else(|| self.zeros(), |block| block.to_vec());
        block[offset] ^= mask;
        state.versions.remove(&lba);
        state.durable.insert(lba, block.into());
    }

    /// Makes every read of a block fail with `Io`, until it is written.
    pub fn break_block(&self, lba: u64) {
        assert!(lba < self.geometry.blocks);
        self.state().unreadable.insert(lba);
    }

    /// Operations that were asked for so far, of every kind.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Flushes that succeeded so far.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// Whether the block holds something: written and not deallocated.
    pub fn is_used(&self, lba: u64) -> bool {
        self.state().current(lba).is_some()
    }

    /// Blocks that hold something: written and not deallocated.
    pub fn blocks_used(&self) -> u64 {
        self.state().used().count() as u64
    }

    /// A volume of its own in the same state, for tests that explore what could come next.
    pub fn fork(&self) -> SimVolume {
        let state = self.state().clone();
        SimVolume { geometry: self.geometry, state: Arc::new(Mutex::new(state)) }
    }

    fn with_image(&self, durable: BTreeMap<u64, Block>) -> SimVolume {
        let state = State { durable, ..State::default() };
        SimVolume { geometry: self.geometry, state: Arc::new(Mutex::new(state)) }
    }

    /// What is left of a block with these unflushed versions.
    fn survivor(
        &self,
        dice: &mut Dice,
        before: Option<Block>,
        versions: &[Option<Block>],
    ) -> Option<Block> {
        let pick = |dice: &mut Dice| match dice.below(versions.len() as u64 + 1) as usize {
            0 => before.clone(),
            n => versions[n - 1].clone(),
        };
        let one = pick(dice);
        if self.block_bytes() == SECTOR_BYTES || dice.below(3) != 0 {
            return one;
        }
        let other = pick(dice);
        let mut torn = one.map_or_else(|| self.zeros(), |block| block.to_vec());
        let other = other.map_or_else(|| self.zeros(), |block| block.to_vec());
        for at in (0..torn.len()).step_by(SECTOR_BYTES) {
            if dice.below(2) == 0 {
                torn[at..at + SECTOR_BYTES].copy_from_slice(&other[at..at + SECTOR_BYTES]);
            }
        }
        Some(torn.into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block_bytes(&self) -> usize {
        self.geometry.block_size as usize
    }

    fn zeros(&self) -> Vec<u8> {
        vec![0; self.block_bytes()]
    }

    fn blocks_of(&self, op: &str, lba: u64, buffer: &Buffer) -> Result<u64, Error> {
        let len = buffer.len();
        if len > self.geometry.transfer_bytes_max as usize
            || !len.is_multiple_of(self.block_bytes())
        {
            return Err(Error::new(Kind::Invalid, format!("{op} of {len} bytes at block {lba}")));
        }
        let blocks = (len / self.block_bytes()) as u64;
        self.geometry.check(op, lba, blocks)?;
        Ok(blocks)
    }

    fn write_now(&self, lba: u64, buffer: &Buffer, fua: bool) -> Result<(), Error> {
        self.blocks_of("write", lba, buffer)?;
        let mut state = self.state();
        let failed = state.begin("write", lba).err();
        if let Some(error) = &failed
            && error.kind() != Kind::Io
        {
            return Err(error.clone());
        }
        for (lba, bytes) in (lba..).zip(buffer.chunks(self.block_bytes())) {
            // Of a failed write each block is there or not: it becomes a version, and every other
            // block stays what it was.
            if failed.is_some() && lba % 2 == 1 {
                continue;
            }
            let block: Block = bytes.into();
            state.unreadable.remove(&lba);
            if fua && failed.is_none() {
                state.versions.remove(&lba);
                state.durable.insert(lba, block);
            } else {
                state.versions.entry(lba).or_default().push(Some(block));
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

impl State {
    /// Counts an operation and says whether it may happen.
    fn begin(&mut self, op: &str, lba: u64) -> Result<(), Error> {
        let number = self.ops;
        self.ops += 1;
        let context = || format!("simulated {op} at block {lba}, operation {number}");
        if self.halted_from.is_some_and(|from| number >= from) {
            return Err(Error::new(Kind::Disconnected, context()));
        }
        if self.poisoned {
            return Err(Error::new(Kind::Poisoned, context()));
        }
        if self.failing.contains(&number) {
            return Err(Error::new(Kind::Io, context()));
        }
        Ok(())
    }

    fn current(&self, lba: u64) -> Option<Block> {
        match self.versions.get(&lba).and_then(|versions| versions.last()) {
            Some(newest) => newest.clone(),
            None => self.durable.get(&lba).cloned(),
        }
    }

    /// Makes every write durable.
    fn settle(&mut self) {
        for (lba, mut versions) in std::mem::take(&mut self.versions) {
            match versions.pop().flatten() {
                Some(block) => self.durable.insert(lba, block),
                None => self.durable.remove(&lba),
            };
        }
    }

    /// Blocks that read as something else than never written.
    fn used(&self) -> impl Iterator<Item = u64> {
        let mut used: std::collections::BTreeSet<u64> = self.durable.keys().copied().collect();
        for (&lba, versions) in &self.versions {
            match versions.last() {
                Some(Some(_)) => used.insert(lba),
                Some(None) | None => used.remove(&lba),
            };
        }
        used.into_iter()
    }
}

impl Volume for SimVolume {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn buffer(&self, len: usize) -> Result<Buffer, Error> {
        let len = len.max(1).next_multiple_of(self.block_bytes());
        if len > BUFFER_BYTES_MAX {
            return Err(Error::new(Kind::Invalid, format!("a buffer of {len} bytes")));
        }
        Ok(Buffer::private(len))
    }

    async fn read(&self, lba: u64, mut buffer: Buffer) -> Result<Buffer, Error> {
        self.blocks_of("read", lba, &buffer)?;
        let mut state = self.state();
        state.begin("read", lba)?;
        let end = lba + (buffer.len() / self.block_bytes()) as u64;
        if let Some(broken) = state.unreadable.range(lba..end).next() {
            return Err(Error::new(Kind::Io, format!("simulated read: block {broken} is broken")));
        }
        let block_bytes = self.block_bytes();
        for (lba, bytes) in (lba..).zip(buffer.chunks_mut(block_bytes)) {
            match state.current(lba) {
                Some(block) => bytes.copy_from_slice(&block),
                None => bytes.fill(0),
            }
        }
        drop(state);
        Ok(buffer)
    }

    async fn write(&self, lba: u64, buffer: Buffer, fua: bool) -> Result<Buffer, Error> {
        self.write_now(lba, &buffer, fua)?;
        Ok(buffer)
    }

    async fn flush(&self) -> Result<(), Error> {
        let mut state = self.state();
        let fails = std::mem::take(&mut state.flush_fails);
        let result = state.begin("flush", 0);
        match result {
            Ok(()) if !fails => {
                state.settle();
                state.flushes += 1;
                Ok(())
            }
            Ok(()) => {
                state.poisoned = true;
                Err(Error::new(Kind::Io, "simulated flush"))
            }
            Err(error) => {
                state.poisoned |= error.kind() == Kind::Io;
                Err(error)
            }
        }
    }

    async fn deallocate(&self, lba: u64, blocks: u64) -> Result<(), Error> {
        self.geometry.check("deallocate", lba, blocks)?;
        let mut state = self.state();
        state.begin("deallocate", lba)?;
        for lba in lba..lba + blocks {
            if state.current(lba).is_some() || state.versions.contains_key(&lba) {
                state.versions.entry(lba).or_default().push(None);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SimVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimVolume")
            .field("geometry", &self.geometry)
            .field("durable_blocks", &state.durable.len())
            .field("unflushed_blocks", &state.versions.len())
            .field("ops", &state.ops)
            .finish()
    }
}

/// splitmix64: the same seed gives the same cut on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests;
