//! RAM as a device, for benches and tests. Durable for as long as the process lives.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, RwLock};

use super::{Action, Completion, Device, Memory, Op, Queue};

/// See the module.
#[derive(Clone, Debug)]
pub struct Mem {
    whole: Memory,
    // Writers of one block take turns; readers of others are not in their way for long.
    gate: Arc<RwLock<()>>,
}

impl Mem {
    /// A zeroed device of that many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Mem {
        let len = usize::try_from(bytes).expect("64-bit");
        Mem { whole: Memory::zeroed(len), gate: Arc::new(RwLock::new(())) }
    }

    fn perform(&self, action: Action) -> io::Result<()> {
        let bounds = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= self.whole.len() as u64 => {
                Ok(self.whole.part(offset as usize, len as usize))
            }
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        match action {
            Action::Read { offset, memory } => {
                let part = bounds(offset, memory.len() as u64)?;
                let _shared = self.gate.read().expect("no panic while held");
                memory.copy_from(&part);
            }
            Action::Write { offset, memory, fua: _ } => {
                let part = bounds(offset, memory.len() as u64)?;
                let _alone = self.gate.write().expect("no panic while held");
                part.copy_from(&memory);
            }
            Action::Flush => {}
            Action::Deallocate { offset, len } | Action::Zero { offset, len } => {
                let part = bounds(offset, len)?;
                let _alone = self.gate.write().expect("no panic while held");
                part.clear();
            }
        }
        Ok(())
    }
}

impl Device for Mem {
    fn engine(&self) -> &'static str {
        "mem"
    }

    fn bytes(&self) -> u64 {
        self.whole.len() as u64
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(MemQueue { mem: self.clone(), done: Vec::new() }))
    }
}

struct MemQueue {
    mem: Mem,
    done: Vec<Completion>,
}

impl Queue for MemQueue {
    fn submit(&mut self, op: Op) {
        let result = self.mem.perform(op.action);
        self.done.push(Completion { tag: op.tag, result });
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
