//! Puts. Two of the same chunk at once: one stores it, the other waits for that one.

use std::collections::HashSet;
use std::sync::Arc;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch};
use tokio::sync::watch;

use super::append::not_primary;
use super::error::{Error, Kind};
use super::format::BLOCK;
use super::index::Index;
use super::pack::stopped;
use super::taken::{self, Taken};
use super::{ChunkStore, IN_FLIGHT_BYTES_MAX, Inner};

/// Chunks that this put brings. Dropped, however the put ends, it wakes those who wait for them.
struct Claim<'a, V: Volume> {
    inner: &'a Inner<V>,
    hashes: HashSet<ChunkHash>,
    _ended: watch::Sender<()>,
}

impl<V: Volume> Drop for Claim<'_, V> {
    fn drop(&mut self) {
        let mut index = self.inner.index.lock();
        for hash in &self.hashes {
            index.coming.remove(hash);
        }
    }
}

impl<V: Volume> ChunkStore<V> {
    /// Stores chunks; when it returns they are durable, and the receipts are in their order. A full
    /// store is cleaned first, so `NoSpace` means that cleaning cannot help either.
    ///
    /// # Errors
    /// `HashMismatch`, `Invalid` (too long), `NoSpace`, `NotPrimary`, `NotReplicated`, `Io`, `Poisoned`.
    /// After an error some of the chunks may be stored.
    pub async fn put(&self, chunks: Vec<(ChunkHash, Bytes)>) -> Result<Vec<Epoch>, Error> {
        let longest = self.inner.device.segment_bytes() - 3 * BLOCK;
        if let Some((hash, bytes)) = chunks.iter().find(|(_, bytes)| bytes.len() > longest) {
            let len = bytes.len();
            return Err(Error::new(
                Kind::Invalid,
                format!("put of {hash}: {len} bytes are more than a segment holds ({longest})"),
            ));
        }
        let mut cleaned_up_to = None;
        loop {
            match self.put_once(&chunks).await {
                Ok(Some(receipts)) => {
                    let put = chunks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
                    self.inner.taken.add(Taken { put, ..Taken::default() });
                    return Ok(receipts);
                }
                // A chunk was deleted before the others were durable.
                Ok(None) => {}
                Err(error) if error.kind() == Kind::NoSpace => {
                    if !self.inner.make_room(&chunks, &mut cleaned_up_to).await? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn put_once(&self, chunks: &[(ChunkHash, Bytes)]) -> Result<Option<Vec<Epoch>>, Error> {
        let inner = &self.inner;
        let (claim, others) = {
            let mut index = inner.index.lock();
            if let Some(receipts) = self.receipts(&index, chunks)? {
                return Ok(Some(receipts));
            }
            self.claim(&mut index, chunks)
        };
        let mut mine = claim.hashes.clone();
        // Each once, though the put may bring it twice.
        let new: Vec<_> = chunks.iter().filter(|(hash, _)| mine.remove(hash)).cloned().collect();
        if !new.is_empty() {
            let bytes: usize = new.iter().map(|(_, bytes)| bytes.len()).sum();
            let permits = bytes.clamp(1, IN_FLIGHT_BYTES_MAX) as u32;
            let _permit = inner.in_flight.acquire_many(permits).await.map_err(|_| stopped())?;
            let records = inner.packer.pack(new).await?;
            let taken = taken::sum(&records);
            inner.submit(records).await?;
            inner.taken.add(taken);
        }
        // Ours are stored before we wait, so no two puts wait for each other.
        drop(claim);
        for mut other in others {
            // The sender says nothing and is dropped at the end.
            let _ = other.changed().await;
        }
        self.receipts(&inner.index.lock(), chunks)
    }

    /// The gc epochs of the shards, if all chunks are here: one look at both, so that a deletion comes
    /// wholly before or wholly after.
    fn receipts(
        &self,
        index: &Index,
        chunks: &[(ChunkHash, Bytes)],
    ) -> Result<Option<Vec<Epoch>>, Error> {
        let mut receipts = Some(Vec::with_capacity(chunks.len()));
        for (hash, _) in chunks {
            let id = index.shard_of(hash);
            let shard = index.shard(id);
            if shard.primary().is_none() {
                return Err(not_primary(id));
            }
            match &mut receipts {
                Some(receipts) if index.knows(hash) => receipts.push(shard.gc_epoch),
                Some(_) => receipts = None,
                // The roles of the other shards count still.
                None => {}
            }
        }
        Ok(receipts)
    }

    fn claim(
        &self,
        index: &mut Index,
        chunks: &[(ChunkHash, Bytes)],
    ) -> (Claim<'_, V>, Vec<watch::Receiver<()>>) {
        let (sender, receiver) = watch::channel(());
        let mut hashes = HashSet::new();
        let mut others = Vec::new();
        for (hash, _) in chunks {
            if index.knows(hash) || hashes.contains(hash) {
                continue;
            }
            match index.coming.get(hash) {
                Some(other) => others.push(other.clone()),
                None => {
                    index.coming.insert(*hash, receiver.clone());
                    hashes.insert(*hash);
                }
            }
        }
        (Claim { inner: Arc::as_ref(&self.inner), hashes, _ended: sender }, others)
    }
}
