//! A checkpoint: the whole applied state in one file.
//!
//! ```text
//!   "CFSCKPT" version(1)                                        8 bytes
//!   block*   length u32 LE, crc32c(payload) u32 LE, payload     first: the state; then records
//!   footer   length 0, crc32c over the crcs of all blocks
//! ```
//! Payloads are postcard. A file that is cut or altered is refused by name before anything is used.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crc_fast::{CrcAlgorithm, checksum};

use crate::kv::{KvRead, Pair};
use crate::store::{State, View};

const MAGIC: &[u8; 8] = b"CFSCKPT\x01";
/// Records in one block.
const BLOCK_RECORDS: usize = 1024;

fn crc(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn block(out: &mut impl Write, crcs: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let sum = crc(payload).to_le_bytes();
    crcs.extend(sum);
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&sum)?;
    out.write_all(payload)
}

/// Writes the state and every record of `view` to `path`, replacing what was there atomically.
pub(crate) fn write(path: &Path, state: &State, view: &View) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut out = BufWriter::new(File::create(&temporary)?);
    let mut crcs = Vec::new();
    out.write_all(MAGIC)?;
    block(&mut out, &mut crcs, &postcard::to_stdvec(state).map_err(io::Error::other)?)?;
    let mut from = Vec::new();
    loop {
        let pairs =
            view.scan(&from, &[0xff; 64], BLOCK_RECORDS, false).map_err(io::Error::other)?;
        let Some((last, _)) = pairs.last() else { break };
        from.clone_from(last);
        from.push(0);
        block(&mut out, &mut crcs, &postcard::to_stdvec(&pairs).map_err(io::Error::other)?)?;
    }
    out.write_all(&0u32.to_le_bytes())?;
    out.write_all(&crc(&crcs).to_le_bytes())?;
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Reads and verifies a whole checkpoint.
pub(crate) fn read(path: &Path) -> io::Result<(State, Vec<Pair>)> {
    let bytes = std::fs::read(path)?;
    decode(&bytes).ok_or_else(|| {
        let path = path.display();
        io::Error::new(io::ErrorKind::InvalidData, format!("checkpoint {path} is damaged or cut"))
    })
}

fn decode(bytes: &[u8]) -> Option<(State, Vec<Pair>)> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let (mut state, mut records, mut crcs) = (None, Vec::new(), Vec::new());
    loop {
        let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        let sum = *rest.get(4..)?.first_chunk::<4>()?;
        rest = rest.get(8..)?;
        if length == 0 {
            let whole = rest.is_empty() && crc(&crcs).to_le_bytes() == sum;
            return if whole { state.map(|state| (state, records)) } else { None };
        }
        let payload = rest.get(..length)?;
        if crc(payload).to_le_bytes() != sum {
            return None;
        }
        crcs.extend(sum);
        if state.is_none() {
            state = Some(postcard::from_bytes(payload).ok()?);
        } else {
            records.extend(postcard::from_bytes::<Vec<Pair>>(payload).ok()?);
        }
        rest = rest.get(length..)?;
    }
}
