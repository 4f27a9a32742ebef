//! PDUs that break the protocol: each ends its connection, with the reason the specification has for it, and nothing
//! else.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::initiator::{self, BLOCK, Options, Queue, encode};
use super::{Target, read};

fn command(sqe: &[u8; 64]) -> [u8; 72] {
    let mut header = [0; 72];
    header[0] = 4;
    header[8..].copy_from_slice(sqe);
    header
}

fn data_header(id: u16, tag: u16, at: u32, len: u32) -> [u8; 24] {
    let mut header = [0; 24];
    header[0] = 6;
    header[8..10].copy_from_slice(&id.to_le_bytes());
    header[10..12].copy_from_slice(&tag.to_le_bytes());
    header[12..16].copy_from_slice(&at.to_le_bytes());
    header[16..20].copy_from_slice(&len.to_le_bytes());
    header
}

/// A write of 64 KiB whose R2T has come, with its command and transfer tags.
fn fetching(queue: &mut Queue) -> u16 {
    // The tag is the slot, and the only command has slot 0 after its predecessors ended.
    let mut sqe = initiator::io(1, 0, 16);
    initiator::put(&mut sqe, 2, &77_u16.to_le_bytes());
    initiator::put(&mut sqe, 32, &(16 * BLOCK as u32).to_le_bytes());
    sqe[39] = 0x5a;
    let mut header = command(&sqe);
    queue.pdu(&mut header, 0, &[]).unwrap();
    77
}

#[test]
fn each_gets_its_reason() {
    let target = Target::open();
    let plain = Options::default();
    let digests = Options { header_digest: true, data_digest: true, ..plain };
    type Break = Box<dyn Fn(&mut Queue)>;
    let raw = |bytes: Vec<u8>| -> Break { Box::new(move |q| q.raw(&bytes).unwrap()) };
    let changed = |options: Options, at: usize, value: u8| -> Break {
        let mut header = command(&initiator::sqe(0, 1));
        let mut bytes = encode(&mut header, 0, &[], options);
        bytes[at] = value;
        raw(bytes)
    };
    let cases: Vec<(Options, Break, Option<u8>, &str)> = vec![
        (plain, changed(plain, 0, 0x0a), Some(1), "a type that is none"),
        (plain, changed(plain, 0, 0x05), Some(1), "a type that only targets send"),
        (plain, changed(plain, 0, 0x00), Some(1), "HLEN of another type"),
        (plain, changed(plain, 1, 1), Some(1), "a digest that was not negotiated"),
        (plain, changed(plain, 2, 71), Some(1), "a short HLEN"),
        (plain, changed(plain, 4, 71), Some(1), "PLEN below HLEN"),
        (plain, changed(plain, 6, 1), Some(1), "PLEN beyond every limit"),
        (plain, changed(plain, 4, 76), Some(1), "data without an offset"),
        (digests, changed(digests, 1, 0), Some(1), "no digest though negotiated"),
        (digests, changed(digests, 20, 1), Some(3), "a header that does not match its digest"),
        (plain, Box::new(second_handshake), Some(2), "a second ICReq"),
        (plain, Box::new(|q| drop(q.data(0, 99, 0, &[1; 8], true))), Some(1), "a tag that is none"),
        (
            plain,
            Box::new(|q| {
                let id = fetching(q);
                q.data(id + 1, 0, 0, &[1; 8], true).unwrap();
            }),
            Some(1),
            "another command's tag",
        ),
        (
            plain,
            Box::new(|q| {
                let id = fetching(q);
                q.data(id, 0, 4096, &[1; 8], true).unwrap();
            }),
            Some(4),
            "data out of order",
        ),
        (
            plain,
            Box::new(|q| {
                let id = fetching(q);
                q.data(id, 0, 0, &vec![1; 65_544], true).unwrap();
            }),
            Some(4),
            "more data than was asked for",
        ),
        (
            plain,
            Box::new(|q| {
                let id = fetching(q);
                let mut header = data_header(id, 0, 0, 16);
                q.pdu(&mut header, 4, &[1; 8]).unwrap();
            }),
            Some(1),
            "DATAL that is not the data's length",
        ),
        (
            plain,
            Box::new(|q| {
                let mut header = [0; 24];
                header[0] = 2;
                q.pdu(&mut header, 0, &[]).unwrap();
            }),
            None,
            "the host's own TermReq",
        ),
        (
            plain,
            Box::new(|q| {
                for _ in 0..33 {
                    let mut header = command(&initiator::io(1, 0, 16));
                    header[8 + 39] = 0x5a;
                    header[8 + 32..8 + 36].copy_from_slice(&65_536_u32.to_le_bytes());
                    if q.pdu(&mut header, 0, &[]).is_err() {
                        break;
                    }
                }
            }),
            Some(5),
            "more commands than the queue has entries",
        ),
    ];
    for (options, broken, expected, what) in cases {
        let (_host, mut queue) = target.pair(options);
        assert_eq!(read(&mut queue, 0, 1), vec![0; BLOCK]);
        broken(&mut queue);
        assert_eq!(queue.terminated_after_r2t(), expected, "{what}");
    }
    // Nobody else noticed.
    let (_host, mut queue) = target.pair(plain);
    assert_eq!(read(&mut queue, 0, 1), vec![0; BLOCK]);
}

fn second_handshake(queue: &mut Queue) {
    let mut request = [0; 128];
    request[2] = 128;
    request[4] = 128;
    queue.raw(&request).unwrap();
}

#[test]
fn a_handshake_that_is_wrong() {
    let target = Target::open();
    let mut good = [0; 128];
    good[2] = 128;
    good[4] = 128;
    for (at, value, expected) in [(8, 1, 6), (10, 32, 1), (11, 4, 1), (0, 4, 1), (4, 129, 1)] {
        let mut request = good;
        request[at] = value;
        let mut stream = TcpStream::connect(target.io).unwrap();
        stream.set_read_timeout(Some(initiator::PATIENCE)).unwrap();
        stream.write_all(&request).unwrap();
        let mut term = Vec::new();
        // Unread bytes of ours may reset the connection behind the answer.
        let _ = stream.read_to_end(&mut term);
        assert_eq!((term[0], term[8]), (3, expected), "byte {at}");
    }
}

#[test]
fn damaged_data_is_no_write() {
    let target = Target::open();
    let options = Options { data_digest: true, ..Options::default() };
    let (_host, mut queue) = target.pair(options);
    let mut sqe = initiator::io(1, 0, 1);
    initiator::put(&mut sqe, 2, &500_u16.to_le_bytes());
    initiator::put(&mut sqe, 32, &(BLOCK as u32).to_le_bytes());
    sqe[39] = 1;
    let mut header = command(&sqe);
    let mut bytes = encode(&mut header, 0, &[1; BLOCK], options);
    bytes[72 + 100] ^= 1;
    queue.expect(500);
    queue.raw(&bytes).unwrap();
    assert_eq!(queue.wait(500).unwrap().status, 0x22, "a transient error: try again");
    assert_eq!(read(&mut queue, 0, 1), vec![0; BLOCK]);
}
