use blockd_ipc::SimVolume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch};
use uuid::Uuid;

use super::*;

const CLUSTER: Uuid = Uuid::from_u128(7);

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    fn chunk(&mut self, len: usize) -> (ChunkHash, Bytes) {
        let bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
        named(bytes)
    }
}

fn named(bytes: Vec<u8>) -> (ChunkHash, Bytes) {
    (ChunkHash(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

async fn open(volume: SimVolume) -> ChunkStore<SimVolume> {
    let keys = Keys::new(1, &[9; 32]);
    let params = OpenParams { cluster_uuid: CLUSTER, keys, epochs: vec![] };
    ChunkStore::open(volume, params).await.unwrap()
}

async fn fresh(slots: u64) -> (SimVolume, ChunkStore<SimVolume>) {
    let volume = SimVolume::new(4096, 16 + slots * 16);
    let params = FormatParams { cluster_uuid: CLUSTER, shard_count: 2, segment_bytes: 64 << 10 };
    ChunkStore::format(&volume, params).await.unwrap();
    (volume.clone(), open(volume).await)
}

#[tokio::test]
async fn what_was_put_is_got_once_and_after_reopening() {
    let (volume, store) = fresh(40).await;
    let mut dice = Dice(1);
    let chunks: Vec<_> = (0..60).map(|n| dice.chunk(n * 211)).collect();
    store.put(chunks.clone()).await.unwrap();
    let live = store.usage().live;
    store.put(chunks.clone()).await.unwrap();
    assert_eq!(store.usage().live, live);
    let store = open(volume.reopen()).await;
    for (hash, bytes) in &chunks {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
    assert!(store.verify(|_, _| ()).await.is_empty());
    let text = named(b"all work and no play ".repeat(1000));
    store.put(vec![text.clone()]).await.unwrap();
    assert!(store.stored_len(&text.0).unwrap() as usize * 2 < text.1.len());
    let lie = (chunks[3].0, Bytes::from_static(b"lie"));
    store.delete(lie.0.shard(2), Epoch(1), &[lie.0]).await.unwrap();
    assert_eq!(store.put(vec![lie]).await.unwrap_err().kind(), Kind::HashMismatch);
}

#[tokio::test]
async fn strangers_are_refused_by_name() {
    let (volume, _) = fresh(20).await;
    let keys = || Keys::new(1, &[9; 32]);
    let other = Uuid::from_u128(8);
    let params = OpenParams { cluster_uuid: other, keys: keys(), epochs: vec![] };
    assert_eq!(ChunkStore::open(volume, params).await.unwrap_err().kind(), Kind::Foreign);
    let params = OpenParams { cluster_uuid: other, keys: keys(), epochs: vec![] };
    let blank = SimVolume::new(4096, 400);
    assert_eq!(ChunkStore::open(blank, params).await.unwrap_err().kind(), Kind::BadHeader);
}

#[tokio::test]
async fn a_flipped_bit_is_damage_and_a_new_put_heals_it() {
    let mut dice = Dice(2);
    let (volume, store) = fresh(20).await;
    let chunk = dice.chunk(9000);
    store.put(vec![chunk.clone()]).await.unwrap();
    let at = *store.inner.index.lock().map.get(&chunk.0).unwrap();
    let start = store.inner.device.slot_start(at.slot) as usize + at.offset as usize;
    for byte in (0..format::RECORD_HEADER + 9000).step_by(37) {
        let (lba, offset) = ((start + byte) as u64 / 4096, (start + byte) % 4096);
        let mask = 1 << (dice.next() % 8);
        volume.corrupt(lba, offset, mask);
        assert_eq!(store.get(&chunk.0).await.unwrap_err().kind(), Kind::Damaged, "byte {byte}");
        volume.corrupt(lba, offset, mask);
    }
    store.put(vec![chunk.clone()]).await.unwrap();
    assert_ne!(*store.inner.index.lock().map.get(&chunk.0).unwrap(), at);
    assert_eq!(store.get(&chunk.0).await.unwrap(), chunk.1);
}

#[tokio::test]
async fn a_full_store_recovers_space() {
    let (_, store) = fresh(30).await;
    let mut dice = Dice(3);
    let mut stored = Vec::new();
    loop {
        let chunk = dice.chunk(7000);
        match store.put(vec![chunk.clone()]).await {
            Ok(_) => stored.push(chunk),
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSpace);
                break;
            }
        }
    }
    let (gone, kept): (Vec<_>, Vec<_>) = stored.iter().enumerate().partition(|(n, _)| n % 3 != 0);
    for shard in [ShardId(0), ShardId(1)] {
        let of = gone.iter().map(|(_, c)| c.0).filter(|hash| hash.shard(2) == shard);
        store.delete(shard, Epoch(1), &of.collect::<Vec<_>>()).await.unwrap();
    }
    assert!(store.clean(u64::MAX).await.unwrap().segments > 0);
    for _ in 0..gone.len() / 2 {
        assert!(store.put(vec![dice.chunk(7000)]).await.is_ok());
    }
    for (_, (hash, bytes)) in kept {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn no_power_cut_takes_an_acknowledged_chunk() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let (mut volume, mut store) = fresh(40).await;
        let mut kept: HashMap<ChunkHash, Bytes> = HashMap::new();
        let mut epoch = 0;
        for round in 0..4 {
            volume.halt_after(dice.next() % 120);
            loop {
                let done = match dice.next() % 8 {
                    0 => store.clean(200_000).await.map(|_| ()),
                    1 => {
                        epoch += 1;
                        let mut result = Ok(());
                        for shard in [ShardId(0), ShardId(1)] {
                            let some = dice.next() % 3;
                            let of = |hash: &ChunkHash| {
                                hash.shard(2) == shard && u64::from(hash.0[9] % 3) == some
                            };
                            let gone: Vec<_> =
                                kept.keys().filter(|hash| of(hash)).copied().collect();
                            gone.iter().for_each(|hash| drop(kept.remove(hash)));
                            result = result.and(store.delete(shard, Epoch(epoch), &gone).await);
                        }
                        result
                    }
                    _ => {
                        let count = 1 + dice.next() % 4;
                        let put: Vec<_> = (0..count)
                            .map(|_| {
                                let len = dice.next() as usize % 12_000;
                                dice.chunk(len)
                            })
                            .collect();
                        let result = store.put(put.clone()).await;
                        if result.is_ok() {
                            kept.extend(put);
                        }
                        result.map(|_| ())
                    }
                };
                match done {
                    Err(error) if error.kind() != Kind::NoSpace => break,
                    _ => {}
                }
            }
            volume = volume.power_cut(dice.next());
            store = open(volume.clone()).await;
            for (hash, bytes) in &kept {
                let got = store.get(hash).await;
                assert_eq!(got.as_ref().ok(), Some(bytes), "seed {seed} round {round}: {got:?}");
            }
            assert!(store.verify(|_, _| ()).await.is_empty(), "seed {seed} round {round}");
            let mut before = store.iter_hashes(None);
            volume = volume.reopen();
            store = open(volume.clone()).await;
            let mut after = store.iter_hashes(None);
            before.sort();
            after.sort();
            assert_eq!(before, after, "seed {seed} round {round}");
            // Epochs live in the state machine; this store starts from 0 again.
            epoch = 0;
        }
    }
}

#[test]
fn keys_are_wrapped_and_the_wrong_master_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (master, wrapped) = (dir.path().join("master"), dir.path().join("wrapped"));
    Keys::load_or_create(&master, &wrapped, CLUSTER).unwrap();
    Keys::load_or_create(&master, &wrapped, CLUSTER).unwrap();
    std::fs::write(&master, [1; 32]).unwrap();
    let error = Keys::load(&master, &wrapped, CLUSTER).unwrap_err();
    assert!(error.to_string().contains("not the master key"), "{error}");
}
