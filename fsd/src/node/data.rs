//! Chunks of the cluster, wherever their shards are: here, or on another node that is asked.
//!
//! Whom to ask stands in the cluster map. A chunk is put at, and deleted by, the primary of its shard; it is read
//! from any node that has it in sync, this one first. Content is named by its hash, so an answer of a node that
//! was asked by mistake is right or is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::frame::DATA_LEN_MAX;
use fsd_rpc::message::{ChunkPut, ChunkSize, Failure, NodeRequest, Response};
use fsd_rpc::nodes::Target;
use raftmeta::read;
use raftmeta::store::View;
use raftmeta_types::cluster::ShardInfo;
use raftmeta_types::{ChunkHash, Epoch, MetaError, NodeId, ShardId};

use super::Node;
use crate::chunks::Kind;
use crate::jobs;
use crate::replication::target_in;
use crate::service::storage;

/// Chunks of which one message asks the size.
const SIZES_MAX: usize = 4096;
/// A node that takes longer for one request of 8 MiB is not well.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

type Found = Result<Bytes, Failure>;

impl Node {
    fn shard(&self, view: &View, hash: &ChunkHash) -> Result<ShardInfo, Failure> {
        let id = hash.shard(self.cluster.shard_count);
        read::shard(view, id).map_err(storage)?.ok_or(Failure::Meta(MetaError::NotFound))
    }

    /// Where a node is reached.
    pub(crate) fn target_of(&self, id: NodeId) -> Result<Target, Failure> {
        self.target(&self.group.view(), id)
    }

    fn target(&self, view: &View, id: NodeId) -> Result<Target, Failure> {
        target_in(view, id)
    }

    /// Stores chunks; durable on return, with their receipts in their order.
    pub(crate) async fn put_chunks(
        self: &Arc<Node>,
        chunks: Vec<(ChunkHash, Bytes)>,
    ) -> Result<Vec<Epoch>, Failure> {
        let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        let view = self.group.view();
        for (at, (hash, _)) in chunks.iter().enumerate() {
            by_node.entry(self.shard(&view, hash)?.primary).or_default().push(at);
        }
        if by_node.keys().all(|node| *node == self.id) {
            drop(view);
            return self.put_here(chunks).await;
        }
        let mut puts = Vec::with_capacity(by_node.len());
        for (id, places) in by_node {
            let some: Vec<_> = places.iter().map(|at| chunks[*at].clone()).collect();
            let target = if id == self.id { None } else { Some(self.target(&view, id)?) };
            let node = Arc::clone(self);
            let put = tokio::spawn(async move {
                let Some(target) = target else { return node.put_here(some).await };
                match node.put_there(&target, some.clone()).await {
                    Err(Failure::NoSpace) if node.leads() && make_room(&node).await => {
                        node.put_there(&target, some).await
                    }
                    done => done,
                }
            });
            puts.push((places, put));
        }
        drop(view);
        let mut receipts = vec![Epoch(0); chunks.len()];
        for (places, put) in puts {
            let got = put.await.map_err(|error| Failure::Storage(error.to_string()))??;
            for (at, receipt) in places.into_iter().zip(got) {
                receipts[at] = receipt;
            }
        }
        Ok(receipts)
    }

    /// In the store of this node. A full one frees what deleted files have left, and tries again.
    pub(crate) async fn put_here(
        self: &Arc<Node>,
        chunks: Vec<(ChunkHash, Bytes)>,
    ) -> Result<Vec<Epoch>, Failure> {
        let mut stored = self.chunks.put(chunks.clone()).await;
        let full = |stored: &Result<_, crate::chunks::Error>| {
            stored.as_ref().is_err_and(|error| error.kind() == Kind::NoSpace)
        };
        if full(&stored) && self.leads() && make_room(self).await {
            stored = self.chunks.put(chunks).await;
        }
        let receipts = stored.map_err(|error| self.chunk_failure(&error, None))?;
        self.upkeep.note_put();
        Ok(receipts)
    }

    async fn put_there(
        &self,
        target: &Target,
        chunks: Vec<(ChunkHash, Bytes)>,
    ) -> Result<Vec<Epoch>, Failure> {
        let named =
            |(hash, data): &(ChunkHash, Bytes)| ChunkPut { hash: *hash, len: data.len() as u32 };
        let request = NodeRequest::PutChunks { chunks: chunks.iter().map(named).collect() };
        let data: Vec<Bytes> = chunks.iter().map(|(_, data)| data.clone()).collect();
        match self.peers.ask(target, request, &data, ANSWER_WITHIN).await?.0 {
            Response::Receipts(receipts) if receipts.len() == chunks.len() => Ok(receipts),
            _ => Err(unexpected(target)),
        }
    }

    /// The chunks, or what is wrong with each, in their order. One that is damaged or missing, or on a node that
    /// does not answer, is asked for at the next one that has it.
    pub(crate) async fn get_chunks(&self, hashes: &[ChunkHash]) -> Vec<Found> {
        let missing = |hash: &ChunkHash| Err(Failure::NoChunk(*hash));
        let mut found: Vec<Found> = hashes.iter().map(missing).collect();
        let mut holders: Vec<Vec<NodeId>> = Vec::with_capacity(hashes.len());
        {
            let view = self.group.view();
            for (at, hash) in hashes.iter().enumerate() {
                match self.shard(&view, hash) {
                    Ok(shard) => holders.push(self.in_order(&shard)),
                    Err(failure) => {
                        found[at] = Err(failure);
                        holders.push(Vec::new());
                    }
                }
            }
        }
        for round in 0..holders.iter().map(Vec::len).max().unwrap_or(0) {
            let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
            for (at, holders) in holders.iter().enumerate() {
                if let (Err(_), Some(id)) = (&found[at], holders.get(round)) {
                    by_node.entry(*id).or_default().push(at);
                }
            }
            for (id, places) in by_node {
                let some: Vec<ChunkHash> = places.iter().map(|at| hashes[*at]).collect();
                for (at, got) in places.into_iter().zip(self.get_from(id, &some).await) {
                    // Damage says more than silence.
                    let keep = matches!(&found[at], Err(Failure::Damaged { .. })) && got.is_err();
                    if !keep {
                        found[at] = got;
                    }
                }
            }
        }
        found
    }

    /// Who has a shard in sync, in the order in which they are asked.
    fn in_order(&self, shard: &ShardInfo) -> Vec<NodeId> {
        let mut holders = shard.in_sync.clone();
        holders.sort_by_key(|id| (*id != self.id, *id != shard.primary, *id));
        holders
    }

    /// The chunks of one node.
    pub(crate) async fn get_from(&self, id: NodeId, hashes: &[ChunkHash]) -> Vec<Found> {
        if id == self.id {
            return self.get_here(hashes).await;
        }
        match self.target_of(id) {
            Ok(target) => self.get_there(&target, hashes).await,
            Err(failure) => hashes.iter().map(|_| Err(failure.clone())).collect(),
        }
    }

    /// From the store of this node.
    pub(crate) async fn get_here(&self, hashes: &[ChunkHash]) -> Vec<Found> {
        self.courier.note_served();
        let found = self.chunks.get_many(hashes).await.into_iter().zip(hashes);
        found
            .map(|(found, hash)| found.map_err(|error| self.chunk_failure(&error, Some(*hash))))
            .collect()
    }

    /// As many requests as it takes: an answer holds what fits.
    async fn get_there(&self, target: &Target, hashes: &[ChunkHash]) -> Vec<Found> {
        let mut found = Vec::with_capacity(hashes.len());
        while found.len() < hashes.len() {
            let left = &hashes[found.len()..];
            match self.some_from(target, left).await {
                Ok(some) => found.extend(some.into_iter().map(Ok)),
                // The first one is what is wrong; the others may be well.
                Err(failure @ (Failure::NoChunk(_) | Failure::Damaged { .. })) => {
                    found.push(Err(failure));
                }
                Err(failure) => found.extend(left.iter().map(|_| Err(failure.clone()))),
            }
        }
        found
    }

    /// At least one.
    async fn some_from(
        &self,
        target: &Target,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Bytes>, Failure> {
        let request = NodeRequest::GetChunks { hashes: hashes.to_vec() };
        let (response, data) = self.peers.ask(target, request, &[], ANSWER_WITHIN).await?;
        let Response::Chunks(named) = response else { return Err(unexpected(target)) };
        let fits = !named.is_empty()
            && named.len() <= hashes.len()
            && named.iter().map(|one| one.len as usize).sum::<usize>() == data.len()
            && named.iter().zip(hashes).all(|(one, hash)| one.hash == *hash);
        if !fits {
            return Err(unexpected(target));
        }
        let mut at = 0;
        let cut = named.iter().map(|one| {
            let from = at;
            at += one.len as usize;
            data.slice(from..at)
        });
        Ok(cut.collect())
    }

    /// Sizes of chunks, wherever they are, in their order; of those that nobody has, none.
    ///
    /// # Errors
    /// Nobody who should have one of them answers.
    pub(crate) async fn sizes(
        &self,
        hashes: &[ChunkHash],
    ) -> Result<Vec<Option<ChunkSize>>, Failure> {
        let mut sizes: Vec<Option<ChunkSize>> = vec![None; hashes.len()];
        let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        {
            let view = self.group.view();
            for (at, hash) in hashes.iter().enumerate() {
                let shard = self.shard(&view, hash)?;
                match shard.in_sync.contains(&self.id) {
                    true => sizes[at] = self.size_here(hash),
                    false => by_node.entry(shard.primary).or_default().push(at),
                }
            }
        }
        for (id, places) in by_node {
            let target = self.target_of(id)?;
            for some in places.chunks(SIZES_MAX) {
                let asked: Vec<ChunkHash> = some.iter().map(|at| hashes[*at]).collect();
                let request = NodeRequest::Sizes { hashes: asked };
                match self.peers.ask(&target, request, &[], ANSWER_WITHIN).await?.0 {
                    Response::Sizes(told) if told.len() == some.len() => {
                        some.iter().zip(told).for_each(|(at, size)| sizes[*at] = size);
                    }
                    _ => return Err(unexpected(&target)),
                }
            }
        }
        Ok(sizes)
    }

    /// In the store of this node.
    pub(crate) fn size_here(&self, hash: &ChunkHash) -> Option<ChunkSize> {
        let (plain, stored) = (self.chunks.plain_len(hash)?, self.chunks.stored_len(hash)?);
        self.chunks.contains(hash).then_some(ChunkSize { plain, stored })
    }

    /// How many of the chunks, from the first on, have at most `most` bytes together. One that is elsewhere counts as
    /// the largest there can be, since its length is not known here.
    pub(crate) fn fitting(&self, hashes: &[ChunkHash], most: usize) -> usize {
        let mut bytes = 0;
        let fits = |hash: &&ChunkHash| {
            let len =
                self.chunks.plain_len(hash).map_or(raftmeta_types::CHUNK_MAX, |len| len as usize);
            bytes += len;
            bytes <= most.min(DATA_LEN_MAX)
        };
        hashes.iter().take_while(fits).count()
    }

    /// Some chunks have to be put again, because their receipts are older than the last deletion of their shards. A primary
    /// that has not heard of it would give the same receipts again.
    pub(crate) async fn lift(&self, hashes: &[ChunkHash]) {
        let shards: BTreeSet<ShardId> =
            hashes.iter().map(|hash| hash.shard(self.cluster.shard_count)).collect();
        for shard in shards {
            let Ok(Some(info)) = read::shard(&self.group.view(), shard) else { continue };
            if let Err(failure) = self.delete_chunks(shard, info.gc_epoch, &[]).await {
                tracing::debug!(%shard, %failure, "telling the primary of a gc epoch");
            }
        }
    }

    /// Has the primary delete what the state machine has marked under this gc epoch.
    pub(crate) async fn delete_chunks(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<u64, Failure> {
        let (primary, target) = {
            let view = self.group.view();
            let info = read::shard(&view, shard).map_err(storage)?;
            let primary = info.ok_or(Failure::Meta(MetaError::NotFound))?.primary;
            (primary, self.target(&view, primary))
        };
        if primary == self.id {
            return self.delete_here(shard, epoch, hashes).await;
        }
        let target = target?;
        let request = NodeRequest::DeleteChunks { shard, epoch, hashes: hashes.to_vec() };
        match self.peers.ask(&target, request, &[], ANSWER_WITHIN).await?.0 {
            Response::Deleted { bytes } => Ok(bytes),
            _ => Err(unexpected(&target)),
        }
    }

    /// `NodeRequest::DeleteChunks`: in the store of this node, the primary; the bytes that they took.
    pub(crate) async fn delete_here(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<u64, Failure> {
        let lens = hashes.iter().filter_map(|hash| self.chunks.stored_len(hash));
        let bytes = lens.map(u64::from).sum();
        let deleted = self.chunks.delete(shard, epoch, hashes).await;
        deleted.map_err(|error| self.chunk_failure(&error, None))?;
        Ok(bytes)
    }
}

fn unexpected(target: &Target) -> Failure {
    Failure::Storage(format!("{target} gave an answer that does not belong to the question"))
}

/// Frees what deleted files have left; whether there is hope for another try.
async fn make_room(node: &Arc<Node>) -> bool {
    match jobs::make_room(node).await {
        Ok(freed) => freed,
        Err(failure) => {
            tracing::warn!(%failure, "making room");
            false
        }
    }
}
