//! Reads: checksum, then tag, then length; anything wrong is `Damaged`, never data.
//!
//! Chunks that lie close to each other come in one device read, all reads of a call run at once,
//! and opening and unpacking happen where the reads are waited for: in the caller for a little, in tasks for much.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::ChunkHash;
use tokio::task::JoinSet;

use super::all::all;
use super::error::{Error, Kind};
use super::format::{BLOCK, RecordHeader, record_bytes};
use super::index::Location;
use super::pack::stopped;
use super::replicate::SegmentNumber;
use super::seal::Keys;
use super::{ChunkStore, Inner, codec};

/// Reading this much for nothing is cheaper than another operation.
const GAP_BYTES_MAX: usize = 16 << 10;
/// Runs are gathered in tasks of about this many bytes: enough for a core to open.
const TASK_BYTES: usize = 128 << 10;
/// Runs of one task, and so its reads at once.
const TASK_RUNS_MAX: usize = 32;
/// With no more than this a call opens all by itself: who reads in order has several calls under way, and
/// a switch to another thread costs more than a chunk.
const INLINE_GROUPS_MAX: usize = 12;
/// Tasks of one call at once; the others wait.
const TASKS_MAX: usize = 16;
/// Chunks that a verification reads at once.
const VERIFY_BATCH: usize = 64;

/// A chunk to read; `number` is its place in the caller's list.
#[derive(Clone, Copy)]
struct Wanted {
    number: usize,
    hash: ChunkHash,
    at: Location,
    segment: SegmentNumber,
}

/// Chunks of one device read: bytes of their segment.
struct Run {
    slot: u32,
    start: usize,
    end: usize,
    wanted: Vec<Wanted>,
}

type Answers = Vec<(Wanted, Result<Option<Bytes>, Error>)>;

impl<V: Volume> ChunkStore<V> {
    /// The plaintext of a chunk.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub async fn get(&self, hash: &ChunkHash) -> Result<Bytes, Error> {
        self.get_many(std::slice::from_ref(hash)).await.pop().expect("one answer for one name")
    }

    /// The plaintexts of many chunks, in the order of their names; each as [`ChunkStore::get`].
    pub async fn get_many(&self, hashes: &[ChunkHash]) -> Vec<Result<Bytes, Error>> {
        let mut answers: Vec<_> = hashes.iter().map(missing).collect();
        let mut left: Vec<usize> = (0..hashes.len()).collect();
        while !left.is_empty() {
            let wanted = self.inner.locate(hashes, &left);
            left.clear();
            for (wanted, result) in self.inner.read_all(wanted).await {
                match result {
                    Ok(Some(plain)) => answers[wanted.number] = Ok(plain),
                    // Moved, or deleted, while we read: look again.
                    Ok(None) if !self.inner.mark_damaged(&wanted) => {
                        answers[wanted.number] = missing(&wanted.hash);
                        left.push(wanted.number);
                    }
                    Ok(None) => {
                        let Wanted { hash, at, .. } = wanted;
                        let why =
                            format!("chunk {hash} in slot {} at {} is damaged", at.slot, at.offset);
                        answers[wanted.number] = Err(Error::new(Kind::Damaged, why));
                    }
                    Err(error) => answers[wanted.number] = Err(error),
                }
            }
        }
        answers
    }

    /// Reads every chunk, against its name too. `progress` hears how many of how many are done.
    pub async fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Vec<(ChunkHash, Error)> {
        let hashes = self.inner.hashes_by_place();
        let mut bad = Vec::new();
        let mut done = 0;
        for batch in hashes.chunks(VERIFY_BATCH) {
            for (hash, result) in batch.iter().zip(self.get_many(batch).await) {
                match result {
                    Ok(plain) if blake3::hash(&plain).as_bytes() == &hash.0 => {}
                    Ok(_) => bad.push((*hash, Error::new(Kind::Damaged, format!("chunk {hash}")))),
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => bad.push((*hash, error)),
                }
                done += 1;
                progress(done, hashes.len() as u64);
            }
        }
        bad
    }
}

fn missing(hash: &ChunkHash) -> Result<Bytes, Error> {
    Err(Error::new(Kind::NotFound, format!("no chunk {hash} here")))
}

impl<V: Volume> Inner<V> {
    fn locate(&self, hashes: &[ChunkHash], numbers: &[usize]) -> Vec<Wanted> {
        let index = self.index.lock();
        let locate = |&number: &usize| {
            let hash = hashes[number];
            let at = index.table.get(&hash)?;
            Some(Wanted { number, hash, at, segment: index.slot(at.slot).number })
        };
        numbers.iter().filter_map(locate).collect()
    }

    /// Whether the record is still the chunk's: then it is damaged. Else it has moved or gone.
    fn mark_damaged(&self, wanted: &Wanted) -> bool {
        let mut index = self.index.lock();
        let segment = index.slot(wanted.at.slot).number;
        let same = index.table.get(&wanted.hash) == Some(wanted.at) && segment == wanted.segment;
        if same {
            index.damaged.insert(wanted.hash);
        }
        same
    }

    fn hashes_by_place(&self) -> Vec<ChunkHash> {
        let mut lines: Vec<_> = self.index.lock().table.iter().copied().collect();
        lines.sort_unstable_by_key(|line| line.1);
        lines.into_iter().map(|line| line.0).collect()
    }

    async fn read_all(self: &Arc<Self>, mut wanted: Vec<Wanted>) -> Answers {
        wanted.sort_unstable_by_key(|wanted| wanted.at);
        let groups = groups(runs(&wanted, self.device.piece()));
        if groups.len() <= INLINE_GROUPS_MAX {
            let groups = groups.into_iter().map(|group| self.read_group(group));
            return all(groups).await.into_iter().flatten().collect();
        }
        let mut groups = groups.into_iter();
        let mut tasks = JoinSet::new();
        let mut answers = Vec::with_capacity(wanted.len());
        loop {
            while tasks.len() < TASKS_MAX
                && let Some(group) = groups.next()
            {
                let inner = Arc::clone(self);
                tasks.spawn(async move { inner.read_group(group).await });
            }
            match tasks.join_next().await {
                Some(Ok(done)) => answers.extend(done),
                // The runtime is going down; the answer must not be "there is no such chunk".
                Some(Err(_)) => {
                    return wanted.into_iter().map(|wanted| (wanted, Err(stopped()))).collect();
                }
                None => return answers,
            }
        }
    }

    async fn read_group(&self, group: Vec<Run>) -> Answers {
        all(group.into_iter().map(|run| self.read_run(run))).await.into_iter().flatten().collect()
    }

    async fn read_run(&self, run: Run) -> Answers {
        let offset = self.device.slot_start(run.slot) + run.start as u64;
        let len = run.end - run.start;
        let open = |bytes: &[u8], wanted: &Wanted| {
            let record = &bytes[wanted.at.offset as usize - run.start..];
            let (head, stored) = RecordHeader::decode(record, wanted.segment)?;
            (head.hash == wanted.hash).then(|| open_record(&self.keys, &head, stored))?
        };
        let opened = |bytes: &[u8]| {
            run.wanted.iter().map(|wanted| (*wanted, Ok(open(bytes, wanted)))).collect()
        };
        let read = if len <= self.device.piece() {
            self.device.read_piece(offset, len).await.map(|buffer| opened(&buffer))
        } else {
            self.device.read(offset, len).await.map(|bytes| opened(&bytes))
        };
        read.unwrap_or_else(|error| {
            run.wanted.iter().map(|wanted| (*wanted, Err(error.clone()))).collect()
        })
    }
}

/// The plaintext of a record whose checksums hold; `None` if anything is not as it was sealed.
pub(super) fn open_record(keys: &Keys, head: &RecordHeader, stored: &[u8]) -> Option<Bytes> {
    let body = keys.open(head, stored.to_vec())?;
    codec::decompress(head.codec, body, head.plain_len as usize).map(Bytes::from)
}

/// Runs by task.
fn groups(runs: Vec<Run>) -> Vec<Vec<Run>> {
    let mut groups: Vec<Vec<Run>> = Vec::new();
    let mut bytes = usize::MAX;
    for run in runs {
        let len = run.end - run.start;
        match groups.last_mut() {
            Some(group) if bytes < TASK_BYTES && group.len() < TASK_RUNS_MAX => {
                bytes += len;
                group.push(run);
            }
            _ => {
                bytes = len;
                groups.push(vec![run]);
            }
        }
    }
    groups
}

/// Joins what is close to each other, in whole blocks and up to `longest` bytes.
fn runs(wanted: &[Wanted], longest: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for wanted in wanted {
        let at = wanted.at;
        let start = at.offset as usize / BLOCK * BLOCK;
        let end = (at.offset as usize + record_bytes(at.stored_len)).next_multiple_of(BLOCK);
        match runs.last_mut() {
            Some(run)
                if run.slot == at.slot
                    && start <= run.end + GAP_BYTES_MAX
                    && end.max(run.end) - run.start <= longest =>
            {
                run.end = run.end.max(end);
                run.wanted.push(*wanted);
            }
            _ => runs.push(Run { slot: at.slot, start, end, wanted: vec![*wanted] }),
        }
    }
    runs
}
