//! Whether the files of the store are as fjall left them, found out before fjall opens them.
//!
//! fjall 3 and lsm-tree 3 believe the counts in version files, table footers and journals: one wrong byte
//! and they ask for gigabytes, or panic, or leave out a batch in the middle. Their files carry whole-file
//! checksums that they do not look at, so we do:
//!
//! ```text
//! version                          "FJL" 3
//! *.jnl                            journals: journal.rs
//! keyspaces/<id>/current           version u64, xxh3-128 of the version file, 0
//! keyspaces/<id>/v<version>        an archive; its section "tables" lists id and xxh3-128 of every table
//! keyspaces/<id>/tables/<id>       checked as a whole
//! ```
//! This reads every table once: a gigabyte takes about a second. What is found damaged is not repaired but
//! made anew from checkpoint and log.

mod journal;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use crate::format;

/// Largest version file that is read: it has 33 bytes a table.
const VERSION_FILE_MAX: u64 = 256 << 20;
const READ_BYTES: usize = 1 << 20;
/// Of a store of fjall 3.
const MARK: &[u8] = b"FJL\x03";

/// A file that is not as it was left.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub(crate) struct Damage {
    pub path: PathBuf,
    pub what: String,
    /// It is none: a newer program has written it.
    pub is_newer: bool,
}

impl Damage {
    pub fn new(path: &Path, what: impl std::fmt::Display) -> Damage {
        Damage { path: path.to_path_buf(), what: what.to_string(), is_newer: false }
    }
}

type Check<T> = Result<T, Damage>;

/// What the files say about the state in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intact {
    /// Number of the last commit in the journals.
    pub last_commit: Option<u64>,
}

fn io_damage(path: &Path) -> impl Fn(io::Error) -> Damage + '_ {
    |error| Damage::new(path, error)
}

/// Checks the store in `dir`; a directory that is not there is intact. Cuts off an unfinished write
/// at the end of the youngest journal.
pub(crate) fn check(dir: &Path) -> Check<Intact> {
    if !dir.try_exists().map_err(io_damage(dir))? {
        return Ok(Intact::default());
    }
    let version = dir.join("version");
    let bytes = read_small(&version, 64)?;
    if let Some(newer) = format::newer(&bytes, MARK) {
        return Err(Damage { is_newer: true, ..Damage::new(&version, newer) });
    }
    if bytes != MARK {
        return Err(Damage::new(&version, "not the mark of a store of this version"));
    }
    let keyspaces = dir.join("keyspaces");
    for entry in list(&keyspaces)? {
        if entry.is_dir {
            number(&entry)?;
            check_keyspace(&entry.path)?;
        }
    }
    journal::check_all(dir)
}

struct Listed {
    path: PathBuf,
    name: String,
    is_dir: bool,
}

fn list(dir: &Path) -> Check<Vec<Listed>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_damage(dir))? {
        let entry = entry.map_err(io_damage(dir))?;
        let path = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            return Err(Damage::new(&path, "a name that does not belong here"));
        };
        let is_dir = entry.file_type().map_err(io_damage(&path))?.is_dir();
        found.push(Listed { path, name, is_dir });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn number(entry: &Listed) -> Check<u64> {
    entry.name.parse().map_err(|_| Damage::new(&entry.path, "a name that does not belong here"))
}

fn read_small(path: &Path, limit: u64) -> Check<Vec<u8>> {
    let file = File::open(path).map_err(io_damage(path))?;
    let len = file.metadata().map_err(io_damage(path))?.len();
    if len > limit {
        return Err(Damage::new(path, format!("{len} bytes are too many")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(io_damage(path))?;
    Ok(bytes)
}

fn check_keyspace(dir: &Path) -> Check<()> {
    let current = dir.join("current");
    let bytes = read_small(&current, 64)?;
    let mut cursor = Cursor(&bytes);
    let (version, sum, kind) = cursor
        .u64()
        .zip(cursor.u128())
        .zip(cursor.u8())
        .map(|((version, sum), kind)| (version, sum, kind))
        .ok_or_else(|| Damage::new(&current, "it is cut"))?;
    if kind != 0 || !cursor.0.is_empty() {
        return Err(Damage::new(&current, "it is altered"));
    }
    let path = dir.join(format!("v{version}"));
    let bytes = read_small(&path, VERSION_FILE_MAX)?;
    if xxhash_rust::xxh3::xxh3_128(&bytes) != sum {
        return Err(Damage::new(&path, "its checksum is wrong"));
    }
    let tables = tables_section(&bytes).and_then(listed_tables);
    let tables = tables.ok_or_else(|| Damage::new(&path, "its list of tables is not readable"))?;
    let folder = dir.join("tables");
    for (id, sum) in tables {
        let path = folder.join(id.to_string());
        if hash_file(&path)? != sum {
            return Err(Damage::new(&path, "its checksum is wrong"));
        }
    }
    if folder.try_exists().map_err(io_damage(&folder))? {
        for entry in list(&folder)? {
            number(&entry)?;
            if entry.is_dir {
                return Err(Damage::new(&entry.path, "a folder that does not belong here"));
            }
        }
    }
    Ok(())
}

fn hash_file(path: &Path) -> Check<u128> {
    let mut file = File::open(path).map_err(io_damage(path))?;
    let mut hasher = Xxh3Default::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(io_damage(path))? {
            0 => return Ok(hasher.digest128()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Little-endian numbers from the front of a slice.
struct Cursor<'b>(&'b [u8]);

impl<'b> Cursor<'b> {
    fn take(&mut self, len: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }
}

/// The section of that name in an archive (crate `sfa`): its table of contents stands at the end, found
/// by a trailer of 38 bytes.
fn tables_section(archive: &[u8]) -> Option<&[u8]> {
    const TRAILER: usize = 4 + 1 + 1 + 16 + 8 + 8;
    let mut trailer = Cursor(archive.get(archive.len().checked_sub(TRAILER)?..)?);
    if trailer.take(6)? != b"SFA!\x01\x00" {
        return None;
    }
    let toc_sum = trailer.u128()?;
    let (position, len) =
        (usize::try_from(trailer.u64()?).ok()?, usize::try_from(trailer.u64()?).ok()?);
    let toc = archive.get(position..position.checked_add(len)?)?;
    if xxhash_rust::xxh3::xxh3_128(toc) != toc_sum {
        return None;
    }
    let mut toc = Cursor(toc);
    if toc.take(4)? != b"TOC!" {
        return None;
    }
    for _ in 0..toc.u32()? {
        let (position, len) =
            (usize::try_from(toc.u64()?).ok()?, usize::try_from(toc.u64()?).ok()?);
        let name_len = usize::from(toc.u16()?);
        if toc.take(name_len)? == b"tables" {
            return archive.get(position..position.checked_add(len)?);
        }
    }
    None
}

/// Id and checksum of every table.
fn listed_tables(section: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut cursor = Cursor(section);
    let mut tables = Vec::new();
    for _ in 0..cursor.u8()? {
        for _ in 0..cursor.u8()? {
            for _ in 0..cursor.u32()? {
                let (id, kind) = (cursor.u64()?, cursor.u8()?);
                let (sum, _global_seqno) = (cursor.u128()?, cursor.u64()?);
                if kind != 0 {
                    return None;
                }
                tables.push((id, sum));
            }
        }
    }
    cursor.0.is_empty().then_some(tables)
}

#[cfg(test)]
mod tests;
