//! Whole segments from another replica: fetched while catching up, made equal at a promotion, or good
//! copies of damaged ones.
//!
//! ```text
//! a slot of its own:  records, footer ─ flush ─ header ─ flush ─ index ─ the slot before: zeroed, freed
//! ```
//!
//! A header is never there before what it announces, so a torn installation is no segment; and the copy
//! before stays until the new one is whole. A crash in between leaves both, and opening takes the better.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch, ShardId};

use super::error::{Error, Kind};
use super::format::{
    self, BLOCK, Entry, Footer, RecordHeader, SegmentHeader, SegmentId, VolumeHeader,
};
use super::index::SlotState;
use super::pack::stopped;
use super::replica::{Coming, Stream, Tail};
use super::replicate::SegmentNumber;
use super::segments::{Salvaged, SegmentCopy, check_whole, salvage};
use super::shards::Standing;
use super::{ChunkStore, Inner};

/// What is to be written.
struct Copy {
    id: SegmentId,
    /// Header and records.
    content: Vec<u8>,
    entries: Vec<Entry>,
    footer: Option<Bytes>,
    /// Chunks whose records in it cannot be read.
    bad: Vec<ChunkHash>,
    damaged: bool,
}

impl<V: Volume> ChunkStore<V> {
    /// Takes all of a segment in place of its own copy. When it returns the copy is durable and in the index.
    /// Of a damaged one, records that are good here stay good.
    ///
    /// # Errors
    /// `StaleEpoch`; `Damaged`: the beginning that was skipped is not here as it should be, so it has to come, too;
    /// `Invalid`: the content is not what it says or shorter than what is here, or this store takes
    /// records into that segment as its primary; `NotFound`: the segment was freed meanwhile; `NoSpace`,
    /// `Io`, `Poisoned`. The copy before is there still.
    pub async fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    ) -> Result<(), Error> {
        self.inner.check_shard(shard)?;
        let inner = Arc::clone(&self.inner);
        let id = SegmentId { shard, number };
        // A task of its own, so a caller that goes away leaves nothing half done.
        tokio::spawn(async move { inner.install(id, epoch, copy).await })
            .await
            .map_err(|_| stopped())?
    }
}

fn invalid(id: SegmentId, why: &str) -> Error {
    let SegmentId { shard, number } = id;
    Error::new(Kind::Invalid, format!("installing segment {number} of shard {shard}: {why}"))
}

impl<V: Volume> Inner<V> {
    async fn install(
        self: &Arc<Self>,
        id: SegmentId,
        epoch: Epoch,
        copy: SegmentCopy,
    ) -> Result<(), Error> {
        self.check_poison()?;
        let mut stream = self.streams[usize::from(id.shard.0)].lock().await;
        self.check_installable(id, epoch, &stream)?;
        let header = &self.device.header;
        let copy = self.with_beginning(id, copy).await?;
        let mut copy = match copy.damaged {
            false => Copy::whole(id, &copy, header),
            true => Copy::damaged(id, &copy, &self.present(id).await, header),
        }
        .map_err(|why| invalid(id, &why))?;
        if let Some(coming) = stream.coming.get(&id.number) {
            copy.take(coming, header)?;
        }
        if stream.tails.get(&id.number).is_some_and(|tail| tail.len > copy.content.len()) {
            return Err(invalid(id, "it has become longer here, read it again"));
        }
        let slot = {
            let mut index = self.index.lock();
            // The reserve is for what gives a slot back, and for what others wait for.
            let reserve = index.segments.contains_key(&id)
                || !matches!(
                    index.shard(id.shard).standing,
                    Standing::Replica { next: Some(_), .. }
                );
            index.take_slot(id, reserve).ok_or_else(|| {
                Error::new(Kind::NoSpace, "no segment is free for a copy: delete, or add devices")
            })?
        };
        if let Err(error) = self.write_copy(slot, &copy).await {
            self.index.lock().start_freeing(slot);
            // It has no header, or one behind which all is there.
            drop(self.free(vec![slot]).await);
            return Err(error);
        }
        self.take_copy(slot, copy, &mut stream).await
    }

    fn check_installable(&self, id: SegmentId, epoch: Epoch, stream: &Stream) -> Result<(), Error> {
        let mut index = self.index.lock();
        index.shard_mut(id.shard).hear(epoch)?;
        let held = index.segments.get(&id).map(|&slot| index.slot(slot).state);
        let refused = match (index.shard(id.shard).standing, held) {
            (Standing::Suspended { .. }, _) | (Standing::Unassigned, None) => {
                "the store has no part in the shard"
            }
            (Standing::Primary { .. }, Some(SlotState::Open)) => "it takes records now",
            (Standing::Primary { .. }, None) => "a primary takes no segments of others",
            (
                Standing::Primary { epoch: of, .. }
                | Standing::Beginning { epoch: of }
                | Standing::Replica { epoch: of, .. },
                _,
            ) if of != epoch => "its epoch is not known here yet",
            (_, Some(SlotState::Freeing)) => "it is being freed",
            (_, Some(SlotState::Free | SlotState::Open | SlotState::Closed) | None) => {
                if stream.freed.contains(&id.number) {
                    return Err(Error::new(Kind::NotFound, "the segment was freed meanwhile"));
                }
                return Ok(());
            }
        };
        Err(invalid(id, refused))
    }

    /// The copy with what it skips, from the one that is here.
    async fn with_beginning(&self, id: SegmentId, copy: SegmentCopy) -> Result<SegmentCopy, Error> {
        if copy.skipped == 0 {
            return Ok(copy);
        }
        let have = copy.skipped as usize;
        let mut content = match self.extent(id) {
            Ok(extent) => self.content(extent, 0, have).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let is_there = content.len() == have;
        content.extend_from_slice(&copy.content);
        if !is_there || format::digest(&content) != copy.digest {
            let SegmentId { shard, number } = id;
            let why = format!("the beginning of segment {number} of shard {shard} is not here");
            return Err(Error::new(Kind::Damaged, why));
        }
        Ok(SegmentCopy { skipped: 0, content: content.into(), ..copy })
    }

    /// What there is of a segment here, whatever it is worth.
    async fn present(&self, id: SegmentId) -> Vec<u8> {
        match self.extent(id) {
            Ok(extent) => {
                self.content(extent, 0, self.device.segment_bytes()).await.unwrap_or_default()
            }
            Err(_) => Vec::new(),
        }
    }

    async fn write_copy(&self, slot: u32, copy: &Copy) -> Result<(), Error> {
        let start = self.device.slot_start(slot);
        self.device.write(start + BLOCK as u64, &[&copy.content[BLOCK..]]).await?;
        if let Some(footer) = &copy.footer {
            self.device.write_footer(slot, footer).await?;
        }
        self.flush().await?;
        self.device.write(start, &[&copy.content[..BLOCK]]).await?;
        self.flush().await
    }

    /// The copy is durable: it counts from now on, and the one before goes.
    async fn take_copy(
        self: &Arc<Self>,
        slot: u32,
        copy: Copy,
        stream: &mut Stream,
    ) -> Result<(), Error> {
        let Copy { id, content, entries, footer, bad, .. } = copy;
        let old = match self.extent(id) {
            Ok(extent) => self.entries(extent).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let sealed = footer.as_deref().map(format::digest);
        let before = {
            let mut index = self.index.lock();
            let standing = index.shard(id.shard).standing;
            // What the primary deleted must not come back here alone.
            let all = !matches!(standing, Standing::Primary { .. });
            let before = index.supersede(id, slot, &entries, all);
            for hash in bad {
                if index.table.get(&hash).is_some_and(|at| at.slot == slot) {
                    index.damaged.insert(hash);
                }
            }
            let len = content.len() as u32;
            index.change(slot, |entry| (entry.len, entry.sealed) = (len, sealed));
            stream.coming.remove(&id.number);
            stream.tails.remove(&id.number);
            let goes_on = match standing {
                Standing::Replica { epoch, next: Some(_) } => format::epoch_of(id.number) == epoch,
                Standing::Replica { next: None, .. }
                | Standing::Unassigned
                | Standing::Beginning { .. }
                | Standing::Primary { .. }
                | Standing::Suspended { .. } => false,
            };
            if sealed.is_some() {
                let end = entries.iter().map(Entry::end).max().unwrap_or(BLOCK);
                index.full(slot, self.device.segment_bytes() - (end - BLOCK));
            }
            if goes_on && sealed.is_none() {
                stream.tails.insert(id.number, Tail::new(slot, content.len(), entries));
            } else {
                index.close(slot);
            }
            before
        };
        match before {
            Some(before) => self.retire(id.shard, before, &old).await,
            None => Ok(()),
        }
    }

    /// Frees the slot of a copy that was replaced. Chunks that only it had leave the index.
    async fn retire(
        self: &Arc<Self>,
        shard: ShardId,
        slot: u32,
        entries: &[Entry],
    ) -> Result<(), Error> {
        let lost = {
            let mut index = self.index.lock();
            if !index.start_freeing(slot) {
                return Ok(());
            }
            index.forget_lines(slot, entries)
        };
        self.free(vec![slot]).await?;
        if lost > 0 {
            // An older record of them may be elsewhere.
            self.reindex(shard).await?;
        }
        Ok(())
    }
}

/// Takes records over that are good in `ours` and not in `theirs`.
fn keep_good(theirs: &mut [u8], ours: &[u8], id: SegmentId, volume: &VolumeHeader) {
    for entry in format::scan(ours, id, volume.shard_count) {
        let place = entry.offset as usize..entry.end();
        let Some(record) = theirs.get_mut(place.clone()) else { continue };
        if RecordHeader::decode(record, id.number).is_none() {
            record.copy_from_slice(&ours[place]);
        }
    }
}

impl Copy {
    fn whole(id: SegmentId, copy: &SegmentCopy, volume: &VolumeHeader) -> Result<Copy, String> {
        let SegmentCopy { content, sealed, .. } = copy;
        let (entries, end) = check_whole(content, id, *sealed, volume)?;
        let footer = sealed.then(|| {
            let len = format::footer_bytes(entries.len());
            content.slice(content.len() - len..)
        });
        let content = content[..end].to_vec();
        Ok(Copy { id, content, entries, footer, bad: Vec::new(), damaged: false })
    }

    /// As much of it as there is, and what is good in the copy that it replaces, or stands behind its end there.
    fn damaged(
        id: SegmentId,
        copy: &SegmentCopy,
        ours: &[u8],
        volume: &VolumeHeader,
    ) -> Result<Copy, String> {
        let mut content = copy.content.to_vec();
        keep_good(&mut content, ours, id, volume);
        // Up to the last record: behind those of a sealed one lies a footer.
        let records = format::scan(ours, id, volume.shard_count);
        let end = records.last().map_or(0, |last| last.end().next_multiple_of(BLOCK));
        if let Some(more) = ours.get(content.len()..end).filter(|_| !copy.sealed) {
            content.extend_from_slice(more);
        }
        // Whatever has become of its header, this is what it was.
        let header = SegmentHeader { cluster: volume.cluster, id }.encode();
        match content.get_mut(..BLOCK) {
            Some(first) => first.copy_from_slice(&header),
            None => return Err(format!("{} bytes are no segment", content.len())),
        }
        let Salvaged { entries, bad, end } = salvage(&content, id, copy.sealed, volume)?;
        let footer = copy.sealed.then(|| format::encode_footer(id, &entries).into());
        content.truncate(end);
        Ok(Copy { id, content, entries, footer, bad, damaged: true })
    }

    /// Adds what the stream brought while the segment was fetched.
    fn take(&mut self, coming: &Coming, volume: &VolumeHeader) -> Result<(), Error> {
        let id = self.id;
        for (offset, bytes) in &coming.appends {
            let end = offset + bytes.len();
            if self.footer.is_some() || end <= self.content.len() {
                continue;
            }
            if *offset > self.content.len() {
                return Err(invalid(id, "it is older than what the stream brought, read it again"));
            }
            self.content.truncate(*offset);
            self.content.extend_from_slice(bytes);
        }
        if self.footer.is_none() {
            let (segment_bytes, shards) = (volume.segment_bytes as usize, volume.shard_count);
            let listed =
                coming.footer.as_deref().map(|f| format::decode_footer(f, id, segment_bytes));
            self.entries = match (self.damaged, listed) {
                (true, Some(Footer::Lines(lines))) => lines,
                (true, _) => format::scan(&self.content, id, shards),
                (false, _) => format::parse(&self.content[BLOCK..], BLOCK, id, shards)
                    .map_err(|at| invalid(id, &format!("it is damaged at {at}")))?,
            };
            if let Some(footer) = &coming.footer {
                if *footer != format::encode_footer(id, &self.entries) {
                    return Err(invalid(id, "its footer is another"));
                }
                self.footer = Some(footer.clone());
            }
        }
        Ok(())
    }
}
