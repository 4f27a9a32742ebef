//! A host that is not what limits: it polls, as SPDK's does, and answers all that one receive has brought with one send.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::initiator::{self, Options, Queue, put};

/// Received at once.
const INPUT_BYTES: usize = 1 << 20;
/// Data that goes in a command's capsule.
const CAPSULE_DATA_MAX: usize = 8192;

/// What is done, by which every command is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub bytes: usize,
    pub blocks: u16,
    pub write: bool,
}

/// An I/O queue with a number of commands in flight.
pub struct Flow {
    stream: TcpStream,
    options: Options,
    shape: Shape,
    data: Vec<u8>,
    input: Box<[u8]>,
    filled: usize,
    /// Bytes of data that are passed over before the next PDU.
    passing: usize,
    output: Vec<u8>,
    sent: usize,
}

impl Flow {
    pub fn new(queue: Queue, options: Options) -> io::Result<Flow> {
        let stream = queue.into_stream();
        stream.set_nonblocking(true)?;
        Ok(Flow {
            stream,
            options,
            shape: Shape { bytes: 0, blocks: 0, write: false },
            data: Vec::new(),
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            filled: 0,
            passing: 0,
            output: Vec::new(),
            sent: 0,
        })
    }

    /// What comes next; nothing may be in flight.
    pub fn shape(&mut self, shape: Shape) {
        self.shape = shape;
        self.data = vec![0x5a; shape.bytes];
    }

    /// Sends a command at the next turn.
    pub fn submit(&mut self, id: u16, lba: u64) {
        let Shape { bytes, blocks, write } = self.shape;
        let mut sqe = initiator::io(if write { 1 } else { 2 }, lba, blocks);
        let in_capsule = write && bytes <= CAPSULE_DATA_MAX;
        put(&mut sqe, 2, &id.to_le_bytes());
        put(&mut sqe, 32, &(bytes as u32).to_le_bytes());
        sqe[39] = if in_capsule { 0x01 } else { 0x5a };
        let mut header = [0; 72];
        header[0] = 4;
        header[8..].copy_from_slice(&sqe);
        let data = if in_capsule { &self.data[..] } else { &[] };
        initiator::append(&mut self.output, &mut header, 0, data, self.options);
    }

    /// Sends and receives once; gives the ids of the commands that ended.
    pub fn turn(&mut self, ended: &mut Vec<u16>) -> io::Result<()> {
        self.send()?;
        match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.filled += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.understand(ended)
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    fn understand(&mut self, ended: &mut Vec<u16>) -> io::Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        let outcome = loop {
            let n = self.passing.min(self.filled - at);
            at += n;
            self.passing -= n;
            let rest = &input[at..self.filled];
            // All that the target sends to a connected queue has a header of 24 bytes.
            if self.passing > 0 || rest.len() < 24 {
                break Ok(());
            }
            self.passing = u32::from_le_bytes(rest[4..8].try_into().expect("four")) as usize - 24;
            at += 24;
            if let Err(error) = self.pdu(&rest[..24], ended) {
                break Err(error);
            }
        };
        self.input = input;
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        outcome
    }

    fn pdu(&mut self, header: &[u8], ended: &mut Vec<u16>) -> io::Result<()> {
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        match header[0] {
            5 if half(22) >> 1 & 0x3fff == 0 => ended.push(half(20)),
            5 => return Err(io::Error::other(format!("status {:#x}", half(22) >> 1 & 0x3fff))),
            7 if header[1] & 8 != 0 => ended.push(half(8)),
            7 => {}
            9 => {
                let (offset, len) = (word(12) as usize, word(16) as usize);
                let mut answer = [0; 24];
                answer[0] = 6;
                answer[8..12].copy_from_slice(&header[8..12]);
                answer[12..20].copy_from_slice(&header[12..20]);
                let data = &self.data[offset..offset + len];
                // The only data that an R2T asks for is its last.
                initiator::append(&mut self.output, &mut answer, 1 << 2, data, self.options);
            }
            kind => return Err(io::Error::other(format!("a PDU of type {kind}"))),
        }
        Ok(())
    }
}
