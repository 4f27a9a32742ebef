//! What a directory of segments says: every record of every segment, in order.
//!
//! Anything that is not as it was left is an error that names the file, with one exception: at the end of
//! the last segment a write may have been cut short by a crash. It is cut off, unless a later record
//! says that it was on stable storage: then it was damaged since.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};
use serde::{Deserialize, Serialize};

use super::format::{self, Kind, Place, Record, Tail};
use crate::fs::{self, File, OpenOptions};
use crate::group::Types;

type MembershipOf = openraft::Membership<u64, openraft::BasicNode>;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub segment: u64,
    pub offset: u64,
    pub len: u32,
    pub crc: u32,
}

/// One segment file that is open.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub number: u64,
    pub path: PathBuf,
    pub file: Arc<File>,
    /// Bytes that hold records.
    pub used: u64,
    /// Length of the file.
    pub size: u64,
    /// Highest entry index that was ever written to it.
    pub last_index: Option<u64>,
}

/// The payload of a `State` record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    pub vote: Option<VoteOf<Types>>,
    pub purged: Option<LogIdOf<Types>>,
    pub last: Option<LogIdOf<Types>>,
}

/// The log as its files tell it.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub head: Head,
    /// Index of the first entry of `entries`.
    pub first: u64,
    pub entries: VecDeque<Location>,
    /// Index of each membership entry, and its voter if there is only one.
    pub voters: Vec<(u64, Option<u64>)>,
    pub segments: VecDeque<SegmentFile>,
    /// Where the next record goes; `None` if there are no segments.
    pub next: Option<Place>,
}

/// The voter of a membership that has one, before and after a change that is under way.
pub(crate) fn sole_voter(membership: &MembershipOf) -> Option<u64> {
    let mut voters = membership.voter_ids();
    voters.next().filter(|_| voters.next().is_none())
}

pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.log"))
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "metadata log {}: {what}; restore the directory from a copy, or remove the node's whole \
             metadata directory if other replicas hold it",
            path.display()
        ),
    )
}

/// Numbers of the segments in `dir`, ascending. Leftovers of a preparation are removed.
fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if name.ends_with(".new") {
            fs::remove_file(&path)?;
            continue;
        }
        let number = name
            .strip_suffix(".log")
            .filter(|digits| digits.len() == 16)
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .filter(|number| segment_path(dir, *number) == path && *number < u64::MAX);
        match number {
            Some(number) => numbers.push(number),
            None => return Err(damaged(&path, "this file does not belong here")),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(crate) fn read(dir: &Path) -> io::Result<Contents> {
    let numbers = list(dir)?;
    let mut contents = Contents::default();
    for (at, &number) in numbers.iter().enumerate() {
        let path = segment_path(dir, number);
        let first = numbers[0];
        if number != first + at as u64 {
            let missing = segment_path(dir, first + at as u64);
            return Err(damaged(&missing, "this segment is missing"));
        }
        contents.segment(number, &path, at + 1 == numbers.len())?;
    }
    contents.check(dir)?;
    Ok(contents)
}

impl Contents {
    fn segment(&mut self, number: u64, path: &Path, is_last: bool) -> io::Result<()> {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(named)?;
        let size = file.metadata().map_err(named)?.len();
        if size > format::SEGMENT_MAX {
            return Err(damaged(path, format!("{size} bytes are too many for a segment")));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).map_err(named)?;
        if let Some(newer) = format::newer_version(&bytes) {
            let why = format!("metadata log {}: {newer}", path.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let segment = format::read_segment(&bytes, number).map_err(|e| damaged(path, e))?;
        if self.next.is_some_and(|next| next != segment.first) {
            let before = self.segments.back().map_or(path, |segment| &segment.path);
            return Err(damaged(before, "records at its end are damaged or missing"));
        }
        let place = format!("record {} at byte {}", segment.next.sequence, segment.end);
        match segment.tail {
            Tail::Blank => {}
            Tail::Torn | Tail::Gap { .. } if !is_last => {
                return Err(damaged(path, format!("{place} is damaged")));
            }
            Tail::Gap { stable, .. } if stable > segment.next.sequence => {
                return Err(damaged(path, format!("{place} is damaged, later ones are whole")));
            }
            Tail::Torn => {
                tracing::warn!(path = %path.display(), place, "cut off an unfinished write");
            }
            Tail::Gap { later, .. } => {
                tracing::warn!(path = %path.display(), place, later, "cut off unsynced writes");
            }
        }
        let mut last_index = None;
        for record in &segment.records {
            if !matches!(record.kind, Kind::State) && record.sequence == segment.first.sequence {
                return Err(damaged(path, "the first record is not the state"));
            }
            self.record(number, record, &mut last_index)
                .map_err(|e| damaged(path, format!("record {}: {e}", record.sequence)))?;
        }
        if segment.records.is_empty() {
            return Err(damaged(path, format!("{place} is damaged")));
        }
        let used = segment.end as u64;
        if segment.tail != Tail::Blank {
            blank(&file, used, size).map_err(named)?;
        }
        self.next = Some(segment.next);
        let path = path.to_path_buf();
        let file = Arc::new(file);
        self.segments.push_back(SegmentFile { number, path, file, used, size, last_index });
        Ok(())
    }

    fn record(
        &mut self,
        segment: u64,
        record: &Record<'_>,
        last_index: &mut Option<u64>,
    ) -> Result<(), String> {
        let payload = record.payload;
        match record.kind {
            Kind::Mark => {}
            Kind::State => {
                let head: Head = decode(payload)?;
                if self.next.is_none() {
                    self.first = head.last.map_or(0, |last| last.index.saturating_add(1));
                    self.head = head;
                } else if head.last != self.head.last {
                    return Err("it does not continue the segment before".to_owned());
                }
            }
            Kind::Vote => self.head.vote = decode(payload)?,
            Kind::Truncate => self.truncate(decode(payload)?),
            Kind::Purge => self.purge(decode(payload)?),
            Kind::Entries => {
                let framed = format::entries(payload).ok_or("its entries do not fill it")?;
                for entry in framed {
                    let expected = self.head.last.map_or(0, |last| last.index.saturating_add(1));
                    let decoded: EntryOf<Types> = decode(entry.bytes)?;
                    if entry.index != expected || decoded.log_id.index != expected {
                        return Err(format!("entry {} where {expected} belongs", entry.index));
                    }
                    if let openraft::EntryPayload::Membership(membership) = &decoded.payload {
                        self.voters.push((entry.index, sole_voter(membership)));
                    }
                    if self.entries.is_empty() {
                        self.first = expected;
                    }
                    self.head.last = Some(decoded.log_id);
                    *last_index = Some(entry.index);
                    self.entries.push_back(Location {
                        segment,
                        offset: (record.payload_offset + entry.offset) as u64,
                        len: entry.bytes.len() as u32,
                        crc: entry.crc,
                    });
                }
            }
        }
        Ok(())
    }

    /// Forgets the entries after `last`.
    pub fn truncate(&mut self, last: Option<LogIdOf<Types>>) {
        let keep = last.map_or(0, |last| last.index.saturating_add(1));
        self.entries.truncate(keep.saturating_sub(self.first).try_into().unwrap_or(usize::MAX));
        self.voters.retain(|(index, _)| *index < keep);
        self.head.last = last.max(self.head.purged);
    }

    /// Forgets the entries up to `upto`, which may lie beyond the last.
    pub fn purge(&mut self, upto: LogIdOf<Types>) {
        if self.head.purged.is_some_and(|purged| purged >= upto) {
            return;
        }
        let gone = upto.index.saturating_add(1).saturating_sub(self.first);
        let gone = usize::try_from(gone).unwrap_or(usize::MAX).min(self.entries.len());
        self.entries.drain(..gone);
        self.first = self.first.max(upto.index.saturating_add(1));
        self.head.purged = Some(upto);
        self.head.last = self.head.last.max(Some(upto));
    }

    /// Every entry after the purge point is there.
    fn check(&self, dir: &Path) -> io::Result<()> {
        let wanted = self.head.purged.map_or(0, |purged| purged.index.saturating_add(1));
        let end = self.head.last.map_or(0, |last| last.index.saturating_add(1));
        if wanted < end && self.first > wanted {
            let path = self.segments.front().map_or(dir, |segment| &segment.path);
            let first = self.first;
            return Err(damaged(
                path,
                format!("segments before it are missing: it starts at entry {first}, not {wanted}"),
            ));
        }
        Ok(())
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(bytes).map_err(|e| e.to_string())
}

/// Zeros from `from` to `size`, durably: nothing old may ever look like the next record.
fn blank(file: &File, from: u64, size: u64) -> io::Result<()> {
    super::segment::fill(file, from, size)?;
    file.sync_all()
}
