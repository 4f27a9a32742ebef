//! Full stores: cleaning on demand, the reserve, and no livelock.

use std::collections::BTreeMap;

use super::*;

/// Puts chunks until the store is full; at least one did not fit.
async fn fill(
    store: &ChunkStore<SimVolume>,
    dice: &mut Dice,
    kept: &mut BTreeMap<ChunkHash, Bytes>,
) {
    let mut refused = 0;
    while refused < 3 {
        let len = 500 + dice.below(9000) as usize;
        let chunk = dice.chunk(len);
        match store.put(vec![chunk.clone()]).await {
            Ok(_) => drop(kept.insert(chunk.0, chunk.1)),
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace, "{error}");
                refused += 1;
            }
        }
    }
}

async fn delete(store: &ChunkStore<SimVolume>, epoch: u64, gone: &[ChunkHash]) {
    for shard in [ShardId(0), ShardId(1)] {
        let of = |hash: &&ChunkHash| hash.shard(2) == shard;
        let names: Vec<_> = gone.iter().filter(of).copied().collect();
        store.delete(shard, Epoch(epoch), &names).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_store_is_emptied_by_half_and_filled_again_many_times() {
    let (volume, store) = fresh(60).await;
    let mut dice = Dice(3);
    let mut kept = BTreeMap::new();
    fill(&store, &mut dice, &mut kept).await;
    let usage = store.usage();
    assert!(usage.free == 0 && usage.live * 10 > usage.total * 6, "{usage:?}");
    let full = usage.live;
    let before = volume.ops();
    for _ in 0..30 {
        let chunk = dice.chunk(9000);
        match store.put(vec![chunk.clone()]).await {
            // One shard may have room a little longer than the other.
            Ok(_) => drop(kept.insert(chunk.0, chunk.1)),
            Err(error) => assert_eq!(error.kind(), Kind::NoSpace),
        }
    }
    let ops = volume.ops() - before;
    assert!(ops < 100, "{ops} operations to refuse");
    // Cleaning comes to an end: it does not copy what gains nothing.
    let mut copied = Vec::new();
    while copied.last() != Some(&0) {
        copied.push(store.clean(u64::MAX).await.unwrap().bytes_copied);
        assert!(copied.len() < 4, "{copied:?}");
    }
    for epoch in 1..=rounds("CLAUDEFS_CHUNK_FILL_ROUNDS", 12) {
        let gone: Vec<_> = kept.keys().filter(|_| dice.below(2) == 0).copied().collect();
        gone.iter().for_each(|hash| drop(kept.remove(hash)));
        delete(&store, epoch, &gone).await;
        let (before, puts_before) = (volume.ops(), kept.len());
        fill(&store, &mut dice, &mut kept).await;
        let usage = store.usage();
        assert!(usage.live * 10 > full * 9, "round {epoch}: {} of {full} live", usage.live);
        // Without bound, cleaning would go round and round for the last few bytes.
        let (ops, puts) = (volume.ops() - before, (kept.len() - puts_before) as u64);
        assert!(ops < puts * 25, "round {epoch}: {ops} operations for {puts} puts");
        for (hash, bytes) in &kept {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "round {epoch}");
        }
    }
    let store = open(volume.reopen()).await;
    assert_eq!(store.usage().chunks, kept.len() as u64);
    assert!(store.verify(|_, _| ()).await.is_empty());
}

#[tokio::test]
async fn an_emptied_store_gives_its_blocks_back() {
    let (volume, store) = fresh(40).await;
    let mut dice = Dice(9);
    let mut kept = BTreeMap::new();
    fill(&store, &mut dice, &mut kept).await;
    let full = volume.blocks_used();
    let all: Vec<_> = kept.keys().copied().collect();
    delete(&store, 1, &all).await;
    store.clean(u64::MAX).await.unwrap();
    let usage = store.usage();
    assert_eq!((usage.live, usage.chunks, usage.segments_closed), (0, 0, 0), "{usage:?}");
    // What is left are the open segments.
    assert!(volume.blocks_used() * 8 < full, "{} of {full}", volume.blocks_used());
}

#[tokio::test]
async fn a_store_that_starts_full_cleans_what_the_last_life_left_open() {
    let (mut volume, mut store) = fresh(30).await;
    let mut dice = Dice(12);
    let mut kept = BTreeMap::new();
    // Each start leaves an open segment behind for each shard.
    for _ in 0..40 {
        for _ in 0..3 {
            let chunk = dice.chunk(3000);
            store.put(vec![chunk.clone()]).await.unwrap();
            kept.insert(chunk.0, chunk.1);
        }
        volume = volume.reopen();
        store = open(volume.clone()).await;
    }
    for (hash, bytes) in &kept {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
}
