use proptest::prelude::*;

use super::*;

/// A checkpoint of a state and these blocks of records.
fn image(blocks: &[Vec<Pair>]) -> Vec<u8> {
    let mut payloads = vec![postcard::to_stdvec(&State::default()).unwrap()];
    payloads.extend(blocks.iter().map(|block| postcard::to_stdvec(block).unwrap()));
    super::image(&payloads)
}

fn read(bytes: &[u8]) -> io::Result<Vec<Pair>> {
    let (_, mut reader) = Reader::new(Path::new("the-file"), bytes, bytes.len() as u64)?;
    let mut found = Vec::new();
    while let Some(records) = reader.records()? {
        found.extend(records);
    }
    Ok(found)
}

fn blocks() -> Vec<Vec<Pair>> {
    let pair = |n: u8| (vec![n; 3], vec![n; usize::from(n)]);
    vec![vec![pair(1), pair(2)], vec![pair(3)]]
}

#[test]
fn what_is_written_is_read_and_every_flip_and_cut_is_found() {
    let bytes = image(&blocks());
    assert_eq!(read(&bytes).unwrap(), blocks().concat());
    for at in 0..bytes.len() {
        let cut = read(&bytes[..at]).unwrap_err().to_string();
        assert!(cut.contains("the-file"), "{cut}");
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let error = read(&flipped).unwrap_err().to_string();
            assert!(error.contains("the-file"), "bit {bit} of byte {at}: {error}");
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(read(&longer).is_err());
}

/// The bytes that this version writes, for good: a change of them needs a new version.
#[test]
fn golden() {
    let hex: String = image(&blocks()).iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = include_str!("golden.hex");
    assert_eq!(hex, golden.split_whitespace().collect::<String>(), "{hex}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600), honest: bool) {
        let bytes = if honest { [&MAGIC[..], &bytes].concat() } else { bytes };
        let _refused_or_not = read(&bytes);
    }
}
