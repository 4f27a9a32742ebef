//! An operation of blockd, cut into commands that the device allows.

use super::identify::Limits;
use crate::engine::Action;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write {
        fua: bool,
    },
    /// For a device without Write Zeroes.
    WriteOfZeros,
    Zero,
    Flush,
    Deallocate,
}

/// One command of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub lba: u64,
    /// Blocks of the device.
    pub blocks: u32,
    /// Where in the operation's range it starts, in bytes.
    pub at: u64,
    /// Bytes of the range that it does; for a flush 1, whatever that means.
    pub len: u64,
}

impl Step {
    /// Whether data moves between memory and device.
    #[must_use]
    pub fn has_data(&self) -> bool {
        match self.kind {
            Kind::Read | Kind::Write { .. } | Kind::WriteOfZeros => true,
            Kind::Zero | Kind::Flush | Kind::Deallocate => false,
        }
    }
}

/// The command that goes on at byte `at` of the operation, whose range has been checked; `None` at its end. An operation
/// that the device need not be told of has none.
#[must_use]
pub fn step(action: &Action, at: u64, limits: &Limits) -> Option<Step> {
    let (kind, offset, len, blocks_max) = match action {
        Action::Read { offset, memory } => {
            (Kind::Read, *offset, memory.len() as u64, limits.transfer_blocks_max)
        }
        Action::Write { offset, memory, fua } => {
            let kind = Kind::Write { fua: *fua };
            (kind, *offset, memory.len() as u64, limits.transfer_blocks_max)
        }
        Action::Zero { offset, len } if limits.zero_blocks_max > 0 => {
            (Kind::Zero, *offset, *len, limits.zero_blocks_max)
        }
        Action::Zero { offset, len } => {
            (Kind::WriteOfZeros, *offset, *len, limits.zeros_blocks_max())
        }
        Action::Deallocate { offset, len } if limits.deallocate_blocks_max > 0 => {
            (Kind::Deallocate, *offset, *len, limits.deallocate_blocks_max)
        }
        // A hint that the device does not take.
        Action::Deallocate { .. } => return None,
        Action::Flush => {
            let wanted = at == 0 && limits.volatile_cache;
            return wanted.then_some(Step { kind: Kind::Flush, lba: 0, blocks: 0, at: 0, len: 1 });
        }
    };
    if at >= len {
        return None;
    }
    let rest_blocks = (len - at) >> limits.lba_shift;
    let blocks = rest_blocks.min(u64::from(blocks_max));
    assert!(blocks > 0, "ranges are whole blocks");
    Some(Step {
        kind,
        lba: (offset + at) >> limits.lba_shift,
        blocks: blocks as u32,
        at,
        len: blocks << limits.lba_shift,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Memory;

    fn limits() -> Limits {
        Limits {
            lba_shift: 9,
            blocks: 1 << 20,
            transfer_blocks_max: 256,
            zero_blocks_max: 1024,
            deallocate_blocks_max: 1 << 16,
            volatile_cache: true,
        }
    }

    fn all(action: &Action, limits: &Limits) -> Vec<Step> {
        let mut at = 0;
        std::iter::from_fn(|| {
            let step = step(action, at, limits)?;
            at += step.len;
            Some(step)
        })
        .collect()
    }

    #[test]
    fn transfers_are_cut_and_cover_all() {
        for (shift, per) in [(9, 256), (12, 32)] {
            let limits = Limits { lba_shift: shift, transfer_blocks_max: per, ..limits() };
            for blocks in [1_u64, 31, 32, 33, 100] {
                let len = blocks * 4096;
                let action = Action::Read { offset: 8192, memory: Memory::zeroed(len as usize) };
                let steps = all(&action, &limits);
                assert_eq!(steps.len() as u64, blocks.div_ceil(32));
                let mut next = 8192;
                for step in &steps {
                    assert_eq!(step.lba << shift, next);
                    assert_eq!(step.at, next - 8192);
                    assert!(step.blocks <= per);
                    next += u64::from(step.blocks) << shift;
                }
                assert_eq!(next, 8192 + len);
            }
        }
    }

    #[test]
    fn what_a_device_does_not_know_is_done_otherwise() {
        let zero = Action::Zero { offset: 0, len: 4 << 20 };
        assert_eq!(all(&zero, &limits()).len(), 8);
        assert!(all(&zero, &limits()).iter().all(|s| s.kind == Kind::Zero));
        let without = Limits { zero_blocks_max: 0, ..limits() };
        let steps = all(&zero, &without);
        assert!(steps.iter().all(|s| s.kind == Kind::WriteOfZeros && s.has_data()));
        assert_eq!(steps.iter().map(|s| s.len).sum::<u64>(), 4 << 20);

        let deallocate = Action::Deallocate { offset: 4096, len: 1 << 20 };
        assert_eq!(all(&deallocate, &limits()).len(), 1);
        let without = Limits { deallocate_blocks_max: 0, ..limits() };
        assert!(all(&deallocate, &without).is_empty());

        assert_eq!(all(&Action::Flush, &limits()).len(), 1);
        let written_through = Limits { volatile_cache: false, ..limits() };
        assert!(all(&Action::Flush, &written_through).is_empty());
    }
}
