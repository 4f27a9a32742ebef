//! Many callers at once.

use std::collections::BTreeMap;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn puts_of_the_same_chunks_at_once_store_them_once() {
    let (volume, store) = fresh(60).await;
    let mut dice = Dice(1);
    let chunks: Vec<_> = (0..20).map(|_| dice.chunk(9000)).collect();
    let mut puts = tokio::task::JoinSet::new();
    for putter in 0..8 {
        let (store, mut chunks) = (store.clone(), chunks.clone());
        // Each in another order, so that each waits for some of the others'.
        chunks.rotate_left(putter * 2);
        puts.spawn(async move { store.put(chunks).await });
    }
    while let Some(put) = puts.join_next().await {
        assert_eq!(put.unwrap().unwrap().len(), 20);
    }
    let each = format::record_bytes(9000 + seal::TAG as u32) as u64;
    assert_eq!(store.usage().live, 20 * each);
    let taken = Taken {
        put: 8 * 20 * 9000,
        new: 20 * 9000,
        packed: 20 * 9000,
        sealed: 20 * (9000 + seal::TAG as u64),
        stored: 20 * each,
    };
    assert_eq!(store.taken(), taken);
    let zeroes = Bytes::from(vec![0; 9000]);
    store.put(vec![(ChunkHash(*blake3::hash(&zeroes).as_bytes()), zeroes)]).await.unwrap();
    let more = store.taken();
    assert_eq!((more.put, more.new), (taken.put + 9000, taken.new + 9000));
    assert!(more.packed < taken.packed + 900, "{more:?}");
    let stored: usize = {
        let index = store.inner.index.lock();
        index.slots().iter().filter(|slot| slot.state != SlotState::Free).count()
    };
    assert!(stored <= 6, "{stored} segments for 21 chunks");
    assert!(store.inner.index.lock().coming.is_empty());
    let store = open(volume.power_cut(1)).await;
    for (hash, bytes) in &chunks {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_put_that_is_cancelled_or_fails_leaves_the_way_free() {
    let (_, store) = fresh(30).await;
    let chunk = Dice(2).chunk(60_000 - 16_000);
    let lie = (chunk.0, Bytes::from_static(b"lie"));
    for _ in 0..3 {
        let mut first = Box::pin(store.put(vec![chunk.clone()]));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(first.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
        assert!(store.inner.index.lock().coming.contains_key(&chunk.0));
        let waiting = tokio::spawn({
            let (store, chunk) = (store.clone(), chunk.clone());
            async move { store.put(vec![chunk]).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        waiting.await.unwrap().unwrap();
        assert!(store.inner.index.lock().coming.is_empty());
        let epoch = store.shard_epoch(chunk.0.shard(2)).0 + 1;
        store.delete(chunk.0.shard(2), Epoch(epoch), &[chunk.0]).await.unwrap();
        let refused = store.put(vec![lie.clone()]).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::HashMismatch);
    }
    // The same chunk twice in one put, and nothing at all.
    let twice = store.put(vec![chunk.clone(), chunk.clone()]).await.unwrap();
    assert_eq!(twice.len(), 2);
    assert!(store.put(vec![]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_chunk_that_is_deleted_or_found_damaged_while_it_is_copied_stays_so() {
    let (volume, store) = fresh(30).await;
    let chunk = Dice(5).chunk(3000);
    store.put(vec![chunk.clone()]).await.unwrap();
    let inner = &store.inner;
    let from = inner.index.lock().table.get(&chunk.0).unwrap();
    let copy = async || {
        let mut records = inner.packer.pack(vec![chunk.clone()]).await.unwrap();
        records[0].from = Some(from);
        inner.submit(records).await.unwrap();
    };
    let at = inner.device.slot_start(from.slot) + u64::from(from.offset) + 100;
    volume.corrupt(at / 4096, at as usize % 4096, 1);
    assert_eq!(store.get(&chunk.0).await.unwrap_err().kind(), Kind::Damaged);
    copy().await;
    assert!(!store.contains(&chunk.0));
    store.delete(chunk.0.shard(2), Epoch(1), &[chunk.0]).await.unwrap();
    copy().await;
    assert_eq!(store.get(&chunk.0).await.unwrap_err().kind(), Kind::NotFound);
}

/// Putters, readers, deletions and cleaning on one store, on several threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everything_at_once() {
    let (volume, store) = fresh(80).await;
    let mut tasks = tokio::task::JoinSet::new();
    for putter in 0..4u64 {
        let store = store.clone();
        tasks.spawn(async move {
            let mut dice = Dice(putter);
            let mut kept = BTreeMap::new();
            for round in 0..60 {
                let put: Vec<_> = (0..4).map(|_| dice.chunk(2000)).collect();
                store.put(put.clone()).await.unwrap();
                kept.extend(put);
                let names: Vec<_> = kept.keys().copied().collect();
                for ((hash, bytes), got) in kept.iter().zip(store.get_many(&names).await) {
                    let got = got.unwrap_or_else(|error| panic!("round {round} {hash}: {error}"));
                    assert_eq!(&got, bytes);
                }
                // One putter alone has a shard's epochs to count.
                if putter < 2 && round % 5 == 4 {
                    let shard = ShardId(putter as u16);
                    let epoch = Epoch(store.shard_epoch(shard).0 + 1);
                    let gone = |hash: &&ChunkHash| hash.shard(2) == shard;
                    let gone: Vec<_> = kept.keys().filter(gone).copied().collect();
                    store.delete(shard, epoch, &gone).await.unwrap();
                    gone.iter().for_each(|hash| drop(kept.remove(hash)));
                }
            }
            kept
        });
    }
    let cleaner = tokio::spawn({
        let store = store.clone();
        async move {
            for _ in 0..200 {
                store.clean(40_000).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    let mut kept = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        kept.extend(done.unwrap());
    }
    cleaner.await.unwrap();
    let store = open(volume.power_cut(3)).await;
    for (hash, bytes) in &kept {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_committer_that_ends_leaves_the_next_one_alone() {
    let (_, store) = fresh(400).await;
    let mut putters = tokio::task::JoinSet::new();
    for putter in 0..3u64 {
        let store = store.clone();
        // Small puts one after the other: most meet a committer that is about to end.
        putters.spawn(async move {
            let mut dice = Dice(putter);
            for round in 0..rounds("PUT_ROUNDS", 800) {
                let put = store.put(vec![dice.chunk(40)]).await;
                put.unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
        });
    }
    while let Some(putter) = putters.join_next().await {
        putter.unwrap();
    }
}
