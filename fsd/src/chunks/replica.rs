//! The replica's side of a shard's stream: the same bytes at the same place.
//!
//! ```text
//! ops of several shards ─ admit (epoch, number, bounds, records) ─ write all ─ one flush ─┐
//!                 answers ─ frees ─ footers ─ index, in the order of the stream ──────────┘
//! ```
//!
//! Of the ops of one call and shard either all count or none. An op that was applied before is answered
//! as done; one that was refused may be sent again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use tokio::sync::MutexGuard;

use super::all::all;
use super::error::Error;
use super::format::{self, BLOCK, Entry, Found, NUMBER_MAX, SegmentHeader, SegmentId};
use super::index::Location;
use super::pack::stopped;
use super::replicate::{Op, OpNumber, SegmentNumber, ShardOp};
use super::shards::Standing;
use super::{ChunkStore, Inner};

/// Why ops were refused.
#[derive(Clone, Debug)]
pub enum ApplyError {
    /// This epoch of the shard is known here: the sender may be deposed.
    StaleEpoch(Epoch),
    /// This store is no replica of the shard in that epoch, or does not follow its stream yet.
    NotFollowing,
    /// Ops are missing before these: this one is expected.
    Gap(OpNumber),
    /// No segment is free, or none outside the reserve. The same ops may be sent again.
    NoSpace,
    /// They make no sense here; the replica is out of step.
    Invalid(String),
    /// The volume failed.
    Failed(Error),
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::StaleEpoch(epoch) => write!(f, "the shard has the newer epoch {epoch}"),
            ApplyError::NotFollowing => f.write_str("this store does not follow the shard"),
            ApplyError::Gap(OpNumber(number)) => write!(f, "op {number} is missing"),
            ApplyError::NoSpace => f.write_str("no segment is free on the replica"),
            ApplyError::Invalid(why) => f.write_str(why),
            ApplyError::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for ApplyError {}

/// What became of the ops of a shard.
#[derive(Clone, Debug)]
pub struct Applied {
    pub shard: ShardId,
    /// The last op that is durable and in the index, or why none of these is.
    pub result: Result<OpNumber, ApplyError>,
}

/// A segment that the stream adds to.
#[derive(Default)]
pub(super) struct Tail {
    pub slot: u32,
    pub len: usize,
    pub entries: Vec<Entry>,
    /// With the ops that are being applied.
    planned_len: usize,
    planned: Vec<Entry>,
}

impl Tail {
    pub fn new(slot: u32, len: usize, entries: Vec<Entry>) -> Tail {
        Tail { slot, len, entries, planned_len: len, planned: Vec::new() }
    }

    fn forget_plan(&mut self) {
        self.planned_len = self.len;
        self.planned.clear();
    }
}

/// A segment that is being fetched: what the stream adds meanwhile waits here, less than a segment.
#[derive(Default)]
pub(super) struct Coming {
    pub appends: Vec<(usize, Bytes)>,
    pub footer: Option<Bytes>,
}

/// What a replica knows of a shard besides the index.
#[derive(Default)]
pub(super) struct Stream {
    pub tails: BTreeMap<SegmentNumber, Tail>,
    pub coming: BTreeMap<SegmentNumber, Coming>,
    /// Freed by the stream while others are fetched.
    pub freed: BTreeSet<SegmentNumber>,
}

/// What an admitted op does.
enum Step {
    Write { slot: u32, id: SegmentId, offset: usize, bytes: Bytes, entries: Vec<Entry> },
    Wait { number: SegmentNumber, offset: usize, bytes: Bytes },
    Seal { id: SegmentId, footer: Bytes },
    Delete { gc_epoch: Epoch, hashes: Vec<ChunkHash> },
    Free { id: SegmentId },
}

/// The part of a call that concerns one shard.
struct Part<'a> {
    shard: ShardId,
    stream: MutexGuard<'a, Stream>,
    epoch: Epoch,
    steps: Result<Vec<Step>, ApplyError>,
}

/// What is left to do when the index has followed.
struct Entered {
    sealed: Vec<(SegmentId, Tail, Bytes)>,
    freed: Vec<SegmentId>,
    /// The last op that counts.
    done: OpNumber,
}

fn invalid<T>(why: impl Into<String>) -> Result<T, ApplyError> {
    Err(ApplyError::Invalid(why.into()))
}

impl<V: Volume> ChunkStore<V> {
    /// Does what the primary of these shards did. When it returns, what it says is durable.
    pub async fn apply(&self, ops: Vec<ShardOp>) -> Vec<Applied> {
        let inner = Arc::clone(&self.inner);
        let shards: BTreeSet<ShardId> = ops.iter().map(|op| op.shard).collect();
        // A task of its own, so a caller that goes away leaves nothing half done.
        let applied = tokio::spawn(async move { inner.apply(ops).await }).await;
        applied.unwrap_or_else(|_| {
            let failed = |shard| Applied { shard, result: Err(ApplyError::Failed(stopped())) };
            shards.into_iter().map(failed).collect()
        })
    }
}

impl<V: Volume> Inner<V> {
    async fn apply(self: &Arc<Self>, ops: Vec<ShardOp>) -> Vec<Applied> {
        let mut by_shard: BTreeMap<ShardId, Vec<ShardOp>> = BTreeMap::new();
        let mut answers = Vec::new();
        for op in ops {
            if self.check_shard(op.shard).is_ok() {
                by_shard.entry(op.shard).or_default().push(op);
            } else {
                let why = ApplyError::Invalid(format!("there is no shard {}", op.shard));
                answers.push(Applied { shard: op.shard, result: Err(why) });
            }
        }
        let mut parts = Vec::with_capacity(by_shard.len());
        // In the order of the shards, so that two calls do not wait for each other.
        for (shard, ops) in by_shard {
            let mut stream = self.streams[usize::from(shard.0)].lock().await;
            let epoch = ops[0].epoch;
            let steps = self.admit(shard, &mut stream, ops);
            if steps.is_err() {
                stream.tails.values_mut().for_each(Tail::forget_plan);
            }
            parts.push(Part { shard, stream, epoch, steps });
        }
        self.write_parts(&mut parts).await;
        for part in parts {
            let shard = part.shard;
            answers.push(Applied { shard, result: self.finish(part).await });
        }
        answers
    }

    /// Which of the ops are new and what they do, if all of them may be done.
    fn admit(
        &self,
        shard: ShardId,
        stream: &mut Stream,
        ops: Vec<ShardOp>,
    ) -> Result<Vec<Step>, ApplyError> {
        self.check_poison().map_err(ApplyError::Failed)?;
        let (known, standing) = {
            let index = self.index.lock();
            (index.shard(shard).known, index.shard(shard).standing)
        };
        let mut steps = Vec::with_capacity(ops.len());
        let mut expected = None;
        for ShardOp { epoch, number, op, .. } in ops {
            if epoch < known {
                return Err(ApplyError::StaleEpoch(known));
            }
            let next = match standing {
                Standing::Replica { epoch: of, next: Some(next) } if of == epoch => next,
                Standing::Replica { .. }
                | Standing::Unassigned
                | Standing::Beginning { .. }
                | Standing::Primary { .. }
                | Standing::Suspended { .. } => return Err(ApplyError::NotFollowing),
            };
            let next = expected.unwrap_or(next);
            if number > next {
                return Err(ApplyError::Gap(next));
            }
            if number == next {
                expected = Some(next.next());
                steps.push(self.admit_op(shard, epoch, stream, op)?);
            }
        }
        Ok(steps)
    }

    fn admit_op(
        &self,
        shard: ShardId,
        epoch: Epoch,
        stream: &mut Stream,
        op: Op,
    ) -> Result<Step, ApplyError> {
        match op {
            Op::Append { segment, offset, bytes, reserve } => {
                let id = SegmentId { shard, number: segment };
                let entries = self.check_append(id, offset as usize, &bytes)?;
                let offset = offset as usize;
                if stream.coming.contains_key(&segment) {
                    return Ok(Step::Wait { number: segment, offset, bytes });
                }
                if offset == 0 && !stream.tails.contains_key(&segment) {
                    self.open_tail(id, epoch, reserve, stream)?;
                }
                let Some(tail) = stream.tails.get_mut(&segment) else {
                    return invalid(format!("segment {segment} is not open here"));
                };
                if offset != tail.planned_len {
                    let at = tail.planned_len;
                    return invalid(format!("segment {segment} goes on at {at}, not {offset}"));
                }
                tail.planned_len += bytes.len();
                tail.planned.extend_from_slice(&entries);
                Ok(Step::Write { slot: tail.slot, id, offset, bytes, entries })
            }
            Op::Seal { segment, footer } => {
                let id = SegmentId { shard, number: segment };
                if !stream.coming.contains_key(&segment) {
                    let Some(tail) = stream.tails.get(&segment) else {
                        return invalid(format!("segment {segment} is not open here"));
                    };
                    let entries = [&tail.entries[..], &tail.planned].concat();
                    let room = self.device.segment_bytes() - tail.planned_len;
                    if footer.len() > room || footer != format::encode_footer(id, &entries) {
                        return invalid(format!("the footer of segment {segment} is another"));
                    }
                }
                Ok(Step::Seal { id, footer })
            }
            Op::Delete { gc_epoch, hashes } => {
                let count = self.device.header.shard_count;
                if hashes.iter().any(|hash| hash.shard(count) != shard) {
                    return invalid(format!("deletion of foreign chunks in shard {shard}"));
                }
                Ok(Step::Delete { gc_epoch, hashes })
            }
            Op::Free { segment } => Ok(Step::Free { id: SegmentId { shard, number: segment } }),
        }
    }

    /// The records of an append, if it is one.
    fn check_append(
        &self,
        id: SegmentId,
        offset: usize,
        bytes: &[u8],
    ) -> Result<Vec<Entry>, ApplyError> {
        let header = &self.device.header;
        let blocks = offset.is_multiple_of(BLOCK) && bytes.len().is_multiple_of(BLOCK);
        // A footer is a block at least.
        let most = header.segment_bytes as usize - BLOCK;
        if !blocks || bytes.is_empty() || offset + bytes.len() > most || id.number > NUMBER_MAX {
            let len = bytes.len();
            return invalid(format!(
                "{len} bytes at {offset} do not fit into segment {}",
                id.number
            ));
        }
        let skipped = if offset == 0 { BLOCK } else { 0 };
        let own = SegmentHeader { cluster: header.cluster, id };
        if offset == 0 && SegmentHeader::decode(bytes) != Found::Valid(own) {
            return invalid(format!("segment {} has another header", id.number));
        }
        let start = offset + skipped;
        match format::parse(&bytes[skipped..], start, id, header.shard_count) {
            Ok(entries) if !entries.is_empty() => Ok(entries),
            Ok(_) => invalid(format!("an append of nothing to segment {}", id.number)),
            Err(at) => invalid(format!("no record of segment {} at {at}", id.number)),
        }
    }

    fn open_tail(
        &self,
        id: SegmentId,
        epoch: Epoch,
        reserve: bool,
        stream: &mut Stream,
    ) -> Result<(), ApplyError> {
        let SegmentId { number, .. } = id;
        if format::epoch_of(number) != epoch {
            return invalid(format!("segment {number} is not of epoch {epoch}"));
        }
        let mut index = self.index.lock();
        if index.segments.contains_key(&id) {
            return invalid(format!("segment {number} is here already"));
        }
        let slot = index.take_slot(id, reserve).ok_or(ApplyError::NoSpace)?;
        index.segments.insert(id, slot);
        stream.tails.insert(number, Tail::new(slot, 0, Vec::new()));
        Ok(())
    }

    /// Writes what is admitted and flushes once. A part that fails is refused.
    async fn write_parts(&self, parts: &mut [Part<'_>]) {
        let mut writes = Vec::new();
        for part in parts.iter() {
            for step in part.steps.iter().flatten() {
                if let Step::Write { slot, offset, bytes, .. } = step {
                    let at = self.device.slot_start(*slot) + *offset as u64;
                    let shard = part.shard;
                    writes.push(async move { (shard, self.device.write(at, &[bytes]).await) });
                }
            }
        }
        if writes.is_empty() {
            return;
        }
        let results = all(writes).await;
        let flushed = self.flush().await;
        for part in parts.iter_mut().filter(|part| part.steps.is_ok()) {
            let mut own = results.iter().filter(|(shard, _)| *shard == part.shard);
            let written = own.try_for_each(|(_, result)| result.clone());
            if let Err(error) = written.and(flushed.clone()) {
                part.steps = Err(ApplyError::Failed(error));
                part.stream.tails.values_mut().for_each(Tail::forget_plan);
            }
        }
    }

    /// Enters what is durable, seals and frees.
    async fn finish(self: &Arc<Self>, part: Part<'_>) -> Result<OpNumber, ApplyError> {
        let Part { shard, mut stream, epoch, steps } = part;
        let steps = steps?;
        let Entered { sealed, freed, done } = self.enter(shard, &mut stream, epoch, steps)?;
        for (id, tail, footer) in sealed {
            self.seal_tail(id, &tail, &footer).await;
        }
        if !freed.is_empty() {
            // Nothing depends on it: what is not freed now is found at the next epoch.
            match self.drop_segments(&freed).await {
                Ok(0) => {}
                Ok(_) => self.reindex(shard).await.map_err(ApplyError::Failed)?,
                Err(error) => tracing::warn!(%shard, %error, "a segment was not freed"),
            }
        }
        Ok(done)
    }

    /// The index follows the stream. Gives what is to be sealed and to be freed, and the last op.
    fn enter(
        &self,
        shard: ShardId,
        stream: &mut Stream,
        epoch: Epoch,
        steps: Vec<Step>,
    ) -> Result<Entered, ApplyError> {
        let mut index = self.index.lock();
        let Standing::Replica { epoch: now, next: Some(next) } = index.shard(shard).standing else {
            stream.tails.values_mut().for_each(Tail::forget_plan);
            return Err(ApplyError::NotFollowing);
        };
        if now != epoch {
            stream.tails.values_mut().for_each(Tail::forget_plan);
            return Err(ApplyError::StaleEpoch(index.shard(shard).known));
        }
        let (mut sealed, mut freed) = (Vec::new(), Vec::new());
        let next = OpNumber(next.0 + steps.len() as u64);
        for step in steps {
            match step {
                Step::Write { slot, id, offset, bytes, entries } => {
                    let len = (offset + bytes.len()) as u32;
                    index.change(slot, |slot| slot.len = len);
                    for entry in &entries {
                        index.insert(entry.hash, Location::new(slot, entry));
                    }
                    let tail = stream.tails.get_mut(&id.number).expect("it was admitted");
                    tail.len = offset + bytes.len();
                    tail.entries.extend(entries);
                }
                Step::Wait { number, offset, bytes } => {
                    let coming = stream.coming.get_mut(&number).expect("it was admitted");
                    coming.appends.push((offset, bytes));
                }
                Step::Seal { id, footer } => match stream.coming.get_mut(&id.number) {
                    Some(coming) => coming.footer = Some(footer),
                    None => {
                        let tail = stream.tails.remove(&id.number).expect("it was admitted");
                        sealed.push((id, tail, footer));
                    }
                },
                Step::Delete { gc_epoch, hashes } => {
                    hashes.iter().for_each(|hash| index.remove(hash));
                    let own = &mut index.shard_mut(shard).gc_epoch;
                    *own = gc_epoch.max(*own);
                }
                Step::Free { id } => {
                    stream.tails.remove(&id.number);
                    if stream.coming.remove(&id.number).is_some() {
                        stream.freed.insert(id.number);
                    }
                    freed.push(id);
                }
            }
        }
        stream.tails.values_mut().for_each(Tail::forget_plan);
        index.shard_mut(shard).standing = Standing::Replica { epoch, next: Some(next) };
        Ok(Entered { sealed, freed, done: OpNumber(next.0 - 1) })
    }

    /// Writes the footer behind durable records. As on the primary, it need not succeed.
    pub(super) async fn seal_tail(&self, id: SegmentId, tail: &Tail, footer: &[u8]) {
        let Tail { slot, .. } = *tail;
        let result = self.device.write_footer(slot, footer).await;
        let mut index = self.index.lock();
        if !index.is_open(slot, id) {
            return;
        }
        match result {
            Ok(()) => index.change(slot, |slot| slot.sealed = Some(format::digest(footer))),
            Err(error) => {
                tracing::warn!(slot, %error, "a segment has no footer, recovery will scan it");
            }
        }
        let end = tail.entries.iter().map(Entry::end).max().unwrap_or(BLOCK);
        index.full(slot, self.device.segment_bytes() - (end - BLOCK));
        index.close(slot);
    }

    /// Frees segments whatever the index says of them, and says how many chunks lost their place.
    pub(super) async fn drop_segments(self: &Arc<Self>, ids: &[SegmentId]) -> Result<usize, Error> {
        let (mut slots, mut lost) = (Vec::new(), 0);
        for id in ids {
            let entries = match self.extent(*id) {
                Ok(extent) => self.entries(extent).await.unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            let mut index = self.index.lock();
            let Some(&slot) = index.segments.get(id) else { continue };
            if !index.start_freeing(slot) {
                continue;
            }
            slots.push(slot);
            lost += index.forget_lines(slot, &entries);
        }
        self.free(slots).await?;
        Ok(lost)
    }

    /// Enters every record of the shard that is the newest of its chunk, also of deleted ones: whatever
    /// another replica may know is known then.
    pub(super) async fn reindex(&self, shard: ShardId) -> Result<(), Error> {
        for extent in self.extents(shard) {
            let entries = match self.entries(extent).await {
                Ok(entries) => entries,
                Err(error) => {
                    let number = extent.id.number;
                    tracing::warn!(%shard, %number, %error, "a segment cannot be read");
                    continue;
                }
            };
            let mut index = self.index.lock();
            if index.shard(shard).primary().is_some() {
                // What it deleted must not come back on it alone.
                return Ok(());
            }
            if index.segments.get(&extent.id) == Some(&extent.slot) {
                entries.iter().for_each(|entry| index.insert_found(extent.slot, entry));
            }
        }
        Ok(())
    }
}
