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
use super::format::{self, BLOCK, Entry, SegmentId};
use super::index::SlotState;
use super::pack::stopped;
use super::replica::{Coming, Stream, Tail};
use super::replicate::SegmentNumber;
use super::segments::{Extent, check_whole};
use super::shards::Standing;
use super::{ChunkStore, Inner};

/// What is to be written.
struct Copy {
    id: SegmentId,
    /// Header and records.
    content: Vec<u8>,
    entries: Vec<Entry>,
    footer: Option<Bytes>,
}

impl<V: Volume> ChunkStore<V> {
    /// Takes the whole content of a segment, as [`ChunkStore::read_segment`] gives it, in place of its own
    /// copy. When it returns the copy is durable and in the index.
    ///
    /// # Errors
    /// `StaleEpoch`; `Invalid`: the content is damaged or shorter than what is here, or this store takes
    /// records into that segment as its primary; `NotFound`: the segment was freed meanwhile; `NoSpace`,
    /// `Io`, `Poisoned`. The copy before is there still.
    pub async fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        content: Bytes,
        sealed: bool,
    ) -> Result<(), Error> {
        self.inner.check_shard(shard)?;
        let inner = Arc::clone(&self.inner);
        let id = SegmentId { shard, number };
        // A task of its own, so a caller that goes away leaves nothing half done.
        tokio::spawn(async move { inner.install(id, epoch, &content, sealed).await })
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
        content: &[u8],
        sealed: bool,
    ) -> Result<(), Error> {
        self.check_poison()?;
        let mut stream = self.streams[usize::from(id.shard.0)].lock().await;
        self.check_installable(id, epoch, &stream)?;
        let header = &self.device.header;
        let (entries, end) =
            check_whole(content, id, sealed, header).map_err(|why| invalid(id, &why))?;
        let footer = sealed.then(|| {
            let len = format::footer_bytes(entries.len());
            Bytes::copy_from_slice(&content[content.len() - len..])
        });
        let mut copy = Copy { id, content: content[..end].to_vec(), entries, footer };
        if let Some(coming) = stream.coming.get(&id.number) {
            copy.take(coming, header.shard_count)?;
        }
        if stream.tails.get(&id.number).is_some_and(|tail| tail.len > copy.content.len()) {
            return Err(invalid(id, "it has become longer here, read it again"));
        }
        let slot = self.index.lock().take_slot(id, true).ok_or_else(|| {
            Error::new(Kind::NoSpace, "no segment is free for a copy: delete, or add devices")
        })?;
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
        let held = index.segments.get(&id).map(|&slot| index.slots[slot as usize].state);
        let refused = match (index.shard(id.shard).standing, held) {
            (Standing::Unassigned | Standing::Suspended { .. }, _) => {
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
        let Copy { id, content, entries, footer } = copy;
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
            let entry = &mut index.slots[slot as usize];
            (entry.len, entry.sealed) = (content.len() as u32, sealed);
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

    /// Cuts what this replica has more of a segment than the primary, durably. Says how many chunks lost
    /// their place.
    pub(super) async fn cut(&self, extent: Extent, len: usize) -> Result<usize, Error> {
        let entries = self.entries(extent).await?;
        let lost = {
            let mut index = self.index.lock();
            let cut: Vec<ChunkHash> = entries
                .iter()
                .filter(|entry| entry.offset as usize >= len)
                .filter(|entry| {
                    let at = index.table.get(&entry.hash);
                    at.is_some_and(|at| at.slot == extent.slot && at.offset == entry.offset)
                })
                .map(|entry| entry.hash)
                .collect();
            cut.iter().for_each(|hash| index.remove(hash));
            index.slots[extent.slot as usize].len = len as u32;
            cut.len()
        };
        let zeros = vec![0; extent.len - len];
        self.device.write(self.device.slot_start(extent.slot) + len as u64, &[&zeros]).await?;
        self.flush().await?;
        Ok(lost)
    }
}

impl Copy {
    /// Adds what the stream brought while the segment was fetched.
    fn take(&mut self, coming: &Coming, shard_count: u32) -> Result<(), Error> {
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
        self.entries = match self.footer {
            Some(_) => std::mem::take(&mut self.entries),
            None => format::parse(&self.content[BLOCK..], BLOCK, id, shard_count)
                .map_err(|at| invalid(id, &format!("it is damaged at {at}")))?,
        };
        if let (None, Some(footer)) = (&self.footer, &coming.footer) {
            if *footer != format::encode_footer(id, &self.entries) {
                return Err(invalid(id, "its footer is another"));
            }
            self.footer = Some(footer.clone());
        }
        Ok(())
    }
}
