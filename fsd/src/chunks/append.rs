//! The committer: places what is waiting into the open segment of each shard, writes all of them
//! at once, flushes once, and only then tells the index and those who wait.
//!
//! ```text
//! queue ── place ──┬ batch of shard 0 ─ copy ─ device write ┐
//!                  ├ batch of shard 1 ─ copy ─ device write ┼─ flush ─ index ─ replies ─ footers
//!                  └ …                                      ┘
//! ```
//!
//! It is a task of its own that lives while something waits, so a put that is cancelled leaves
//! nothing half done. Groups grow by themselves: what comes during a flush is the next group.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, ShardId};
use tokio::sync::oneshot;

use super::Inner;
use super::all::all;
use super::device::Device;
use super::error::{Error, Kind};
use super::format::{self, BLOCK, Entry, RECORD_ALIGN, RECORD_HEADER, SegmentHeader};
use super::index::Location;
use super::pack::{Sealed, stopped};

/// A group with more bytes than this is copied into device buffers by several tasks.
const SPAWN_BYTES: usize = 256 << 10;

struct Waiting {
    records: Vec<Sealed>,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// What waits for the committer. Bounded by the permits of the puts and by one cleaner.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    running: bool,
}

/// The open segment of a shard, or a full one that waits for its footer.
#[cfg_attr(test, derive(Clone))]
struct Open {
    slot: u32,
    sequence: u64,
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
}

#[derive(Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Appender {
    open: HashMap<ShardId, Open>,
    full: Vec<Open>,
}

/// A record that got a place.
struct Placed {
    hash: ChunkHash,
    from: Option<Location>,
    at: Location,
}

impl Open {
    /// Takes the batch; what is placed later starts at a new block.
    fn take_batch(&mut self) -> Option<Batch> {
        if self.batch.segment_header.is_none() && self.batch.records.is_empty() {
            return None;
        }
        self.at = self.at.next_multiple_of(BLOCK);
        let next = Batch { start: self.at, segment_header: None, records: Vec::new() };
        Some(std::mem::replace(&mut self.batch, next))
    }

    fn fits(&self, len: usize, segment_bytes: usize) -> bool {
        let end = (self.at + len).next_multiple_of(BLOCK);
        end + format::footer_bytes(self.entries.len() + 1) <= segment_bytes
    }
}

impl Batch {
    fn len(&self) -> usize {
        let records = self.records.iter().map(|(_, body)| RECORD_HEADER + body.len());
        records.sum::<usize>() + self.segment_header.as_ref().map_or(0, Vec::len)
    }
}

impl<V: Volume> Device<V> {
    async fn write_batch(&self, slot: u32, batch: &Batch) -> Result<(), Error> {
        const ZEROS: [u8; RECORD_ALIGN] = [0; RECORD_ALIGN];
        let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + 3 * batch.records.len());
        parts.extend(batch.segment_header.as_deref());
        for (head, body) in &batch.records {
            let len = RECORD_HEADER + body.len();
            let padding = len.next_multiple_of(RECORD_ALIGN) - len;
            parts.extend([&head[..], &body[..], &ZEROS[..padding]]);
        }
        self.write(self.slot_start(slot) + batch.start as u64, &parts).await
    }

    async fn write_footer(&self, open: &Open) -> Result<(), Error> {
        let footer = format::encode_footer(open.sequence, &open.entries);
        let end = self.slot_start(open.slot) + self.segment_bytes() as u64;
        self.write(end - footer.len() as u64, &[&footer]).await
    }
}

/// Clears the mark of a committer that panics or whose runtime ends: whoever waits hears an error, and the
/// next put starts another one.
struct Running<'a> {
    queue: &'a parking_lot::Mutex<Queue>,
    /// It took its own mark away; one that is there now is another's.
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            *self.queue.lock() = Queue::default();
        }
    }
}

impl<V: Volume> Inner<V> {
    /// Waits until the records are durable and in the index.
    pub(super) async fn submit(self: &Arc<Self>, records: Vec<Sealed>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let start = {
            let mut queue = self.queue.lock();
            queue.waiting.push(Waiting { records, reply });
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.run().await });
        }
        answer.await.map_err(|_| stopped())?
    }

    async fn run(self: &Arc<Self>) {
        let mut running = Running { queue: &self.queue, ended: false };
        let mut appender = self.appender.lock().await;
        loop {
            let group = {
                let mut queue = self.queue.lock();
                queue.running = !queue.waiting.is_empty();
                std::mem::take(&mut queue.waiting)
            };
            if group.is_empty() {
                running.ended = true;
                return;
            }
            self.commit(&mut appender, group).await;
        }
    }

    async fn commit(self: &Arc<Self>, appender: &mut Appender, group: Vec<Waiting>) {
        let mut placed = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for Waiting { records, reply } in group {
            let place = |record| self.place(appender, record, &mut placed);
            let result = records.into_iter().try_for_each(place);
            answers.push((reply, result));
        }
        let durable = match placed.is_empty() {
            true => Ok(()),
            false => self.make_durable(appender).await,
        };
        match &durable {
            Ok(()) => self.publish(placed),
            Err(_) => self.abandon(appender),
        }
        for (reply, result) in answers {
            // A put that was cancelled does not hear.
            let _ = reply.send(durable.clone().and(result));
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
        if !self.is_wanted(&head.hash, from) {
            return Ok(());
        }
        let shard = head.hash.shard(self.device.header.shard_count);
        let len = format::record_bytes(head.stored_len);
        let segment_bytes = self.device.segment_bytes();
        if !appender.open.get(&shard).is_some_and(|open| open.fits(len, segment_bytes)) {
            // The new slot first: without one the old segment stays open for shorter records.
            let fresh = self.start_segment(shard, from.is_some())?;
            appender.full.extend(appender.open.insert(shard, fresh));
        }
        let open = appender.open.get_mut(&shard).expect("it was just made");
        let (offset, stored_len, plain_len) = (open.at as u32, head.stored_len, head.plain_len);
        open.entries.push(Entry { hash: head.hash, offset, stored_len, plain_len });
        open.batch.records.push((head.encode(open.sequence), body));
        open.at += len;
        let at = Location { slot: open.slot, offset, stored_len, plain_len };
        placed.push(Placed { hash: head.hash, from, at });
        Ok(())
    }

    fn is_wanted(&self, hash: &ChunkHash, from: Option<Location>) -> bool {
        let index = self.index.lock();
        match from {
            // A chunk deleted while it was copied stays deleted, a damaged one stays damaged.
            Some(from) => index.knows(hash) && index.table.get(hash) == Some(from),
            None => !index.knows(hash),
        }
    }

    fn start_segment(&self, shard: ShardId, cleaning: bool) -> Result<Open, Error> {
        let Some((slot, sequence)) = self.index.lock().start_segment(cleaning) else {
            return Err(Error::new(Kind::NoSpace, "no segment is free: delete, or add devices"));
        };
        let header = SegmentHeader { volume: self.device.header.volume, sequence, shard };
        let segment_header = Some(header.encode());
        let batch = Batch { start: 0, segment_header, records: Vec::new() };
        Ok(Open { slot, sequence, at: BLOCK, entries: Vec::new(), batch })
    }

    /// Writes the batches of all shards at once, then flushes.
    async fn make_durable(&self, appender: &mut Appender) -> Result<(), Error> {
        let mut batches = Vec::new();
        for open in appender.open.values_mut().chain(&mut appender.full) {
            batches.extend(open.take_batch().map(|batch| (open.slot, batch)));
        }
        let device = &self.device;
        let bytes: usize = batches.iter().map(|(_, batch)| batch.len()).sum();
        // All of them end before anything else happens to these slots.
        let results = if bytes < SPAWN_BYTES {
            all(batches.iter().map(|(slot, batch)| device.write_batch(*slot, batch))).await
        } else {
            // There is much to copy, so the cores share it.
            let spawn = |(slot, batch)| {
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

    fn publish(&self, placed: Vec<Placed>) {
        let mut index = self.index.lock();
        for Placed { hash, from, at } in placed {
            let unmoved = index.knows(&hash) && index.table.get(&hash) == from;
            if from.is_none() || unmoved {
                index.insert(hash, at);
            }
        }
    }

    /// After a failed write nobody knows what the open segments hold: no more is added to them.
    pub(super) fn abandon(&self, appender: &mut Appender) {
        let mut index = self.index.lock();
        let open = appender.open.drain().map(|(_, open)| open);
        for open in open.chain(appender.full.drain(..)) {
            index.close(open.slot);
        }
    }

    /// Writes the footers of full segments, whose records are durable by now: a footer is believed.
    /// It need not be durable itself, nor succeed: a segment without one is scanned.
    async fn finish_full(&self, appender: &mut Appender) {
        let segment_bytes = self.device.segment_bytes();
        let full: Vec<Open> = appender.full.drain(..).collect();
        let results = all(full.iter().map(|open| self.device.write_footer(open))).await;
        let mut index = self.index.lock();
        for (open, result) in full.iter().zip(results) {
            let slot = open.slot;
            if let Err(error) = result {
                tracing::warn!(slot, %error, "a segment has no footer, recovery will scan it");
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
