//! Compression of a chunk: kept only when it saves at least a sixteenth.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::seal::TAG;

pub const RAW: u8 = 0;
pub const ZSTD: u8 = 1;

/// Chunks shorter than four of the short probes are tried as a whole.
const SHORT_PROBE: usize = 1 << 10;
const LONG_PROBE: usize = 4 << 10;
/// Chunks shorter than this are stored as they are.
const SHORTEST: usize = 64;

thread_local! {
    // A context is hundreds of KiB to set up: one a thread, not one a chunk.
    static PACK: RefCell<Option<Compressor<'static>>> = RefCell::new(Compressor::new(1).ok());
    static UNPACK: RefCell<Option<Decompressor<'static>>> = RefCell::new(Decompressor::new().ok());
}

/// Whether two samples promise nothing: a tenth of the price of trying the whole in vain.
fn is_hopeless(plain: &[u8]) -> bool {
    let probe = if plain.len() < 4 * LONG_PROBE { SHORT_PROBE } else { LONG_PROBE };
    plain.len() >= 4 * probe
        && [plain.len() / 4, plain.len() / 2].into_iter().all(|at| {
            let sample = &plain[at..at + probe];
            // The price of lz4 is paid for nothing but what may well be random.
            is_flat(sample) && lz4_flex::block::compress(sample).len() > probe - probe / 16
        })
}

/// Whether all bytes are about as frequent as each other, so that no entropy coder can save a
/// sixteenth: the collision entropy, which is not above Shannon's, exceeds 7.4 bits of 8.
fn is_flat(sample: &[u8]) -> bool {
    /// 2^7.4.
    const VALUES: usize = 169;
    // Two tables, for equal bytes in a row wait for each other in one.
    let mut counts = [[0u32; 256]; 2];
    for two in sample.chunks_exact(2) {
        counts[0][usize::from(two[0])] += 1;
        counts[1][usize::from(two[1])] += 1;
    }
    let mut collisions = 0;
    for (one, other) in counts[0].iter().zip(&counts[1]) {
        let count = (one + other) as usize;
        collisions += count * count;
    }
    collisions * VALUES < sample.len() * sample.len()
}

/// The codec and the bytes to store, with room for the tag.
pub fn compress(plain: &[u8]) -> (u8, Vec<u8>) {
    let most = plain.len() - plain.len() / 16;
    let mut out = Vec::with_capacity(plain.len() + TAG);
    if plain.len() >= SHORTEST && !is_hopeless(plain) {
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

#[cfg(test)]
mod tests;
