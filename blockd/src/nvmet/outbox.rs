//! What a connection has to send: headers and, without copying, the buffers that the device filled.

use std::collections::VecDeque;

use super::buffers::Buffers;
use super::digest::{self, DIGEST_BYTES, Running};
use super::pdu;
use crate::engine::Memory;
use crate::engine::socket::{PIECES_MAX, Piece};

/// While more waits than this, nothing is received from the host.
pub const WAITING_BYTES_MAX: usize = 4 << 20;
const SMALL_BYTES: usize = 32;

#[derive(Debug)]
enum Segment {
    Small { bytes: [u8; SMALL_BYTES], len: u8 },
    Bytes(Vec<u8>),
    Memory { memory: Memory, len: usize },
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Segment::Small { len, .. } => usize::from(*len),
            Segment::Bytes(bytes) => bytes.len(),
            Segment::Memory { len, .. } => *len,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    sent: usize,
    waiting: usize,
    pub header_digest: bool,
    pub data_digest: bool,
    /// Data starts at multiples of this many bytes in a PDU; 0 is anywhere.
    pub alignment: usize,
}

impl Outbox {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.waiting += bytes.len();
        if bytes.len() <= SMALL_BYTES {
            let mut small = [0; SMALL_BYTES];
            small[..bytes.len()].copy_from_slice(bytes);
            self.segments.push_back(Segment::Small { bytes: small, len: bytes.len() as u8 });
        } else {
            self.segments.push_back(Segment::Bytes(bytes.to_vec()));
        }
    }

    /// A PDU without data: `header` with room for the common part.
    pub fn header(&mut self, kind: u8, header: &mut [u8]) {
        let digest = if self.header_digest { DIGEST_BYTES } else { 0 };
        let flags = if self.header_digest { pdu::FLAG_HEADER_DIGEST } else { 0 };
        let total = header.len() + digest;
        pdu::common(header, kind, flags, 0, total as u32);
        let mut bytes = [0; 128 + DIGEST_BYTES];
        bytes[..header.len()].copy_from_slice(header);
        if self.header_digest {
            bytes[header.len()..total].copy_from_slice(&digest::of(header).to_le_bytes());
        }
        self.raw(&bytes[..total]);
    }

    /// A response capsule.
    pub fn response(&mut self, cqe: &[u8; 16]) {
        let mut header = [0; pdu::RESPONSE_BYTES];
        header[8..24].copy_from_slice(cqe);
        self.header(pdu::RESPONSE, &mut header);
    }

    /// All data of a command in one PDU, out of a buffer that is given back when it is sent.
    pub fn data(&mut self, command: u16, memory: Memory, len: usize, success: bool) {
        self.data_header(command, len, success);
        let digest = self.data_digest.then(|| {
            let mut running = Running::new();
            running.memory(&memory, 0, len);
            running.value()
        });
        self.waiting += len;
        self.segments.push_back(Segment::Memory { memory, len });
        if let Some(digest) = digest {
            self.raw(&digest.to_le_bytes());
        }
    }

    /// The same from plain bytes.
    pub fn data_bytes(&mut self, command: u16, bytes: Vec<u8>, success: bool) {
        self.data_header(command, bytes.len(), success);
        let digest = self.data_digest.then(|| digest::of(&bytes));
        self.waiting += bytes.len();
        self.segments.push_back(Segment::Bytes(bytes));
        if let Some(digest) = digest {
            self.raw(&digest.to_le_bytes());
        }
    }

    fn data_header(&mut self, command: u16, len: usize, success: bool) {
        assert!(len > 0, "a data PDU without data");
        let front = pdu::DATA_BYTES + if self.header_digest { DIGEST_BYTES } else { 0 };
        let offset =
            if self.alignment > 1 { front.next_multiple_of(self.alignment) } else { front };
        let tail = if self.data_digest { DIGEST_BYTES } else { 0 };
        let mut flags = pdu::FLAG_LAST;
        if self.header_digest {
            flags |= pdu::FLAG_HEADER_DIGEST;
        }
        if self.data_digest {
            flags |= pdu::FLAG_DATA_DIGEST;
        }
        if success {
            flags |= pdu::FLAG_SUCCESS;
        }
        let mut bytes = [0; 256];
        let header = &mut bytes[..pdu::DATA_BYTES];
        pdu::common(header, pdu::C2H_DATA, flags, offset as u8, (offset + len + tail) as u32);
        header[8..10].copy_from_slice(&command.to_le_bytes());
        header[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        if self.header_digest {
            let digest = digest::of(header);
            bytes[pdu::DATA_BYTES..front].copy_from_slice(&digest.to_le_bytes());
        }
        self.raw(&bytes[..offset]);
    }

    /// What to send next, at most [`PIECES_MAX`] pieces.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut skip = self.sent;
        let pieces = self.segments.iter().take(PIECES_MAX).map(|segment| {
            let from = std::mem::take(&mut skip);
            match segment {
                Segment::Small { bytes, len } => Piece::Bytes(&bytes[from..usize::from(*len)]),
                Segment::Bytes(bytes) => Piece::Bytes(&bytes[from..]),
                Segment::Memory { memory, len } => {
                    Piece::Memory { memory, at: from, len: len - from }
                }
            }
        });
        pieces.collect()
    }

    /// `n` bytes of the pieces were sent.
    pub fn advance(&mut self, mut n: usize, buffers: &mut Buffers) {
        assert!(n <= self.waiting, "more sent than there was");
        self.waiting -= n;
        while let Some(first) = self.segments.front() {
            let left = first.len() - self.sent;
            if n < left {
                self.sent += n;
                return;
            }
            n -= left;
            self.sent = 0;
            if let Some(Segment::Memory { memory, .. }) = self.segments.pop_front() {
                buffers.give(memory);
            }
        }
    }
}
