//! Bad bytes at the local door: the connection ends with a reason, the node lives.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use fsd_rpc::Client;
use fsd_rpc::frame::{self, DATA_LEN_MAX, HEADER_LEN, Kind, META_LEN_MAX};
use fsd_rpc::message::{Failure, Hello, PROTOCOLS, Request, Response, Role, Versions};
use proptest::prelude::*;

use crate::node::{LONG, Node, change, options, wait_for};

fn node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(Node::start)
}

fn hello(protocols: Versions, role: Role) -> Request {
    Request::Hello(Hello { protocols, build: "test".into(), role })
}

fn framed(kind: Kind, request: &Request, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, kind, request, &[data]).unwrap();
    bytes
}

/// With the checksum of the header put right.
fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..28]) as u32;
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(&node.socket).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends the bytes, ends, and gives all that comes back.
fn answers(mut stream: UnixStream, bytes: &[u8]) -> Vec<Response> {
    // The node may have hung up in the middle.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let mut rest = &all[..];
    let mut responses = Vec::new();
    while !rest.is_empty() {
        responses.push(frame::read(&mut rest).unwrap().message(Kind::Reply).unwrap());
    }
    responses
}

fn told_off(bytes: &[u8]) -> String {
    let node = node();
    let alone = answers(connect(node), bytes);
    let mut greeted = framed(Kind::Request, &hello(PROTOCOLS, Role::Admin), b"");
    greeted.extend_from_slice(bytes);
    let behind = answers(connect(node), &greeted);
    assert!(matches!(behind[0], Response::Welcome(_)), "{behind:?}");
    match (&alone[..], &behind[1..]) {
        (
            [Response::Failed(Failure::Protocol(first))],
            [Response::Failed(Failure::Protocol(later))],
        ) => format!("{first} / {later}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_frames_are_told_why() {
    let ping = framed(Kind::Request, &Request::Ping, b"");
    let with = |at: usize, value: u8| {
        let mut bytes = ping.clone();
        bytes[at] = value;
        checked(bytes)
    };
    let mut wrong_crc = ping.clone();
    wrong_crc[28] ^= 1;
    let mut wrong_meta = ping.clone();
    wrong_meta[HEADER_LEN] ^= 1;
    for (bytes, why) in [
        (with(0, b'X'), "not a ClaudeFS frame"),
        (b"GET / HTTP/1.1\r\nHost: claudefs\r\n\r\n".to_vec(), "not a ClaudeFS frame"),
        (with(4, 2), "frame version 2"),
        (with(5, 9), "unknown kind of frame 9"),
        (with(6, 1), "reserved bits"),
        (with(20, 1), "reserved bits"),
        (wrong_crc, "checksum of the frame header"),
        (wrong_meta, "checksum of the message"),
        (with(10, 0x20), "message of"),
        (with(15, 0x20), "data of"),
        (framed(Kind::Reply, &Request::Ping, b""), "kind Reply where Request belongs"),
        (framed(Kind::Event, &Request::Ping, b""), "kind Event where Request belongs"),
    ] {
        let told = told_off(&bytes);
        assert_eq!(told.matches(why).count(), 2, "{told} / {why}");
    }
    // Lengths at and above the bounds.
    for (at, len) in [(8, META_LEN_MAX as u32 + 1), (12, DATA_LEN_MAX as u32 + 1), (8, u32::MAX)] {
        let mut bytes = ping.clone();
        bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        told_off(&checked(bytes));
    }
}

#[test]
fn a_greeting_is_first_and_once() {
    let greet = framed(Kind::Request, &hello(PROTOCOLS, Role::Admin), b"");
    told_off(
        &greet.repeat(2)[greet.len()..greet.len() + HEADER_LEN - 1]
            .iter()
            .copied()
            .chain([0; 40])
            .collect::<Vec<_>>(),
    );
    let twice = answers(connect(node()), &greet.repeat(2));
    assert!(matches!(&twice[1], Response::Failed(Failure::Protocol(_))), "{twice:?}");
    let other = framed(
        Kind::Request,
        &hello(Versions { min: PROTOCOLS.max + 1, max: PROTOCOLS.max + 3 }, Role::Admin),
        b"",
    );
    let told = answers(connect(node()), &other);
    let [Response::Failed(Failure::Protocol(why))] = &told[..] else { panic!("{told:?}") };
    let (theirs, ours) = (PROTOCOLS.max + 1, PROTOCOLS);
    let named = [
        format!("protocol {theirs} to {}", theirs + 2),
        format!("this node speaks {ours}"),
        "upgrade this node first".to_owned(),
    ];
    assert!(named.iter().all(|part| why.contains(part)), "{why}");
    // Data where none belongs, and a list of inodes that is no list.
    let session = raftmeta_types::SessionId(1);
    let role = Role::Session { session, secret: [0; 16], client: String::new(), open: vec![] };
    for (role, data) in [(Role::Admin, &b"x"[..]), (role, b"1234567")] {
        let told = answers(connect(node()), &framed(Kind::Request, &hello(PROTOCOLS, role), data));
        assert!(matches!(&told[..], [Response::Failed(Failure::Protocol(_))]), "{told:?}");
    }
    // A greeting that is too long is refused before it is read.
    let long = Role::NewSession { client: "x".repeat(5000) };
    let told = answers(connect(node()), &framed(Kind::Request, &hello(PROTOCOLS, long), b""));
    assert!(matches!(&told[..], [Response::Failed(Failure::Protocol(_))]), "{told:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_node_lives(
        greet: bool,
        seal: bool,
        requests in prop::collection::vec((0..4_u8, prop::collection::vec(any::<u8>(), 0..300)), 1..4),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        if greet {
            bytes = framed(Kind::Request, &hello(PROTOCOLS, Role::Admin), b"");
        }
        let start = bytes.len();
        for (what, noise) in &requests {
            bytes.extend(match what {
                0 => noise.clone(),
                1 => framed(Kind::Request, &Request::PutChunks { chunks: vec![] }, noise),
                2 => framed(Kind::Request, &Request::Ping, noise),
                _ => {
                    let name = noise.clone().into();
                    framed(Kind::Request, &Request::Lookup { parent: raftmeta_types::Ino(1), name }, b"")
                }
            });
        }
        for (at, value) in flips {
            if bytes.len() > start {
                let at = start + at.index(bytes.len() - start);
                bytes[at] ^= value;
            }
        }
        if seal && bytes.len() >= start + HEADER_LEN {
            let tail = checked(bytes.split_off(start));
            bytes.extend(tail);
        }
        bytes.truncate(cut.index(bytes.len() + 1).max(bytes.len() / 2));
        answers(connect(node()), &bytes);
        // Alive: it greets and answers.
        let mut good = framed(Kind::Request, &hello(PROTOCOLS, Role::Admin), b"");
        good.extend(framed(Kind::Request, &Request::Sync, b""));
        let answers = answers(connect(node()), &good);
        prop_assert!(matches!(answers[..], [Response::Welcome(_), Response::Done]), "{:?}", answers);
    }
}

#[test]
fn a_connection_that_breaks_in_the_middle_leaves_nothing_behind() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let greet = framed(Kind::Request, &hello(PROTOCOLS, Role::Admin), b"");
    let put = framed(Kind::Request, &Request::PutChunks { chunks: vec![] }, &[7; 100_000]);
    for len in (0..put.len()).step_by(9999).chain([1, 31, 32, 33]) {
        let mut stream = connect(&node);
        stream.write_all(&greet).unwrap();
        stream.write_all(&put[..len]).unwrap();
    }
    let all = (0..put.len()).step_by(9999).count() as u64 + 4;
    wait_for("the end of all", || node.store.lock().disconnected == all);
    client.mutate(false, change(1)).unwrap();
}
