//! Verifying, compressing and sealing, in parallel and bounded by the cores, off the committer.

use std::sync::Arc;

use bytes::Bytes;
use raftmeta_types::ChunkHash;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::codec;
use super::error::{Error, Kind};
use super::format::RecordHeader;
use super::index::Location;
use super::seal::Keys;

/// Up to this much in all is packed where the put runs: who writes much has several puts under way, and they
/// share the cores without a switch between threads.
const INLINE_BYTES: usize = 2 << 20;
/// About what one job packs.
const JOB_BYTES: usize = 128 << 10;

/// A record on its way into a segment.
pub(super) struct Sealed {
    pub head: RecordHeader,
    pub body: Bytes,
    /// A cleaner's copy is taken only while the index still names its origin.
    pub from: Option<Location>,
}

pub(super) struct Packer {
    keys: Arc<Keys>,
    cores: Arc<Semaphore>,
}

impl Packer {
    pub fn new(keys: Arc<Keys>) -> Packer {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Packer { keys, cores: Arc::new(Semaphore::new(cores)) }
    }

    /// Records of the chunks, in no order.
    ///
    /// # Errors
    /// `HashMismatch`.
    pub async fn pack(&self, chunks: Vec<(ChunkHash, Bytes)>) -> Result<Vec<Sealed>, Error> {
        let bytes: usize = chunks.iter().map(|(_, plain)| plain.len()).sum();
        if bytes <= INLINE_BYTES {
            let pack = || chunks.into_iter().map(|chunk| pack_one(&self.keys, chunk)).collect();
            return raftmeta::blocking(pack);
        }
        let count = chunks.len();
        let mut jobs = JoinSet::new();
        let mut chunks = chunks.into_iter().peekable();
        while chunks.peek().is_some() {
            let mut job = Vec::new();
            let mut job_bytes = 0;
            while job_bytes < JOB_BYTES
                && let Some(chunk) = chunks.next()
            {
                job_bytes += chunk.1.len();
                job.push(chunk);
            }
            let core = Arc::clone(&self.cores).acquire_owned().await.map_err(|_| stopped())?;
            let keys = Arc::clone(&self.keys);
            jobs.spawn_blocking(move || {
                let _core = core;
                job.into_iter().map(|chunk| pack_one(&keys, chunk)).collect::<Result<Vec<_>, _>>()
            });
        }
        let mut records = Vec::with_capacity(count);
        while let Some(done) = jobs.join_next().await {
            records.extend(done.map_err(|_| stopped())??);
        }
        Ok(records)
    }
}

fn pack_one(keys: &Keys, (hash, plain): (ChunkHash, Bytes)) -> Result<Sealed, Error> {
    if blake3::hash(&plain).as_bytes() != &hash.0 {
        return Err(Error::new(Kind::HashMismatch, format!("put of {hash}: wrong bytes")));
    }
    let (codec, mut body) = codec::compress(&plain);
    let head = keys.seal(hash, plain.len() as u32, codec, &mut body);
    Ok(Sealed { head, body: body.into(), from: None })
}

pub(super) fn stopped() -> Error {
    Error::new(Kind::Io, "the chunk store is stopping")
}
