//! Bytes to PDUs: lengths, offsets, order of header, padding, data and digests, checked before anything is believed.
//!
//! ```text
//! Header ─► (digest) ─► [Item::Header] ─► pad ─► data into the sink ─► (digest) ─► [Item::Data] ─► Header …
//! ```
//! After `Item::Header` of a PDU with data the connection says where the data goes, then feeds on.

use super::digest::{self, DIGEST_BYTES, Running};
use super::pdu::{self, DataHeader, Fatal, IcRequest, Pdu, u16_at, u32_at};
use crate::engine::Memory;

const HEADER_BYTES_MAX: usize = pdu::IC_BYTES + DIGEST_BYTES;

/// Where the data of a PDU goes.
#[derive(Debug)]
pub enum Sink {
    /// Read and thrown away: its command failed already.
    Nowhere,
    Memory {
        memory: Memory,
        at: usize,
    },
}

/// What the bytes have become.
#[derive(Debug)]
pub enum Item {
    /// A header; `data_len` bytes follow, and [`Receiver::data_to`] must be called if there are any.
    Header { pdu: Pdu, data_len: usize },
    /// All data of the last header is in its sink; whether its digest was right.
    Data { sound: bool },
}

#[derive(Debug)]
enum Stage {
    Header,
    Pad { left: usize },
    Data { left: usize },
    Digest,
}

/// See the module.
#[derive(Debug)]
pub struct Receiver {
    /// Digests as negotiated; off until then.
    pub header_digest: bool,
    pub data_digest: bool,
    /// Longest data of a command capsule and of an H2CData PDU.
    pub capsule_max: usize,
    pub data_max: usize,
    established: bool,
    stage: Stage,
    header: [u8; HEADER_BYTES_MAX],
    filled: usize,
    pad: usize,
    data_len: usize,
    sink: Sink,
    placed: usize,
    has_digest: bool,
    running: Running,
}

impl Receiver {
    pub fn new(capsule_max: usize, data_max: usize) -> Receiver {
        Receiver {
            header_digest: false,
            data_digest: false,
            capsule_max,
            data_max,
            established: false,
            stage: Stage::Header,
            header: [0; HEADER_BYTES_MAX],
            filled: 0,
            pad: 0,
            data_len: 0,
            sink: Sink::Nowhere,
            placed: 0,
            has_digest: false,
            running: Running::new(),
        }
    }

    /// The handshake is over: digests as given, and no further ICReq.
    pub fn establish(&mut self, header_digest: bool, data_digest: bool) {
        self.established = true;
        self.header_digest = header_digest;
        self.data_digest = data_digest;
    }

    /// Where the data of the header just seen goes.
    pub fn data_to(&mut self, sink: Sink) {
        self.sink = sink;
    }

    /// The header bytes so far, for a TermReq.
    pub fn offender(&self) -> &[u8] {
        &self.header[..self.filled.min(pdu::IC_BYTES)]
    }

    /// Takes bytes off the front of `bytes` until an item is there or they are used up.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Item>, Fatal> {
        loop {
            match self.stage {
                Stage::Header => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    if let Some(item) = self.feed_header(bytes)? {
                        return Ok(Some(item));
                    }
                }
                Stage::Pad { left } => {
                    let n = left.min(bytes.len());
                    *bytes = &bytes[n..];
                    if n < left {
                        self.stage = Stage::Pad { left: left - n };
                        return Ok(None);
                    }
                    self.stage = Stage::Data { left: self.data_len };
                }
                Stage::Data { left } => {
                    let n = left.min(bytes.len());
                    let (now, rest) = bytes.split_at(n);
                    if let Sink::Memory { memory, at } = &self.sink {
                        memory.write(at + self.placed, now);
                    }
                    if self.has_digest {
                        self.running.bytes(now);
                    }
                    *bytes = rest;
                    if !self.placed_more(n) {
                        return Ok(None);
                    }
                    if !self.has_digest {
                        return Ok(Some(self.data_end(true)));
                    }
                }
                Stage::Digest => {
                    let n = (DIGEST_BYTES - self.filled).min(bytes.len());
                    self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
                    self.filled += n;
                    *bytes = &bytes[n..];
                    if self.filled < DIGEST_BYTES {
                        return Ok(None);
                    }
                    let sound = u32_at(&self.header, 0) == self.running.value();
                    return Ok(Some(self.data_end(sound)));
                }
            }
        }
    }

    /// Where the next bytes of data may be received directly: memory, offset, bytes left.
    pub fn direct(&self) -> Option<(&Memory, usize, usize)> {
        match (&self.stage, &self.sink) {
            (Stage::Data { left }, Sink::Memory { memory, at }) => {
                Some((memory, at + self.placed, *left))
            }
            _ => None,
        }
    }

    /// `n` bytes were received where `direct` said.
    pub fn received_direct(&mut self, n: usize) -> Option<Item> {
        if let (true, Sink::Memory { memory, at }) = (self.has_digest, &self.sink) {
            self.running.memory(memory, at + self.placed, n);
        }
        (self.placed_more(n) && !self.has_digest).then(|| self.data_end(true))
    }

    /// Counts data; `true` when all is there (and the stage is `Digest` if one follows).
    fn placed_more(&mut self, n: usize) -> bool {
        let Stage::Data { left } = &mut self.stage else { unreachable!("only called with data") };
        assert!(n <= *left, "more data than the PDU has");
        *left -= n;
        self.placed += n;
        if *left > 0 {
            return false;
        }
        if self.has_digest {
            self.stage = Stage::Digest;
            self.filled = 0;
        }
        true
    }

    fn data_end(&mut self, sound: bool) -> Item {
        self.stage = Stage::Header;
        self.filled = 0;
        self.sink = Sink::Nowhere;
        Item::Data { sound }
    }

    fn feed_header(&mut self, bytes: &mut &[u8]) -> Result<Option<Item>, Fatal> {
        let wanted = if self.filled < pdu::COMMON_BYTES {
            pdu::COMMON_BYTES
        } else {
            usize::from(self.header[2]) + self.header_digest_bytes()
        };
        let n = (wanted - self.filled).min(bytes.len());
        self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        *bytes = &bytes[n..];
        if self.filled < wanted {
            return Ok(None);
        }
        if wanted == pdu::COMMON_BYTES {
            self.check_common()?;
            return Ok(None);
        }
        let (pdu, data_len) = self.parse()?;
        self.data_len = data_len;
        if data_len == 0 {
            self.filled = 0;
        } else {
            self.stage = Stage::Pad { left: self.pad };
            self.placed = 0;
            self.running = Running::new();
            self.sink = Sink::Nowhere;
        }
        Ok(Some(Item::Header { pdu, data_len }))
    }

    fn header_digest_bytes(&self) -> usize {
        // ICReq and TermReq never have one.
        let kind = self.header[0];
        if self.header_digest && (kind == pdu::COMMAND || kind == pdu::H2C_DATA) {
            DIGEST_BYTES
        } else {
            0
        }
    }

    /// The eight bytes that every PDU starts with.
    fn check_common(&mut self) -> Result<(), Fatal> {
        let (kind, flags, header_len) = (self.header[0], self.header[1], self.header[2]);
        let total = u32_at(&self.header, 4) as usize;
        let (expected, data_max) = match kind {
            pdu::IC_REQUEST => (pdu::IC_BYTES, 0),
            pdu::H2C_TERM => (pdu::TERM_BYTES, pdu::TERM_BYTES_MAX - pdu::TERM_BYTES),
            pdu::COMMAND => (pdu::COMMAND_BYTES, self.capsule_max),
            pdu::H2C_DATA => (pdu::DATA_BYTES, self.data_max),
            _ => return Err(Fatal::HeaderField(0)),
        };
        if usize::from(header_len) != expected {
            return Err(Fatal::HeaderField(2));
        }
        if (kind == pdu::IC_REQUEST) == self.established {
            return Err(Fatal::Sequence);
        }
        let digests = self.header_digest_bytes();
        let wants_header_digest = digests > 0;
        if wants_header_digest != (flags & pdu::FLAG_HEADER_DIGEST != 0) {
            return Err(Fatal::HeaderField(1));
        }
        let front = expected + digests;
        let pad_max = 128;
        let total_max = front + pad_max + data_max + DIGEST_BYTES;
        if total < front || total > total_max {
            return Err(Fatal::HeaderField(4));
        }
        Ok(())
    }

    fn parse(&mut self) -> Result<(Pdu, usize), Fatal> {
        let h = &self.header;
        let header_len = usize::from(h[2]);
        if self.header_digest_bytes() > 0 {
            let sent = u32_at(h, header_len);
            if sent != digest::of(&h[..header_len]) {
                return Err(Fatal::HeaderDigest(sent));
            }
        }
        let (data_len, pad) = self.data_extent(header_len)?;
        let h = &self.header;
        let parsed = match h[0] {
            pdu::IC_REQUEST => Pdu::Connect(IcRequest {
                version: u16_at(h, 8),
                alignment: h[10],
                digests: h[11],
                r2t_max: u32_at(h, 12),
            }),
            pdu::H2C_TERM => Pdu::Terminate { status: u16_at(h, 8), information: u32_at(h, 10) },
            pdu::COMMAND => {
                let mut sqe = [0; 64];
                sqe.copy_from_slice(&h[8..72]);
                Pdu::Command(sqe)
            }
            _ => {
                let header = DataHeader {
                    command: u16_at(h, 8),
                    tag: u16_at(h, 10),
                    offset: u32_at(h, 12),
                    len: u32_at(h, 16),
                };
                // The fields of data offset and length lie at 12 and 16.
                if header.len as usize != data_len || data_len == 0 {
                    return Err(Fatal::HeaderField(16));
                }
                Pdu::Data(header)
            }
        };
        self.pad = pad;
        Ok((parsed, data_len))
    }

    /// Length of the data and of the padding before it.
    fn data_extent(&mut self, header_len: usize) -> Result<(usize, usize), Fatal> {
        let h = &self.header;
        let total = u32_at(h, 4) as usize;
        let front = header_len + self.header_digest_bytes();
        let flagged = h[1] & pdu::FLAG_DATA_DIGEST != 0;
        self.has_digest = false;
        if h[0] == pdu::H2C_TERM {
            return Ok((total - front, 0));
        }
        if total == front {
            return Ok((0, 0));
        }
        let offset = usize::from(h[3]);
        if h[0] == pdu::IC_REQUEST || offset < front || offset > total {
            return Err(Fatal::HeaderField(if h[0] == pdu::IC_REQUEST { 4 } else { 3 }));
        }
        if flagged != self.data_digest {
            return Err(Fatal::HeaderField(1));
        }
        let tail = if flagged { DIGEST_BYTES } else { 0 };
        let data_max = if h[0] == pdu::COMMAND { self.capsule_max } else { self.data_max };
        match (total - offset).checked_sub(tail) {
            Some(len) if len > 0 && len <= data_max => {
                self.has_digest = flagged;
                Ok((len, offset - front))
            }
            _ => Err(Fatal::HeaderField(4)),
        }
    }
}
