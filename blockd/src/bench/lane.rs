//! [`Lane`]: a way for operations, through the shared memory of a blockd or straight into an engine.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use blockd_ipc::blocking::BlockingQueue;
use blockd_ipc::client::Config;
use blockd_ipc::layout::Opcode;
use hugepages::Buffer;

use super::{Plan, Subject};
use crate::config::{DeviceConfig, EngineKind};
use crate::daemon;
use crate::device::{Contents, contents};
use crate::engine::{Action, Completion, Device, Memory, Op, Queue, run, wait_readable};
use crate::error::{Error, Result};

/// A volume larger than this is not looked through for data: that would take longer than the measurement.
const SCAN_BYTES_MAX: u64 = 16 << 30;
const SCAN_STEP_BYTES: usize = 1 << 20;
/// An operation that takes this long is a hang.
const HANG_AFTER: Duration = Duration::from_secs(60);
/// Bytes of a `mem` engine without a size.
const MEM_BYTES: u64 = 1 << 30;

/// See the module. Slots name operations in flight.
pub trait Lane {
    /// The volume's name or the device's path.
    fn name(&self) -> &str;
    fn engine(&self) -> &str;
    fn bytes(&self) -> u64;
    /// One more than the highest slot.
    fn slots(&self) -> usize;
    /// Operations that are kept in flight.
    fn depth(&self) -> usize;
    fn submit(&mut self, write: bool, offset: u64) -> Result<usize>;
    /// The slots of what ended.
    fn poll(&mut self, done: &mut Vec<usize>) -> Result<()>;
    /// Until something ends.
    fn sleep(&mut self) -> Result<()>;
    /// Fails if there is something that writes would destroy.
    fn look_for_data(&mut self) -> Result<()>;
}

pub fn open(plan: &Plan) -> Result<Box<dyn Lane>> {
    match &plan.subject {
        Subject::Volume { socket, name, .. } => {
            let depth = u32::try_from(plan.qd.next_power_of_two()).expect("checked: at most 1024");
            let buffer_bytes = (plan.qd * plan.bs.next_power_of_two()).max(SCAN_STEP_BYTES);
            let config = Config { depth, buffer_bytes, ..Config::new(socket, name) };
            let queue = BlockingQueue::connect(&config)?;
            let (name, plan) = (name.clone(), plan.into());
            let (read, noise, writes) = Default::default();
            Ok(Box::new(Shared { name, queue, read, noise, writes, plan }))
        }
        Subject::Engine { engine, path, size } => {
            let size = size.or((*engine == EngineKind::Mem).then_some(MEM_BYTES));
            let config = DeviceConfig::plain(path, *engine, size);
            let device = daemon::open(&config)?;
            Ok(Box::new(Direct::new(config.path.display().to_string(), device, plan)?))
        }
    }
}

/// What of the plan a lane needs.
struct Shape {
    bs: usize,
    qd: usize,
}

impl From<&Plan> for Shape {
    fn from(plan: &Plan) -> Shape {
        Shape { bs: plan.bs, qd: plan.qd }
    }
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

struct Shared {
    name: String,
    queue: BlockingQueue,
    /// Buffers that were read into; their bytes are whatever lay there.
    read: Vec<Buffer>,
    /// Buffers of noise, to be written.
    noise: Vec<Buffer>,
    /// Of each slot, whether it writes.
    writes: Vec<bool>,
    plan: Shape,
}

impl Shared {
    fn block_bytes(&self) -> u64 {
        self.queue.geometry().block_size.into()
    }
}

impl Lane for Shared {
    fn name(&self) -> &str {
        &self.name
    }

    fn engine(&self) -> &'static str {
        "ipc"
    }

    fn bytes(&self) -> u64 {
        self.queue.geometry().blocks * self.block_bytes()
    }

    fn slots(&self) -> usize {
        self.plan.qd.next_power_of_two()
    }

    fn depth(&self) -> usize {
        self.plan.qd
    }

    fn submit(&mut self, write: bool, offset: u64) -> Result<usize> {
        // Noise that was read over may be zeros, and a volume of zeros counts as empty.
        let (own, other) = match write {
            true => (&mut self.noise, &mut self.read),
            false => (&mut self.read, &mut self.noise),
        };
        let buffer = match own.pop() {
            Some(buffer) => buffer,
            None => {
                let buffer = self.queue.buffer(self.plan.bs).or_else(|| other.pop());
                let none = || Error::Invalid("shared memory is used up".to_owned());
                let mut buffer = buffer.ok_or_else(none)?;
                if write {
                    buffer.copy_from_slice(&noise(self.plan.bs, offset));
                }
                buffer
            }
        };
        let opcode = if write { Opcode::Write } else { Opcode::Read };
        let lba = offset / self.block_bytes();
        let slot = self.queue.submit(opcode, lba, buffer, false)? as usize;
        self.writes.resize(self.writes.len().max(slot + 1), false);
        self.writes[slot] = write;
        Ok(slot)
    }

    fn poll(&mut self, done: &mut Vec<usize>) -> Result<()> {
        while let Some(completed) = self.queue.poll()? {
            completed.result?;
            let slot = completed.slot as usize;
            let kept = if self.writes[slot] { &mut self.noise } else { &mut self.read };
            kept.extend(completed.buffer);
            done.push(slot);
        }
        Ok(())
    }

    fn sleep(&mut self) -> Result<()> {
        // What it gives is polled again: completions are taken in one place.
        Ok(self.queue.sleep(HANG_AFTER)?)
    }

    fn look_for_data(&mut self) -> Result<()> {
        let holds =
            |what: String| Err(Error::NotBlank { path: format!("volume {:?}", self.name), what });
        if self.bytes() > SCAN_BYTES_MAX {
            return holds("more than can be looked through for data".to_owned());
        }
        let none = || Error::Invalid("shared memory is used up".to_owned());
        let mut at = 0;
        while at < self.bytes() {
            let len = (self.bytes() - at).min(SCAN_STEP_BYTES as u64);
            let buffer = self.queue.buffer(len as usize).ok_or_else(none)?;
            self.queue.submit(Opcode::Read, at / self.block_bytes(), buffer, false)?;
            let completed = self.queue.wait(HANG_AFTER)?;
            completed.result?;
            if completed.buffer.is_some_and(|buffer| buffer.iter().any(|byte| *byte != 0)) {
                return holds("data".to_owned());
            }
            at += len;
        }
        Ok(())
    }
}

struct Direct {
    name: String,
    device: Arc<dyn Device>,
    queue: Box<dyn Queue>,
    /// Of each slot, what it reads into and the noise that it writes.
    memory: Vec<[Memory; 2]>,
    free: Vec<usize>,
    ended: Vec<Completion>,
}

impl Direct {
    fn new(name: String, device: Arc<dyn Device>, plan: &Plan) -> Result<Direct> {
        let failed =
            |source| Error::Device { path: name.clone(), doing: "opening a queue", source };
        let queue = device.queue().map_err(failed)?;
        // As clients bring it: memory that a device can be told of once.
        let bytes = (2 * plan.bs * plan.qd).next_multiple_of(hugepages::HUGE_PAGE_BYTES);
        let arena = Arc::new(hugepages::Arena::new(bytes).map_err(blockd_ipc::Error::from)?);
        let whole = Memory::of_arena(&arena, 0, bytes as u64).expect("all of the arena");
        let part = |number: usize| whole.part(number * plan.bs, plan.bs);
        let memory: Vec<[Memory; 2]> =
            (0..plan.qd).map(|slot| [part(2 * slot), part(2 * slot + 1)]).collect();
        for (slot, [_, written]) in memory.iter().enumerate() {
            written.write(0, &noise(plan.bs, slot as u64));
        }
        let free = (0..plan.qd).rev().collect();
        Ok(Direct { name, device, queue, memory, free, ended: Vec::new() })
    }

    fn failed(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::Device { path: self.name.clone(), doing, source }
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.device.shut_down();
    }
}

impl Lane for Direct {
    fn name(&self) -> &str {
        &self.name
    }

    fn engine(&self) -> &str {
        self.device.engine()
    }

    fn bytes(&self) -> u64 {
        self.device.bytes()
    }

    fn slots(&self) -> usize {
        self.memory.len()
    }

    fn depth(&self) -> usize {
        self.memory.len()
    }

    fn submit(&mut self, write: bool, offset: u64) -> Result<usize> {
        let slot = self.free.pop().expect("as many slots as operations");
        let memory = self.memory[slot][usize::from(write)].clone();
        let action = if write {
            Action::Write { offset, memory, fua: false }
        } else {
            Action::Read { offset, memory }
        };
        self.queue.submit(Op { tag: slot as u64, action });
        Ok(slot)
    }

    fn poll(&mut self, done: &mut Vec<usize>) -> Result<()> {
        self.queue.poll(&mut self.ended);
        for completion in self.ended.drain(..) {
            let slot = completion.tag as usize;
            self.free.push(slot);
            done.push(slot);
            let failed = |source| Error::Device { path: self.name.clone(), doing: "I/O", source };
            completion.result.map_err(failed)?;
        }
        Ok(())
    }

    fn sleep(&mut self) -> Result<()> {
        let fds: Vec<RawFd> = self.queue.wait_fd().into_iter().collect();
        if fds.is_empty() {
            return Ok(());
        }
        let timeout_ms = HANG_AFTER.as_millis() as i32;
        wait_readable(&fds, Some(timeout_ms)).map_err(|e| self.failed("waiting", e))
    }

    fn look_for_data(&mut self) -> Result<()> {
        let holds = |what: String| Err(Error::NotBlank { path: self.name.clone(), what });
        match contents(&self.name, &self.device)? {
            Contents::Blank => {}
            found => return holds(found.to_string()),
        }
        let bytes = self.device.bytes();
        if self.device.engine() == "mem" {
            // Made for this measurement.
            return Ok(());
        }
        if bytes > SCAN_BYTES_MAX {
            return holds("more than can be looked through for data".to_owned());
        }
        let whole = Memory::zeroed(SCAN_STEP_BYTES);
        for offset in (0..bytes).step_by(SCAN_STEP_BYTES) {
            let memory = whole.part(0, (bytes - offset).min(SCAN_STEP_BYTES as u64) as usize);
            run(self.queue.as_mut(), Action::Read { offset, memory: memory.clone() })
                .map_err(|e| self.failed("looking for data", e))?;
            if memory.to_vec().iter().any(|byte| *byte != 0) {
                return holds("data".to_owned());
            }
        }
        Ok(())
    }
}
