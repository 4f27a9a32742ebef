//! What a queue holds of its device: the memory of the rings, the doorbells, and how memory becomes what the device can reach.
//!
//! ```text
//! arena of 4 MiB   0 submission ring · 16 KiB completion ring · 64 KiB zeros · 256 KiB a PRP list for each command id
//!                  2 MiB and on: bounce buffers, for memory that is not in an arena
//! ```

use std::io;
use std::sync::{Arc, Weak};

use hugepages::{Arena, BUFFER_BYTES_MAX, Buffer, Pool};

use super::bus::Bus;
use super::memory::{Arenas, Shown, publish};
use crate::engine::Memory;
use crate::nvme::PAGE_BYTES;
use crate::nvme::command::{Data, dataset_range};
use crate::nvme::identify::ZEROS_BYTES;
use crate::nvme::plan::{Kind, Step};
use crate::nvme::prp;
use crate::nvme::ring::{CQE_BYTES, Completions, Cqe, SQE_BYTES, Submission};

const SQ_AT: usize = 0;
const CQ_AT: usize = 16 << 10;
const ZEROS_AT: usize = 64 << 10;
const LISTS_AT: usize = 256 << 10;
const BOUNCE_AT: usize = 2 << 20;
const ARENA_BYTES: usize = 4 << 20;

const _: () = assert!(ZEROS_AT + ZEROS_BYTES as usize <= LISTS_AT);
const _: () = assert!(LISTS_AT + 256 * PAGE_BYTES as usize <= BOUNCE_AT);

/// See the module. Let go when the device is dead, so that it can be given back.
pub struct Link {
    pub bus: Arc<dyn Bus>,
    arenas: Arc<Arenas>,
    rings: Shown,
    bounce: Arc<Pool>,
    /// Arenas that the device has been shown, and their addresses there.
    known: Vec<(Weak<Arena>, u64)>,
    sq_doorbell: usize,
    cq_doorbell: usize,
}

impl Link {
    /// The memory of the rings, shown to the device.
    pub fn rings(bus: &Arc<dyn Bus>) -> io::Result<Shown> {
        Shown::new(bus, ARENA_BYTES)
    }

    /// Where the device finds the submission and the completion ring.
    pub fn addresses(rings: &Shown) -> (u64, u64) {
        (rings.iova(SQ_AT), rings.iova(CQ_AT))
    }

    /// `doorbells` are the registers of the submission and of the completion queue.
    pub fn new(
        bus: Arc<dyn Bus>,
        arenas: Arc<Arenas>,
        rings: Shown,
        doorbells: (usize, usize),
    ) -> Link {
        let bounce = Pool::new(Arc::clone(rings.arena()), BOUNCE_AT, || {});
        let (sq_doorbell, cq_doorbell) = doorbells;
        Link { bus, arenas, rings, bounce, known: Vec::new(), sq_doorbell, cq_doorbell }
    }

    /// No completion of before is there any more.
    pub fn clear_completions(&self, entries: u16) {
        self.rings.zero(CQ_AT, usize::from(entries) * CQE_BYTES);
    }

    /// The device may still use the memory.
    pub fn leak(&self) {
        self.rings.leak();
    }

    pub fn put(&self, slot: u16, entry: &[u8; SQE_BYTES]) {
        self.rings.write(SQ_AT + usize::from(slot) * SQE_BYTES, entry);
    }

    /// Tells the device of the entries that were put.
    pub fn ring(&self, submission: &Submission) {
        publish();
        self.bus.write32(self.sq_doorbell, submission.tail().into());
    }

    /// Tells the device of the completions that were taken.
    pub fn took(&self, completions: &Completions) {
        self.bus.write32(self.cq_doorbell, completions.head().into());
    }

    pub fn has_completion(&self, completions: &Completions) -> bool {
        let at = CQ_AT + usize::from(completions.head()) * CQE_BYTES;
        completions.is_new(self.rings.poll_u16(at + 14))
    }

    /// Takes the next completion, if there is one.
    pub fn next_completion(&self, completions: &mut Completions) -> Option<Cqe> {
        if !self.has_completion(completions) {
            return None;
        }
        let at = CQ_AT + usize::from(completions.head()) * CQE_BYTES;
        let cqe = Cqe::parse(&self.rings.read(at));
        completions.advance();
        Some(cqe)
    }

    /// The data pointer of a command with that id, and the bounce buffer that it goes through, if it does. `None` while no bounce buffer is free.
    pub fn data(
        &mut self,
        step: &Step,
        memory: Option<&Memory>,
        id: u16,
    ) -> Option<(Data, Option<Buffer>)> {
        let known = memory.and_then(|memory| self.arena_iova(memory));
        let list_at = LISTS_AT + usize::from(id) * PAGE_BYTES as usize;
        let list = self.rings.iova(list_at);
        let entry = |index: usize, address| self.rings.write_u64(list_at + index * 8, address);
        let mut bounce = None;
        let data = match (step.kind, memory) {
            (Kind::WriteOfZeros, _) => prp::build(self.rings.iova(ZEROS_AT), step.len, list, entry),
            (Kind::Deallocate, _) => {
                self.rings.write(list_at, &dataset_range(step.lba, step.blocks));
                Data { prp1: list, prp2: 0 }
            }
            (_, None) => Data::default(),
            (_, Some(memory)) => {
                let address = match known {
                    Some(address) => address,
                    None => {
                        assert!(memory.len() <= BUFFER_BYTES_MAX, "commands are cut shorter");
                        let mut buffer = self.bounce.take(memory.len())?;
                        if matches!(step.kind, Kind::Write { .. }) {
                            memory.read(0, &mut buffer);
                        }
                        let offset = buffer.arena_offset().expect("a pool has an arena");
                        bounce = Some(buffer);
                        self.rings.iova(offset)
                    }
                };
                prp::build(address, step.len, list, entry)
            }
        };
        Some((data, bounce))
    }

    /// The device's address of memory in an arena, which the device is shown if it is new.
    fn arena_iova(&mut self, memory: &Memory) -> Option<u64> {
        let (arena, offset) = memory.arena()?;
        if !offset.is_multiple_of(4) {
            return None;
        }
        let known = self.known.iter().find(|(k, _)| std::ptr::eq(k.as_ptr(), Arc::as_ptr(arena)));
        let start = match known {
            Some((_, start)) => *start,
            None => {
                self.known.retain(|(k, _)| k.strong_count() > 0);
                match self.arenas.iova(arena) {
                    Ok(start) => {
                        self.known.push((Arc::downgrade(arena), start));
                        start
                    }
                    Err(error) => {
                        tracing::debug!(%error, "an arena cannot be shown to the device");
                        return None;
                    }
                }
            }
        };
        Some(start + offset as u64)
    }
}
