//! What lies on a chunk volume: volume header, segment header, record, footer, scan; and codecs.

use fsd::chunks::fuzz::{
    BLOCK, Entry, FOOTER_TRAILER, Footer, Found, RECORD_ALIGN, RECORD_HEADER, RecordHeader,
    SegmentHeader, SegmentId, SegmentNumber, VolumeHeader, compress, decode_footer, decompress,
    encode_footer, has_footer, parse, recognise, record_bytes, scan,
};
use raftmeta_types::{CHUNK_MAX, ChunkHash, ShardId};
use uuid::Uuid;

use super::{crc32c, padded, u32_at};
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] =
    &[b"CFSCHUNK", b"CFSSEGMT", b"CFRC", b"CFFT", &[0, 16, 0, 0], &[0xff, 0xff, 0xff, 0xff]];

const NUMBER: SegmentNumber = SegmentNumber(77);
/// The hashes of the seeds are of shard 0.
const ID: SegmentId = SegmentId { shard: ShardId(0), number: NUMBER };
const SHARDS: u32 = 16;
const SEGMENT_BYTES: usize = 16 * BLOCK;

fn record(n: u8, stored: &[u8]) -> Vec<u8> {
    let header = RecordHeader {
        hash: ChunkHash([n; 32]),
        plain_len: 5,
        stored_len: stored.len() as u32,
        codec: 1,
        key_id: 3,
        nonce: [n; 12],
        stored_crc: crc32c(stored),
    };
    let mut bytes = [&header.encode(NUMBER)[..], stored].concat();
    bytes.resize(record_bytes(stored.len() as u32), 0);
    bytes
}

/// What it is, whether checksums are put right, and the bytes.
pub fn seeds() -> Vec<Vec<u8>> {
    let (cluster, volume) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let header =
        VolumeHeader { cluster, volume, shard_count: 16, segment_bytes: 2 << 20, slots: 99 };
    let segment = SegmentHeader { cluster, id: ID };
    let entry =
        |n: u8, offset| Entry { hash: ChunkHash([n; 32]), offset, stored_len: 20, plain_len: 5 };
    let footer = encode_footer(ID, &[entry(1, 4096), entry(2, 4096 + 112)]);
    let kinds: [(u8, Vec<u8>); 5] = [
        (0, header.encode()[..512].to_vec()),
        (1, segment.encode()[..64].to_vec()),
        (2, [record(1, b"stored"), record(2, &[9; 70])].concat()),
        (3, footer[footer.len() - 160..].to_vec()),
        (4, compress(&b"all work and no play ".repeat(20)).1),
    ];
    let both =
        |(kind, bytes): (u8, Vec<u8>)| [0, 1].map(|mend| [&[kind, mend][..], &bytes].concat());
    kinds.into_iter().flat_map(both).collect()
}

fn mend_at(bytes: &mut [u8], at: usize, parts: &[std::ops::Range<usize>]) {
    let joined: Vec<u8> = parts.iter().flat_map(|part| bytes[part.clone()].to_vec()).collect();
    let sum = crc32c(&joined).to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&sum);
}

fn volume_header(bytes: &[u8], mend: bool) {
    let mut bytes = padded(bytes, BLOCK);
    if mend {
        mend_at(&mut bytes, 12, &[0..12, 16..512]);
    }
    if let Found::Valid(header) = VolumeHeader::decode(&bytes) {
        assert_eq!(VolumeHeader::decode(&header.encode()), Found::Valid(header));
    }
}

fn segment_header(bytes: &[u8], mend: bool) {
    let mut bytes = padded(bytes, BLOCK);
    if mend {
        mend_at(&mut bytes, 12, &[0..12, 16..64]);
    }
    if let Found::Valid(header) = SegmentHeader::decode(&bytes) {
        assert_eq!(SegmentHeader::decode(&header.encode()), Found::Valid(header));
    }
}

/// Records behind a segment's header, put right where they are announced.
fn records(bytes: &[u8], mend: bool) {
    let mut segment = [&[0; BLOCK][..], &padded(bytes, SEGMENT_BYTES - BLOCK)].concat();
    let mut at = BLOCK;
    while mend && at + RECORD_HEADER <= segment.len() && segment[at..].starts_with(b"CFRC") {
        let len = u32_at(&segment, at + 52).unwrap_or(0) as usize;
        let stored = at + RECORD_HEADER..(at + RECORD_HEADER).saturating_add(len);
        if stored.end <= segment.len() {
            mend_at(&mut segment, at + 76, std::slice::from_ref(&stored));
        }
        mend_at(&mut segment, at + 4, std::slice::from_ref(&(at + 8..at + RECORD_HEADER)));
        at = stored.end.next_multiple_of(RECORD_ALIGN);
    }
    let id = recognise(&segment, SHARDS).unwrap_or(ID);
    let mut end = BLOCK;
    let entries = scan(&segment, id, SHARDS);
    if let Ok(parsed) = parse(&segment[BLOCK..], BLOCK, id, SHARDS) {
        assert_eq!(parsed, entries, "a whole segment has the records that a scan finds");
    }
    for entry in entries {
        let offset = entry.offset as usize;
        assert!(offset >= end && offset.is_multiple_of(RECORD_ALIGN), "records overlap");
        end = offset + RECORD_HEADER + entry.stored_len as usize;
        assert!(end <= segment.len(), "a record beyond its segment");
        let (header, stored) = RecordHeader::decode(&segment[offset..], id.number).unwrap();
        let again = RecordHeader::decode_head(&header.encode(id.number));
        assert_eq!(again, Some((header, id.number)));
        assert_eq!(stored.len(), header.stored_len as usize);
    }
}

fn footer(bytes: &[u8], mend: bool) {
    let bytes = &bytes[bytes.len().saturating_sub(2 * BLOCK)..];
    let len = bytes.len().next_multiple_of(BLOCK).max(BLOCK);
    let mut tail = vec![0; len - bytes.len()];
    tail.extend_from_slice(bytes);
    let trailer = len - FOOTER_TRAILER;
    let count = u32_at(&tail, trailer + 16).unwrap_or(0) as usize;
    if mend && let Some(start) = trailer.checked_sub(count.saturating_mul(48)) {
        mend_at(&mut tail, trailer + 4, &[start..trailer, trailer + 8..len]);
    }
    let found = decode_footer(&tail, ID, SEGMENT_BYTES);
    match found {
        Footer::Lines(entries) => {
            assert!(has_footer(&tail));
            let end = |entry: &Entry| entry.offset as usize + record_bytes(entry.stored_len);
            assert!(entries.iter().all(|entry| end(entry) <= SEGMENT_BYTES));
            let again = encode_footer(ID, &entries);
            assert_eq!(decode_footer(&again, ID, SEGMENT_BYTES), Footer::Lines(entries));
        }
        Footer::Longer(needed) => {
            assert!(needed > tail.len() && needed.is_multiple_of(BLOCK) && needed < SEGMENT_BYTES);
        }
        Footer::None => {}
    }
}

fn codec(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let (codec, plain_len) = (cursor.u8() % 4, cursor.u32() as usize % (CHUNK_MAX + 1));
    if let Some(plain) = decompress(codec, cursor.0.to_vec(), plain_len) {
        assert_eq!(plain.len(), plain_len);
    }
    let (codec, stored) = compress(cursor.0);
    assert!(stored.len() <= cursor.0.len());
    assert_eq!(decompress(codec, stored, cursor.0.len()).as_deref(), Some(cursor.0));
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let (kind, mend) = (cursor.u8() % 5, cursor.bool());
    match kind {
        0 => volume_header(cursor.0, mend),
        1 => segment_header(cursor.0, mend),
        2 => records(cursor.0, mend),
        3 => footer(cursor.0, mend),
        _ => codec(cursor.0),
    }
}
