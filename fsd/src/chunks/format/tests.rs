use super::*;

fn named(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_string()
}

fn record(n: u8, stored: &[u8]) -> RecordHeader {
    RecordHeader {
        hash: ChunkHash([n; 32]),
        plain_len: 5,
        stored_len: stored.len() as u32,
        codec: 1,
        key_id: 3,
        nonce: [n; 12],
        stored_crc: crc32c(&[stored]),
    }
}

/// Bytes once written must be readable for ever: a change here needs a new version.
#[test]
fn the_bytes_are_those_of_version_2() {
    let (cluster, volume) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let header =
        VolumeHeader { cluster, volume, shard_count: 16, segment_bytes: 2 << 20, slots: 99 };
    assert_eq!(VolumeHeader::decode(&header.encode()), Found::Valid(header));
    let id = SegmentId { shard: ShardId(5), number: SegmentNumber(77) };
    let segment = SegmentHeader { cluster, id };
    assert_eq!(SegmentHeader::decode(&segment.encode()), Found::Valid(segment));
    let record = record(4, b"stored");
    let entry = Entry { hash: record.hash, offset: 4096, stored_len: 6, plain_len: 5 };
    let footer = encode_footer(id, &[entry]);
    assert_eq!(decode_footer(&footer, id, 64 << 10), Footer::Lines(vec![entry]));
    let next = SegmentId { number: SegmentNumber(78), ..id };
    assert_eq!(decode_footer(&footer, next, 64 << 10), Footer::None);
    let other = SegmentId { shard: ShardId(6), ..id };
    assert_eq!(decode_footer(&footer, other, 64 << 10), Footer::None);
    let names = [
        named(&header.encode()),
        named(&segment.encode()),
        named(&record.encode(id.number)),
        named(&footer),
    ];
    let golden = ["44ed7da6f4b4bd67", "e11a0cf3478c0ecc", "cb8bf18353887b7f", "428d9b0a7df69662"];
    assert_eq!(names, golden);
    // Spelled out as docs/formats/segment.md does.
    let bytes = record.encode(id.number);
    assert_eq!(&bytes[..4], b"CFRC");
    assert_eq!(bytes[4..8], crc32c(&[&bytes[8..80]]).to_le_bytes());
    assert_eq!(bytes[76..80], crc32c(&[b"stored"]).to_le_bytes());
    assert_eq!(&footer[4096 - 32..4096 - 28], b"CFFT");
}

#[test]
fn other_versions_are_told_from_damage() {
    let header = VolumeHeader {
        cluster: Uuid::from_u128(1),
        volume: Uuid::from_u128(2),
        shard_count: 16,
        segment_bytes: 2 << 20,
        slots: 99,
    };
    let mut bytes = header.encode();
    for (version, found) in [(1, Found::Older(1)), (3, Found::Newer(3))] {
        bytes[8] = version;
        assert_eq!(VolumeHeader::decode(&bytes), Found::Damaged);
        let crc = crc32c(&[&bytes[..12], &bytes[16..512]]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(VolumeHeader::decode(&bytes), found);
        bytes = header.encode();
    }
}

#[test]
fn no_number_is_beyond_the_highest() {
    let beyond = SegmentNumber(NUMBER_MAX.0 + 1);
    let segment = |number| {
        let id = SegmentId { shard: ShardId(5), number };
        SegmentHeader::decode(&SegmentHeader { cluster: Uuid::from_u128(2), id }.encode())
    };
    assert!(matches!(segment(NUMBER_MAX), Found::Valid(_)));
    assert_eq!(segment(beyond), Found::Damaged);
    let record = |number| RecordHeader::decode_head(&record(1, b"abc").encode(number));
    assert!(record(NUMBER_MAX).is_some());
    assert_eq!(record(beyond), None);
    // Of every epoch there is a first and a last one.
    let last = SegmentNumber(before_epoch(Epoch(EPOCH_MAX.0 + 1)).0 - 1);
    assert_eq!((epoch_of(last), last), (EPOCH_MAX, NUMBER_MAX));
}

/// Records of another shard with the same number lie in a slot that was used again.
#[test]
fn a_record_of_another_shard_is_of_another_segment() {
    let number = SegmentNumber(7);
    let record = |n: u8| {
        let mut bytes = record(n, b"stored").encode(number).to_vec();
        bytes.extend_from_slice(b"stored");
        bytes.resize(record_bytes(6), 0);
        bytes
    };
    let mut segment = vec![0; 3 * BLOCK];
    let (low, high) = (record(1), record(0xf1));
    segment[BLOCK..BLOCK + low.len()].copy_from_slice(&low);
    segment[2 * BLOCK..2 * BLOCK + high.len()].copy_from_slice(&high);
    let ids = [0, 1].map(|shard| SegmentId { shard: ShardId(shard), number });
    let found = |id, shards| scan(&segment, id, shards).len();
    assert_eq!((found(ids[0], 2), found(ids[1], 2), found(ids[0], 1)), (1, 1, 2));
    assert_eq!(parse(&segment[BLOCK..], BLOCK, ids[0], 2), Err(2 * BLOCK));
    assert_eq!(parse(&segment[BLOCK..2 * BLOCK], BLOCK, ids[0], 2).unwrap().len(), 1);
    assert_eq!(parse(&segment[BLOCK..], BLOCK, ids[0], 1).unwrap().len(), 2);
    // Nothing but records and zeros is taken for whole.
    for at in 0..2 * BLOCK {
        let mut bytes = segment[BLOCK..].to_vec();
        bytes[at] ^= 1;
        assert!(parse(&bytes, BLOCK, ids[0], 1).is_err(), "a bit at {at}");
    }
}

/// Checksums do not keep a liar out: lengths and places are believed only as far as they make sense.
#[test]
fn hostile_bytes_with_right_checksums_are_refused() {
    let mut dice = 1u64;
    let mut next = || {
        dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (dice >> 33) as u32
    };
    let segment_bytes = 64 << 10;
    let id = SegmentId { shard: ShardId(0), number: SegmentNumber(7) };
    for _ in 0..2000 {
        let lines = next() as usize % 5;
        let wild = |value: u32| if value.is_multiple_of(3) { value } else { value % (1 << 16) };
        let entries: Vec<_> = (0..lines)
            .map(|_| Entry {
                hash: ChunkHash([1; 32]),
                offset: wild(next()) / 16 * 16,
                stored_len: wild(next()),
                plain_len: next(),
            })
            .collect();
        let mut footer = encode_footer(id, &entries);
        if let Footer::Lines(lines) = decode_footer(&footer, id, segment_bytes) {
            let bytes: usize = lines.iter().map(|line| record_bytes(line.stored_len)).sum();
            assert!(bytes <= segment_bytes - BLOCK, "{lines:?}");
        }
        // Any number of lines, with a checksum or without.
        let trailer = footer.len() - FOOTER_TRAILER;
        footer[trailer + 16..trailer + 20].copy_from_slice(&next().to_le_bytes());
        match decode_footer(&footer, id, segment_bytes) {
            Footer::Longer(len) => assert!(len < segment_bytes),
            Footer::Lines(_) | Footer::None => {}
        }
        // A record that claims to be longer than what is there.
        let mut lie = record(1, b"abc");
        lie.stored_len = wild(next());
        let mut bytes = vec![0; 4096];
        bytes[..RECORD_HEADER].copy_from_slice(&lie.encode(id.number));
        assert!(
            RecordHeader::decode(&bytes, id.number).is_none_or(|(_, stored)| stored.len() < 4096)
        );
        let mut segment = vec![0; 8192];
        segment[BLOCK..].copy_from_slice(&bytes);
        assert!(scan(&segment, id, 1).iter().all(|entry| entry.offset == 4096));
        recognise(&segment, 1);
    }
}
