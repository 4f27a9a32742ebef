//! A chunk store on a volume whose blocks were altered. It opens or refuses; a chunk that it gives is the one
//! that was put, and it takes new ones.

use std::sync::OnceLock;

use blockd_ipc::{SimVolume, Volume};
use bytes::Bytes;
use fsd::chunks::fuzz::{BLOCK, SLOTS_START};
use fsd::chunks::{ChunkStore, FormatParams, Keys, OpenParams};
use raftmeta_types::{ChunkHash, Epoch};
use uuid::Uuid;

use super::{block_on, chunk_format, crc32c};
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = chunk_format::DICTIONARY;

const CLUSTER: Uuid = Uuid::from_u128(7);
const SEGMENT_BYTES: u32 = 64 << 10;
const SLOTS: u64 = 12;
const BLOCKS: u64 = 16 + SLOTS * 16;
/// Most blocks that one input alters.
const CHANGES_MAX: usize = 32;

fn chunk(n: usize) -> (ChunkHash, Bytes) {
    let bytes: Vec<u8> = (0..n * 700).map(|at| (at * n / 7) as u8).collect();
    (ChunkHash(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

fn chunks() -> impl Iterator<Item = (ChunkHash, Bytes)> {
    (1..24).map(chunk)
}

fn params(epochs: Vec<(raftmeta_types::ShardId, Epoch)>) -> OpenParams {
    OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs }
}

/// A store with chunks in it, open segments and closed ones.
fn volume() -> &'static SimVolume {
    static VOLUME: OnceLock<SimVolume> = OnceLock::new();
    VOLUME.get_or_init(|| {
        block_on(async {
            let volume = SimVolume::new(BLOCK as u32, BLOCKS);
            let format = FormatParams {
                cluster_uuid: CLUSTER,
                shard_count: 2,
                segment_bytes: SEGMENT_BYTES,
            };
            ChunkStore::format(&volume, format).await.unwrap();
            let store = ChunkStore::open(volume.clone(), params(vec![])).await.unwrap();
            for chunk in chunks() {
                store.put(vec![chunk]).await.unwrap();
            }
            volume.reopen()
        })
    })
}

/// Changes: block, kind, where and what.
pub fn seeds() -> Vec<Vec<u8>> {
    let slot = (SLOTS_START as usize / BLOCK) as u8;
    let mut seeds = vec![Vec::new()];
    // A byte of either header of the volume, of segments, of records and of footers.
    for (block, at) in
        [(0, 20), (1, 50), (slot, 33), (slot + 1, 60), (slot + 15, 4080), (slot + 16, 9)]
    {
        for kind in 0..3 {
            let at = u16::to_le_bytes(at);
            seeds.push(vec![block, kind, at[0], at[1], 0x81, 0x82, 0x83, 0x84]);
        }
    }
    seeds
}

/// Puts right what the block looks like.
fn mend(block: &mut [u8]) {
    let sum = |block: &[u8], end| crc32c(&[&block[..12], &block[16..end]].concat()).to_le_bytes();
    if block.starts_with(b"CFSCHUNK") {
        let sum = sum(block, 512);
        block[12..16].copy_from_slice(&sum);
    } else if block.starts_with(b"CFSSEGMT") {
        let sum = sum(block, 64);
        block[12..16].copy_from_slice(&sum);
    } else if block.starts_with(b"CFRC") {
        let sum = crc32c(&block[8..80]).to_le_bytes();
        block[4..8].copy_from_slice(&sum);
    }
}

async fn change(volume: &SimVolume, cursor: &mut Cursor<'_>) {
    let (lba, kind) = (u64::from(cursor.u8()) % BLOCKS, cursor.u8());
    let at = usize::from(cursor.u16()) % BLOCK;
    let with: [u8; 4] = cursor.array();
    let mut buffer = volume.buffer(BLOCK).await.unwrap();
    buffer.set_len(BLOCK);
    let mut buffer = volume.read(lba, buffer).await.unwrap();
    match kind % 4 {
        0 | 1 => buffer[at..].iter_mut().zip(with).for_each(|(byte, with)| *byte = with),
        2 => buffer[at] ^= with[0] | 1,
        _ => buffer[at..].fill(with[0]),
    }
    if kind % 4 != 0 {
        mend(&mut buffer);
    }
    volume.write(lba, buffer, true).await.unwrap();
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let volume = volume().fork();
    block_on(async move {
        for _ in 0..CHANGES_MAX {
            if cursor.is_empty() {
                break;
            }
            change(&volume, &mut cursor).await;
        }
        let Ok(store) = ChunkStore::open(volume, params(vec![])).await else { return };
        for (hash, bytes) in chunks() {
            if let Ok(got) = store.get(&hash).await {
                assert_eq!(got, bytes, "other bytes than were put");
            }
        }
        let usage = store.usage();
        assert!(usage.used <= usage.total && usage.live <= usage.total, "{usage:?}");
        let new = chunk(40);
        if store.put(vec![new.clone()]).await.is_ok() {
            assert_eq!(store.get(&new.0).await.unwrap(), new.1);
        }
    });
}
