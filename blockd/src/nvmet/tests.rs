//! The core without sockets: random, mutated and random-but-well-formed input. proptest prints what fails, and keeps it.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::connection::{Connection, Place};
use super::controller::Link;
use super::export::Access;
use super::pdu;
use super::registry::{Limits, Registry};
use crate::engine::Mem;
use crate::engine::socket::Piece;
use crate::pool::Pool;
use crate::reactor::{Ask, Share};

const NQN: &str = "nqn.2025-01.org.example:v";
const LIMITS: Limits =
    Limits { connections_max: 8, queues_max: 4, depth: 32, buffer_bytes: 4 << 20 };

fn registry() -> Arc<Registry> {
    let pool = Pool::open("ram", Arc::new(Mem::new(32 << 20)), true).unwrap();
    pool.create("v", 8 << 20, false).unwrap();
    let registry = Registry::new(LIMITS, None);
    let access = Access::load(&[], true).unwrap();
    let share = Arc::new(Share { pool: 0, volume: pool.connect("v").unwrap() });
    registry.add(NQN, None, &access, false, share, [1; 16]).unwrap();
    Arc::new(registry)
}

fn connection(registry: &Arc<Registry>) -> Connection {
    let local = "127.0.0.1:4420".parse().unwrap();
    let link = Link::new(|| {});
    Connection::new(Arc::clone(registry), link, Place { local, discovery_only: false })
}

fn handshake(digests: u8, r2t_max: u8) -> Vec<u8> {
    let mut b = vec![0; 128];
    (b[2], b[4], b[11], b[12]) = (128, 128, digests, r2t_max);
    b
}

/// A command capsule with its digests.
fn capsule(sqe: &[u8; 64], data: &[u8], digests: u8) -> Vec<u8> {
    let mut header = vec![0; 72];
    header[8..].copy_from_slice(sqe);
    with_digests(pdu::COMMAND, header, 0, data, digests)
}

fn with_digests(kind: u8, mut header: Vec<u8>, flags: u8, data: &[u8], digests: u8) -> Vec<u8> {
    let tail = if data.is_empty() { 0 } else { digests & 2 };
    let front = header.len() + if digests & 1 == 0 { 0 } else { 4 };
    let total = front + data.len() + if tail == 0 { 0 } else { 4 };
    let offset = if data.is_empty() { 0 } else { front as u8 };
    pdu::common(&mut header, kind, flags | digests & 1 | tail, offset, total as u32);
    let mut bytes = header.clone();
    if digests & 1 != 0 {
        bytes.extend(super::digest::of(&header).to_le_bytes());
    }
    bytes.extend_from_slice(data);
    if tail != 0 {
        bytes.extend(super::digest::of(data).to_le_bytes());
    }
    bytes
}

fn connect(queue: u16, controller: u16, digests: u8) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4], sqe[39]) = (0x7f, 0x40, 1, 1);
    sqe[32..36].copy_from_slice(&1024_u32.to_le_bytes());
    sqe[42..44].copy_from_slice(&queue.to_le_bytes());
    sqe[44..46].copy_from_slice(&31_u16.to_le_bytes());
    let mut data = vec![0; 1024];
    data[16..18].copy_from_slice(&controller.to_le_bytes());
    data[256..256 + NQN.len()].copy_from_slice(NQN.as_bytes());
    let host = "nqn.2014-08.org.example:h";
    data[512..512 + host.len()].copy_from_slice(host.as_bytes());
    capsule(&sqe, &data, digests)
}

fn enable(digests: u8) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[39]) = (0x7f, 0x40, 0x5a);
    sqe[44..56].copy_from_slice(&[0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]);
    capsule(&sqe, &[], digests)
}

/// Answers what is asked of the volume, and takes what is to be sent.
fn drive(connection: &mut Connection, errno: i32) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        connection.poll();
        let mut any = false;
        while let Some(request) = connection.next_request() {
            any = true;
            if let Ask::Read { memory, .. } | Ask::Write { memory, .. } = &request.ask {
                assert!(memory.len() <= super::buffers::BUFFER_BYTES_MAX);
            }
            connection.completed(request.tag, errno);
        }
        let before = out.len();
        for piece in connection.outbox().pieces() {
            match piece {
                Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                Piece::Memory { memory, at, len } => {
                    let mut bytes = vec![0; len];
                    memory.read(at, &mut bytes);
                    out.extend(bytes);
                }
            }
        }
        connection.sent(out.len() - before);
        if !any && out.len() == before {
            return out;
        }
    }
}

/// PDUs out of what was sent: type, header, whole length.
fn parse(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut pdus = Vec::new();
    while bytes.len() >= 8 {
        let total = pdu::u32_at(bytes, 4) as usize;
        assert!(total >= 8 && total <= bytes.len(), "our own PDUs are whole");
        pdus.push(bytes[..total].to_vec());
        bytes = &bytes[total..];
    }
    assert!(bytes.is_empty());
    pdus
}

/// An admin queue that is enabled, and the number of its controller.
fn admin(registry: &Arc<Registry>) -> (Connection, u16) {
    let mut admin = connection(registry);
    admin.receive(&[handshake(0, 0), connect(0, 0xffff, 0)].concat());
    let pdus = parse(&drive(&mut admin, 0));
    assert_eq!(pdus[1][22..24], [0, 0], "connected");
    let controller = pdu::u16_at(&pdus[1], 8);
    admin.receive(&enable(0));
    assert_eq!(parse(&drive(&mut admin, 0))[0][22..24], [0, 0], "enabled");
    (admin, controller)
}

fn feed(connection: &mut Connection, mut bytes: &[u8], cuts: &[usize]) {
    for cut in cuts {
        let n = (*cut).min(bytes.len());
        connection.receive(&bytes[..n]);
        bytes = &bytes[n..];
        drive(connection, 0);
    }
    connection.receive(bytes);
    drive(connection, 0);
}

/// A command with fields that are often right.
fn any_command() -> impl Strategy<Value = ([u8; 64], usize)> {
    let opcode = prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 5, 8, 9, 0x0c, 0x19, 6, 0x0a]),
        1 => any::<u8>(),
    ];
    let blocks = prop_oneof![3 => 0_u16..4, 1 => 0_u16..300, 1 => any::<u16>()];
    let lba = prop_oneof![4 => 0_u64..2048, 1 => any::<u64>()];
    let sgl = prop::sample::select(vec![1_u8, 1, 0x5a, 0x5a, 0x5a, 0, 0x40]);
    let fits = prop::bool::weighted(0.8);
    (opcode, 0_u32..3, lba, blocks, sgl, fits, any::<u32>(), any::<[u8; 8]>()).prop_map(
        |(opcode, nsid, lba, blocks, sgl, fits, len, noise)| {
            let mut b = [0; 64];
            (b[0], b[1]) = (opcode, 0x40);
            b[4..8].copy_from_slice(&nsid.to_le_bytes());
            b[40..48].copy_from_slice(&lba.to_le_bytes());
            b[48..50].copy_from_slice(&blocks.to_le_bytes());
            b[51] = noise[0] & 0x40;
            b[56..64].copy_from_slice(&noise);
            let wanted = match opcode {
                0 | 8 | 0x0c => 0,
                6 => 4096,
                9 => (lba as usize % 256 + 1) * 16,
                0x19 => (usize::from(blocks % 256) + 1) * 32,
                _ => (usize::from(blocks) + 1) * 4096,
            };
            let len = if fits { wanted } else { len as usize % (2 << 20) };
            let from_host = opcode & 3 == 1;
            let in_capsule = sgl == 1 && from_host && len <= 8192;
            b[39] = if in_capsule || sgl != 1 { sgl } else { 0x5a };
            b[32..36].copy_from_slice(&(len as u32).to_le_bytes());
            (b, if in_capsule { len } else { 0 })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000), valid in any::<bool>()) {
        let registry = registry();
        let mut connection = connection(&registry);
        if valid {
            connection.receive(&handshake(0, 0));
        }
        connection.receive(&bytes);
        drive(&mut connection, 0);
    }

    #[test]
    fn mutated_conversations_are_survived(
        digests in 0_u8..4,
        commands in prop::collection::vec(any_command(), 1..20),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        removed in prop::option::of((any::<prop::sample::Index>(), 1_usize..40)),
        cuts in prop::collection::vec(1_usize..3000, 0..10),
        io in any::<bool>(),
    ) {
        let registry = registry();
        let (_admin, controller) = admin(&registry);
        let (queue, controller) = if io { (1, controller) } else { (0, 0xffff) };
        let mut bytes = [handshake(digests, 3), connect(queue, controller, digests)].concat();
        if !io {
            bytes.extend(enable(digests));
        }
        for (sqe, in_capsule) in &commands {
            bytes.extend(capsule(sqe, &vec![3; *in_capsule], digests));
        }
        for (at, value) in &flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        if let Some((at, n)) = removed {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + n).min(bytes.len()));
        }
        let mut connection = connection(&registry);
        feed(&mut connection, &bytes, &cuts);
        drop(connection);
    }

    #[test]
    fn every_command_is_answered_once(
        digests in 0_u8..4,
        r2t_max in 0_u8..4,
        errno in prop::sample::select(vec![0, 0, 0, libc::EIO, libc::ENOSPC]),
        commands in prop::collection::vec(any_command(), 1..31),
    ) {
        let registry = registry();
        let (_admin, controller) = admin(&registry);
        let mut io = connection(&registry);
        io.receive(&handshake(digests, r2t_max));
        io.receive(&connect(1, controller, digests));
        drive(&mut io, 0);
        let mut open = HashSet::new();
        for (id, (sqe, in_capsule)) in commands.iter().enumerate() {
            let mut sqe = *sqe;
            sqe[2] = id as u8;
            open.insert(id as u16);
            io.receive(&capsule(&sqe, &vec![5; *in_capsule], digests));
        }
        loop {
            let pdus = parse(&drive(&mut io, errno));
            if pdus.is_empty() {
                break;
            }
            for p in pdus {
                match p[0] {
                    pdu::RESPONSE => prop_assert!(open.remove(&pdu::u16_at(&p, 20)), "answered once"),
                    pdu::C2H_DATA => prop_assert!(open.contains(&pdu::u16_at(&p, 8))),
                    pdu::R2T => {
                        let mut header = vec![0; 24];
                        header[8..20].copy_from_slice(&p[8..20]);
                        let data = vec![9; pdu::u32_at(&p, 16) as usize];
                        io.receive(&with_digests(pdu::H2C_DATA, header, 4, &data, digests));
                    }
                    other => prop_assert!(false, "PDU type {other}"),
                }
            }
        }
        prop_assert!(open.is_empty(), "not answered: {open:?}");
        prop_assert!(!io.is_ended());
        prop_assert_eq!(io.buffers_used(), 0, "all buffers came back");
    }
}

#[test]
fn a_host_that_takes_nothing_is_not_fed() {
    let registry = registry();
    let (_admin, controller) = admin(&registry);
    let mut io = connection(&registry);
    io.receive(&[handshake(0, 0), connect(1, controller, 0)].concat());
    drive(&mut io, 0);
    // Reads of 1 MiB, answered by the volume and never taken by the host.
    let mut id = 0_u16;
    while !io.is_stuffed() {
        assert!(id < 31, "stuffed before the queue is full");
        let mut sqe = [0; 64];
        (sqe[0], sqe[1], sqe[4], sqe[39]) = (2, 0x40, 1, 0x5a);
        sqe[2..4].copy_from_slice(&id.to_le_bytes());
        sqe[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        sqe[48] = 255;
        io.receive(&capsule(&sqe, &[], 0));
        while let Some(request) = io.next_request() {
            io.completed(request.tag, 0);
        }
        id += 1;
        if io.buffers_used() >= LIMITS.buffer_bytes {
            break;
        }
    }
    assert!(io.buffers_used() <= LIMITS.buffer_bytes + (1 << 20));
}

#[test]
fn queues_end_with_their_controller() {
    let registry = registry();
    let (admin, controller) = admin(&registry);
    let mut io = connection(&registry);
    io.receive(&[handshake(0, 0), connect(1, controller, 0)].concat());
    drive(&mut io, 0);
    assert_eq!(registry.describe()["controllers"][0]["queues"], 2);
    drop(admin);
    io.poll();
    assert!(io.is_ended());
    drop(io);
    assert_eq!(registry.describe()["controllers"], serde_json::json!([]));
}

/// A read or write of 1 MiB with its data outside of the capsule.
fn large(opcode: u8, id: u16) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4], sqe[39], sqe[48]) = (opcode, 0x40, 1, 0x5a, 255);
    sqe[2..4].copy_from_slice(&id.to_le_bytes());
    sqe[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    capsule(&sqe, &[], 0)
}

fn abort(id: u16, queue: u16, command: u16) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[39]) = (8, 0x40, 0x5a);
    sqe[2..4].copy_from_slice(&id.to_le_bytes());
    sqe[40..42].copy_from_slice(&queue.to_le_bytes());
    sqe[42..44].copy_from_slice(&command.to_le_bytes());
    capsule(&sqe, &[], 0)
}

/// Of responses: command, status, dword 0.
fn responses(bytes: &[u8]) -> Vec<(u16, u16, u32)> {
    let pdus = parse(bytes);
    let responses = pdus.iter().filter(|p| p[0] == pdu::RESPONSE);
    let fields =
        |p: &Vec<u8>| (pdu::u16_at(p, 20), pdu::u16_at(p, 22) >> 1 & 0x7ff, pdu::u32_at(p, 8));
    responses.map(fields).collect()
}

#[test]
fn commands_of_io_queues_are_aborted_while_no_device_has_them() {
    const ABORTED: u16 = 7;
    let registry = registry();
    let (mut admin, controller) = admin(&registry);
    let mut io = connection(&registry);
    io.receive(&[handshake(0, 0), connect(1, controller, 0)].concat());
    drive(&mut io, 0);
    // Buffers for four: the fifth waits.
    (0..5).for_each(|id| io.receive(&large(1, id)));
    let asked = parse(&drive(&mut io, 0));
    assert!(asked.iter().all(|p| p[0] == pdu::R2T) && asked.len() == 4, "{asked:?}");

    admin.receive(&abort(40, 1, 4));
    assert_eq!(responses(&drive(&mut admin, 0)), [], "its queue has to say");
    assert_eq!(responses(&drive(&mut io, 0)), [(4, ABORTED, 0)]);
    assert_eq!(responses(&drive(&mut admin, 0)), [(40, 0, 0)]);

    // What the host was asked for still comes; nothing more is asked for, and nothing is written.
    admin.receive(&abort(41, 1, 0));
    drive(&mut admin, 0);
    assert_eq!(responses(&drive(&mut io, 0)), []);
    assert_eq!(responses(&drive(&mut admin, 0)), [(41, 0, 0)]);
    let of_first = asked.iter().find(|p| pdu::u16_at(p, 8) == 0).unwrap();
    let mut header = vec![0; 24];
    header[8..20].copy_from_slice(&of_first[8..20]);
    let data = vec![9; pdu::u32_at(of_first, 16) as usize];
    io.receive(&with_digests(pdu::H2C_DATA, header, 4, &data, 0));
    assert!(!io.has_request());
    assert_eq!(responses(&drive(&mut io, 0)), [(0, ABORTED, 0)]);

    // With the device, unknown, of no queue: each ends by itself.
    io.receive(&large(2, 10));
    assert!(io.has_request());
    admin.receive(&[abort(42, 1, 10), abort(43, 1, 99), abort(44, 3, 1)].concat());
    assert_eq!(responses(&drive(&mut admin, 0)), [(44, 0, 1)]);
    io.poll();
    assert_eq!(responses(&drive(&mut admin, 0)), [(42, 0, 1), (43, 0, 1)]);
    assert_eq!(responses(&drive(&mut io, 0)), [(10, 0, 0)]);

    // No more than announced at once, and none is left over when the queue ends.
    (50..55).for_each(|id| admin.receive(&abort(id, 1, 1)));
    assert_eq!(responses(&drive(&mut admin, 0)), [(54, 0x103, 0)]);
    drop(io);
    let left = responses(&drive(&mut admin, 0));
    assert_eq!(left, [(50, 0, 1), (51, 0, 1), (52, 0, 1), (53, 0, 1)]);
    assert!(!admin.is_ended());
}

#[test]
fn a_deallocation_is_asked_for_piece_by_piece() {
    let registry = registry();
    let (_admin, controller) = admin(&registry);
    let mut io = connection(&registry);
    io.receive(&[handshake(0, 0), connect(1, controller, 0)].concat());
    drive(&mut io, 0);
    // 256 times all of the volume, but for two ranges that are empty.
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4], sqe[39], sqe[40], sqe[44]) = (9, 0x40, 1, 1, 255, 4);
    sqe[32..36].copy_from_slice(&4096_u32.to_le_bytes());
    let mut ranges = vec![0; 4096];
    ranges.chunks_exact_mut(16).skip(2).for_each(|r| r[5] = (2048_u32 >> 8) as u8);
    io.receive(&capsule(&sqe, &ranges, 0));
    for _ in 0..254 {
        let request = io.next_request().expect("a range");
        assert!(
            matches!(request.ask, Ask::Deallocate { offset: 0, len: 0x80_0000 }),
            "{request:?}"
        );
        assert!(io.next_request().is_none(), "one at a time");
        io.completed(request.tag, 0);
    }
    assert_eq!(responses(&drive(&mut io, 0)), [(0, 0, 0)]);
    // The first that fails is the last.
    io.receive(&capsule(&sqe, &ranges, 0));
    assert_eq!(responses(&drive(&mut io, libc::EIO)), [(0, 0x280, 0)]);
    // One outside, and nothing is done.
    ranges[4095] = 1;
    io.receive(&capsule(&sqe, &ranges, 0));
    assert_eq!(responses(&drive(&mut io, 0)), [(0, 0x80, 0)]);
}

fn property_set(value: u32) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[39], sqe[44]) = (0x7f, 0x40, 0x5a, 0x14);
    sqe[48..52].copy_from_slice(&value.to_le_bytes());
    capsule(&sqe, &[], 0)
}

/// Reads CSTS.
fn controller_status(admin: &mut Connection) -> u32 {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[4], sqe[39], sqe[44]) = (0x7f, 0x40, 4, 0x5a, 0x1c);
    admin.receive(&capsule(&sqe, &[], 0));
    responses(&drive(admin, 0))[0].2
}

const ENABLE: u32 = 0x0046_0001;
const SHUT_DOWN: u32 = ENABLE | 1 << 14;

#[test]
fn a_shutdown_is_done_when_the_volumes_are_flushed() {
    let registry = registry();
    let (mut admin, _) = admin(&registry);
    admin.receive(&property_set(SHUT_DOWN));
    let request = admin.next_request().expect("a flush");
    assert!(matches!(request.ask, Ask::Flush), "{request:?}");
    assert_eq!(controller_status(&mut admin) & 0xc, 4, "under way");
    admin.completed(request.tag, 0);
    assert_eq!(responses(&drive(&mut admin, 0)), [(0, 0, 0)]);
    assert_eq!(controller_status(&mut admin) & 0xc, 8, "done");

    // What could not be flushed is not said to be safe.
    let (mut admin, _) = self::admin(&registry);
    admin.receive(&property_set(SHUT_DOWN));
    assert_eq!(responses(&drive(&mut admin, libc::EIO)), [(0, 0x280, 0)]);
    assert_eq!(controller_status(&mut admin) & 0xc, 4);
}

#[test]
fn a_reset_starts_from_the_beginning() {
    let registry = registry();
    let (mut admin, _) = admin(&registry);
    let plain = |opcode: u8, id: u8, dword10: u8, dword11: u32| {
        let mut sqe = [0; 64];
        (sqe[0], sqe[1], sqe[2], sqe[39], sqe[40]) = (opcode, 0x40, id, 0x5a, dword10);
        sqe[44..48].copy_from_slice(&dword11.to_le_bytes());
        capsule(&sqe, &[], 0)
    };
    let events = || [plain(0x0c, 20, 0, 0), plain(0x0c, 21, 0, 0)].concat();
    admin.receive(&[plain(9, 1, 6, 0), plain(9, 2, 0x0b, 0x100), events()].concat());
    assert_eq!(responses(&drive(&mut admin, 0)), [(1, 0, 0), (2, 0, 0)]);
    admin.receive(&property_set(0));
    assert_eq!(responses(&drive(&mut admin, 0)), [(20, 7, 0), (21, 7, 0), (0, 0, 0)]);
    admin.receive(&[property_set(ENABLE), plain(0x0a, 3, 6, 0), plain(0x0a, 4, 0x0b, 0)].concat());
    let features = responses(&drive(&mut admin, 0));
    assert_eq!(features, [(0, 0, 0), (3, 0, 1), (4, 0, 0)], "a write cache, no events");
    admin.receive(&events());
    assert_eq!(responses(&drive(&mut admin, 0)), [], "there is room for them again");
    // Entries of other sizes than ours: it fails, and takes nothing.
    admin.receive(&[property_set(0), property_set(1)].concat());
    drive(&mut admin, 0);
    assert_eq!(controller_status(&mut admin), 2, "failed");
    admin.receive(&plain(0x18, 5, 0, 0));
    assert_eq!(responses(&drive(&mut admin, 0)), [(5, 0x0c, 0)]);
}

mod authentication {
    use super::super::dh::{Exchange, Group};
    use super::super::export::Host;
    use super::super::secret::{Hash, tests::encode};
    use super::*;

    const HOST: &str = "nqn.2014-08.org.example:h";
    const KEY: [u8; 32] = [7; 32];
    const CONTROLLER_KEY: [u8; 48] = [8; 48];
    const TRANSACTION: [u8; 2] = [9, 0];

    fn closed() -> Arc<Registry> {
        let dir = tempfile::tempdir().unwrap();
        let secret = |name: &str, key: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, encode(key, 0)).unwrap();
            Some(path)
        };
        let host = Host {
            nqn: HOST.to_owned(),
            secret_file: secret("h", &KEY),
            controller_secret_file: secret("c", &CONTROLLER_KEY),
        };
        let open = registry();
        open.remove("v", None);
        let pool = Pool::open("ram", Arc::new(Mem::new(32 << 20)), true).unwrap();
        pool.create("v", 8 << 20, false).unwrap();
        let share = Arc::new(Share { pool: 0, volume: pool.connect("v").unwrap() });
        let access = Access::load(&[host], false).unwrap();
        open.add(NQN, None, &access, false, share, [1; 16]).unwrap();
        open
    }

    fn command(kind: u8, len: usize) -> [u8; 64] {
        let mut sqe = [0; 64];
        (sqe[0], sqe[1], sqe[4], sqe[39]) = (0x7f, 0x40, kind, if kind == 5 { 1 } else { 0x5a });
        sqe[32..36].copy_from_slice(&(len as u32).to_le_bytes());
        sqe[41..44].copy_from_slice(&[1, 1, 0xe9]);
        sqe[44..48].copy_from_slice(&(len as u32).to_le_bytes());
        sqe
    }

    fn send(connection: &mut Connection, message: &[u8]) {
        connection.receive(&capsule(&command(5, message.len()), message, 0));
        assert_eq!(responses(&drive(connection, 0)), [(0, 0, 0)]);
    }

    fn fetch(connection: &mut Connection) -> Vec<u8> {
        connection.receive(&capsule(&command(6, 4096), &[], 0));
        let pdus = parse(&drive(connection, 0));
        assert_eq!(pdus[0][0], pdu::C2H_DATA);
        pdus[0][usize::from(pdus[0][3])..].to_vec()
    }

    /// A connection that has offered these groups, and the challenge that it got.
    fn challenged(registry: &Arc<Registry>, hash: Hash, groups: &[u8]) -> (Connection, Vec<u8>) {
        let mut connection = connection(registry);
        connection.receive(&[handshake(0, 0), connect(0, 0xffff, 0)].concat());
        drive(&mut connection, 0);
        let mut offer = vec![0; 72];
        (offer[4], offer[7], offer[8], offer[10]) = (TRANSACTION[0], 1, 1, 1);
        (offer[11], offer[12]) = (groups.len() as u8, hash.id());
        offer[42..42 + groups.len()].copy_from_slice(groups);
        send(&mut connection, &offer);
        let challenge = fetch(&mut connection);
        (connection, challenge)
    }

    /// The specification's answer of one side, written down once more.
    fn answer(
        hash: Hash,
        key: &[u8],
        challenge: &[u8],
        sequence: &[u8],
        names: [&str; 3],
    ) -> Vec<u8> {
        let [role, first, second] = names;
        let parts = [challenge, sequence, &TRANSACTION, &[0], role.as_bytes(), first.as_bytes()];
        hash.mac(key, &[&parts.concat(), &[0], second.as_bytes()])
    }

    /// A reply with these values; `mine` is the challenge for the controller.
    fn reply(response: &[u8], mine: Option<&[u8]>, public: &[u8]) -> Vec<u8> {
        let size = response.len();
        let mut b = vec![1, 2, 0, 0, 9, 0, size as u8, 0, u8::from(mine.is_some()), 0];
        b.extend((public.len() as u16).to_le_bytes());
        b.extend([5, 0, 0, 0]);
        b.extend_from_slice(response);
        b.extend_from_slice(mine.unwrap_or(&vec![0; size]));
        b.extend_from_slice(public);
        b
    }

    #[test]
    fn with_every_group() {
        let registry = closed();
        let cases = [
            (Hash::Sha256, &[0][..], 0),
            (Hash::Sha512, &[0, 1], 1),
            // The strong one that is quick before those that are slow.
            (Hash::Sha384, &[0, 5, 4, 3, 2, 1], 2),
            (Hash::Sha256, &[5, 3, 4], 3),
            (Hash::Sha256, &[4], 4),
            (Hash::Sha512, &[9, 5], 5),
        ];
        for (hash, offered, expected) in cases {
            let (mut host, challenge) = challenged(&registry, hash, offered);
            assert_eq!((challenge[1], challenge[8], challenge[9]), (1, hash.id(), expected));
            let size = hash.bytes();
            let public_len = usize::from(pdu::u16_at(&challenge, 10));
            let (value, theirs) = challenge[16..16 + size + public_len].split_at(size);
            let exchange = Group::of_id(expected).map(|group| Exchange::new(group).unwrap());
            let shared = exchange.as_ref().map(|e| e.shared(theirs).expect("a public value"));
            let mix = |challenge: &[u8]| match &shared {
                Some(shared) => hash.mac(&hash.digest(shared), &[challenge]),
                None => challenge.to_vec(),
            };
            let names = ["HostHost", HOST, NQN];
            let response = answer(hash, &KEY, &mix(value), &challenge[12..16], names);
            let mine = vec![0x33; size];
            let public = exchange.as_ref().map_or(&[][..], |e| &e.public);
            send(&mut host, &reply(&response, Some(&mine), public));
            let verdict = fetch(&mut host);
            assert_eq!((verdict[1], verdict[8]), (3, 1), "believed, with group {expected}");
            let names = ["Controller", NQN, HOST];
            let expected = answer(hash, &CONTROLLER_KEY, &mix(&mine), &[5, 0, 0, 0], names);
            assert_eq!(verdict[16..16 + size], expected);
            host.receive(&enable(0));
            assert_eq!(responses(&drive(&mut host, 0)), [(0, 0, 0)]);
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let registry = closed();
        let hash = Hash::Sha256;
        let (mut host, failure) = challenged(&registry, hash, &[9]);
        assert_eq!((failure[1], failure[7]), (0xf1, 5), "no group that both have");
        host.receive(&enable(0));
        assert_eq!(responses(&drive(&mut host, 0)), [(0, 0x191, 0)]);

        let publics = [vec![], vec![1], vec![0; 256], vec![0xff; 256], vec![2; 257]];
        for public in publics {
            let (mut host, challenge) = challenged(&registry, hash, &[1]);
            assert_eq!(challenge[9], 1);
            send(&mut host, &reply(&[0; 32], None, &public));
            assert_eq!(fetch(&mut host)[6..8], [1, 6], "{public:?}");
        }
        // A public value that does not come whole, and one with the null group.
        let (mut host, _) = challenged(&registry, hash, &[1]);
        let whole = reply(&[0; 32], None, &[2; 256]);
        send(&mut host, &whole[..whole.len() - 1]);
        assert_eq!(fetch(&mut host)[6..8], [1, 6]);
        let (mut host, _) = challenged(&registry, hash, &[0]);
        send(&mut host, &whole);
        assert_eq!(fetch(&mut host)[6..8], [1, 6]);
        // The right secret without the exchange is not enough.
        let (mut host, challenge) = challenged(&registry, hash, &[1]);
        let names = ["HostHost", HOST, NQN];
        let response = answer(hash, &KEY, &challenge[16..48], &challenge[12..16], names);
        let exchange = Exchange::new(Group::Ffdhe2048).unwrap();
        send(&mut host, &reply(&response, None, &exchange.public));
        assert_eq!(fetch(&mut host)[6..8], [1, 1]);
    }
}
