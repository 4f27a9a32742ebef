//! Files of segments: made ahead, filled with zeros, so that an append changes data only and its sync
//! writes no metadata of the file system.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{self, Kind, Place};
use super::recover::{Head, SegmentFile, segment_path};
use crate::fs::{self, File, OpenOptions};

/// Size of the first segment of a log: a small one, for a log that never grows.
pub(crate) const FIRST_SIZE: u64 = 1 << 20;
/// Size of every other segment.
pub(crate) const SIZE: u64 = 16 << 20;

const _: () = assert!(SIZE <= format::SEGMENT_MAX);
const _: () = assert!((format::RECORD_MAX + 4096) as u64 * 3 / 2 < SIZE);

/// Zeros written at once.
const FILL_BYTES: usize = 1 << 20;

/// Writes zeros over `from..to`.
pub(crate) fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES];
    let mut at = from;
    while at < to {
        let len = (to - at).min(FILL_BYTES as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// A file of zeros that has no number yet.
#[derive(Debug)]
pub(crate) struct Blank {
    path: PathBuf,
    file: File,
    size: u64,
}

/// Makes a file of zeros and syncs it; `id` tells it from others that are in the making.
pub(crate) fn prepare(dir: &Path, id: u64, size: u64) -> io::Result<Blank> {
    let path = dir.join(format!("{id:016x}.new"));
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(named)?;
    fill(&file, 0, size).and_then(|()| file.sync_all()).map_err(named)?;
    Ok(Blank { path, file, size })
}

/// Makes `blank` the segment `number`: header and state record are durable before it gets its name.
/// Returns it with the place of its next record.
pub(crate) fn adopt(
    dir: &Path,
    blank: Blank,
    number: u64,
    first: Place,
    head: &Head,
) -> io::Result<(SegmentFile, Place)> {
    let mut bytes = format::segment_header(number, first, blank.size).to_vec();
    let payload = postcard::to_stdvec(head).map_err(io::Error::other)?;
    // All before it was synced when the segment before was closed.
    let next = format::put_record(&mut bytes, Kind::State, first, first.sequence, &payload);
    blank.file.write_all_at(&bytes, 0)?;
    blank.file.sync_all()?;
    let path = segment_path(dir, number);
    fs::rename(&blank.path, &path)?;
    File::open(dir)?.sync_all()?;
    let used = bytes.len() as u64;
    let file = Arc::new(blank.file);
    Ok((SegmentFile { number, path, file, used, size: blank.size, last_index: None }, next))
}
