//! Failed operations and damaged bytes.

use blockd_ipc::Volume;

use super::format::{NUMBER_MAX, SegmentHeader, SegmentId};
use super::recover::read_header;
use super::*;

/// Fills segments, deletes a third, cleans, and fills again; what was acknowledged, whatever fails.
async fn work(store: &ChunkStore<SimVolume>, seed: u64) -> (Vec<(ChunkHash, Bytes)>, u32) {
    let mut dice = Dice(seed);
    let mut kept = Vec::new();
    let mut failures = 0;
    for round in 1..4 {
        for _ in 0..8 {
            let put: Vec<_> = (0..3).map(|_| dice.chunk(6000)).collect();
            match store.put(put.clone()).await {
                Ok(_) => kept.extend(put),
                Err(_) => failures += 1,
            }
        }
        for shard in [ShardId(0), ShardId(1)] {
            let gone =
                |(hash, _): &(ChunkHash, Bytes)| hash.shard(2) == shard && hash.0[5] % 3 == 0;
            let names: Vec<_> = kept.iter().filter(|c| gone(c)).map(|c| c.0).collect();
            kept.retain(|chunk| !gone(chunk));
            failures += u32::from(store.delete(shard, Epoch(round), &names).await.is_err());
        }
        failures += u32::from(store.clean(u64::MAX).await.is_err());
    }
    (kept, failures)
}

#[tokio::test]
async fn any_operation_may_fail_and_nothing_acknowledged_is_lost() {
    let (volume, store) = fresh(30).await;
    let before = volume.ops();
    let (_, failures) = work(&store, 5).await;
    assert_eq!(failures, 0);
    for op in 0..volume.ops() - before {
        let (volume, store) = fresh(30).await;
        volume.fail_op(op);
        let (kept, _) = work(&store, 5).await;
        let poisoned = store.inner.check_poison().is_err();
        for (hash, bytes) in &kept {
            let got = store.get(hash).await;
            // A poisoned volume says so; anything else is the chunk.
            assert!(poisoned || got.as_ref().ok() == Some(bytes), "operation {op}: {got:?}");
        }
        let store = open(volume.power_cut(op)).await;
        for (hash, bytes) in &kept {
            let got = store.get(hash).await;
            assert_eq!(got.as_ref().ok(), Some(bytes), "operation {op}, reopened: {got:?}");
        }
        let more = Dice(op + 1000).chunk(5000);
        store.put(vec![more]).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_flush_poisons_whoever_asked_for_it() {
    // Of a put, of a put that fills a segment, of a deletion, of a cleaning.
    for who in 0..4 {
        let (volume, store) = fresh(30).await;
        let mut dice = Dice(who);
        let first: Vec<_> = (0..24).map(|_| dice.chunk(6000)).collect();
        store.put(first.clone()).await.unwrap();
        let of = |shard, some: usize| {
            let of_shard = first.iter().map(|c| c.0).filter(|hash| hash.shard(2) == shard);
            of_shard.step_by(some).collect::<Vec<_>>()
        };
        if who == 3 {
            store.delete(ShardId(0), Epoch(1), &of(ShardId(0), 2)).await.unwrap();
        }
        volume.fail_flush();
        let failed = match who {
            0 => store.put(vec![dice.chunk(100)]).await.map(|_| ()),
            1 => store.put((0..12).map(|_| dice.chunk(6000)).collect()).await.map(|_| ()),
            2 => store.delete(ShardId(0), Epoch(1), &of(ShardId(0), 1)).await,
            _ => store.clean(u64::MAX).await.map(|_| ()),
        };
        assert_eq!(failed.unwrap_err().kind(), Kind::Io, "{who}");
        // A dedup hit is durable already; nothing new is taken.
        let known = first.iter().find(|c| c.0.shard(2) == ShardId(1)).unwrap().clone();
        store.put(vec![known]).await.unwrap();
        let put = store.put(vec![dice.chunk(100)]).await;
        assert_eq!(put.unwrap_err().kind(), Kind::Poisoned, "{who}");
        let clean = store.clean(u64::MAX).await;
        assert_eq!(clean.unwrap_err().kind(), Kind::Poisoned, "{who}");
        let store = open(volume.power_cut(who)).await;
        for (hash, bytes) in first.iter().filter(|c| c.0.shard(2) == ShardId(1)) {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "{who}");
        }
        store.put(vec![dice.chunk(100)]).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_killed_daemon_left_in_the_cache_is_durable_before_it_is_a_hit() {
    let mut lost_or_found = [0, 0];
    for seed in 0..40 {
        let (volume, store) = fresh(20).await;
        let mut dice = Dice(seed);
        let chunks: Vec<_> = (0..8).map(|_| dice.chunk(3000)).collect();
        // One of the two writes fails, so nothing is flushed; then only the daemon dies.
        volume.fail_op(seed % 2);
        assert_eq!(store.put(chunks.clone()).await.unwrap_err().kind(), Kind::Io);
        let store = open(volume.clone()).await;
        for chunk in &chunks {
            lost_or_found[usize::from(store.contains(&chunk.0))] += 1;
        }
        // Hits alone: a new chunk would bring a flush.
        let hits: Vec<_> = chunks.into_iter().filter(|c| store.contains(&c.0)).collect();
        store.put(hits.clone()).await.unwrap();
        let store = open(volume.power_cut(seed)).await;
        for (hash, bytes) in &hits {
            let got = store.get(hash).await;
            assert_eq!(got.as_ref().ok(), Some(bytes), "seed {seed}: {got:?}");
        }
    }
    assert!(lost_or_found.iter().all(|&count| count > 20), "{lost_or_found:?}");
}

fn flip(volume: &SimVolume, offset: u64, mask: u8) {
    volume.corrupt(offset / 4096, offset as usize % 4096, mask);
}

#[tokio::test]
async fn a_damaged_segment_header_or_footer_loses_nothing() {
    let (volume, store) = fresh(30).await;
    let mut dice = Dice(4);
    let chunks: Vec<_> = (0..60).map(|_| dice.chunk(5000)).collect();
    store.put(chunks.clone()).await.unwrap();
    let segment = u64::from(store.inner.device.header.segment_bytes);
    let slots: Vec<u32> = {
        let index = store.inner.index.lock();
        (0..30).filter(|slot| index.slot(*slot).live_bytes > 0).collect()
    };
    assert!(slots.len() > 4);
    let mut volume = volume.reopen();
    for at in [0, 13, 20, 35, segment - 32, segment - 27, segment - 20, segment - 40] {
        for slot in &slots {
            flip(&volume, format::SLOTS_START + u64::from(*slot) * segment + at, 16);
        }
        let store = open(volume.clone()).await;
        for (hash, bytes) in &chunks {
            let got = store.get(hash).await;
            assert_eq!(got.as_ref().ok(), Some(bytes), "byte {at}: {got:?}");
        }
        for slot in &slots {
            flip(&volume, format::SLOTS_START + u64::from(*slot) * segment + at, 16);
        }
        volume = volume.reopen();
    }
}

/// Writes a valid header of another segment over that of a slot.
async fn forge(volume: &SimVolume, slot: u32, number: u64) {
    let header = read_header(volume, Some(CLUSTER)).await.unwrap();
    let id = SegmentId { shard: ShardId(0), number: SegmentNumber(number) };
    let forged = SegmentHeader { cluster: CLUSTER, id };
    let mut buffer = volume.buffer(format::BLOCK).await.unwrap();
    buffer.set_len(format::BLOCK);
    buffer.copy_from_slice(&forged.encode());
    let start = format::SLOTS_START + u64::from(slot) * u64::from(header.segment_bytes);
    volume.write(start / 4096, buffer, true).await.unwrap();
}

#[tokio::test]
async fn a_number_beyond_the_highest_is_damage_and_stops_nothing() {
    let (volume, store) = fresh(30).await;
    let mut dice = Dice(6);
    let chunks: Vec<_> = (0..20).map(|_| dice.chunk(5000)).collect();
    store.put(chunks.clone()).await.unwrap();
    let slot = store.inner.index.lock().table.get(&chunks[0].0).unwrap().slot;
    let mut volume = volume.reopen();
    for number in [u64::MAX, NUMBER_MAX.0 + 1] {
        forge(&volume, slot, number).await;
        let store = open(volume.clone()).await;
        for (hash, bytes) in &chunks {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "salvaged from its records");
        }
        let more = dice.chunk(5000);
        store.put(vec![more.clone()]).await.unwrap();
        assert_eq!(store.get(&more.0).await.unwrap(), more.1);
        volume = volume.reopen();
    }
    // The highest one is believed. Nothing can come after it in its shard; the others go on.
    forge(&volume, slot, NUMBER_MAX.0).await;
    let store = open(volume).await;
    for _ in 0..8 {
        let more = dice.chunk(5000);
        let put = store.put(vec![more.clone()]).await.map_err(|error| error.kind());
        assert_eq!(put.is_err(), more.0.shard(2) == ShardId(0), "{put:?}");
        assert!(put.is_ok() || put == Err(Kind::Invalid));
    }
}

#[tokio::test]
async fn either_volume_header_is_enough_and_repairs_the_other() {
    let (volume, store) = fresh(20).await;
    let chunk = Dice(1).chunk(3000);
    store.put(vec![chunk.clone()]).await.unwrap();
    drop(store);
    for copy in [0, 1, 0, 1] {
        flip(&volume, copy * 4096 + 9, 2);
        let store = open(volume.clone()).await;
        assert_eq!(store.get(&chunk.0).await.unwrap(), chunk.1);
    }
    flip(&volume, 9, 2);
    flip(&volume, 4096 + 50, 2);
    let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs: vec![] };
    let error = ChunkStore::open(volume, params).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BadHeader);
}

#[tokio::test]
async fn random_damage_is_never_data_and_a_put_repairs_it() {
    for seed in 0..rounds("CLAUDEFS_CHUNK_DAMAGE_SEEDS", 60) {
        let (volume, store) = fresh(14).await;
        let mut dice = Dice(seed);
        let chunks: Vec<_> = (0..40).map(|_| dice.chunk(4000)).collect();
        store.put(chunks.clone()).await.unwrap();
        let volume = volume.reopen();
        for _ in 0..1 + dice.below(30) {
            let at = format::SLOTS_START + dice.below(14 << 16);
            flip(&volume, at, 1 << dice.below(8));
        }
        let store = open(volume.clone()).await;
        let check = async |store: &ChunkStore<SimVolume>| {
            let names: Vec<_> = chunks.iter().map(|c| c.0).collect();
            for ((hash, bytes), got) in chunks.iter().zip(store.get_many(&names).await) {
                match got {
                    Ok(got) => assert_eq!(&got, bytes, "seed {seed}: {hash}"),
                    Err(error) => assert!(
                        matches!(error.kind(), Kind::Damaged | Kind::NotFound),
                        "seed {seed}: {error}"
                    ),
                }
            }
        };
        check(&store).await;
        store.put(chunks.clone()).await.unwrap();
        for (hash, bytes) in &chunks {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "seed {seed}");
        }
        // The damaged copies are still there; the repaired ones win.
        let store = open(volume.reopen()).await;
        for (hash, bytes) in &chunks {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "seed {seed}, reopened");
        }
    }
}
