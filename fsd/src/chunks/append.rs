//! Puts: group commit through one committer task, which lives while something waits.
//!
//! The committer is a task of its own, so a put that is cancelled leaves nothing half done.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use tokio::sync::oneshot;

use super::error::{Error, Kind};
use super::format::{self, BLOCK, Entry, RecordHeader, SLOTS_START, SegmentHeader};
use super::seal::{Keys, TAG};
use super::{ChunkStore, Device, Inner, Location, SlotState, codec};

/// A batch is written out when it reaches this.
const BATCH_BYTES: usize = 1 << 20;
/// Puts longer than this are packed off the async workers.
const INLINE_CPU_BYTES: usize = 16 << 10;

/// A record on its way into a segment.
pub(super) struct Sealed {
    pub head: RecordHeader,
    pub body: Vec<u8>,
    /// A cleaner's copy is taken only while the index still names its origin.
    pub from: Option<Location>,
}

struct Waiting {
    hashes: Vec<ChunkHash>,
    records: Vec<Sealed>,
    reply: oneshot::Sender<Result<Vec<Epoch>, Error>>,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    running: bool,
}

/// The open segment of a shard.
pub(super) struct Open {
    pub slot: u32,
    pub sequence: u64,
    /// Where the batch will be written, in bytes of the segment.
    pub at: usize,
    pub entries: Vec<Entry>,
    pub batch: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Appender {
    pub open: HashMap<ShardId, Open>,
    pub poisoned: bool,
}

impl<V: Volume> Device<V> {
    pub fn slot_start(&self, slot: u32) -> u64 {
        SLOTS_START + u64::from(slot) * u64::from(self.header.segment_bytes)
    }

    fn lba(&self, offset: u64) -> u64 {
        offset / u64::from(self.volume.geometry().block_size)
    }

    /// Offset and length in multiples of 4096.
    pub async fn write(&self, mut offset: u64, bytes: &[u8], fua: bool) -> Result<(), Error> {
        assert!(offset.is_multiple_of(BLOCK as u64) && bytes.len().is_multiple_of(BLOCK));
        for piece in bytes.chunks(self.piece()) {
            let mut buffer = self.volume.buffer(piece.len()).await?;
            buffer.set_len(piece.len());
            buffer.copy_from_slice(piece);
            self.volume.write(self.lba(offset), buffer, fua).await?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Offset and length in multiples of 4096.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let piece = (len - out.len()).min(self.piece());
            let mut buffer = self.volume.buffer(piece).await?;
            buffer.set_len(piece);
            let buffer = self.volume.read(self.lba(offset + out.len() as u64), buffer).await?;
            out.extend_from_slice(&buffer[..piece]);
        }
        Ok(out)
    }

    pub async fn deallocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        Ok(self.volume.deallocate(self.lba(offset), self.lba(len)).await?)
    }

    fn piece(&self) -> usize {
        (self.volume.geometry().transfer_bytes_max as usize / BLOCK * BLOCK).clamp(BLOCK, 1 << 20)
    }
}

/// Verifies, compresses and seals.
fn pack(keys: &Keys, chunks: Vec<(ChunkHash, Bytes)>) -> Result<Vec<Sealed>, Error> {
    let seal = |(hash, plain): (ChunkHash, Bytes)| {
        if blake3::hash(&plain).as_bytes() != &hash.0 {
            return Err(Error::new(Kind::HashMismatch, format!("put of {hash}: wrong bytes")));
        }
        let (codec, packed) = codec::compress(&plain);
        let mut body = Vec::with_capacity(packed.len() + TAG);
        body.extend_from_slice(&packed);
        let head = keys.seal(hash, plain.len() as u32, codec, &mut body);
        Ok(Sealed { head, body, from: None })
    };
    chunks.into_iter().map(seal).collect()
}

impl<V: Volume> ChunkStore<V> {
    /// Stores chunks; when it returns they are durable, and the receipts are in their order.
    ///
    /// # Errors
    /// `HashMismatch`, `Invalid` (too long), `NoSpace`, `Io`, `Poisoned`. After an error some of the
    /// chunks may be stored.
    pub async fn put(&self, chunks: Vec<(ChunkHash, Bytes)>) -> Result<Vec<Epoch>, Error> {
        loop {
            match self.put_once(chunks.clone()).await {
                // A chunk that was known when we looked was deleted before the others were durable.
                Err(error) if error.kind() == Kind::NotFound => {}
                answer => return answer,
            }
        }
    }

    async fn put_once(&self, chunks: Vec<(ChunkHash, Bytes)>) -> Result<Vec<Epoch>, Error> {
        let inner = &self.inner;
        let count = self.shard_count();
        let longest = inner.device.header.segment_bytes as usize - 3 * BLOCK;
        let hashes: Vec<ChunkHash> = chunks.iter().map(|(hash, _)| *hash).collect();
        if let Some((hash, bytes)) = chunks.iter().find(|(_, bytes)| bytes.len() > longest) {
            let len = bytes.len();
            return Err(Error::new(
                Kind::Invalid,
                format!("put of {hash}: {len} bytes are more than a segment holds ({longest})"),
            ));
        }
        let new: Vec<(ChunkHash, Bytes)> = {
            let index = inner.index.lock();
            let known =
                |hash: &ChunkHash| index.map.contains_key(hash) && !index.damaged.contains(hash);
            let new: Vec<_> = chunks.into_iter().filter(|(hash, _)| !known(hash)).collect();
            if new.is_empty() {
                let epoch = |hash: &ChunkHash| index.epochs[usize::from(hash.shard(count).0)];
                return Ok(hashes.iter().map(epoch).collect());
            }
            new
        };
        let bytes: usize = new.iter().map(|(_, bytes)| bytes.len()).sum();
        let permits = bytes.clamp(1, super::IN_FLIGHT_BYTES_MAX) as u32;
        let _permit = inner.in_flight.acquire_many(permits).await.map_err(|_| stopped())?;
        let keys = Arc::clone(&inner.keys);
        let records = if bytes <= INLINE_CPU_BYTES {
            pack(&keys, new)?
        } else {
            tokio::task::spawn_blocking(move || pack(&keys, new)).await.map_err(|_| stopped())??
        };
        inner.submit(hashes, records).await
    }
}

fn stopped() -> Error {
    Error::new(Kind::Io, "the chunk store is stopping")
}

impl<V: Volume> Inner<V> {
    pub(super) async fn submit(
        self: &Arc<Self>,
        hashes: Vec<ChunkHash>,
        records: Vec<Sealed>,
    ) -> Result<Vec<Epoch>, Error> {
        let (reply, answer) = oneshot::channel();
        let start = {
            let mut queue = self.queue.lock();
            queue.waiting.push(Waiting { hashes, records, reply });
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.run().await });
        }
        answer.await.map_err(|_| stopped())?
    }

    async fn run(&self) {
        loop {
            let group = {
                let mut queue = self.queue.lock();
                queue.running = !queue.waiting.is_empty();
                std::mem::take(&mut queue.waiting)
            };
            if group.is_empty() {
                return;
            }
            let mut appender = self.appender.lock().await;
            self.commit(&mut appender, group).await;
        }
    }

    async fn commit(&self, appender: &mut Appender, group: Vec<Waiting>) {
        let mut placed = Vec::new();
        let mut seen = HashSet::new();
        let mut answers = Vec::new();
        let mut failed = None;
        for Waiting { hashes, records, reply } in group {
            let mut result = Ok(());
            for record in records {
                if failed.is_some() || result.is_err() {
                    break;
                }
                if !self.wanted(&record) || seen.contains(&record.head.hash) {
                    continue;
                }
                match self.place(appender, &record).await {
                    Ok(location) => {
                        seen.insert(record.head.hash);
                        placed.push((record.head.hash, record.from, location));
                    }
                    Err(error) if error.kind() == Kind::NoSpace => result = Err(error),
                    Err(error) => failed = Some(error),
                }
            }
            answers.push((hashes, reply, result));
        }
        if failed.is_none() && !placed.is_empty() {
            failed = self.make_durable(appender).await.err();
        }
        if failed.is_some() {
            self.abandon(appender);
        }
        let mut index = self.index.lock();
        if failed.is_none() {
            for (hash, from, location) in placed {
                // A chunk deleted while it was copied stays deleted.
                if from.is_none() || from == index.map.get(&hash).copied() {
                    index.insert(hash, location);
                }
            }
        }
        let count = self.device.header.shard_count;
        for (hashes, reply, result) in answers {
            let epoch = |hash: &ChunkHash| index.epochs[usize::from(hash.shard(count).0)];
            // A dedup hit may have been deleted since the put looked.
            let gone = hashes.iter().find(|hash| !index.map.contains_key(hash));
            let answer = match (&failed, result, gone) {
                (Some(error), _, _) => Err(error.clone()),
                (None, Err(error), _) => Err(error),
                (None, Ok(()), Some(hash)) => Err(Error::new(
                    Kind::NotFound,
                    format!("put of {hash}: it was deleted meanwhile, put it again"),
                )),
                (None, Ok(()), _) => Ok(hashes.iter().map(epoch).collect()),
            };
            // A put that was cancelled does not hear.
            let _ = reply.send(answer);
        }
    }

    fn wanted(&self, record: &Sealed) -> bool {
        let index = self.index.lock();
        let current = index.map.get(&record.head.hash);
        match record.from {
            Some(from) => current == Some(&from),
            None => current.is_none() || index.damaged.contains(&record.head.hash),
        }
    }

    async fn make_durable(&self, appender: &mut Appender) -> Result<(), Error> {
        for open in appender.open.values_mut() {
            self.write_out(open).await?;
        }
        if let Err(error) = self.device.volume.flush().await {
            appender.poisoned = true;
            return Err(error.into());
        }
        Ok(())
    }

    /// After a failed write nobody knows what the open segments hold: no more is added to them.
    fn abandon(&self, appender: &mut Appender) {
        let mut index = self.index.lock();
        for (_, open) in appender.open.drain() {
            index.slots[open.slot as usize].state = SlotState::Closed;
        }
    }

    async fn place(&self, appender: &mut Appender, record: &Sealed) -> Result<Location, Error> {
        if appender.poisoned {
            return Err(Error::new(Kind::Poisoned, "a flush failed before: restart the store"));
        }
        let shard = record.head.hash.shard(self.device.header.shard_count);
        let len = format::record_bytes(record.head.stored_len);
        let room = self.device.header.segment_bytes as usize;
        let fits = |open: &Open| {
            let end = (open.at + open.batch.len() + len).next_multiple_of(BLOCK);
            end + format::footer_bytes(open.entries.len() + 1) <= room
        };
        if !appender.open.get(&shard).is_some_and(fits) {
            // The new slot first: without one the old segment stays open for shorter records.
            let fresh = self.start_segment(shard, record.from.is_some())?;
            if let Some(mut old) = appender.open.insert(shard, fresh) {
                let sealed = self.seal_segment(&mut old).await;
                self.index.lock().slots[old.slot as usize].state = SlotState::Closed;
                sealed?;
            }
        }
        let open = appender.open.get_mut(&shard).expect("it was just made");
        let offset = (open.at + open.batch.len()) as u32;
        record.head.append(open.sequence, &record.body, &mut open.batch);
        let (stored_len, plain_len) = (record.head.stored_len, record.head.plain_len);
        open.entries.push(Entry { hash: record.head.hash, offset, stored_len, plain_len });
        let location = Location { slot: open.slot, offset, stored_len, plain_len };
        if open.batch.len() >= BATCH_BYTES {
            self.write_out(open).await?;
        }
        Ok(location)
    }

    fn start_segment(&self, shard: ShardId, cleaning: bool) -> Result<Open, Error> {
        let mut index = self.index.lock();
        let kept = if cleaning { 0 } else { index.reserve() };
        let slot = if index.free.len() > kept { index.free.pop() } else { None };
        let Some(slot) = slot else {
            return Err(Error::new(Kind::NoSpace, "no segment is free: delete, or add devices"));
        };
        index.sequence += 1;
        let sequence = index.sequence;
        let entry = &mut index.slots[slot as usize];
        assert!(entry.state == SlotState::Free && entry.live_bytes == 0);
        *entry = super::Slot { state: SlotState::Open, sequence, live_bytes: 0, stuck: false };
        let batch = SegmentHeader { volume: self.device.header.volume, sequence, shard }.encode();
        Ok(Open { slot, sequence, at: 0, entries: Vec::new(), batch })
    }

    async fn write_out(&self, open: &mut Open) -> Result<(), Error> {
        if open.batch.is_empty() {
            return Ok(());
        }
        open.batch.resize(open.batch.len().next_multiple_of(BLOCK), 0);
        let offset = self.device.slot_start(open.slot) + open.at as u64;
        self.device.write(offset, &open.batch, false).await?;
        open.at += open.batch.len();
        open.batch.clear();
        Ok(())
    }

    /// Writes the footer, after the records themselves are durable: a footer is believed.
    async fn seal_segment(&self, open: &mut Open) -> Result<(), Error> {
        self.write_out(open).await?;
        self.device.volume.flush().await?;
        let footer = format::encode_footer(open.sequence, &open.entries);
        let end = self.device.slot_start(open.slot + 1);
        self.device.write(end - footer.len() as u64, &footer, false).await
    }

    /// Frees closed segments in which nothing lives. The header goes first and durably, so that no
    /// recovery believes in records whose blocks are already gone.
    pub(super) async fn free_dead(&self, appender: &mut Appender) -> Result<(), Error> {
        if appender.poisoned {
            return Err(Error::new(Kind::Poisoned, "a flush failed before: restart the store"));
        }
        let dead: Vec<u32> = {
            let index = self.index.lock();
            let dead = |slot: &super::Slot| slot.state == SlotState::Closed && slot.live_bytes == 0;
            (0..).zip(&index.slots).filter(|(_, slot)| dead(slot)).map(|(at, _)| at).collect()
        };
        for slot in dead {
            let start = self.device.slot_start(slot);
            self.device.write(start, &[0; BLOCK], true).await?;
            let segment = u64::from(self.device.header.segment_bytes);
            self.device.deallocate(start + BLOCK as u64, segment - BLOCK as u64).await?;
            let mut index = self.index.lock();
            index.slots[slot as usize].state = SlotState::Free;
            index.free.push(slot);
        }
        Ok(())
    }
}
