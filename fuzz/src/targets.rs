//! What is fuzzed, one file each.

pub mod blockd_admin;
pub mod blockd_config;
pub mod blockd_pool;
pub mod checkpoint;
pub mod chunk_format;
pub mod chunk_store;
pub mod credentials;
pub mod fsd_config;
pub mod fuse_requests;
pub mod ipc_handshake;
pub mod ipc_queue;
pub mod log_directory;
pub mod log_segment;
/// The cluster in memory that the tests of the package `fuse` mount.
#[allow(dead_code, unreachable_pub, reason = "those tests use all of it")]
#[path = "../../fuse/tests/it/memory.rs"]
mod memory;
pub mod meta_commands;
pub mod meta_store;
pub mod nvmet_pdus;
pub mod nvmet_session;
pub mod records;
pub mod rpc_frame;
pub mod rpc_messages;
pub mod token;

use tempfile::TempDir;

/// A parser with its inputs.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// As its file, and its folder in `regressions/`.
    pub name: &'static str,
    /// Panics if what must hold does not.
    pub run: fn(&[u8]),
    /// Valid inputs, small.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that the format knows.
    pub dictionary: &'static [&'static [u8]],
    /// One input takes about as long as this many of the quickest target.
    pub cost: u64,
}

macro_rules! target {
    ($name:ident, $cost:expr) => {
        Target {
            name: stringify!($name),
            run: $name::target,
            seeds: $name::seeds,
            dictionary: $name::DICTIONARY,
            cost: $cost,
        }
    };
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target!(blockd_admin, 20),
    target!(blockd_config, 2),
    target!(blockd_pool, 20),
    target!(checkpoint, 1),
    target!(chunk_format, 2),
    target!(chunk_store, 40),
    target!(credentials, 20),
    target!(fsd_config, 4),
    target!(fuse_requests, 40),
    target!(ipc_handshake, 1),
    target!(ipc_queue, 1),
    target!(log_directory, 10),
    target!(log_segment, 1),
    target!(meta_commands, 20),
    target!(meta_store, 20),
    target!(nvmet_pdus, 2),
    target!(nvmet_session, 20),
    target!(records, 1),
    target!(rpc_frame, 1),
    target!(rpc_messages, 1),
    target!(token, 1),
];

fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Writes the checksum of `bytes[range]` at `at`, where both lie inside.
fn put_crc(bytes: &mut [u8], range: std::ops::Range<usize>, at: usize) {
    if let Some(sum) = bytes.get(range).map(crc32c)
        && let Some(place) = bytes.get_mut(at..at + 4)
    {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// `bytes`, or zeros after them, in a given length.
fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut padded = bytes[..len.min(bytes.len())].to_vec();
    padded.resize(len, 0);
    padded
}

/// The first byte says whether checksums are put right; the rest.
fn with_mode(bytes: &[u8]) -> (bool, &[u8]) {
    bytes.split_first().map_or((false, bytes), |(mode, rest)| (mode & 1 == 1, rest))
}

/// Seeds as they are, and to be put right.
fn in_both_modes(seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    [0, 1].iter().flat_map(|mode| seeds.iter().map(|seed| [&[*mode][..], seed].concat())).collect()
}

/// A directory in memory if there is one: replacing a small file waits for the disk on some file systems.
fn temp_dir() -> TempDir {
    TempDir::with_prefix_in("fuzz-", "/dev/shm")
        .or_else(|_| TempDir::with_prefix("fuzz-"))
        .expect("a directory for temporary files")
}

thread_local! {
    static SCRATCH: TempDir = temp_dir();
}

/// Runs with a directory that is this thread's.
fn with_scratch<T>(work: impl FnOnce(&std::path::Path) -> T) -> T {
    SCRATCH.with(|dir| work(dir.path()))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap().block_on(future)
}
