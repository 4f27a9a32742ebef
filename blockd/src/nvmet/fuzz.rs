//! The target without sockets and reactors, for the package `fuzz`.

use std::sync::Arc;

use super::commands::TRANSFER_BYTES_MAX;
use super::connection::{CAPSULE_DATA_MAX, Connection, Place};
use super::controller::Link;
use super::export::{Access, Host};
use super::receiver::{Item, Receiver, Sink};
use super::registry::{Limits, Registry};
use crate::engine::socket::Piece;
use crate::engine::{BLOCK_BYTES, Memory};
use crate::error::Result;
use crate::pool::format::EXTENT_BYTES;
use crate::reactor::{Ask, Request, Share};
use crate::volume::Volume;

pub use super::digest::of as digest;

/// A subsystem for every host, with one volume as namespace 1.
pub const OPEN_NQN: &str = "nqn.2025-01.org.example:open";
/// A subsystem for the hosts that were given, with the same volume.
pub const CLOSED_NQN: &str = "nqn.2025-01.org.example:closed";
/// Bytes of the volume.
pub const VOLUME_BYTES: u64 = 8 << 20;

/// What a receiver made of some bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Headers, and whether the data after them was sound.
    pub items: Vec<String>,
    /// The data of all PDUs.
    pub data: Vec<u8>,
    /// What ended the connection.
    pub fatal: Option<String>,
}

/// Takes `bytes` apart, received in pieces of `piece` bytes. `established` with digests of headers and of data, or
/// before the handshake. With `direct` data is received into its memory without a copy, where it may.
pub fn receive(
    bytes: &[u8],
    established: Option<(bool, bool)>,
    piece: usize,
    direct: bool,
) -> Received {
    let mut receiver = Receiver::new(CAPSULE_DATA_MAX, TRANSFER_BYTES_MAX as usize);
    if let Some((header, data)) = established {
        receiver.establish(header, data);
    }
    let mut received = Received::default();
    let mut memory = None;
    for mut piece in bytes.chunks(piece.max(1)) {
        loop {
            let item = match receiver.direct().filter(|_| direct && !piece.is_empty()) {
                Some((memory, at, left)) => {
                    let (now, rest) = piece.split_at(left.min(piece.len()));
                    memory.write(at, now);
                    piece = rest;
                    receiver.received_direct(now.len())
                }
                None => match receiver.feed(&mut piece) {
                    Ok(None) => break,
                    Ok(item) => item,
                    Err(fatal) => {
                        received.fatal = Some(format!("{fatal:?} {:?}", receiver.offender()));
                        return received;
                    }
                },
            };
            match item {
                Some(Item::Header { pdu, data_len }) => {
                    received.items.push(format!("{pdu:?} {data_len}"));
                    assert!(data_len <= TRANSFER_BYTES_MAX as usize, "{data_len} bytes of data");
                    if data_len > 0 {
                        let buffer = Memory::zeroed(data_len);
                        receiver.data_to(Sink::Memory { memory: buffer.clone(), at: 0 });
                        memory = Some(buffer);
                    }
                }
                Some(Item::Data { sound }) => {
                    received.items.push(format!("sound: {sound}"));
                    let memory = memory.take().expect("data follows a header that announces it");
                    received.data.extend(memory.to_vec());
                }
                None => {}
            }
        }
    }
    received
}

/// The target, and the hosts' connections to it.
#[derive(Debug)]
pub struct Connections {
    registry: Arc<Registry>,
    connections: Vec<Connection>,
}

impl Connections {
    /// # Errors
    /// A secret of `hosts` cannot be read.
    pub fn new(hosts: &[Host]) -> Result<Connections> {
        let extents = (VOLUME_BYTES / EXTENT_BYTES) as usize;
        let volume =
            Volume::new(1, "v".to_owned(), VOLUME_BYTES, true, vec![None; extents], Arc::default());
        let volume = Arc::new(volume);
        let limits = Limits { connections_max: 8, queues_max: 2, depth: 16, buffer_bytes: 4 << 20 };
        let registry = Registry::new(limits, None);
        for (nqn, access) in
            [(OPEN_NQN, Access::load(&[], true)?), (CLOSED_NQN, Access::load(hosts, false)?)]
        {
            assert!(volume.join(), "nobody removes it");
            let share = Arc::new(Share { pool: 0, volume: Arc::clone(&volume) });
            registry.add(nqn, None, &access, false, share, [1; 16])?;
        }
        Ok(Connections { registry: Arc::new(registry), connections: Vec::new() })
    }

    /// A further connection; its number is one more than the last, the first 0.
    pub fn open(&mut self) {
        let place = Place { local: ([127, 0, 0, 1], 4420).into(), discovery_only: false };
        let connection = Connection::new(Arc::clone(&self.registry), Link::new(|| {}), place);
        self.connections.push(connection);
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// The connection receives bytes; what it asks of the volume is answered with `errno`. Gives all that it sends.
    pub fn receive(&mut self, number: usize, bytes: &[u8], errno: i32) -> Vec<u8> {
        let connection = &mut self.connections[number];
        connection.receive(bytes);
        let mut sent = Vec::new();
        loop {
            connection.poll();
            let before = sent.len();
            let request = connection.next_request();
            if let Some(request) = &request {
                check(request);
                connection.completed(request.tag, errno);
            }
            for piece in connection.outbox().pieces() {
                match piece {
                    Piece::Bytes(bytes) => sent.extend_from_slice(bytes),
                    Piece::Memory { memory, at, len } => {
                        sent.extend(memory.part(at, len).to_vec());
                    }
                }
            }
            connection.sent(sent.len() - before);
            if request.is_none() && sent.len() == before {
                return sent;
            }
        }
    }

    pub fn is_ended(&self, number: usize) -> bool {
        self.connections[number].is_ended()
    }
}

/// What is asked of a volume lies in it, in whole blocks.
fn check(request: &Request) {
    let (offset, len) = match &request.ask {
        Ask::Read { offset, memory } | Ask::Write { offset, memory, .. } => {
            (*offset, memory.len() as u64)
        }
        Ask::Deallocate { offset, len } | Ask::WriteZeroes { offset, len, .. } => (*offset, *len),
        Ask::Flush => return,
    };
    let whole = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES) && len > 0;
    let inside = offset.checked_add(len).is_some_and(|end| end <= request.share.volume.bytes);
    assert!(whole && inside, "{request:?}");
}
