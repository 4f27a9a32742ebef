use proptest::prelude::*;

use super::*;

/// A segment of `size` bytes with these records, and where it ends.
fn segment(records: &[(Kind, u64, Vec<u8>)], size: usize) -> (Vec<u8>, Place, usize) {
    let first = Place { sequence: 5, chain: 77 };
    let mut bytes = segment_header(3, first, size as u64).to_vec();
    let mut place = first;
    for (kind, stable, payload) in records {
        place = put_record(&mut bytes, *kind, place, *stable, payload);
    }
    let end = bytes.len();
    bytes.resize(size, 0);
    (bytes, place, end)
}

fn some() -> (Vec<u8>, Place, usize) {
    let mut entries = Vec::new();
    put_entry(&mut entries, 9, b"nine");
    put_entry(&mut entries, 10, b"");
    let records = [
        (Kind::State, 5, b"state".to_vec()),
        (Kind::Entries, 6, entries),
        (Kind::Vote, 6, vec![1, 2, 3]),
        (Kind::Truncate, 8, vec![]),
        (Kind::Purge, 9, vec![4; 8]),
        (Kind::Mark, 10, vec![]),
    ];
    segment(&records, 512)
}

/// The bytes that this version writes, for good: a change of them needs a new version.
#[test]
fn golden() {
    let (bytes, _, end) = some();
    let hex: String = bytes[..end].iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = include_str!("golden.hex");
    assert_eq!(hex, golden.split_whitespace().collect::<String>(), "{hex}");
}

#[test]
fn what_is_written_is_read() {
    let (bytes, next, end) = some();
    let segment = read_segment(&bytes, 3).unwrap();
    assert_eq!((segment.next, segment.end, segment.tail), (next, end, Tail::Blank));
    let kinds: Vec<Kind> = segment.records.iter().map(|record| record.kind).collect();
    let all = [Kind::State, Kind::Entries, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Mark];
    assert_eq!(kinds, all);
    let entries = entries(segment.records[1].payload).unwrap();
    assert_eq!((entries[0].index, entries[0].bytes), (9, &b"nine"[..]));
    assert_eq!((entries[1].index, entries[1].bytes), (10, &b""[..]));
    assert!(read_segment(&bytes, 4).unwrap_err().contains("another segment"));
    assert!(read_segment(&bytes[..300], 3).unwrap_err().contains("300 bytes"));
}

#[test]
fn a_torn_tail_is_told_from_damage() {
    let (bytes, _, end) = some();
    // The last record, cut short: nothing valid follows.
    let mut torn = bytes.clone();
    torn[end - 8..end].fill(0xaa);
    let segment = read_segment(&torn, 3).unwrap();
    assert_eq!((segment.records.len(), segment.tail), (5, Tail::Torn));
    // The vote damaged: later records say that it was stable.
    let mut damaged = bytes.clone();
    let vote = read_segment(&bytes, 3).unwrap().records[2].payload_offset;
    damaged[vote] ^= 1;
    let segment = read_segment(&damaged, 3).unwrap();
    assert_eq!(segment.next.sequence, 7);
    assert_eq!(segment.tail, Tail::Gap { later: 10, stable: 10 });
}

#[test]
fn a_record_of_another_place_is_not_the_next() {
    let (bytes, next, end) = some();
    for place in [
        Place { sequence: next.sequence + 1, ..next },
        Place { chain: next.chain ^ 1, ..next },
        Place { sequence: next.sequence - 1, ..next },
    ] {
        let mut stale = bytes[..end].to_vec();
        put_record(&mut stale, Kind::Mark, place, 0, &[]);
        stale.resize(bytes.len(), 0);
        assert_eq!(read_segment(&stale, 3).unwrap().records.len(), 6, "{place:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Never a panic, whatever the bytes.
    #[test]
    fn any_bytes_are_read(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), honest: bool) {
        if honest && bytes.len() >= SEGMENT_HEADER {
            let header = segment_header(3, Place { sequence: 5, chain: 0 }, bytes.len() as u64);
            bytes[..SEGMENT_HEADER].copy_from_slice(&header);
        }
        if let Ok(segment) = read_segment(&bytes, 3) {
            prop_assert!(segment.end <= bytes.len());
        }
        let _any = entries(&bytes);
    }

    /// A flipped bit is never taken for what was written.
    #[test]
    fn a_flipped_bit_is_found(at in 0usize..512, bit in 0u32..8) {
        let (bytes, next, end) = some();
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        match read_segment(&flipped, 3) {
            Err(_) => prop_assert!(at < SEGMENT_HEADER),
            // Padding and blank space are nobody's; whatever else is flipped ends the records there.
            Ok(segment) if segment.next == next => {
                let original = read_segment(&bytes, 3).unwrap();
                prop_assert_eq!(segment.records, original.records);
            }
            Ok(segment) => prop_assert!(segment.end < end && segment.tail != Tail::Blank),
        }
    }
}
