//! Hosts of the NVMe/TCP target that say what they like: handshakes, Connect, authentication, admin and I/O commands,
//! data that was asked for or not, on some connections at once.
//!
//! Whatever comes, what is asked of the volume lies in it, and what goes back is whole PDUs of a controller with right
//! digests, the last of which is the C2HTermReq if there is one.

use blockd::nvmet::Host;
use blockd::nvmet::fuzz::{CLOSED_NQN, Connections, OPEN_NQN, VOLUME_BYTES, digest};
use blockd::nvmet::pdu;

use super::{u32_at, with_scratch};
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[
    OPEN_NQN.as_bytes(),
    CLOSED_NQN.as_bytes(),
    b"nqn.2014-08.org.nvmexpress.discovery\0",
    HOST.as_bytes(),
    &[0xff, 0xff],
    &[0xff; 8],
    &[0x7f, 0x40],
    // Security protocol and its specific bytes.
    &[1, 1, 0xe9],
    // Descriptors of data: in the capsule, fetched.
    &[0x01],
    &[0x5a],
];

const HOST: &str = "nqn.2014-08.org.example:host";
/// 32 bytes of 7.
const SECRET: &str = "DHHC-1:01:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwfLJNij:";
/// Most steps of one input, and connections that it opens.
const STEPS_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 6;

/// Kinds of steps.
const RAW: u8 = 0;
const HANDSHAKE: u8 = 1;
const COMMAND: u8 = 2;
const DATA: u8 = 3;
const ERRNO: u8 = 4;
const OPEN: u8 = 5;
const KINDS: u8 = 6;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const ESHUTDOWN: i32 = 108;

/// The target, with a host that has to authenticate on both sides.
fn connections() -> Connections {
    with_scratch(|dir| {
        let path = dir.join("secret");
        if !path.exists() {
            std::fs::write(&path, SECRET).unwrap();
        }
        let host = Host {
            nqn: HOST.to_owned(),
            secret_file: Some(path.clone()),
            controller_secret_file: Some(path),
        };
        Connections::new(&[host]).unwrap()
    })
}

/// A step of an input: kind, connection, length, bytes.
fn step(kind: u8, connection: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind, connection][..], &(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

/// A command of `len` bytes of data, which are in the capsule or not.
fn command(opcode: u8, fields: &[(usize, &[u8])], len: u32, data: &[u8]) -> Vec<u8> {
    let mut sqe = [0; 64];
    (sqe[0], sqe[1], sqe[2]) = (opcode, 0x40, opcode);
    sqe[32..36].copy_from_slice(&len.to_le_bytes());
    sqe[39] = if data.is_empty() { 0x5a } else { 0x01 };
    for (at, field) in fields {
        sqe[*at..at + field.len()].copy_from_slice(field);
    }
    [&sqe[..], data].concat()
}

fn connect(subsystem: &str, queue: u8, controller: u16) -> Vec<u8> {
    let mut data = vec![0; 1024];
    data[16..18].copy_from_slice(&controller.to_le_bytes());
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    data[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
    command(0x7f, &[(4, &[1]), (42, &[queue]), (44, &[15])], 1024, &data)
}

/// An admin queue that is enabled, and an I/O queue, on connections 0 and 1.
fn begin(digests: u8) -> Vec<u8> {
    let enable = command(0x7f, &[(44, &[0x14, 0, 0, 0, 1, 0, 0x46])], 0, &[]);
    [
        step(HANDSHAKE, 0, &[digests, 3]),
        step(COMMAND, 0, &connect(OPEN_NQN, 0, 0xffff)),
        step(COMMAND, 0, &enable),
        step(OPEN, 0, &[]),
        step(HANDSHAKE, 1, &[digests, 3]),
        step(COMMAND, 1, &connect(OPEN_NQN, 1, 1)),
    ]
    .concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let nsid = (4, &[1][..]);
    let io = |opcode, more: &[(usize, &[u8])], len, data: &[u8]| {
        step(COMMAND, 1, &command(opcode, &[&[nsid], more].concat(), len, data))
    };
    let admin = |opcode, dword: &[u8], len| {
        step(COMMAND, 0, &command(opcode, &[nsid, (40, dword)], len, &[]))
    };
    let data = |command: u8, bytes: &[u8]| {
        let fields = [command, 0, 0, 0, 0, 0, 0, 0];
        step(DATA, 1, &[&fields[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat())
    };
    let security = [1, 1, 0xe9];
    let mut negotiate = vec![0; 72];
    (negotiate[4], negotiate[7], negotiate[8]) = (9, 1, 1);
    (negotiate[10], negotiate[11], negotiate[12], negotiate[42]) = (2, 1, 1, 0);
    let mut reply = vec![0; 80];
    (reply[0], reply[1], reply[4], reply[6], reply[8]) = (1, 2, 9, 32, 1);
    let auth = |kind, len: u32, data: &[u8]| {
        let fields = [(4, &[kind][..]), (41, &security), (44, &len.to_le_bytes())];
        step(COMMAND, 0, &command(0x7f, &fields, len, data))
    };
    let copy = [&[0; 8][..], &[1], &[0; 23]].concat();
    vec![
        [begin(0), io(2, &[], 4096, &[]), io(1, &[], 4096, &[9; 4096])].concat(),
        [begin(3), io(2, &[(48, &[3])], 4 * 4096, &[]), io(0, &[], 0, &[])].concat(),
        [begin(1), io(1, &[(48, &[1])], 8192, &[]), data(1, &[8; 8192])].concat(),
        [begin(2), io(5, &[], 4096, &[7; 4096]), io(8, &[(48, &[7])], 0, &[])].concat(),
        [begin(0), io(9, &[(44, &[4])], 16, &[0; 16]), io(0x0c, &[], 0, &[])].concat(),
        [begin(0), io(0x19, &[], 32, &copy), step(ERRNO, 1, &[1]), io(2, &[], 4096, &[])].concat(),
        // Identify, features, log pages, an event request, keep alive.
        [
            begin(0),
            admin(6, &[1], 4096),
            admin(6, &[0], 4096),
            admin(6, &[3], 4096),
            admin(0x0a, &[7], 0),
            admin(9, &[7], 0),
            admin(2, &[2, 0, 127, 0], 512),
            admin(2, &[0x70, 0, 255, 0], 1024),
            admin(0x0c, &[], 0),
            admin(0x18, &[], 0),
        ]
        .concat(),
        [
            step(HANDSHAKE, 0, &[0, 0]),
            step(COMMAND, 0, &connect(CLOSED_NQN, 0, 0xffff)),
            auth(5, 72, &negotiate),
            auth(6, 128, &[]),
            auth(5, 80, &reply),
            auth(6, 128, &[]),
        ]
        .concat(),
        [
            step(HANDSHAKE, 0, &[0, 0]),
            step(COMMAND, 0, &connect("nqn.2014-08.org.nvmexpress.discovery", 0, 0xffff)),
            step(COMMAND, 0, &command(0x7f, &[(44, &[0x14, 0, 0, 0, 1])], 0, &[])),
            admin(2, &[0x70, 0, 255, 0], 1024),
        ]
        .concat(),
    ]
}

/// A PDU of the host with its data and right digests.
fn pdu(kind: u8, mut header: Vec<u8>, flags: u8, data: &[u8], digests: u8) -> Vec<u8> {
    let data_digest = if data.is_empty() { 0 } else { digests & pdu::DIGEST_DATA };
    let front = header.len() + if digests & pdu::DIGEST_HEADER == 0 { 0 } else { 4 };
    let total = front + data.len() + if data_digest == 0 { 0 } else { 4 };
    let offset = if data.is_empty() { 0 } else { front as u8 };
    let flags = flags | digests & pdu::DIGEST_HEADER | data_digest;
    pdu::common(&mut header, kind, flags, offset, total as u32);
    let mut bytes = header.clone();
    if digests & pdu::DIGEST_HEADER != 0 {
        bytes.extend(digest(&header).to_le_bytes());
    }
    bytes.extend_from_slice(data);
    if data_digest != 0 {
        bytes.extend(digest(data).to_le_bytes());
    }
    bytes
}

/// What the step sends, with the digests that the connection agreed on.
fn message(kind: u8, cursor: &mut Cursor<'_>, digests: &mut u8) -> Vec<u8> {
    match kind {
        HANDSHAKE => {
            let (wanted, r2t_max, alignment) = (cursor.u8(), cursor.u8(), cursor.u8());
            *digests = wanted & (pdu::DIGEST_HEADER | pdu::DIGEST_DATA);
            let mut header = vec![0; pdu::IC_BYTES];
            pdu::common(&mut header, pdu::IC_REQUEST, 0, 0, pdu::IC_BYTES as u32);
            (header[10], header[11], header[12]) = (alignment, wanted, r2t_max);
            header
        }
        COMMAND => {
            let mut header = vec![0; pdu::COMMAND_BYTES];
            header[8..].copy_from_slice(&cursor.array::<64>());
            pdu(pdu::COMMAND, header, 0, cursor.0, *digests)
        }
        DATA => {
            let mut header = vec![0; pdu::DATA_BYTES];
            header[8..20].copy_from_slice(&cursor.array::<12>());
            pdu(pdu::H2C_DATA, header, pdu::FLAG_LAST, cursor.0, *digests)
        }
        _ => cursor.0.to_vec(),
    }
}

/// Whole PDUs that a controller may send: their types and, of responses, whether they are good.
fn check(mut sent: &[u8]) -> Vec<(u8, bool)> {
    let mut pdus = Vec::new();
    while !sent.is_empty() {
        let ends = pdus.last().is_some_and(|(kind, _)| *kind == pdu::C2H_TERM);
        assert!(!ends, "something after a C2HTermReq");
        let total = u32_at(sent, 4).expect("a whole header") as usize;
        let (kind, flags) = (sent[0], sent[1]);
        let (header_len, offset) = (usize::from(sent[2]), usize::from(sent[3]));
        let (expected, has_data) = match kind {
            pdu::IC_RESPONSE => (pdu::IC_BYTES, false),
            pdu::C2H_TERM => (pdu::TERM_BYTES, false),
            pdu::RESPONSE => (pdu::RESPONSE_BYTES, false),
            pdu::C2H_DATA => (pdu::DATA_BYTES, true),
            pdu::R2T => (pdu::R2T_BYTES, false),
            _ => panic!("a PDU of type {kind}"),
        };
        assert_eq!(header_len, expected, "type {kind}");
        assert!(total >= header_len && total <= sent.len(), "{total} bytes of type {kind}");
        let (this, rest) = sent.split_at(total);
        if flags & pdu::FLAG_HEADER_DIGEST != 0 {
            assert_eq!(u32_at(this, header_len), Some(digest(&this[..header_len])), "type {kind}");
        }
        if has_data {
            let tail = if flags & pdu::FLAG_DATA_DIGEST == 0 { 0 } else { 4 };
            let data = &this[offset..total - tail];
            assert_eq!(u32_at(this, 16), Some(data.len() as u32));
            assert!(data.len() as u64 <= VOLUME_BYTES);
            assert!(tail == 0 || u32_at(this, total - 4) == Some(digest(data)), "data digest");
        }
        pdus.push((kind, kind == pdu::RESPONSE && this[22..24] == [0, 0]));
        sent = rest;
    }
    pdus
}

pub fn target(bytes: &[u8]) {
    converse(bytes);
}

/// All that is answered.
fn converse(bytes: &[u8]) -> Vec<(u8, bool)> {
    let mut cursor = Cursor(bytes);
    let mut answers = Vec::new();
    let mut connections = connections();
    connections.open();
    let mut digests = [0; CONNECTIONS_MAX];
    let mut errno = 0;
    for _ in 0..STEPS_MAX {
        if cursor.is_empty() {
            break;
        }
        let kind = cursor.u8() % KINDS;
        let number = usize::from(cursor.u8()) % connections.len();
        let len = usize::from(cursor.u16());
        let mut body = Cursor(cursor.bytes(len));
        match kind {
            ERRNO => errno = body.pick(&[0, EIO, ENOSPC, ESHUTDOWN]),
            OPEN if connections.len() < CONNECTIONS_MAX => connections.open(),
            OPEN => {}
            RAW | HANDSHAKE | COMMAND | DATA => {
                let was_ended = connections.is_ended(number);
                let message = message(kind, &mut body, &mut digests[number]);
                let sent = connections.receive(number, &message, errno);
                assert!(!was_ended || sent.is_empty(), "an answer after the end");
                let pdus = check(&sent);
                let ends = pdus.last().is_some_and(|(kind, _)| *kind == pdu::C2H_TERM);
                assert!(!ends || connections.is_ended(number));
                answers.extend(pdus);
            }
            _ => unreachable!("a remainder of {KINDS}"),
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_reach_what_they_are_for() {
        let answers: Vec<_> = seeds().iter().map(|seed| converse(seed)).collect();
        for (at, answers) in answers.iter().enumerate() {
            let good = answers.iter().filter(|(_, good)| *good).count();
            assert!(good >= 3, "seed {at}: {answers:?}");
            assert!(
                answers.iter().all(|(kind, _)| *kind != pdu::C2H_TERM),
                "seed {at}: {answers:?}"
            );
        }
        for kind in [pdu::C2H_DATA, pdu::R2T] {
            let is_there = answers.iter().flatten().any(|(found, _)| *found == kind);
            assert!(is_there, "type {kind}");
        }
    }
}
