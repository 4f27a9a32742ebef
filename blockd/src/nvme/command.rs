//! Submission queue entries to send (NVMe base 2.0 §3.3.3.1). Data pointers are PRPs; identifiers are the ring's.
//!
//! ```text
//! 0 opcode · 1 flags · 2..4 command id · 4..8 namespace · 24..32 PRP 1 · 32..40 PRP 2 · 40..64 dwords 10 to 15
//! ```

use super::bytes::{put16, put32, put64};
use super::opcode::{FEATURE_QUEUES, admin, io};
use super::plan::{Kind, Step};

/// An entry without its command id and data pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    pub opcode: u8,
    pub nsid: u32,
    /// Dwords 10 to 15.
    pub dwords: [u32; 6],
}

/// Where the data is: both PRP entries, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Data {
    pub prp1: u64,
    pub prp2: u64,
}

impl Command {
    fn new(opcode: u8, nsid: u32) -> Command {
        Command { opcode, nsid, dwords: [0; 6] }
    }

    /// The command that does a step of an operation.
    #[must_use]
    pub fn of_step(step: &Step, nsid: u32) -> Command {
        let ranged = |opcode, flags: u32| {
            assert!((1..=0x1_0000).contains(&step.blocks), "{} blocks in one command", step.blocks);
            let mut command = Command::new(opcode, nsid);
            command.dwords[0] = step.lba as u32;
            command.dwords[1] = (step.lba >> 32) as u32;
            command.dwords[2] = flags | (step.blocks - 1);
            command
        };
        match step.kind {
            Kind::Read => ranged(io::READ, 0),
            Kind::Write { fua } => ranged(io::WRITE, if fua { io::FUA } else { 0 }),
            Kind::WriteOfZeros => ranged(io::WRITE, 0),
            Kind::Zero => ranged(io::WRITE_ZEROES, 0),
            Kind::Flush => Command::new(io::FLUSH, nsid),
            Kind::Deallocate => {
                let mut command = Command::new(io::DATASET, nsid);
                // One range, 0's based.
                command.dwords[0] = 0;
                command.dwords[1] = io::DEALLOCATE;
                command
            }
        }
    }

    /// Identify, 4096 bytes (§5.17). `structure` is the CNS, `command_set` the CSI.
    #[must_use]
    pub fn identify(structure: u8, command_set: u8, nsid: u32) -> Command {
        let mut command = Command::new(admin::IDENTIFY, nsid);
        command.dwords[0] = structure.into();
        command.dwords[1] = u32::from(command_set) << 24;
        command
    }

    /// Get Log Page (§5.16) of the controller, from its start; `len` bytes, a multiple of 4.
    #[must_use]
    pub fn log_page(page: u8, len: u32) -> Command {
        assert!(len > 0 && len.is_multiple_of(4), "{len} bytes of a log page");
        let dwords = len / 4 - 1;
        let mut command = Command::new(admin::GET_LOG_PAGE, u32::MAX);
        command.dwords[0] = u32::from(page) | (dwords & 0xffff) << 16;
        command.dwords[1] = dwords >> 16;
        command
    }

    /// Set Features, number of queues (§5.27.1.5): asks for `count` I/O queues of each kind.
    #[must_use]
    pub fn queues(count: u16) -> Command {
        assert!(count > 0, "no queues");
        let mut command = Command::new(admin::SET_FEATURES, 0);
        command.dwords[0] = FEATURE_QUEUES.into();
        command.dwords[1] = u32::from(count - 1) << 16 | u32::from(count - 1);
        command
    }

    /// Create I/O Completion Queue (§5.5): contiguous, with interrupts of this vector.
    #[must_use]
    pub fn create_cq(queue: u16, entries: u16, vector: Option<u16>) -> Command {
        let mut command = Command::new(admin::CREATE_CQ, 0);
        command.dwords[0] = u32::from(entries - 1) << 16 | u32::from(queue);
        command.dwords[1] = 1 | vector.map_or(0, |v| u32::from(v) << 16 | 1 << 1);
        command
    }

    /// Create I/O Submission Queue (§5.6): contiguous, completing to the queue of the same number.
    #[must_use]
    pub fn create_sq(queue: u16, entries: u16) -> Command {
        let mut command = Command::new(admin::CREATE_SQ, 0);
        command.dwords[0] = u32::from(entries - 1) << 16 | u32::from(queue);
        command.dwords[1] = u32::from(queue) << 16 | 1;
        command
    }

    /// Delete I/O Submission Queue (§5.8) or Completion Queue (§5.7).
    #[must_use]
    pub fn delete_queue(opcode: u8, queue: u16) -> Command {
        let mut command = Command::new(opcode, 0);
        command.dwords[0] = queue.into();
        command
    }

    /// Abort (§5.1) of a command of a submission queue.
    #[must_use]
    pub fn abort(queue: u16, id: u16) -> Command {
        let mut command = Command::new(admin::ABORT, 0);
        command.dwords[0] = u32::from(id) << 16 | u32::from(queue);
        command
    }

    /// Format NVM (§5.14) of a namespace, without metadata and protection information. `secure` is the SES field: 0 none, 1 user
    /// data, 2 by the key.
    #[must_use]
    pub fn format(nsid: u32, format: u8, secure: u8) -> Command {
        assert!(format < 64 && secure < 8, "format {format}, erase {secure}");
        let mut command = Command::new(admin::FORMAT, nsid);
        let format = u32::from(format);
        command.dwords[0] = format & 0xf | u32::from(secure) << 9 | format >> 4 << 12;
        command
    }

    /// The 64 bytes.
    #[must_use]
    pub fn encode(&self, id: u16, data: Data) -> [u8; 64] {
        let mut b = [0; 64];
        b[0] = self.opcode;
        put16(&mut b, 2, id);
        put32(&mut b, 4, self.nsid);
        put64(&mut b, 24, data.prp1);
        put64(&mut b, 32, data.prp2);
        for (i, dword) in self.dwords.iter().enumerate() {
            put32(&mut b, 40 + i * 4, *dword);
        }
        b
    }
}

/// The one range of a Dataset Management command (NVM command set 1.0 §3.2.3).
#[must_use]
pub fn dataset_range(lba: u64, blocks: u32) -> [u8; 16] {
    let mut b = [0; 16];
    put32(&mut b, 4, blocks);
    put64(&mut b, 8, lba);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: Kind) -> Step {
        Step { kind, lba: 0x1_2345_6789, blocks: 8, at: 0, len: 4096 }
    }

    #[test]
    fn commands_are_what_the_target_reads() {
        // The target's accessors are tested with Linux' host: what they read is what a device reads.
        use crate::nvme::bytes::u64_at;
        let data = Data { prp1: 0x1000, prp2: 0x2000 };
        let b = Command::of_step(&step(Kind::Write { fua: true }), 3).encode(0x55aa, data);
        assert_eq!((b[0], b[1], b[2], b[3], b[4]), (0x01, 0, 0xaa, 0x55, 3));
        assert_eq!((u64_at(&b, 24), u64_at(&b, 32)), (0x1000, 0x2000));
        assert_eq!(u64_at(&b, 40), 0x1_2345_6789);
        assert_eq!(b[48..52], [7, 0, 0, 0x40]);
        let read = Command::of_step(&step(Kind::Read), 1);
        assert_eq!((read.opcode, read.dwords[2]), (0x02, 7));
        let zero = Command::of_step(&step(Kind::Zero), 1);
        assert_eq!((zero.opcode, zero.dwords[2]), (0x08, 7));
        let flush = Command::of_step(&step(Kind::Flush), 1);
        assert_eq!((flush.opcode, flush.dwords), (0, [0; 6]));
        let deallocate = Command::of_step(&step(Kind::Deallocate), 1);
        assert_eq!((deallocate.opcode, deallocate.dwords[..2].to_vec()), (0x09, vec![0, 4]));
    }

    #[test]
    fn admin_commands() {
        assert_eq!(Command::identify(6, 1, 9).dwords[..2], [6, 1 << 24]);
        assert_eq!(Command::log_page(2, 512).dwords[..2], [127 << 16 | 2, 0]);
        assert_eq!(Command::log_page(2, 1 << 20).dwords[..2], [0xffff << 16 | 2, 3]);
        assert_eq!(Command::queues(4).dwords[..2], [7, 3 << 16 | 3]);
        assert_eq!(Command::create_cq(2, 256, Some(2)).dwords[..2], [255 << 16 | 2, 2 << 16 | 3]);
        assert_eq!(Command::create_cq(2, 256, None).dwords[1], 1);
        assert_eq!(Command::create_sq(2, 256).dwords[..2], [255 << 16 | 2, 2 << 16 | 1]);
        assert_eq!(Command::abort(1, 7).dwords[0], 7 << 16 | 1);
        assert_eq!(Command::delete_queue(admin::DELETE_SQ, 5).dwords[0], 5);
        assert_eq!(Command::format(3, 4, 0).dwords[0], 4);
        assert_eq!(Command::format(3, 0x21, 2).dwords[0], 2 << 12 | 2 << 9 | 1);
        assert_eq!(dataset_range(5, 6)[4..], [6, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    }
}
