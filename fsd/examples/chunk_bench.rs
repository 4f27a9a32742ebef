//! How much of what the cores can hash and seal does the chunk store deliver, and where does the
//! rest of the time go? The volume is RAM, so the device costs one copy and no wait.
//!
//! Printed for each kind of chunk and number of putters: MB/s by the clock; CPU time for each MB; MB
//! for each second of CPU time as a ratio to BLAKE3 and to AES-256-GCM over the same chunks in the
//! same run; and what the parts of a put (hash, compression, sealing, checksum, copies: three of
//! them with the device's) cost by themselves. CPU time, since machines are shared.
//!
//!     cargo run -p fsd --example chunk_bench -- [MiB per case, 128] [part of a name]
#![forbid(unsafe_code)]
#![allow(clippy::cast_precision_loss, clippy::unwrap_used, reason = "a benchmark that may panic")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use blockd_ipc::volume::{Geometry, Volume};
use bytes::Bytes;
use fsd::chunks::{ChunkStore, FormatParams, Keys, OpenParams};
use hugepages::{Arena, Buffer, Pool};
use parking_lot::RwLock;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use uuid::Uuid;

const BLOCK: usize = 4096;
const STRIPE: usize = 256 << 10;
const SHARDS: u32 = 16;
/// Plain bytes of one put.
const PUT_BYTES: usize = 1 << 20;

/// RAM in stripes, each behind a lock of its own; buffers come out of a pool as the real ones do.
#[derive(Clone)]
struct RamVolume {
    stripes: Arc<Vec<RwLock<Box<[u8]>>>>,
    pool: Arc<Pool>,
    freed: Arc<Notify>,
}

impl RamVolume {
    fn new(bytes: usize) -> RamVolume {
        let stripe = |_| RwLock::new(vec![1; STRIPE].into_boxed_slice());
        let freed = Arc::new(Notify::new());
        let wake = Arc::clone(&freed);
        let arena = Arc::new(Arena::new(64 << 20).unwrap());
        let pool = Pool::new(arena, 0, move || wake.notify_waiters());
        let stripes = Arc::new((0..bytes / STRIPE).map(stripe).collect());
        RamVolume { stripes, pool, freed }
    }

    /// Where the pieces of a range lie: stripe, offset in it, offset in the buffer, length.
    fn pieces(lba: u64, len: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let start = lba as usize * BLOCK;
        let mut at = 0;
        std::iter::from_fn(move || {
            let offset = (start + at) % STRIPE;
            let piece = (STRIPE - offset).min(len - at);
            let found = (piece > 0).then_some(((start + at) / STRIPE, offset, at, piece));
            at += piece;
            found
        })
    }
}

impl Volume for RamVolume {
    fn geometry(&self) -> Geometry {
        let blocks = (self.stripes.len() * STRIPE / BLOCK) as u64;
        Geometry { block_size: BLOCK as u32, blocks, transfer_bytes_max: 1 << 20 }
    }

    async fn buffer(&self, len: usize) -> Result<Buffer, blockd_ipc::Error> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(buffer) = self.pool.take(len) {
                return Ok(buffer);
            }
            freed.await;
        }
    }

    async fn read(&self, lba: u64, mut buffer: Buffer) -> Result<Buffer, blockd_ipc::Error> {
        for (stripe, from, to, len) in RamVolume::pieces(lba, buffer.len()) {
            buffer[to..to + len].copy_from_slice(&self.stripes[stripe].read()[from..from + len]);
        }
        Ok(buffer)
    }

    async fn write(&self, lba: u64, buffer: Buffer, _: bool) -> Result<Buffer, blockd_ipc::Error> {
        for (stripe, to, from, len) in RamVolume::pieces(lba, buffer.len()) {
            self.stripes[stripe].write()[to..to + len].copy_from_slice(&buffer[from..from + len]);
        }
        Ok(buffer)
    }

    async fn flush(&self) -> Result<(), blockd_ipc::Error> {
        Ok(())
    }

    async fn deallocate(&self, _: u64, _: u64) -> Result<(), blockd_ipc::Error> {
        Ok(())
    }
}

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
    }
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    chunk_bytes: usize,
    text: bool,
}

/// Chunks that nothing compresses, or text of words of which few are common.
fn chunks(case: Case, bytes: usize) -> Vec<(ChunkHash, Bytes)> {
    let mut dice = Dice(bytes as u64 + case.chunk_bytes as u64);
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| (0..3 + dice.next() % 7).map(|_| b'a' + (dice.next() >> 40) as u8 % 26).collect())
        .collect();
    let mut make = || {
        let mut out = Vec::with_capacity(case.chunk_bytes + 16);
        while out.len() < case.chunk_bytes {
            if case.text {
                let common = (dice.next() % 4000) * (dice.next() % 4000) / 4000;
                out.extend_from_slice(&words[common as usize]);
                out.push(b' ');
            } else {
                out.extend_from_slice(&dice.next().to_le_bytes());
            }
        }
        out.truncate(case.chunk_bytes);
        (ChunkHash(*blake3::hash(&out).as_bytes()), Bytes::from(out))
    };
    (0..bytes / case.chunk_bytes).map(|_| make()).collect()
}

/// CPU time, in µs for each MB, of doing `work` to each chunk.
fn cost(chunks: &[(ChunkHash, Bytes)], mut work: impl FnMut(&[u8])) -> f64 {
    let mut bytes = 0;
    let start = cpu();
    for (_, plain) in chunks.iter().cycle() {
        work(plain);
        bytes += plain.len();
        if bytes % (1 << 20) < plain.len() && cpu() - start > Duration::from_millis(200) {
            break;
        }
    }
    (cpu() - start).as_secs_f64() * 1e12 / bytes as f64
}

/// What the parts of a put cost by themselves, in µs for each MB.
struct Parts {
    hash: f64,
    seal: f64,
    compress: f64,
    checksum: f64,
    copy: f64,
}

fn parts(chunks: &[(ChunkHash, Bytes)], text: bool) -> Parts {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
    let mut body = Vec::with_capacity(1 << 20);
    let copy = cost(chunks, |plain| {
        body.clear();
        body.extend_from_slice(plain);
        black_box(&mut body);
    });
    let seal = cost(chunks, |plain| {
        // In place again and again: what it seals does not matter to it.
        body.resize(plain.len(), 1);
        let nonce = Nonce::assume_unique_for_key([3; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut body).unwrap();
        black_box(tag.as_ref());
    });
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let compress = cost(chunks, |plain| {
        // Of what does not compress the store tries two samples.
        if text {
            body.clear();
            body.reserve(zstd::zstd_safe::compress_bound(plain.len()));
            black_box(zstd.compress_to_buffer(plain, &mut body).unwrap());
        } else {
            let probe = if plain.len() < 16 << 10 { 1 << 10 } else { 4 << 10 };
            black_box(lz4_flex::block::compress(&plain[..probe]));
            black_box(lz4_flex::block::compress(&plain[probe..2 * probe]));
        }
    });
    Parts {
        hash: cost(chunks, |plain| {
            black_box(blake3::hash(plain));
        }),
        seal,
        compress,
        checksum: cost(chunks, |plain| {
            black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, plain));
        }),
        copy,
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

struct Measured {
    mb_per_s: f64,
    cpu_us_per_mb: f64,
}

async fn measured(bytes: usize, work: impl Future<Output = ()>) -> Measured {
    let (start, cpu_start) = (Instant::now(), cpu());
    work.await;
    let (wall, used) = (start.elapsed(), cpu() - cpu_start);
    let mb = bytes as f64 / 1e6;
    Measured { mb_per_s: mb / wall.as_secs_f64(), cpu_us_per_mb: used.as_secs_f64() * 1e6 / mb }
}

async fn put_all(store: &ChunkStore<RamVolume>, chunks: &[(ChunkHash, Bytes)], putters: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for mine in chunks.chunks(chunks.len().div_ceil(putters)) {
        let (store, mine) = (store.clone(), mine.to_vec());
        tasks.spawn(async move {
            let many = PUT_BYTES / mine[0].1.len();
            for put in mine.chunks(many) {
                store.put(put.to_vec()).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn get_all(store: &ChunkStore<RamVolume>, chunks: &[(ChunkHash, Bytes)], at_once: usize) {
    let names: Vec<_> = chunks.iter().map(|chunk| chunk.0).collect();
    for names in names.chunks(at_once) {
        for got in store.get_many(names).await {
            black_box(got.unwrap());
        }
    }
}

fn params() -> OpenParams {
    OpenParams { cluster_uuid: Uuid::from_u128(1), keys: Keys::new(1, &[1; 32]), epochs: vec![] }
}

async fn empty(store: &ChunkStore<RamVolume>) {
    for shard in (0..SHARDS as u16).map(ShardId) {
        let epoch = Epoch(store.shard_epoch(shard).0 + 1);
        store.delete(shard, epoch, &store.iter_hashes(Some(shard))).await.unwrap();
    }
}

async fn run(case: Case, bytes: usize, volume: &RamVolume) {
    let chunks = chunks(case, bytes);
    let Parts { hash, seal, compress, checksum, copy } = parts(&chunks, case.text);
    println!(
        "\n{} (µs for each MB: hash {hash:.0}, compression {compress:.0}, sealing {seal:.0}, \
              checksum {checksum:.0}, a copy {copy:.0})",
        case.name
    );
    let format = FormatParams {
        cluster_uuid: Uuid::from_u128(1),
        shard_count: SHARDS,
        segment_bytes: 2 << 20,
    };
    ChunkStore::format(volume, format).await.unwrap();
    let store = ChunkStore::open(volume.clone(), params()).await.unwrap();
    for putters in [1, 4, 16] {
        empty(&store).await;
        let put = measured(bytes, put_all(&store, &chunks, putters)).await;
        let used = put.cpu_us_per_mb;
        println!(
            "  put, {putters:2} putters   {:6.0} MB/s   {used:5.0} µs CPU a MB   {:.2} of blake3   \
             {:.2} of gcm",
            put.mb_per_s,
            hash / used,
            seal / used,
        );
    }
    let stored = store.usage().live;
    println!("  stored {:.2} of plain", stored as f64 / bytes as f64);
    let hit = measured(bytes, put_all(&store, &chunks, 1)).await;
    println!("  put again       {:8.0} MB/s", hit.mb_per_s);
    for at_once in [1, 16] {
        let got = measured(bytes, get_all(&store, &chunks, at_once)).await;
        println!(
            "  get, {at_once:2} at once   {:6.0} MB/s   {:5.0} µs CPU a MB   {:.2} of gcm",
            got.mb_per_s,
            got.cpu_us_per_mb,
            seal / got.cpu_us_per_mb,
        );
    }
    let start = Instant::now();
    let again = ChunkStore::open(volume.clone(), params()).await.unwrap();
    let usage = again.usage();
    println!(
        "  open: {} chunks in {} segments in {:.1} ms",
        usage.chunks,
        usage.segments_closed,
        start.elapsed().as_secs_f64() * 1e3
    );
}

#[tokio::main]
async fn main() {
    let mib: usize = std::env::args().nth(1).map_or(128, |mib| mib.parse().expect("MiB"));
    let bytes = mib << 20;
    let volume = RamVolume::new(bytes * 2 + (256 << 20));
    println!("{mib} MiB each, {SHARDS} shards, puts of 1 MiB, {:?} cores", {
        std::thread::available_parallelism().map(usize::from).unwrap_or(1)
    });
    let cases = [
        Case { name: "64 KiB incompressible", chunk_bytes: 64 << 10, text: false },
        Case { name: "64 KiB text", chunk_bytes: 64 << 10, text: true },
        Case { name: "4 KiB incompressible", chunk_bytes: 4 << 10, text: false },
        Case { name: "4 KiB text", chunk_bytes: 4 << 10, text: true },
    ];
    let only = std::env::args().nth(2).unwrap_or_default();
    for case in cases.into_iter().filter(|case| case.name.contains(&only)) {
        run(case, bytes, &volume).await;
    }
}
