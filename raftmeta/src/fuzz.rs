//! Parsers that have no other door, for the package `fuzz`.

use std::io;
use std::path::Path;

use crate::checkpoint;
use crate::kv::Pair;
use crate::log_store::{format, recover};
use crate::store::{State, intact};

/// A checkpoint with these blocks of records.
pub fn checkpoint_image(blocks: &[Vec<Pair>]) -> Vec<u8> {
    let plain = "plain data always serialises";
    let mut payloads = vec![postcard::to_stdvec(&State::default()).expect(plain)];
    payloads.extend(blocks.iter().map(|block| postcard::to_stdvec(block).expect(plain)));
    checkpoint::image(&payloads)
}

/// Every record of a checkpoint.
pub fn checkpoint(bytes: &[u8]) -> io::Result<Vec<Pair>> {
    let len = bytes.len() as u64;
    let (_, mut reader) = checkpoint::Reader::new(Path::new("checkpoint"), bytes, len)?;
    let mut found = Vec::new();
    while let Some(records) = reader.records()? {
        found.extend(records);
    }
    Ok(found)
}

/// A log segment of `size` bytes with these payloads as the entries of one record each.
pub fn segment_image(number: u64, size: usize, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut place = format::Place { sequence: 1, chain: 0 };
    let mut bytes = format::segment_header(number, place, size as u64).to_vec();
    let head =
        postcard::to_stdvec(&recover::Head::default()).expect("plain data always serialises");
    place = format::put_record(&mut bytes, format::Kind::State, place, 1, &head);
    for (index, entry) in (1..).zip(entries) {
        let mut payload = Vec::new();
        format::put_entry(&mut payload, index, entry);
        place = format::put_record(&mut bytes, format::Kind::Entries, place, 1, &payload);
    }
    bytes.resize(size.max(bytes.len()), 0);
    bytes
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub records: usize,
    pub entries: usize,
    /// Offset after the last record in its place.
    pub end: usize,
}

/// Takes a log segment apart, and the entries in it.
pub fn segment(bytes: &[u8], number: u64) -> Result<Segment, String> {
    let read = format::read_segment(bytes, number)?;
    let mut entries = 0;
    for record in &read.records {
        assert!(record.payload_offset + record.payload.len() <= read.end, "beyond its end");
        for entry in format::entries(record.payload).unwrap_or_default() {
            assert_eq!(&record.payload[entry.offset..][..entry.bytes.len()], entry.bytes);
            entries += 1;
        }
    }
    Ok(Segment { records: read.records.len(), entries, end: read.end })
}

/// Reads a directory of log segments as a start does.
pub fn log(dir: &Path) -> io::Result<usize> {
    recover::read(dir).map(|contents| contents.entries.len())
}

/// Whether the files of a store are as they were left; the number of the last commit in its journals.
pub fn intact(dir: &Path) -> Result<Option<u64>, String> {
    intact::check(dir).map(|found| found.last_commit).map_err(|damage| damage.to_string())
}

/// A store with tables and a journal, of these numbers of commits before and after its tables were written.
pub fn make_store(dir: &Path, before: u64, after: u64) -> Result<(), fjall::Error> {
    let db = fjall::Database::builder(dir).open()?;
    let records = db.keyspace("records", fjall::KeyspaceCreateOptions::default)?;
    for number in 1..=before + after {
        let mut batch = db.batch();
        batch.insert(&records, number.to_be_bytes(), vec![7; 60]);
        batch.insert(&records, crate::store::STATE, number.to_le_bytes());
        batch.commit()?;
        if number == before {
            records.rotate_memtable_and_wait()?;
        }
    }
    Ok(())
}
