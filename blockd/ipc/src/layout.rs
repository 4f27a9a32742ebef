//! Bytes that both sides of a queue see: the first 2 MiB of the arena. Data buffers lie behind.
//!
//! ```text
//! 0x0000  u64 magic "CFSQUEUE"   u32 version   u32 depth      written by the client before the hello
//! 0x0040  u32 SQ tail            the client's: entries submitted
//! 0x0080  u32 SQ head            the server's: entries taken
//! 0x00c0  u32 server sleeps      1: a submission must be announced on the SQ eventfd
//! 0x0100  u32 CQ tail            the server's: completions written
//! 0x0140  u32 CQ head            the client's: completions taken
//! 0x0180  u32 client sleeps      1: a completion must be announced on the CQ eventfd
//! 0x1000  depth × SQE (64 bytes)
//! 0x41000 depth × CQE (16 bytes)
//! ```
//! SQE, eight little-endian words of 64 bits:
//! `0` opcode (8 bits), flags (8 bits) · `1` volume · `2` lba · `3` blocks · `4` buffer offset in the
//! arena, bytes · `5` cookie · `6` `7` zero.
//! CQE, two words: `0` cookie · `1` status (32 bits, 0 is success), result (32 bits).
//!
//! Indexes run freely and wrap at 2^32; the entry is index modulo depth, which is a power of two.
//! Every word is accessed atomically, so that a peer that writes while we read does no harm beyond
//! nonsense, and nonsense is checked.

use crate::error::{Error, Kind};

pub const MAGIC: u64 = u64::from_le_bytes(*b"CFSQUEUE");
pub const VERSION: u32 = 1;
/// Bytes at the start of the arena that belong to the queues; the pool of buffers starts behind.
pub const QUEUE_BYTES: usize = hugepages::HUGE_PAGE_BYTES;
/// Most entries of a queue. A client that asks for more is refused.
pub const DEPTH_MAX: u32 = 4096;

pub(crate) const MAGIC_AT: usize = 0;
pub(crate) const VERSION_AT: usize = 8;
pub(crate) const DEPTH_AT: usize = 12;
pub(crate) const SQ_TAIL_AT: usize = 0x40;
pub(crate) const SQ_HEAD_AT: usize = 0x80;
pub(crate) const SERVER_SLEEPS_AT: usize = 0xc0;
pub(crate) const CQ_TAIL_AT: usize = 0x100;
pub(crate) const CQ_HEAD_AT: usize = 0x140;
pub(crate) const CLIENT_SLEEPS_AT: usize = 0x180;
pub(crate) const SQ_AT: usize = 0x1000;
pub(crate) const CQ_AT: usize = SQ_AT + DEPTH_MAX as usize * SQE_WORDS * 8;
pub(crate) const SQE_WORDS: usize = 8;
pub(crate) const CQE_WORDS: usize = 2;

const _: () = assert!(CQ_AT == 0x41000);
const _: () = assert!(CQ_AT + DEPTH_MAX as usize * CQE_WORDS * 8 <= QUEUE_BYTES);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    Read,
    Write,
    Flush,
    Deallocate,
    WriteZeroes,
}

/// A submission, checked for form but not against a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sqe {
    pub opcode: Opcode,
    /// Durable on completion; of writes.
    pub fua: bool,
    /// The volume as the server numbered it in its answer.
    pub volume: u64,
    pub lba: u64,
    /// Length in blocks; 0 for a flush.
    pub blocks: u64,
    /// Where the data is in the arena, in bytes; of reads and writes.
    pub buffer_offset: u64,
    /// Comes back in the completion, whatever it is.
    pub cookie: u64,
}

const FLAG_FUA: u64 = 1;

impl Sqe {
    pub fn encode(&self) -> [u64; SQE_WORDS] {
        let opcode = match self.opcode {
            Opcode::Read => 1,
            Opcode::Write => 2,
            Opcode::Flush => 3,
            Opcode::Deallocate => 4,
            Opcode::WriteZeroes => 5,
        };
        let first = opcode | if self.fua { FLAG_FUA << 8 } else { 0 };
        [first, self.volume, self.lba, self.blocks, self.buffer_offset, self.cookie, 0, 0]
    }

    /// # Errors
    /// `Invalid` for an unknown opcode or flag, or a reserved bit set.
    pub fn decode(words: [u64; SQE_WORDS]) -> Result<Sqe, Error> {
        let [first, volume, lba, blocks, buffer_offset, cookie, reserved_6, reserved_7] = words;
        let flags = first >> 8;
        let opcode = match first & 0xff {
            1 => Opcode::Read,
            2 => Opcode::Write,
            3 => Opcode::Flush,
            4 => Opcode::Deallocate,
            5 => Opcode::WriteZeroes,
            other => return Err(Error::new(Kind::Invalid, format!("opcode {other}"))),
        };
        if flags & !FLAG_FUA != 0 || reserved_6 != 0 || reserved_7 != 0 {
            return Err(Error::new(Kind::Invalid, "reserved bits of a submission"));
        }
        let fua = flags & FLAG_FUA != 0;
        Ok(Sqe { opcode, fua, volume, lba, blocks, buffer_offset, cookie })
    }

    pub(crate) fn cookie_of(words: &[u64; SQE_WORDS]) -> u64 {
        words[5]
    }
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    pub cookie: u64,
    /// 0 is success, else [`Kind::status`].
    pub status: u32,
    /// Not used by version 1; 0.
    pub result: u32,
}

impl Cqe {
    /// The completion of the operation with this cookie.
    pub fn of(cookie: u64, result: Result<(), Kind>) -> Cqe {
        Cqe { cookie, status: result.map_or_else(Kind::status, |()| 0), result: 0 }
    }

    pub fn encode(&self) -> [u64; CQE_WORDS] {
        [self.cookie, u64::from(self.status) | u64::from(self.result) << 32]
    }

    pub fn decode(words: [u64; CQE_WORDS]) -> Cqe {
        let [cookie, second] = words;
        Cqe { cookie, status: second as u32, result: (second >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_their_golden_words() {
        let sqe = Sqe {
            opcode: Opcode::Write,
            fua: true,
            volume: 7,
            lba: 8,
            blocks: 9,
            buffer_offset: 0x20_1000,
            cookie: 11,
        };
        assert_eq!(sqe.encode(), [0x102, 7, 8, 9, 0x20_1000, 11, 0, 0]);
        assert_eq!(Sqe::decode(sqe.encode()).unwrap(), sqe);
        let cqe = Cqe::of(11, Err(Kind::Poisoned));
        assert_eq!(cqe.encode(), [11, 4]);
        assert_eq!(Cqe::decode(cqe.encode()), cqe);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [[0; 8], [6; 8], [0x201, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1]] {
            assert_eq!(Sqe::decode(words).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
