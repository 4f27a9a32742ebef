//! Compression of a chunk: kept only when it saves at least a sixteenth.

use std::borrow::Cow;

pub const RAW: u8 = 0;
pub const ZSTD: u8 = 1;

/// Bytes of each probe; below four of them the whole chunk is tried.
const PROBE: usize = 4096;

/// Whether lz4 finds anything in two samples: a tenth of the price of trying the whole in vain.
fn hopeless(plain: &[u8]) -> bool {
    plain.len() >= 4 * PROBE
        && [plain.len() / 4, plain.len() / 2]
            .into_iter()
            .all(|at| lz4_flex::block::compress(&plain[at..at + PROBE]).len() > PROBE - PROBE / 16)
}

/// The codec and the bytes to store.
pub fn compress(plain: &[u8]) -> (u8, Cow<'_, [u8]>) {
    if plain.len() >= 64
        && !hopeless(plain)
        && let Ok(packed) = zstd::bulk::compress(plain, 1)
        && packed.len() <= plain.len() - plain.len() / 16
    {
        return (ZSTD, packed.into());
    }
    (RAW, plain.into())
}

/// The plaintext, if the codec is known and it is exactly `plain_len` bytes long.
pub fn decompress(codec: u8, stored: Vec<u8>, plain_len: usize) -> Option<Vec<u8>> {
    let plain = match codec {
        RAW => stored,
        ZSTD => zstd::bulk::decompress(&stored, plain_len).ok()?,
        _ => return None,
    };
    (plain.len() == plain_len).then_some(plain)
}
