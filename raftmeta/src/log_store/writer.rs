//! The end of the log: appends, rotation, and what is kept in memory of the entries.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::type_config::alias::{EntryOf, LogIdOf, VoteOf};

use super::format::{self, Kind, Place};
use super::recover::{self, Contents, Location};
use super::segment::{self, Blank};
use crate::fs::{self, File};
use crate::group::Types;

/// Entries kept as they are, for the state machine that reads them next.
const RECENT_MAX: usize = 512;
/// Most bytes of them.
const RECENT_BYTES: usize = 16 << 20;

/// Whoever holds it is the only one that writes to the log.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    contents: Contents,
    next: Place,
    /// The last entries, with their encoded length; they end at the log's last.
    recent: VecDeque<(EntryOf<Types>, usize)>,
    recent_bytes: usize,
    /// The segment to come, made ahead.
    spare: Option<Blank>,
    prepared: u64,
    /// Records in the page cache only, which nobody waits for.
    pub dirty: bool,
    /// The last record is a mark.
    pub marked: bool,
    /// Bytes appended since the log was opened.
    pub appended: u64,
    /// Why nothing can be written any more.
    failed: Option<String>,
    #[cfg(test)]
    pub fail_next_sync: bool,
}

/// What a sync covers: this file, up to this record.
pub(super) struct Target {
    pub file: Arc<File>,
    pub sequence: u64,
}

impl Writer {
    /// Opens the log of `dir`, or makes an empty one.
    pub fn open(dir: &Path) -> io::Result<Writer> {
        let mut contents = recover::read(dir)?;
        let next = match contents.next {
            Some(next) => next,
            None => {
                let blank = segment::prepare(dir, 0, segment::FIRST_SIZE)?;
                let place = Place { sequence: 1, chain: 0 };
                let (file, next) = segment::adopt(dir, blank, 1, place, &contents.head)?;
                contents.segments.push_back(file);
                next
            }
        };
        let writer = Writer {
            dir: dir.to_path_buf(),
            contents,
            next,
            recent: VecDeque::new(),
            recent_bytes: 0,
            spare: None,
            prepared: 0,
            dirty: false,
            marked: false,
            appended: 0,
            failed: None,
            #[cfg(test)]
            fail_next_sync: false,
        };
        // What the last run left in the page cache is read as if it were durable: make it so.
        writer.target()?.file.sync_data()?;
        Ok(writer)
    }

    pub fn vote(&self) -> Option<VoteOf<Types>> {
        self.contents.head.vote
    }

    pub fn purged(&self) -> Option<LogIdOf<Types>> {
        self.contents.head.purged
    }

    pub fn last(&self) -> Option<LogIdOf<Types>> {
        self.contents.head.last
    }

    /// Index of the newest membership entry in the log, and its voter if there is only one.
    pub fn voters(&self) -> Option<(u64, Option<u64>)> {
        self.contents.voters.last().copied()
    }

    /// End of the part of `from..to` that takes at most `bytes`, or one entry.
    pub fn fitting(&self, from: u64, to: u64, bytes: usize) -> u64 {
        let first = self.contents.first;
        let skipped = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let wanted = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let (mut end, mut sum) = (from, 0);
        for location in self.contents.entries.iter().skip(skipped).take(wanted) {
            sum += location.len as usize;
            if sum > bytes && end > from {
                return end;
            }
            end += 1;
        }
        to
    }

    /// Number of the record to come.
    pub fn sequence(&self) -> u64 {
        self.next.sequence
    }

    pub fn used_bytes(&self) -> u64 {
        self.contents.segments.iter().map(|segment| segment.used).sum()
    }

    /// An error if an earlier write or sync failed.
    pub fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some(reason) => Err(io::Error::other(format!(
                "metadata log {}: {reason}; nothing is written until it is opened anew",
                self.dir.display()
            ))),
            None => Ok(()),
        }
    }

    /// Refuses everything from now on.
    pub fn fail(&mut self, what: &str, error: &io::Error) -> io::Error {
        let reason = format!("{what} failed: {error}");
        if self.failed.is_none() {
            tracing::error!(path = %self.dir.display(), reason, "the metadata log stops");
            self.failed = Some(reason);
        }
        match self.check() {
            Err(error) => error,
            Ok(()) => io::Error::other("the log has failed"),
        }
    }

    /// What has to be synced for everything written so far to be stable.
    pub fn target(&self) -> io::Result<Target> {
        self.check()?;
        match self.contents.segments.back() {
            Some(segment) => {
                Ok(Target { file: Arc::clone(&segment.file), sequence: self.next.sequence })
            }
            None => Err(io::Error::other("the log has no segment")),
        }
    }

    /// Puts one record behind the others; `stable` as in the format. Returns the segment and the offset
    /// of its payload.
    fn record(&mut self, kind: Kind, payload: &[u8], stable: u64) -> io::Result<(u64, u64)> {
        self.check()?;
        let result = self.try_record(kind, payload, stable);
        result.map_err(|e| self.fail("a write", &e))
    }

    fn try_record(&mut self, kind: Kind, payload: &[u8], stable: u64) -> io::Result<(u64, u64)> {
        let len = format::record_len(payload.len()) as u64;
        let fits = |segment: &recover::SegmentFile| segment.used + len <= segment.size;
        if !self.contents.segments.back().is_some_and(fits) {
            self.rotate()?;
        }
        let mut bytes = Vec::with_capacity(len as usize);
        let next = format::put_record(&mut bytes, kind, self.next, stable, payload);
        let segment = self.contents.segments.back_mut().ok_or(io::ErrorKind::NotFound)?;
        assert!(segment.used + len <= segment.size, "a new segment takes the largest record");
        let offset = segment.used + format::RECORD_HEADER as u64;
        segment.file.write_all_at(&bytes, segment.used)?;
        segment.used += len;
        self.next = next;
        self.appended += len;
        self.marked = kind == Kind::Mark;
        Ok((segment.number, offset))
    }

    /// Closes the last segment and goes on in a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let last = self.contents.segments.back().ok_or(io::ErrorKind::NotFound)?;
        last.file.sync_data()?;
        let number = last.number + 1;
        let blank = match self.spare.take() {
            Some(blank) => blank,
            None => {
                self.prepared += 1;
                segment::prepare(&self.dir, self.prepared, segment::SIZE)?
            }
        };
        let head = &self.contents.head;
        let (file, next) = segment::adopt(&self.dir, blank, number, self.next, head)?;
        self.contents.segments.push_back(file);
        self.next = next;
        Ok(())
    }

    #[cfg(test)]
    pub fn end(&self) -> (PathBuf, u64) {
        let segment = self.contents.segments.back().unwrap();
        (segment.path.clone(), segment.used)
    }

    /// Whether the last segment is more than half full and no other is ready; then the number to make
    /// one under.
    pub fn wants_spare(&mut self) -> Option<u64> {
        let half = |segment: &recover::SegmentFile| segment.used > segment.size / 2;
        let wanted = self.spare.is_none() && self.contents.segments.back().is_some_and(half);
        wanted.then(|| {
            self.prepared += 1;
            self.prepared
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn put_spare(&mut self, blank: Blank) {
        self.spare = Some(blank);
    }

    pub fn append(&mut self, entries: Vec<EntryOf<Types>>, stable: u64) -> io::Result<()> {
        let mut encoded = Vec::with_capacity(entries.len());
        for entry in entries {
            let bytes = postcard::to_stdvec(&entry).map_err(io::Error::other)?;
            encoded.push((entry, bytes));
        }
        let mut waiting = encoded.into_iter().peekable();
        while waiting.peek().is_some() {
            let (mut payload, mut batch) = (Vec::new(), Vec::new());
            while let Some((entry, bytes)) = waiting.next_if(|(_, bytes)| {
                payload.is_empty()
                    || payload.len() + format::ENTRY_HEADER + bytes.len() <= format::RECORD_MAX
            }) {
                let offset = payload.len() + format::ENTRY_HEADER;
                if offset + bytes.len() > format::RECORD_MAX {
                    let index = entry.log_id.index;
                    let error = io::Error::other(format!("entry {index} is too large"));
                    return Err(self.fail("an append", &error));
                }
                format::put_entry(&mut payload, entry.log_id.index, &bytes);
                batch.push((entry, offset, bytes.len()));
            }
            let (segment, start) = self.record(Kind::Entries, &payload, stable)?;
            for (entry, offset, len) in batch {
                let crc = format::crc(&payload[offset..offset + len]);
                let offset = start + offset as u64;
                self.note(entry, Location { segment, offset, len: len as u32, crc });
            }
        }
        Ok(())
    }

    fn note(&mut self, entry: EntryOf<Types>, location: Location) {
        let index = entry.log_id.index;
        let contents = &mut self.contents;
        if contents.entries.is_empty() {
            contents.first = index;
        }
        assert_eq!(index, contents.first + contents.entries.len() as u64, "no gaps in the log");
        contents.entries.push_back(location);
        contents.head.last = Some(entry.log_id);
        if let openraft::EntryPayload::Membership(membership) = &entry.payload {
            contents.voters.push((index, recover::sole_voter(membership)));
        }
        if let Some(segment) = contents.segments.back_mut() {
            segment.last_index = Some(index);
        }
        let len = location.len as usize;
        self.recent.push_back((entry, len));
        self.recent_bytes += len;
        while self.recent.len() > RECENT_MAX || self.recent_bytes > RECENT_BYTES {
            let Some((_, len)) = self.recent.pop_front() else { break };
            self.recent_bytes -= len;
        }
    }

    pub fn save_vote(&mut self, vote: &VoteOf<Types>, stable: u64) -> io::Result<()> {
        let payload = postcard::to_stdvec(&Some(vote)).map_err(io::Error::other)?;
        self.record(Kind::Vote, &payload, stable)?;
        self.contents.head.vote = Some(*vote);
        Ok(())
    }

    pub fn truncate(&mut self, last: Option<LogIdOf<Types>>, stable: u64) -> io::Result<()> {
        let payload = postcard::to_stdvec(&last).map_err(io::Error::other)?;
        self.record(Kind::Truncate, &payload, stable)?;
        self.contents.truncate(last);
        self.recent.clear();
        self.recent_bytes = 0;
        Ok(())
    }

    pub fn purge(&mut self, upto: LogIdOf<Types>, stable: u64) -> io::Result<()> {
        let payload = postcard::to_stdvec(&upto).map_err(io::Error::other)?;
        self.record(Kind::Purge, &payload, stable)?;
        self.contents.purge(upto);
        let gone = |entry: &EntryOf<Types>| entry.log_id.index <= upto.index;
        while self.recent.front().is_some_and(|(entry, _)| gone(entry)) {
            let Some((_, len)) = self.recent.pop_front() else { break };
            self.recent_bytes -= len;
        }
        Ok(())
    }

    pub fn mark(&mut self, stable: u64) -> io::Result<()> {
        self.record(Kind::Mark, &[], stable).map(|_| ())
    }

    /// Removes segments that hold nothing but purged entries. The purge must be stable by now.
    pub fn drop_segments(&mut self) -> io::Result<()> {
        let Some(purged) = self.contents.head.purged else { return Ok(()) };
        while self.contents.segments.len() > 1 {
            let Some(oldest) = self.contents.segments.front() else { break };
            if oldest.last_index.is_some_and(|last| last > purged.index) {
                break;
            }
            fs::remove_file(&oldest.path)?;
            self.contents.segments.pop_front();
        }
        File::open(&self.dir)?.sync_all()
    }

    /// Entries `from..to` that are there: those in memory, else where they lie.
    pub fn find(&self, from: u64, to: u64) -> Found {
        let first = self.contents.first;
        let end = first + self.contents.entries.len() as u64;
        let (from, to) = (from.max(first), to.min(end));
        if from >= to {
            return Found::Entries(Vec::new());
        }
        if let Some((oldest, _)) = self.recent.front()
            && oldest.log_id.index <= from
        {
            let skipped = (from - oldest.log_id.index) as usize;
            let wanted = self.recent.iter().skip(skipped).take((to - from) as usize);
            return Found::Entries(wanted.map(|(entry, _)| entry.clone()).collect());
        }
        let range = (from - first) as usize..(to - first) as usize;
        let base = self.contents.segments.front().map_or(0, |segment| segment.number);
        let located = self.contents.entries.range(range).filter_map(|location| {
            let segment = self.contents.segments.get((location.segment - base) as usize)?;
            Some((*location, Arc::clone(&segment.file), segment.path.clone()))
        });
        Found::Located(located.collect())
    }
}

/// See [`Writer::find`].
pub(super) enum Found {
    Entries(Vec<EntryOf<Types>>),
    Located(Vec<(Location, Arc<File>, PathBuf)>),
}
