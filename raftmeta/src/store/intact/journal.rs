//! fjall's journals: batches that are not in tables yet.
//!
//! ```text
//! batch    1, items u32, seqno u64        start
//!          2, type u8, 0, keyspace u64, key length u16, value length u32, stored length u32, key, value   item*
//!          3, xxh3-64 of the items, "FJL" 3                                                              end
//! ```
//! All but the youngest journal were synced when they were closed, so whatever is wrong in them is damage.
//! The youngest may end in an unfinished write: it is cut off here. Every batch of ours puts the number of
//! its commit first into the value of the store's own record: a batch that is missing in the middle shows.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Default;

use super::{Check, Damage, Intact, io_damage, list};
use crate::store::STATE;

/// Bytes of an item before its key, without the tag.
const ITEM_HEADER: usize = 1 + 1 + 8 + 2 + 4 + 4;
/// Largest value that the store ever writes.
const VALUE_MAX: u32 = 64 << 20;
/// The highest bit of a sequence number has a meaning of its own.
const SEQNO_MAX: u64 = 1 << 62;

pub(super) fn check_all(dir: &Path) -> Check<Intact> {
    let mut journals = Vec::new();
    for entry in list(dir)? {
        let Some(id) = entry.name.strip_suffix(".jnl") else { continue };
        match id.parse::<u64>() {
            Ok(id) if !entry.is_dir => journals.push((id, entry.path)),
            _ => return Err(Damage::new(&entry.path, "a name that does not belong here")),
        }
    }
    journals.sort_unstable();
    let mut reader = Journals::default();
    let (mut before, count) = (None, journals.len());
    for (at, (id, path)) in journals.into_iter().enumerate() {
        if before.is_some_and(|before: u64| before.checked_add(1) != Some(id)) {
            return Err(Damage::new(&path, "the journal before it is missing"));
        }
        before = Some(id);
        reader.check(&path, at + 1 == count)?;
    }
    Ok(Intact { last_commit: reader.commit })
}

/// What the batches read so far say.
#[derive(Default)]
struct Journals {
    seqno: Option<u64>,
    commit: Option<u64>,
}

/// Why reading ended.
enum End {
    /// Not the start of a batch.
    NoBatch,
    /// A batch that is not whole, or not as it was written.
    Bad(&'static str),
    Io(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => End::Bad("it is cut"),
            _ => End::Io(error),
        }
    }
}

impl Journals {
    fn check(&mut self, path: &Path, is_youngest: bool) -> Check<()> {
        let mut file = File::open(path).map_err(io_damage(path))?;
        let len = file.metadata().map_err(io_damage(path))?.len();
        let mut end = 0;
        let bad = {
            let mut input = BufReader::with_capacity(1 << 20, &mut file);
            loop {
                match self.batch(&mut input, len - end) {
                    Ok(read) => end += read,
                    Err(End::NoBatch) => break None,
                    Err(End::Bad(what)) => break Some(what),
                    Err(End::Io(error)) => return Err(Damage::new(path, error)),
                }
            }
        };
        let blank = bad.is_none() && is_blank(path, end)?;
        if blank {
            return Ok(());
        }
        let what = bad.unwrap_or("something that is no batch");
        if !is_youngest {
            return Err(Damage::new(path, format!("byte {end}: {what}")));
        }
        tracing::warn!(path = %path.display(), end, what, "cut off an unfinished write of the store");
        let file = OpenOptions::new().write(true).open(path).map_err(io_damage(path))?;
        file.set_len(end).and_then(|()| file.sync_all()).map_err(io_damage(path))
    }

    /// Reads one batch; returns its bytes. `left` is what the file has.
    fn batch(&mut self, input: &mut impl Read, left: u64) -> Result<u64, End> {
        let mut tag = [0];
        if left == 0 || input.read(&mut tag)? == 0 || tag != [1] {
            return Err(End::NoBatch);
        }
        let mut start = [0; 12];
        input.read_exact(&mut start)?;
        let [a, b, c, d, seqno @ ..] = start;
        let (items, seqno) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(seqno));
        if seqno >= SEQNO_MAX || self.seqno.is_some_and(|before| seqno <= before) {
            return Err(End::Bad("a sequence number that cannot be"));
        }
        let (mut read, mut hasher, mut commit) = (13, Xxh3Default::new(), None);
        for _ in 0..items {
            read += item(input, left - read, &mut hasher, &mut commit)?;
        }
        let mut trailer = [0; 13];
        input.read_exact(&mut trailer)?;
        let [tag, sum @ .., f, j, l, three] = trailer;
        if tag != 3 || [f, j, l, three] != *b"FJL\x03" {
            return Err(End::Bad("a batch without an end"));
        }
        if u64::from_le_bytes(sum) != hasher.digest() {
            return Err(End::Bad("the checksum of a batch is wrong"));
        }
        if let (Some(before), Some(commit)) = (self.commit, commit)
            && commit != before + 1
        {
            return Err(End::Bad("a commit is missing"));
        }
        self.commit = commit.or(self.commit);
        self.seqno = Some(seqno);
        Ok(read + 13)
    }
}

fn item(
    input: &mut impl Read,
    left: u64,
    hasher: &mut Xxh3Default,
    commit: &mut Option<u64>,
) -> Result<u64, End> {
    let mut head = [0; 1 + ITEM_HEADER];
    input.read_exact(&mut head)?;
    let [tag, kind, compression, rest @ ..] = head;
    if tag != 2 || kind > 2 || compression != 0 {
        return Err(End::Bad("an item that cannot be"));
    }
    let [_, _, _, _, _, _, _, _, k0, k1, v0, v1, v2, v3, s0, s1, s2, s3] = rest;
    let key_len = usize::from(u16::from_le_bytes([k0, k1]));
    let value_len = u32::from_le_bytes([v0, v1, v2, v3]);
    let size = head.len() as u64 + key_len as u64 + u64::from(value_len);
    if u32::from_le_bytes([s0, s1, s2, s3]) != value_len || value_len > VALUE_MAX || size > left {
        return Err(End::Bad("an item longer than it can be"));
    }
    let mut body = vec![0; key_len + value_len as usize];
    input.read_exact(&mut body)?;
    hasher.update(&head);
    hasher.update(&body);
    if &body[..key_len] == STATE
        && let Some(number) = body[key_len..].first_chunk()
    {
        *commit = Some(u64::from_le_bytes(*number));
    }
    Ok(size)
}

/// Whether there are only zeros from `from` on: space that was reserved.
fn is_blank(path: &Path, from: u64) -> Check<bool> {
    use std::io::Seek;
    let mut file = File::open(path).map_err(io_damage(path))?;
    file.seek(io::SeekFrom::Start(from)).map_err(io_damage(path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io_damage(path))? {
            0 => return Ok(true),
            read if buffer[..read].iter().any(|&byte| byte != 0) => return Ok(false),
            _ => {}
        }
    }
}
