//! The committer: places what is waiting into the open segment of each shard, writes all of them
//! at once, flushes once, and only then tells the index and those who wait. The other replicas of a
//! shard, if there are any, do the same at the same time.
//!
//! ```text
//! queue ── place ──┬ batch of shard 0 ─ copy ─ device write ┬─ flush ┐
//!                  ├ batch of shard 1 ─ copy ─ device write ┘        ├─ index ─ replies ─ footers
//!                  └ the same bytes ─ replicator ────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockd_ipc::volume::Volume;
use bytes::{Bytes, BytesMut};
use raftmeta_types::{ChunkHash, ShardId};

use super::Inner;
use super::all::all;
use super::device::Device;
use super::error::{Error, Kind};
use super::format::{self, BLOCK, Entry, RECORD_ALIGN, RECORD_HEADER, SegmentHeader, SegmentId};
use super::index::{Index, Location};
use super::pack::{Sealed, stopped};
use super::queue::{Put, Reply};
use super::replicate::{Concerns, Op};
use crate::clock;

/// A group with more bytes than this is copied into device buffers by several tasks.
const SPAWN_BYTES: usize = 256 << 10;

/// The open segment of a shard, or a full one that waits for its footer. The index says whether it still is.
#[cfg_attr(test, derive(Clone))]
struct Open {
    slot: u32,
    id: SegmentId,
    /// Where the next record goes, in bytes of the segment.
    at: usize,
    entries: Vec<Entry>,
    batch: Batch,
}

/// Placed and not yet written; starts at a block.
#[cfg_attr(test, derive(Clone))]
struct Batch {
    start: usize,
    segment_header: Option<Vec<u8>>,
    records: Vec<([u8; RECORD_HEADER], Bytes)>,
    /// Cleaning moved one of the records.
    reserve: bool,
}

/// A batch on its way.
struct Going {
    slot: u32,
    id: SegmentId,
    batch: Batch,
}

#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Appender {
    open: BTreeMap<ShardId, Open>,
    full: Vec<Open>,
}

/// A record that got a place.
struct Placed {
    hash: ChunkHash,
    id: SegmentId,
    at: Location,
}

/// What a put is to hear, of the records that it got placed.
struct Answer {
    reply: Reply<()>,
    placed: Range<usize>,
    result: Result<(), Error>,
}

/// Shards whose part of a group did not become durable everywhere, and why.
pub(super) type Failed = BTreeMap<ShardId, Error>;

impl Open {
    /// Takes the batch; what is placed later starts at a new block.
    fn take_batch(&mut self) -> Option<Going> {
        if self.batch.segment_header.is_none() && self.batch.records.is_empty() {
            return None;
        }
        self.at = self.at.next_multiple_of(BLOCK);
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.at, None));
        Some(Going { slot: self.slot, id: self.id, batch })
    }

    fn fits(&self, len: usize, segment_bytes: usize) -> bool {
        let end = (self.at + len).next_multiple_of(BLOCK);
        end + format::footer_bytes(self.entries.len() + 1) <= segment_bytes
    }
}

impl Batch {
    fn new(start: usize, segment_header: Option<Vec<u8>>) -> Batch {
        Batch { start, segment_header, records: Vec::new(), reserve: false }
    }

    fn len(&self) -> usize {
        let records = self.records.iter().map(|(_, body)| RECORD_HEADER + body.len());
        records.sum::<usize>() + self.segment_header.as_ref().map_or(0, Vec::len)
    }

    /// What the device gets, up to the zeros that fill the last block.
    fn parts(&self) -> Vec<&[u8]> {
        const ZEROS: [u8; RECORD_ALIGN] = [0; RECORD_ALIGN];
        let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + 3 * self.records.len());
        parts.extend(self.segment_header.as_deref());
        for (head, body) in &self.records {
            let len = RECORD_HEADER + body.len();
            let padding = len.next_multiple_of(RECORD_ALIGN) - len;
            parts.extend([&head[..], &body[..], &ZEROS[..padding]]);
        }
        parts
    }

    /// The same as it is sent.
    fn op(&self, id: SegmentId) -> Op {
        let parts = self.parts();
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut bytes = BytesMut::with_capacity(len.next_multiple_of(BLOCK));
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        let (segment, offset) = (id.number, self.start as u32);
        Op::Append { segment, offset, bytes: bytes.freeze(), reserve: self.reserve }
    }
}

impl<V: Volume> Device<V> {
    async fn write_batch(&self, slot: u32, batch: &Batch) -> Result<(), Error> {
        self.write(self.slot_start(slot) + batch.start as u64, &batch.parts()).await
    }

    pub(super) async fn write_footer(&self, slot: u32, footer: &[u8]) -> Result<(), Error> {
        let end = self.slot_start(slot) + self.segment_bytes() as u64;
        self.write(end - footer.len() as u64, &[footer]).await
    }
}

impl<V: Volume> Inner<V> {
    pub(super) async fn commit(self: &Arc<Self>, appender: &mut Appender, group: Vec<Put>) {
        let mut placed = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for Put { records, reply } in group {
            let from: usize = placed.len();
            let place = |record| self.place(appender, record, &mut placed);
            let result = records.into_iter().try_for_each(place);
            answers.push(Answer { reply, placed: from..placed.len(), result });
        }
        let mut failed = Failed::new();
        let durable = match placed.is_empty() {
            true => Ok(()),
            false => self.make_durable(appender, &mut failed).await,
        };
        match &durable {
            Ok(()) => self.publish(&placed, &mut failed),
            Err(_) => self.abandon(appender),
        }
        for Answer { reply, placed: range, result } in answers {
            let result = durable.clone().and(result).and_then(|()| {
                let fate = |placed: &Placed| failed.get(&placed.id.shard);
                placed[range].iter().find_map(fate).map_or(Ok(()), |error| Err(error.clone()))
            });
            // A put that was cancelled does not hear.
            let _ = reply.send(result);
        }
        self.finish_full(appender).await;
    }

    /// Gives a record its place, unless nobody wants it any more.
    fn place(
        &self,
        appender: &mut Appender,
        record: Sealed,
        placed: &mut Vec<Placed>,
    ) -> Result<(), Error> {
        self.check_poison()?;
        let Sealed { head, body, from } = record;
        let shard = head.hash.shard(self.device.header.shard_count);
        let len = format::record_bytes(head.stored_len);
        let segment_bytes = self.device.segment_bytes();
        let fits = {
            let index = self.index.lock();
            if !is_wanted(&index, shard, &head.hash, from)? {
                return Ok(());
            }
            let fits =
                |open: &Open| open.fits(len, segment_bytes) && index.is_open(open.slot, open.id);
            appender.open.get(&shard).is_some_and(fits)
        };
        if !fits {
            // The new slot first: without one the old segment stays open for shorter records.
            let fresh = self.start_segment(shard, from.is_some())?;
            appender.full.extend(appender.open.insert(shard, fresh));
        }
        let open = appender.open.get_mut(&shard).expect("it was just made");
        let (offset, stored_len, plain_len) = (open.at as u32, head.stored_len, head.plain_len);
        open.entries.push(Entry { hash: head.hash, offset, stored_len, plain_len });
        open.batch.records.push((head.encode(open.id.number), body));
        open.batch.reserve |= from.is_some();
        open.at += len;
        let at = Location { slot: open.slot, offset, stored_len, plain_len };
        placed.push(Placed { hash: head.hash, id: open.id, at });
        Ok(())
    }

    fn start_segment(&self, shard: ShardId, cleaning: bool) -> Result<Open, Error> {
        if !cleaning && !self.replicator.has_room(shard) {
            let why = format!("a replica of shard {shard} is full: delete, or add devices");
            return Err(Error::new(Kind::NoSpace, why));
        }
        let (slot, id) = self.index.lock().start_segment(shard, cleaning)?;
        let header = SegmentHeader { cluster: self.device.header.cluster, id };
        let batch = Batch::new(0, Some(header.encode()));
        Ok(Open { slot, id, at: BLOCK, entries: Vec::new(), batch })
    }

    /// Writes the batches of all shards at once, then flushes; the other replicas meanwhile do the same.
    async fn make_durable(
        &self,
        appender: &mut Appender,
        failed: &mut Failed,
    ) -> Result<(), Error> {
        let mut batches = Vec::new();
        // Full ones are older: the order of records in the stream is that of their places.
        for open in appender.full.iter_mut().chain(appender.open.values_mut()) {
            batches.extend(open.take_batch());
        }
        let mut told = Vec::new();
        for going in &batches {
            let op = || going.batch.op(going.id);
            told.extend(self.numbered(
                going.id.shard,
                Concerns::Open { slot: going.slot, id: going.id },
                op,
            ));
        }
        let audience: Vec<_> = told.iter().map(|op| (op.shard, op.epoch)).collect();
        let write = async {
            *self.writing_since.lock() = Some(clock::now());
            let done = self.write_batches(batches).await;
            *self.writing_since.lock() = None;
            done
        };
        let (durable, refused) = tokio::join!(write, self.replicate(told));
        failed.extend(refused);
        if durable.is_err() {
            // The others have what this store may not have.
            let mut index = self.index.lock();
            audience.iter().for_each(|&(shard, epoch)| index.suspend(shard, epoch));
        }
        durable
    }

    async fn write_batches(&self, mut batches: Vec<Going>) -> Result<(), Error> {
        // Whoever closes segments waits for this, and then nothing more is written to them.
        let _turn = self.writing.lock().await;
        {
            let index = self.index.lock();
            batches.retain(|going| index.is_open(going.slot, going.id));
        }
        if batches.is_empty() {
            return Ok(());
        }
        let device = &self.device;
        let bytes: usize = batches.iter().map(|going| going.batch.len()).sum();
        // All of them end before anything else happens to these slots.
        let results = if bytes < SPAWN_BYTES {
            all(batches.iter().map(|going| device.write_batch(going.slot, &going.batch))).await
        } else {
            // There is much to copy, so the cores share it.
            let spawn = |Going { slot, batch, .. }: Going| {
                let device = Arc::clone(device);
                tokio::spawn(async move { device.write_batch(slot, &batch).await })
            };
            let writes: Vec<_> = batches.into_iter().map(spawn).collect();
            let done = all(writes).await;
            done.into_iter().map(|write| write.unwrap_or_else(|_| Err(stopped()))).collect()
        };
        results.into_iter().collect::<Result<(), Error>>()?;
        self.flush().await
    }

    /// Enters what is durable everywhere, in the order in which every replica does. A segment that was
    /// closed meanwhile belongs to an epoch that is over.
    fn publish(&self, placed: &[Placed], failed: &mut Failed) {
        let mut index = self.index.lock();
        for Placed { hash, id, at } in placed {
            if failed.contains_key(&id.shard) {
                continue;
            }
            if !index.is_open(at.slot, *id) {
                failed.insert(id.shard, not_primary(id.shard));
                continue;
            }
            let end = at.offset as usize + format::record_bytes(at.stored_len);
            let end = end.next_multiple_of(BLOCK) as u32;
            index.change(at.slot, |slot| slot.len = slot.len.max(end));
            index.insert(*hash, *at);
        }
    }

    /// After a failed write nobody knows what the open segments hold: no more is added to them.
    pub(super) fn abandon(&self, appender: &mut Appender) {
        let mut index = self.index.lock();
        let open = std::mem::take(&mut appender.open).into_values();
        for open in open.chain(appender.full.drain(..)) {
            if index.is_open(open.slot, open.id) {
                index.close(open.slot);
            }
        }
    }

    /// Writes the footers of full segments, whose records are durable by now: a footer is believed.
    /// It need not be durable itself, nor succeed: a segment without one is scanned.
    async fn finish_full(&self, appender: &mut Appender) {
        let mut full: Vec<(Open, Vec<u8>)> = Vec::new();
        let mut told = Vec::new();
        for open in appender.full.drain(..) {
            let footer = format::encode_footer(open.id, &open.entries);
            let seal =
                || Op::Seal { segment: open.id.number, footer: Bytes::copy_from_slice(&footer) };
            told.extend(self.numbered(
                open.id.shard,
                Concerns::Open { slot: open.slot, id: open.id },
                seal,
            ));
            full.push((open, footer));
        }
        if full.is_empty() {
            return;
        }
        let write = async {
            let _turn = self.writing.lock().await;
            {
                let index = self.index.lock();
                full.retain(|(open, _)| index.is_open(open.slot, open.id));
            }
            let footers = full.iter();
            all(footers.map(|(open, footer)| self.device.write_footer(open.slot, footer))).await
        };
        let (results, _refused) = tokio::join!(write, self.replicate(told));
        let segment_bytes = self.device.segment_bytes();
        let mut index = self.index.lock();
        for ((open, footer), result) in full.iter().zip(results) {
            let slot = open.slot;
            if !index.is_open(slot, open.id) {
                continue;
            }
            match result {
                Ok(()) => index.change(slot, |slot| slot.sealed = Some(format::digest(footer))),
                Err(error) => {
                    tracing::warn!(slot, %error, "a segment has no footer, recovery will scan it");
                }
            }
            index.full(slot, segment_bytes - (open.at - BLOCK));
            index.close(slot);
        }
    }

    pub(super) async fn flush(&self) -> Result<(), Error> {
        let result = self.device.volume.flush().await;
        if result.is_err() {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        Ok(result?)
    }

    pub(super) fn check_poison(&self) -> Result<(), Error> {
        match self.poisoned.load(Ordering::SeqCst) {
            true => Err(Error::new(Kind::Poisoned, "a flush failed before: restart the store")),
            false => Ok(()),
        }
    }
}

fn is_wanted(
    index: &Index,
    shard: ShardId,
    hash: &ChunkHash,
    from: Option<Location>,
) -> Result<bool, Error> {
    if index.shard(shard).primary().is_none() {
        return Err(not_primary(shard));
    }
    Ok(match from {
        // A chunk deleted while it was copied stays deleted, a damaged one stays damaged.
        Some(from) => index.knows(hash) && index.table.get(hash) == Some(from),
        None => !index.knows(hash),
    })
}

pub(super) fn not_primary(shard: ShardId) -> Error {
    let why = format!("this node is not the primary of shard {shard} now: ask again, or another");
    Error::new(Kind::NotPrimary, why)
}
