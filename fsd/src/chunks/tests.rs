use blockd_ipc::SimVolume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch};
use uuid::Uuid;

use super::*;

mod crash;
mod faults;
mod formats;
mod orders;
mod replicas;
mod site;
mod space;
mod tally;
mod together;

const CLUSTER: Uuid = Uuid::from_u128(7);

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chunk(&mut self, len: usize) -> (ChunkHash, Bytes) {
        let bytes: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
        named(bytes)
    }
}

fn named(bytes: Vec<u8>) -> (ChunkHash, Bytes) {
    (ChunkHash(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

/// A number of rounds that the environment may raise, for long runs.
fn rounds(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

async fn open(volume: SimVolume) -> ChunkStore<SimVolume> {
    let keys = Keys::new(1, &[9; 32]);
    let params = OpenParams { cluster_uuid: CLUSTER, keys, epochs: vec![] };
    ChunkStore::open(volume, params).await.unwrap()
}

async fn fresh(slots: u64) -> (SimVolume, ChunkStore<SimVolume>) {
    fresh_of(4096, slots).await
}

async fn fresh_of(block_size: u32, slots: u64) -> (SimVolume, ChunkStore<SimVolume>) {
    let blocks = (16 + slots * 16) * (4096 / u64::from(block_size));
    let volume = SimVolume::new(block_size, blocks);
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
    let volume = SimVolume::new(4096, 400);
    for (shard_count, segment_bytes) in [(3, 64 << 10), (2, 1000), (2, 128 << 20), (16, 64 << 10)] {
        let params = FormatParams { cluster_uuid: CLUSTER, shard_count, segment_bytes };
        let error = ChunkStore::format(&volume, params).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
    }
    let (volume, store) = fresh(20).await;
    let long = Dice(1).chunk((64 << 10) - 3 * 4096 + 1);
    assert_eq!(store.put(vec![long]).await.unwrap_err().kind(), Kind::Invalid);
    let longest = Dice(1).chunk((64 << 10) - 3 * 4096);
    store.put(vec![longest.clone()]).await.unwrap();
    assert_eq!(store.get(&longest.0).await.unwrap(), longest.1);
    let foreign = store.delete(ShardId(2), Epoch(1), &[]).await.unwrap_err();
    assert_eq!(foreign.kind(), Kind::Invalid);
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
    let at = store.inner.index.lock().table.get(&chunk.0).unwrap();
    let start = store.inner.device.slot_start(at.slot) as usize + at.offset as usize;
    for byte in (0..format::RECORD_HEADER + 9000).step_by(37) {
        let (lba, offset) = ((start + byte) as u64 / 4096, (start + byte) % 4096);
        let mask = 1 << (dice.next() % 8);
        volume.corrupt(lba, offset, mask);
        assert_eq!(store.get(&chunk.0).await.unwrap_err().kind(), Kind::Damaged, "byte {byte}");
        volume.corrupt(lba, offset, mask);
    }
    store.put(vec![chunk.clone()]).await.unwrap();
    assert_ne!(store.inner.index.lock().table.get(&chunk.0).unwrap(), at);
    assert_eq!(store.get(&chunk.0).await.unwrap(), chunk.1);
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
    let mut newer = std::fs::read(&wrapped).unwrap();
    newer[7] = b'2';
    std::fs::write(&wrapped, newer).unwrap();
    let error = Keys::load(&master, &wrapped, CLUSTER).unwrap_err().to_string();
    assert!(error.contains("wrapped") && error.contains("format 2 is newer than 1"), "{error}");
}
