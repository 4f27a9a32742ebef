//! Compression of a chunk: kept only when it saves at least a sixteenth.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::seal::TAG;

pub const RAW: u8 = 0;
pub const ZSTD: u8 = 1;

/// Bytes of each probe; below four of them the whole chunk is tried.
const PROBE: usize = 4096;
/// Chunks shorter than this are stored as they are.
const SHORTEST: usize = 64;

thread_local! {
    // A context is hundreds of KiB to set up: one a thread, not one a chunk.
    static PACK: RefCell<Option<Compressor<'static>>> = RefCell::new(Compressor::new(1).ok());
    static UNPACK: RefCell<Option<Decompressor<'static>>> = RefCell::new(Decompressor::new().ok());
}

/// Whether lz4 finds nothing in two samples: a tenth of the price of trying the whole in vain.
fn hopeless(plain: &[u8]) -> bool {
    plain.len() >= 4 * PROBE
        && [plain.len() / 4, plain.len() / 2]
            .into_iter()
            .all(|at| lz4_flex::block::compress(&plain[at..at + PROBE]).len() > PROBE - PROBE / 16)
}

/// The codec and the bytes to store, with room for the tag.
pub fn compress(plain: &[u8]) -> (u8, Vec<u8>) {
    let most = plain.len() - plain.len() / 16;
    let mut out = Vec::with_capacity(plain.len() + TAG);
    if plain.len() >= SHORTEST && !hopeless(plain) {
        let packed = PACK.with_borrow_mut(|zstd| {
            zstd.as_mut().and_then(|zstd| zstd.compress_to_buffer(plain, &mut out).ok())
        });
        if packed.is_some_and(|len| len <= most) {
            return (ZSTD, out);
        }
    }
    out.clear();
    out.extend_from_slice(plain);
    (RAW, out)
}

/// The plaintext, if the codec is known and it is exactly `plain_len` bytes long.
pub fn decompress(codec: u8, stored: Vec<u8>, plain_len: usize) -> Option<Vec<u8>> {
    let plain = match codec {
        RAW => stored,
        ZSTD => {
            UNPACK.with_borrow_mut(|zstd| zstd.as_mut()?.decompress(&stored, plain_len).ok())?
        }
        _ => return None,
    };
    (plain.len() == plain_len).then_some(plain)
}
