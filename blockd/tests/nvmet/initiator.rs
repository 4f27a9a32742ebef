//! A small NVMe/TCP host: enough to ask a target anything, right or wrong. Blocking, one thread.
#![allow(dead_code, missing_debug_implementations, clippy::unwrap_used)] // Each user takes its part of it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use aws_lc_rs::hmac;

/// Nothing that a test waits for takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const BLOCK: usize = 4096;
pub const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// How a queue is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub header_digest: bool,
    pub data_digest: bool,
    /// HPDA as on the wire.
    pub alignment: u8,
    /// R2Ts of one command at once, 0's based.
    pub r2t_max: u32,
}

/// What came back for a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    pub id: u16,
    /// SCT and SC, without DNR.
    pub status: u16,
    pub result: u64,
    pub data: Vec<u8>,
    pub head: u16,
}

#[derive(Default)]
struct Pending {
    write: Vec<u8>,
    read: Vec<u8>,
}

/// One queue.
pub struct Queue {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
    options: Options,
    next_id: u16,
    pending: HashMap<u16, Pending>,
    done: VecDeque<Completion>,
    /// R2Ts that came, for tests that count them.
    pub r2ts: usize,
    deaf: bool,
}

pub fn crc32c(bytes: &[u8]) -> [u8; 4] {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

/// A command: opcode and namespace; the rest by `put`.
pub fn sqe(opcode: u8, nsid: u32) -> [u8; 64] {
    let mut b = [0; 64];
    b[0] = opcode;
    b[1] = 0x40;
    put(&mut b, 4, &nsid.to_le_bytes());
    b
}

pub fn put(b: &mut [u8; 64], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Read, Write and their kin.
pub fn io(opcode: u8, lba: u64, blocks: u16) -> [u8; 64] {
    let mut b = sqe(opcode, 1);
    put(&mut b, 40, &lba.to_le_bytes());
    put(&mut b, 48, &(blocks - 1).to_le_bytes());
    b
}

pub fn admin(opcode: u8, nsid: u32, dword10: u32, dword11: u32) -> [u8; 64] {
    let mut b = sqe(opcode, nsid);
    put(&mut b, 40, &dword10.to_le_bytes());
    put(&mut b, 44, &dword11.to_le_bytes());
    b
}

pub fn get_log(page: u8, bytes: usize) -> [u8; 64] {
    let dwords = (bytes / 4 - 1) as u32;
    admin(0x02, 0xffff_ffff, u32::from(page) | dwords << 16, dwords >> 16)
}

fn fabrics(kind: u8) -> [u8; 64] {
    sqe(0x7f, u32::from(kind))
}

impl Queue {
    pub fn open(address: SocketAddr, options: Options) -> io::Result<Queue> {
        let writer = TcpStream::connect(address)?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        writer.set_write_timeout(Some(PATIENCE))?;
        let reader = BufReader::with_capacity(256 << 10, writer.try_clone()?);
        let (pending, done) = (HashMap::new(), VecDeque::new());
        let mut queue =
            Queue { reader, writer, options, next_id: 0, pending, done, r2ts: 0, deaf: false };
        let mut request = [0; 128];
        request[2] = 128;
        request[4] = 128;
        request[10] = options.alignment;
        request[11] = u8::from(options.header_digest) | u8::from(options.data_digest) << 1;
        request[12..16].copy_from_slice(&options.r2t_max.to_le_bytes());
        queue.raw(&request)?;
        let mut response = [0; 128];
        queue.reader.read_exact(&mut response)?;
        assert_eq!(response[0], 1, "ICResp");
        assert_eq!(response[11], request[11], "digests as asked");
        Ok(queue)
    }

    /// The stream, of a queue with nothing in flight.
    pub fn into_stream(self) -> TcpStream {
        assert!(self.pending.is_empty() && self.reader.buffer().is_empty(), "nothing in flight");
        self.writer
    }

    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    /// A PDU with its digests: `header` has its type at 0, the rest of the common header is made here.
    pub fn pdu(&mut self, header: &mut [u8], flags: u8, data: &[u8]) -> io::Result<()> {
        let bytes = encode(header, flags, data, self.options);
        self.raw(&bytes)
    }

    /// Sends a command with its data in the capsule or, beyond 8 KiB and for `by_r2t`, on R2T.
    pub fn submit(&mut self, mut sqe: [u8; 64], data: &[u8], read: usize) -> io::Result<u16> {
        self.submit_as(&mut sqe, data, read, data.len() > 8192)
    }

    pub fn submit_as(
        &mut self,
        sqe: &mut [u8; 64],
        data: &[u8],
        read: usize,
        by_r2t: bool,
    ) -> io::Result<u16> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1) % 4096;
        put(sqe, 2, &id.to_le_bytes());
        let in_capsule = !data.is_empty() && !by_r2t;
        put(sqe, 32, &((data.len() + read) as u32).to_le_bytes());
        sqe[39] = if in_capsule { 0x01 } else { 0x5a };
        let mut header = [0; 72];
        header[0] = 4;
        header[8..].copy_from_slice(sqe);
        let write = if in_capsule { Vec::new() } else { data.to_vec() };
        self.pending.insert(id, Pending { write, read: vec![0; read] });
        self.pdu(&mut header, 0, if in_capsule { data } else { &[] })?;
        Ok(id)
    }

    /// The next command that ends.
    pub fn complete(&mut self) -> io::Result<Completion> {
        while self.done.is_empty() {
            self.receive()?;
        }
        Ok(self.done.pop_front().unwrap())
    }

    pub fn call(&mut self, sqe: [u8; 64], data: &[u8], read: usize) -> io::Result<Completion> {
        let id = self.submit(sqe, data, read)?;
        self.wait(id)
    }

    /// The end of that command; others that end meanwhile stay.
    pub fn wait(&mut self, id: u16) -> io::Result<Completion> {
        loop {
            if let Some(at) = self.done.iter().position(|c| c.id == id) {
                return Ok(self.done.remove(at).unwrap());
            }
            self.receive()?;
        }
    }

    /// A command of that id was sent by other means.
    pub fn expect(&mut self, id: u16) {
        self.pending.insert(id, Pending::default());
    }

    /// As `terminated`, passing over R2Ts of commands that were sent by other means.
    pub fn terminated_after_r2t(&mut self) -> Option<u8> {
        self.deaf = true;
        self.terminated()
    }

    /// Reads one PDU; `Err` of kind `ConnectionAborted` is a C2HTermReq, with FES as its text.
    fn receive(&mut self) -> io::Result<()> {
        let mut header = vec![0; 8];
        self.reader.read_exact(&mut header)?;
        let (kind, flags, len) = (header[0], header[1], usize::from(header[2]));
        let total = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        header.resize(len, 0);
        self.reader.read_exact(&mut header[8..])?;
        let mut at = len;
        if kind == 3 {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, header[8].to_string()));
        }
        if self.options.header_digest {
            let mut digest = [0; 4];
            self.reader.read_exact(&mut digest)?;
            assert_eq!(digest, crc32c(&header), "header digest");
            assert_eq!(flags & 1, 1);
            at += 4;
        }
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        match kind {
            5 => {
                let result = u64::from(word(8)) | u64::from(word(12)) << 32;
                let (head, id, status) = (half(16), half(20), half(22) >> 1 & 0x3fff);
                let data = self.pending.remove(&id).expect("an id under way").read;
                self.done.push_back(Completion { id, status, result, data, head });
            }
            7 => {
                let (id, offset, len) = (half(8), word(12) as usize, word(16) as usize);
                let start = usize::from(header[3]);
                let unit = (usize::from(self.options.alignment) + 1) * 4;
                assert_eq!(start % unit, 0, "data is aligned as asked");
                let mut pad = vec![0; start - at];
                self.reader.read_exact(&mut pad)?;
                let pending = self.pending.get_mut(&id).expect("an id under way");
                let data = &mut pending.read[offset..offset + len];
                self.reader.read_exact(data)?;
                let mut tail = 0;
                if self.options.data_digest {
                    let mut digest = [0; 4];
                    self.reader.read_exact(&mut digest)?;
                    assert_eq!(digest, crc32c(data), "data digest");
                    tail = 4;
                }
                assert_eq!(total, start + len + tail, "PLEN");
                if flags & 8 != 0 {
                    let data = self.pending.remove(&id).unwrap().read;
                    self.done.push_back(Completion { id, data, ..Completion::default() });
                }
            }
            9 if self.deaf => {}
            9 => {
                self.r2ts += 1;
                let (id, tag) = (half(8), half(10));
                let (offset, len) = (word(12) as usize, word(16) as usize);
                let data = self.pending[&id].write[offset..offset + len].to_vec();
                // Two PDUs, so that targets see more than one.
                let cut = (len / 2).max(1).min(len);
                let parts = [(offset, &data[..cut]), (offset + cut, &data[cut..])];
                for (at, part) in parts.into_iter().filter(|(_, p)| !p.is_empty()) {
                    let last = at + part.len() == offset + len;
                    self.data(id, tag, at as u32, part, last)?;
                }
            }
            other => panic!("PDU type {other}"),
        }
        Ok(())
    }

    /// H2CData.
    pub fn data(&mut self, id: u16, tag: u16, at: u32, data: &[u8], last: bool) -> io::Result<()> {
        let mut header = [0; 24];
        header[0] = 6;
        header[8..10].copy_from_slice(&id.to_le_bytes());
        header[10..12].copy_from_slice(&tag.to_le_bytes());
        header[12..16].copy_from_slice(&at.to_le_bytes());
        header[16..20].copy_from_slice(&(data.len() as u32).to_le_bytes());
        self.pdu(&mut header, u8::from(last) << 2, data)
    }

    /// The FES of the C2HTermReq that ends the connection, or `None` if it just ends.
    pub fn terminated(&mut self) -> Option<u8> {
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    return Some(error.to_string().parse().unwrap());
                }
                Err(error) => {
                    let timed_out = error.kind() == io::ErrorKind::WouldBlock;
                    assert!(!timed_out, "the connection stays open");
                    return None;
                }
            }
        }
    }

    pub fn connect(
        &mut self,
        who: &Who<'_>,
        queue: u16,
        controller: u16,
    ) -> io::Result<Completion> {
        let mut sqe = fabrics(1);
        put(&mut sqe, 42, &queue.to_le_bytes());
        put(&mut sqe, 44, &(who.depth - 1).to_le_bytes());
        sqe[46] = if who.flow { 0 } else { 4 };
        put(&mut sqe, 48, &who.keep_alive_ms.to_le_bytes());
        let mut data = vec![0; 1024];
        data[..16].copy_from_slice(&[7; 16]);
        data[16..18].copy_from_slice(&controller.to_le_bytes());
        data[256..256 + who.subsystem.len()].copy_from_slice(who.subsystem.as_bytes());
        data[512..512 + who.host.len()].copy_from_slice(who.host.as_bytes());
        self.call(sqe, &data, 0)
    }

    pub fn property(&mut self, offset: u32) -> io::Result<u64> {
        let mut sqe = fabrics(4);
        sqe[40] = u8::from(offset == 0);
        put(&mut sqe, 44, &offset.to_le_bytes());
        let done = self.call(sqe, &[], 0)?;
        assert_eq!(done.status, 0);
        Ok(done.result)
    }

    pub fn set_property(&mut self, offset: u32, value: u64) -> io::Result<u16> {
        let mut sqe = fabrics(0);
        put(&mut sqe, 44, &offset.to_le_bytes());
        put(&mut sqe, 48, &value.to_le_bytes());
        Ok(self.call(sqe, &[], 0)?.status)
    }

    fn auth(&mut self, kind: u8, data: &[u8], read: usize) -> io::Result<Completion> {
        let mut sqe = fabrics(kind);
        put(&mut sqe, 41, &[1, 1, 0xe9]);
        put(&mut sqe, 44, &((data.len() + read) as u32).to_le_bytes());
        self.call(sqe, data, read)
    }

    /// DH-HMAC-CHAP with keys that are used as they are; gives whether both sides believe each other.
    pub fn authenticate(
        &mut self,
        who: &Who<'_>,
        hash: u8,
        key: &[u8],
        controller_key: Option<&[u8]>,
    ) -> io::Result<bool> {
        let mut negotiate = vec![0; 72];
        negotiate[4] = 9;
        negotiate[7] = 1;
        negotiate[8] = 1;
        negotiate[10] = 1;
        negotiate[11] = 2;
        negotiate[12] = hash;
        // Groups: one that the target does not have, and none.
        negotiate[42] = 9;
        assert_eq!(self.auth(5, &negotiate, 0)?.status, 0);
        let challenge = self.auth(6, &[], 256)?.data;
        assert_eq!((challenge[0], challenge[1], challenge[4], challenge[8]), (1, 1, 9, hash));
        let size = usize::from(challenge[6]);
        let sequence = &challenge[12..16];
        let value = &challenge[16..16 + size];
        let algorithm =
            [hmac::HMAC_SHA256, hmac::HMAC_SHA384, hmac::HMAC_SHA512][usize::from(hash) - 1];
        let mac = |key: &[u8], value: &[u8], sequence: &[u8], role: &[u8], a: &str, b: &str| {
            let parts =
                [value, sequence, &[9, 0], &[0], role, a.as_bytes(), &[0], b.as_bytes()].concat();
            hmac::sign(&hmac::Key::new(algorithm, key), &parts).as_ref().to_vec()
        };
        let mut reply = vec![1, 2, 0, 0, 9, 0, size as u8, 0, 0, 0, 0, 0];
        reply[8] = u8::from(controller_key.is_some());
        reply.extend_from_slice(&[5, 0, 0, 0]);
        reply.extend(mac(key, value, sequence, b"HostHost", who.host, who.subsystem));
        let mine = vec![0x33; size];
        if controller_key.is_some() {
            reply.extend_from_slice(&mine);
        }
        assert_eq!(self.auth(5, &reply, 0)?.status, 0);
        let verdict = self.auth(6, &[], 256)?.data;
        if verdict[1] != 3 {
            assert_eq!(verdict[1], 0xf1, "Failure1");
            return Ok(false);
        }
        let Some(controller_key) = controller_key else { return Ok(true) };
        let expected =
            mac(controller_key, &mine, &[5, 0, 0, 0], b"Controller", who.subsystem, who.host);
        let believed = verdict[8] == 1 && verdict[16..16 + size] == expected;
        let kind = if believed { 4 } else { 0xf0 };
        let mut last = vec![1, kind, 0, 0, 9, 0];
        last.resize(16, 0);
        assert_eq!(self.auth(5, &last, 0)?.status, 0);
        Ok(believed)
    }
}

/// The bytes of a PDU.
pub fn encode(header: &mut [u8], flags: u8, data: &[u8], options: Options) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, header, flags, data, options);
    bytes
}

/// Appends a PDU.
pub fn append(bytes: &mut Vec<u8>, header: &mut [u8], flags: u8, data: &[u8], options: Options) {
    let front = header.len() + if options.header_digest { 4 } else { 0 };
    let has_data_digest = options.data_digest && !data.is_empty();
    let total = front + data.len() + if has_data_digest { 4 } else { 0 };
    header[1] = flags | u8::from(options.header_digest) | u8::from(has_data_digest) << 1;
    header[2] = header.len() as u8;
    header[3] = if data.is_empty() { 0 } else { front as u8 };
    header[4..8].copy_from_slice(&(total as u32).to_le_bytes());
    bytes.extend_from_slice(header);
    if options.header_digest {
        bytes.extend_from_slice(&crc32c(header));
    }
    bytes.extend_from_slice(data);
    if has_data_digest {
        bytes.extend_from_slice(&crc32c(data));
    }
}

/// Who connects to what, and how.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub subsystem: &'a str,
    pub host: &'a str,
    pub depth: u16,
    pub keep_alive_ms: u32,
    pub flow: bool,
}

impl<'a> Who<'a> {
    pub fn new(subsystem: &'a str, host: &'a str) -> Who<'a> {
        Who { subsystem, host, depth: 32, keep_alive_ms: 0, flow: true }
    }
}

/// An admin queue that is connected and enabled.
pub struct Host {
    pub admin: Queue,
    pub controller: u16,
}

impl Host {
    pub fn connect(address: SocketAddr, who: &Who<'_>, options: Options) -> io::Result<Host> {
        let mut admin = Queue::open(address, options)?;
        let done = admin.connect(who, 0, 0xffff)?;
        assert_eq!(done.status, 0, "connect: {:#x}", done.status);
        let mut host = Host { admin, controller: done.result as u16 };
        host.enable()?;
        Ok(host)
    }

    pub fn enable(&mut self) -> io::Result<()> {
        assert_eq!(self.admin.set_property(0x14, 0x0046_0001)?, 0);
        assert_eq!(self.admin.property(0x1c)? & 3, 1, "ready");
        Ok(())
    }

    /// An I/O queue of the same controller.
    pub fn queue(
        &self,
        address: SocketAddr,
        who: &Who<'_>,
        id: u16,
        options: Options,
    ) -> io::Result<Queue> {
        let mut queue = Queue::open(address, options)?;
        let done = queue.connect(who, id, self.controller)?;
        assert_eq!(done.status, 0, "connect: {:#x}", done.status);
        Ok(queue)
    }
}
