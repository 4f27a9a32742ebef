//! Segments and records of the log, byte by byte. Nothing here opens a file.
//!
//! ```text
//! segment  "CFSWLOG" version(1)      8   at 0
//!          number                    8   u64; the file's name says it too
//!          first sequence            8   u64; number of its first record
//!          chain                     4   crc of the last record of the segment before; 0 in the first
//!          size                      8   u64; length of the file, which never changes
//!          reserved                 24   zeros
//!          crc32c of all that        4   at 60
//!          record*                       at 64, each at a multiple of 8
//!          zeros                         to the end: written before the segment is used
//!
//! record   crc32c of all below       4
//!          payload length            4   u32, at most RECORD_MAX
//!          sequence                  8   u64; one more than the record before
//!          stable                    8   u64; records below it were on stable storage when this was written
//!          chain                     4   crc of the record before
//!          kind                      4   u32
//!          payload
//!          zeros                         up to a multiple of 8
//! ```
//! Numbers are little-endian. A record belongs to its place: sequence and chain tie it to the one before,
//! so that neither an old nor a foreign one is ever taken for the next. `stable` tells a torn tail, which
//! is cut, from a damaged record, which is not.

use crc_fast::{CrcAlgorithm, checksum};

pub(crate) const MAGIC: &[u8; 8] = b"CFSWLOG\x01";
/// Bytes before the first record of a segment.
pub(crate) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record before its payload.
pub(crate) const RECORD_HEADER: usize = 32;
/// Largest payload, in bytes. A batch of entries that is larger becomes several records.
pub(crate) const RECORD_MAX: usize = 8 << 20;
/// Largest segment, in bytes: what recovery reads into memory at once.
pub(crate) const SEGMENT_MAX: u64 = 64 << 20;
/// Most places past the end that are taken for a record and checked; past that the tail counts as torn.
const CHECKS_MAX: usize = 65536;
/// Bytes of an entry's frame in an `Entries` record: index, length, crc32c.
pub(crate) const ENTRY_HEADER: usize = 16;

const _: () = assert!(SEGMENT_HEADER == 8 + 8 + 8 + 4 + 8 + 24 + 4);
const _: () = assert!(RECORD_HEADER == 4 + 4 + 8 + 8 + 4 + 4);

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First in every segment: vote, purge point and last entry before it.
    State,
    /// Log entries, each with index (u64), length (u32) and crc32c (u32) before its bytes.
    Entries,
    /// The vote.
    Vote,
    /// Entries after the given log id are gone.
    Truncate,
    /// Entries up to the given log id are gone.
    Purge,
    /// Nothing but its `stable`: written when the log was quiet, or closed.
    Mark,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Kind::State => 1,
            Kind::Entries => 2,
            Kind::Vote => 3,
            Kind::Truncate => 4,
            Kind::Purge => 5,
            Kind::Mark => 6,
        }
    }

    fn of(code: u32) -> Option<Kind> {
        Some(match code {
            1 => Kind::State,
            2 => Kind::Entries,
            3 => Kind::Vote,
            4 => Kind::Truncate,
            5 => Kind::Purge,
            6 => Kind::Mark,
            _ => return None,
        })
    }
}

/// Where the next record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub sequence: u64,
    pub chain: u32,
}

/// A record and where its payload lies in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'b> {
    pub kind: Kind,
    pub sequence: u64,
    pub stable: u64,
    pub payload_offset: usize,
    pub payload: &'b [u8],
}

/// The records of one segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Segment<'b> {
    pub first: Place,
    pub records: Vec<Record<'b>>,
    /// What follows the last of them.
    pub next: Place,
    /// Offset after the last of them.
    pub end: usize,
    pub tail: Tail,
}

/// What lies after the last record that is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Zeros: nothing was being written.
    Blank,
    /// Something that is not the next record, and nothing valid later: a write that was cut short.
    Torn,
    /// Something that is not the next record, and valid ones later.
    Gap { later: u64, stable: u64 },
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes that a record with this payload takes.
pub(crate) fn record_len(payload: usize) -> usize {
    (RECORD_HEADER + payload).next_multiple_of(8)
}

pub(crate) fn segment_header(number: u64, first: Place, size: u64) -> [u8; SEGMENT_HEADER] {
    let mut bytes = [0; SEGMENT_HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..24].copy_from_slice(&first.sequence.to_le_bytes());
    bytes[24..28].copy_from_slice(&first.chain.to_le_bytes());
    bytes[28..36].copy_from_slice(&size.to_le_bytes());
    let sum = crc(&bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Appends a record to `out` and returns the place of the next.
pub(crate) fn put_record(
    out: &mut Vec<u8>,
    kind: Kind,
    place: Place,
    stable: u64,
    payload: &[u8],
) -> Place {
    assert!(payload.len() <= RECORD_MAX, "a record of {} bytes", payload.len());
    let start = out.len();
    out.extend([0; 4]);
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(place.sequence.to_le_bytes());
    out.extend(stable.to_le_bytes());
    out.extend(place.chain.to_le_bytes());
    out.extend(kind.code().to_le_bytes());
    out.extend(payload);
    let sum = crc(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
    out.resize(start + record_len(payload.len()), 0);
    Place { sequence: place.sequence + 1, chain: sum }
}

/// The record at `at`, whatever its place.
fn record_at(bytes: &[u8], at: usize) -> Option<(Record<'_>, u32, u32)> {
    let sum = u32_at(bytes, at)?;
    let len = u32_at(bytes, at + 4)? as usize;
    if len > RECORD_MAX {
        return None;
    }
    let kind = Kind::of(u32_at(bytes, at + 28)?)?;
    let payload_offset = at + RECORD_HEADER;
    let payload = bytes.get(payload_offset..payload_offset.checked_add(len)?)?;
    if crc(&bytes[at + 4..payload_offset + len]) != sum {
        return None;
    }
    let record = Record {
        kind,
        sequence: u64_at(bytes, at + 8)?,
        stable: u64_at(bytes, at + 16)?,
        payload_offset,
        payload,
    };
    Some((record, u32_at(bytes, at + 24)?, sum))
}

/// Whether a newer version has written this segment. Where its header has its checksum stays as it is.
pub(crate) fn newer_version(bytes: &[u8]) -> Option<crate::format::Newer> {
    let header = bytes.get(..SEGMENT_HEADER)?;
    let whole = u32_at(header, 60) == Some(crc(&header[..60]));
    crate::format::newer(&header[..MAGIC.len()], MAGIC).filter(|_| whole)
}

/// Takes a segment apart. An error says what is wrong with its header.
pub(crate) fn read_segment(bytes: &[u8], number: u64) -> Result<Segment<'_>, String> {
    let header = bytes.get(..SEGMENT_HEADER).ok_or("shorter than its header")?;
    if u32_at(header, 60) != Some(crc(&header[..60])) {
        return Err("the header's checksum is wrong".to_owned());
    }
    if !header.starts_with(MAGIC) {
        return Err("not a log segment of this version".to_owned());
    }
    if u64_at(header, 8) != Some(number) {
        return Err("it is another segment than its name says".to_owned());
    }
    if u64_at(header, 28) != Some(bytes.len() as u64) {
        return Err(format!("it is {} bytes long, not as long as it was made", bytes.len()));
    }
    let (Some(sequence), Some(chain)) = (u64_at(header, 16), u32_at(header, 24)) else {
        return Err("shorter than its header".to_owned());
    };
    let first = Place { sequence, chain };
    let (mut next, mut at, mut records) = (first, SEGMENT_HEADER, Vec::new());
    while let Some((record, chain, sum)) = record_at(bytes, at) {
        if record.sequence != next.sequence || chain != next.chain {
            break;
        }
        let Some(sequence) = next.sequence.checked_add(1) else { break };
        at += record_len(record.payload.len());
        next = Place { sequence, chain: sum };
        records.push(record);
    }
    let end = at.min(bytes.len());
    let tail = tail(bytes, end, next.sequence);
    Ok(Segment { first, records, next, end, tail })
}

/// Looks past the end for records that are newer than the one expected there.
fn tail(bytes: &[u8], end: usize, expected: u64) -> Tail {
    if bytes[end..].iter().all(|&byte| byte == 0) {
        return Tail::Blank;
    }
    let mut at = end.next_multiple_of(8);
    let mut found: Option<Tail> = None;
    let mut budget = CHECKS_MAX;
    while at + RECORD_HEADER <= bytes.len() && budget > 0 {
        // The sequence first: it is cheap to look at, a checksum is not.
        let plausible = u64_at(bytes, at + 8)
            .is_some_and(|sequence| sequence >= expected && sequence - expected < 1 << 24);
        let record = if plausible {
            budget -= 1;
            record_at(bytes, at)
        } else {
            None
        };
        match record {
            Some((record, _, _)) => {
                let stable = match found {
                    Some(Tail::Gap { stable, .. }) => stable.max(record.stable),
                    _ => record.stable,
                };
                found = Some(Tail::Gap { later: record.sequence, stable });
                at += record_len(record.payload.len());
            }
            None => at += 8,
        }
    }
    found.unwrap_or(Tail::Torn)
}

/// Appends one entry to the payload of an `Entries` record.
pub(crate) fn put_entry(payload: &mut Vec<u8>, index: u64, entry: &[u8]) {
    payload.extend(index.to_le_bytes());
    payload.extend((entry.len() as u32).to_le_bytes());
    payload.extend(crc(entry).to_le_bytes());
    payload.extend(entry);
}

/// An entry in the payload of an `Entries` record: its index, crc, and where its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framed<'b> {
    pub index: u64,
    pub crc: u32,
    pub offset: usize,
    pub bytes: &'b [u8],
}

/// The entries of an `Entries` record; `None` if they do not fill it exactly.
pub(crate) fn entries(payload: &[u8]) -> Option<Vec<Framed<'_>>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < payload.len() {
        let index = u64_at(payload, at)?;
        let len = u32_at(payload, at + 8)? as usize;
        let sum = u32_at(payload, at + 12)?;
        let offset = at + ENTRY_HEADER;
        let bytes = payload.get(offset..offset.checked_add(len)?)?;
        found.push(Framed { index, crc: sum, offset, bytes });
        at = offset + len;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
