//! Who owns which entry of a queue (NVMe base 2.0 §3.3.1). Numbers only; the entries are in memory that the engine has.
//!
//! A submission queue is full with one entry free, so that full and empty differ. A completion is new while its phase bit is
//! what this pass over the ring writes; both start at zero bits and phase 1, and the phase turns with each pass.

use super::bytes::{u16_at, u32_at};
use super::status::Status;

/// Bytes of an entry of a submission queue.
pub const SQE_BYTES: usize = 64;
/// Bytes of an entry of a completion queue.
pub const CQE_BYTES: usize = 16;

/// Positions in a submission queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    tail: u16,
    head: u16,
    entries: u16,
}

impl Submission {
    #[must_use]
    pub fn new(entries: u16) -> Submission {
        assert!(entries >= 2, "a queue of {entries}");
        Submission { tail: 0, head: 0, entries }
    }

    /// The entry to write next; `None` while the queue is full.
    #[must_use]
    pub fn take(&mut self) -> Option<u16> {
        let next = (self.tail + 1) % self.entries;
        if next == self.head {
            return None;
        }
        let taken = self.tail;
        self.tail = next;
        Some(taken)
    }

    /// What the doorbell is told.
    #[must_use]
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// The controller has fetched the entries before `head`, says a completion. A value beyond the queue is not believed.
    pub fn fetched(&mut self, head: u16) {
        if head < self.entries {
            self.head = head;
        }
    }
}

/// Position in a completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completions {
    head: u16,
    phase: bool,
    entries: u16,
}

impl Completions {
    #[must_use]
    pub fn new(entries: u16) -> Completions {
        assert!(entries >= 2, "a queue of {entries}");
        Completions { head: 0, phase: true, entries }
    }

    /// The entry to look at; also what the doorbell is told.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Whether the entry at the head is new, by its last word (status and phase).
    #[must_use]
    pub fn is_new(&self, status_and_phase: u16) -> bool {
        (status_and_phase & 1 == 1) == self.phase
    }

    /// The entry at the head has been read.
    pub fn advance(&mut self) {
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    pub result: u32,
    pub sq_head: u16,
    pub id: u16,
    pub status: Status,
}

impl Cqe {
    #[must_use]
    pub fn parse(b: &[u8; CQE_BYTES]) -> Cqe {
        Cqe {
            result: u32_at(b, 0),
            sq_head: u16_at(b, 8),
            id: u16_at(b, 12),
            status: Status(u16_at(b, 14) >> 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A controller over plain arrays: fetches what the doorbell shows, completes in any order, posts if there is room.
    struct Device {
        sq: Vec<u16>,
        cq: Vec<[u8; CQE_BYTES]>,
        head: u16,
        fetched: VecDeque<u16>,
        cq_tail: u16,
        cq_phase: bool,
        cq_used: u16,
    }

    impl Device {
        fn fetch(&mut self, tail: u16) {
            while self.head != tail {
                self.fetched.push_back(self.sq[usize::from(self.head)]);
                self.head = (self.head + 1) % self.sq.len() as u16;
            }
        }

        fn complete(&mut self, which: usize) {
            if self.fetched.is_empty() || usize::from(self.cq_used) == self.cq.len() - 1 {
                return;
            }
            let id = self.fetched.remove(which % self.fetched.len()).unwrap();
            let mut b = [0; CQE_BYTES];
            b[8..10].copy_from_slice(&self.head.to_le_bytes());
            b[12..14].copy_from_slice(&id.to_le_bytes());
            b[14] = u8::from(self.cq_phase);
            self.cq[usize::from(self.cq_tail)] = b;
            self.cq_used += 1;
            self.cq_tail += 1;
            if usize::from(self.cq_tail) == self.cq.len() {
                self.cq_tail = 0;
                self.cq_phase = !self.cq_phase;
            }
        }
    }

    proptest! {
        /// Whatever the order, every command completes once and nothing else does.
        #[test]
        fn commands_come_back_once(
            entries in 2_u16..9,
            steps in proptest::collection::vec((0_u8..4, any::<u8>()), 1..400),
        ) {
            let mut device = Device {
                sq: vec![0; usize::from(entries)],
                cq: vec![[0; CQE_BYTES]; usize::from(entries)],
                head: 0,
                fetched: VecDeque::new(),
                cq_tail: 0,
                cq_phase: true,
                cq_used: 0,
            };
            let mut submission = Submission::new(entries);
            let mut completions = Completions::new(entries);
            let mut outstanding = std::collections::BTreeSet::new();
            let mut next_id = 0_u16;
            for (what, which) in steps {
                match what {
                    0 => if let Some(slot) = submission.take() {
                        device.sq[usize::from(slot)] = next_id;
                        outstanding.insert(next_id);
                        next_id += 1;
                    },
                    1 => device.fetch(submission.tail()),
                    2 => device.complete(which.into()),
                    _ => loop {
                        let b = device.cq[usize::from(completions.head())];
                        if !completions.is_new(u16_at(&b, 14)) { break }
                        let cqe = Cqe::parse(&b);
                        completions.advance();
                        device.cq_used -= 1;
                        submission.fetched(cqe.sq_head);
                        prop_assert!(outstanding.remove(&cqe.id), "{} came twice", cqe.id);
                        prop_assert!(cqe.status.is_success());
                    },
                }
                prop_assert!(device.fetched.len() <= outstanding.len());
            }
        }
    }

    #[test]
    fn a_full_queue_has_one_entry_free() {
        let mut submission = Submission::new(4);
        assert_eq!(
            [submission.take(), submission.take(), submission.take()],
            [Some(0), Some(1), Some(2)]
        );
        assert_eq!((submission.take(), submission.tail()), (None, 3));
        submission.fetched(9);
        assert_eq!(submission.take(), None, "an impossible head is not believed");
        submission.fetched(2);
        assert_eq!(
            (submission.take(), submission.take(), submission.take()),
            (Some(3), Some(0), None)
        );
    }
}
