//! A checkpoint: the whole applied state in one file.
//!
//! ```text
//!   "CFSCKPT" version(2)                                        8 bytes
//!   block*   length u32, crc32c(payload) u32, payload           first: the state; then records
//!   footer   length 0, crc32c of the blocks' crcs, blocks u64   16 bytes
//! ```
//! Numbers are little-endian, payloads postcard. Blocks are small, so that neither writing nor reading
//! needs memory for more than one. A file that is cut or altered is refused by name before anything of it
//! is used.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, Digest};

use crate::format;
use crate::fs::{self, File};
use crate::kv::{KvRead, Pair};
use crate::store::{State, View};

const MAGIC: &[u8; 8] = b"CFSCKPT\x02";
/// A block ends with the record that takes it past this many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// Records fetched at once.
const PAGE_RECORDS: usize = 128;
/// Largest block that is read, in bytes.
const BLOCK_MAX: usize = 64 << 20;
/// After this many bytes they are synced, and the disk and the cores are left to others for a while.
const PACE_BYTES: usize = 4 << 20;
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// First key of a record; below it lies what the store keeps for itself.
const FIRST_KEY: &[u8] = &[1];

fn crc_digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}

struct Writer<'s> {
    out: BufWriter<File>,
    crcs: Digest,
    blocks: u64,
    since_pause: usize,
    working: Instant,
    stop: &'s AtomicBool,
}

impl Writer<'_> {
    fn block(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let sum = crc(payload).to_le_bytes();
        self.crcs.update(&sum);
        self.blocks += 1;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&sum)?;
        self.out.write_all(payload)?;
        self.since_pause += payload.len();
        if self.since_pause > PACE_BYTES {
            self.pause()?;
        }
        Ok(())
    }

    /// Rests as long as it has worked.
    #[allow(clippy::disallowed_methods, reason = "paces a background job")]
    fn pause(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.out.get_ref().sync_data()?;
        self.since_pause = 0;
        if self.stop.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the server is stopping"));
        }
        std::thread::sleep(self.working.elapsed().min(PAUSE_MAX));
        self.working = Instant::now();
        Ok(())
    }
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Writes the state and every record of `view` to `path`, replacing what was there atomically. Ends early
/// with `Interrupted` once `stop` is set.
#[allow(clippy::disallowed_methods, reason = "paces a background job")]
pub(crate) fn write(path: &Path, state: &State, view: &View, stop: &AtomicBool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut writer = Writer {
        out: BufWriter::new(File::create(&temporary)?),
        crcs: crc_digest(),
        blocks: 0,
        since_pause: 0,
        working: Instant::now(),
        stop,
    };
    writer.out.write_all(MAGIC)?;
    writer.block(&postcard::to_stdvec(state).map_err(io::Error::other)?)?;
    let (mut from, mut block, mut bytes) = (FIRST_KEY.to_vec(), Vec::new(), 0);
    loop {
        let pairs = view.scan(&from, &[0xff; 64], PAGE_RECORDS, false).map_err(io::Error::other)?;
        let Some((last, _)) = pairs.last() else { break };
        from.clone_from(last);
        from.push(0);
        for pair in pairs {
            bytes += pair.0.len() + pair.1.len();
            block.push(pair);
            if bytes > BLOCK_BYTES {
                writer.block(&postcard::to_stdvec(&block).map_err(io::Error::other)?)?;
                block.clear();
                bytes = 0;
            }
        }
    }
    if !block.is_empty() {
        writer.block(&postcard::to_stdvec(&block).map_err(io::Error::other)?)?;
    }
    let Writer { mut out, crcs, blocks, .. } = writer;
    out.write_all(&0u32.to_le_bytes())?;
    out.write_all(&(crcs.finalize() as u32).to_le_bytes())?;
    out.write_all(&blocks.to_le_bytes())?;
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Of a version that this program does not read yet: it must not be taken for damage, which is thrown away.
pub(crate) fn is_newer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
}

/// Reads a checkpoint block by block; every block's checksum is verified before it is decoded.
pub(crate) struct Reader<R> {
    path: PathBuf,
    input: R,
    /// Bytes that are left, as far as the file's length says.
    left: u64,
    crcs: Digest,
    blocks: u64,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("path", &self.path).field("left", &self.left).finish()
    }
}

/// Opens the checkpoint and reads its state.
pub(crate) fn open(path: &Path) -> io::Result<(State, Reader<BufReader<File>>)> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(named)?;
    let left = file.metadata().map_err(named)?.len();
    Reader::new(path, BufReader::with_capacity(BLOCK_BYTES, file), left)
}

/// What a whole checkpoint is told apart by: its state, and the checksum in its footer. Nothing between them is read.
pub(crate) fn identify(path: &Path, file: &File) -> io::Result<(State, u32)> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let left = file.metadata().map_err(named)?.len();
    let (state, _) = Reader::new(path, BufReader::new(file), left)?;
    let mut footer = [0; 16];
    let at = left.checked_sub(16).ok_or_else(|| named(io::ErrorKind::UnexpectedEof.into()))?;
    file.read_exact_at(&mut footer, at).map_err(named)?;
    let [_, _, _, _, a, b, c, d, ..] = footer;
    Ok((state, u32::from_le_bytes([a, b, c, d])))
}

/// Reads the whole checkpoint once and returns its state: what it says can be trusted then.
pub(crate) fn verify(path: &Path) -> io::Result<State> {
    let (state, mut reader) = open(path)?;
    while reader.records()?.is_some() {}
    Ok(state)
}

impl<R: Read> Reader<R> {
    pub fn new(path: &Path, input: R, left: u64) -> io::Result<(State, Reader<R>)> {
        let path = path.to_path_buf();
        let mut reader = Reader { path, input, left, crcs: crc_digest(), blocks: 0 };
        let mut magic = [0; 8];
        reader.take(&mut magic)?;
        if let Some(newer) = format::newer(&magic, MAGIC) {
            let why = format!("checkpoint {}: {newer}", reader.path.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        if &magic != MAGIC {
            return Err(reader.damaged("it does not start as a checkpoint of this version does"));
        }
        let Some(payload) = reader.block()? else {
            return Err(reader.damaged("it holds no state"));
        };
        let state = postcard::from_bytes(&payload).map_err(|e| reader.damaged(e))?;
        Ok((state, reader))
    }

    fn damaged(&self, what: impl std::fmt::Display) -> io::Error {
        let path = self.path.display();
        io::Error::new(io::ErrorKind::InvalidData, format!("checkpoint {path} is damaged: {what}"))
    }

    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.left = match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => left,
            None => return Err(self.damaged("it is cut")),
        };
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", self.path.display()));
        self.input.read_exact(bytes).map_err(named)
    }

    /// The next block, or `None` after the footer.
    fn block(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.take(&mut head)?;
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let sum = u32::from_le_bytes([e, f, g, h]);
        if length == 0 {
            let mut blocks = [0; 8];
            self.take(&mut blocks)?;
            let crcs = self.crcs.finalize() as u32;
            if crcs != sum || u64::from_le_bytes(blocks) != self.blocks || self.left != 0 {
                return Err(self.damaged("its end does not fit its blocks"));
            }
            return Ok(None);
        }
        if length > BLOCK_MAX || length as u64 > self.left {
            return Err(self.damaged(format!("a block of {length} bytes cannot be")));
        }
        let mut payload = vec![0; length];
        self.take(&mut payload)?;
        if crc(&payload) != sum {
            return Err(self.damaged(format!("the checksum of block {} is wrong", self.blocks)));
        }
        self.crcs.update(&sum.to_le_bytes());
        self.blocks += 1;
        Ok(Some(payload))
    }

    /// The records of the next block, or `None` at the end.
    pub fn records(&mut self) -> io::Result<Option<Vec<Pair>>> {
        let Some(payload) = self.block()? else { return Ok(None) };
        let records: Vec<Pair> = postcard::from_bytes(&payload).map_err(|e| self.damaged(e))?;
        Ok(Some(records))
    }
}

/// A checkpoint of these payloads; the first is the state.
pub(crate) fn image(payloads: &[Vec<u8>]) -> Vec<u8> {
    let (mut bytes, mut crcs) = (MAGIC.to_vec(), crc_digest());
    for payload in payloads {
        let sum = crc(payload).to_le_bytes();
        crcs.update(&sum);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(sum);
        bytes.extend(payload);
    }
    bytes.extend([0; 4]);
    bytes.extend((crcs.finalize() as u32).to_le_bytes());
    bytes.extend((payloads.len() as u64).to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests;
