//! How dirty bytes are cut: what travels inline, what becomes chunks, what goes into one command and
//! what into one put.

use bytes::Bytes;
use fastcdc::v2020::FastCDC;
use fsd_rpc::message::Limits;
use raftmeta_types::command::NewExtent;
use raftmeta_types::{CHUNK_MAX, ChunkHash, Epoch, ExtentData, INLINE_WRITE_MAX};

use crate::buffer::Dirty;

/// Extents of one command.
const EXTENTS_MAX: usize = 1024;
/// Bytes of the file that one command commits.
const COMMAND_BYTES_MAX: usize = 16 << 20;
/// A range this small stays inline even in a large flush: it would do so in the end anyway.
const INLINE_PIECE_MAX: usize = 512;

/// Dirty bytes that become one extent.
pub(super) struct Piece<'a> {
    pub(super) offset: u64,
    pub(super) data: &'a [u8],
    /// Travels in the command itself; the name and receipt of a chunk mean nothing then.
    pub(super) inline: bool,
    pub(super) hash: ChunkHash,
    pub(super) receipt: Epoch,
}

impl<'a> Piece<'a> {
    fn new(offset: u64, data: &'a [u8], inline: bool) -> Piece<'a> {
        Piece { offset, data, inline, hash: ChunkHash([0; 32]), receipt: Epoch(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    pub(super) fn extent(&self) -> NewExtent {
        NewExtent {
            offset: self.offset,
            len: self.data.len() as u32,
            data: match self.inline {
                true => ExtentData::Inline(Bytes::copy_from_slice(self.data)),
                false => ExtentData::Chunk { hash: self.hash, chunk_offset: 0 },
            },
            receipt: self.receipt,
        }
    }
}

/// Cuts dirty bytes into pieces. With `more` to come the last chunk of the last range stays out, if it
/// is not the only one: its end is where the bytes end, not where their content says.
pub(super) fn cut<'a>(
    dirty: &'a Dirty,
    limits: &Limits,
    more: bool,
) -> (Vec<Piece<'a>>, Option<(u64, &'a [u8])>) {
    let inline_max = (limits.inline_max as usize).min(INLINE_WRITE_MAX);
    let inline = dirty.bytes() <= inline_max;
    let mut pieces = Vec::new();
    let mut last_range = 0;
    for (offset, data) in dirty.ranges() {
        last_range = pieces.len();
        if inline || data.len() <= INLINE_PIECE_MAX {
            pieces.push(Piece::new(offset, data, true));
        } else {
            let chunk = |range: std::ops::Range<usize>| {
                Piece::new(offset + range.start as u64, &data[range], false)
            };
            pieces.extend(chunks(data, limits).map(chunk));
        }
    }
    let tail = (more && pieces.len() > last_range + 1).then(|| pieces.pop()).flatten();
    (pieces, tail.map(|piece| (piece.offset, piece.data)))
}

/// Cuts by content, so that the same bytes make the same chunks wherever they stand.
fn chunks(data: &[u8], limits: &Limits) -> impl Iterator<Item = std::ops::Range<usize>> {
    // The bounds of the algorithm itself, should a server ask for anything odd.
    let max = limits.chunk_max.clamp(1024, CHUNK_MAX as u32);
    let avg = limits.chunk_avg.clamp(256, max);
    let min = limits.chunk_min.clamp(64, avg);
    FastCDC::new(data, min as _, avg as _, max as _)
        .map(|chunk| chunk.offset..chunk.offset + chunk.length)
}

/// How many of the pieces go into the next command.
pub(super) fn command_len(pieces: &[Piece<'_>]) -> usize {
    let (mut bytes, mut inline) = (0, 0);
    let fits = |piece: &&Piece<'_>| {
        bytes += piece.data.len();
        inline += if piece.inline { piece.data.len() } else { 0 };
        bytes <= COMMAND_BYTES_MAX && inline <= INLINE_WRITE_MAX
    };
    let fit = pieces.iter().take(EXTENTS_MAX).take_while(fits).count();
    fit.max(1).min(pieces.len())
}

/// Groups pieces into requests of at most `bytes_max` (or one piece).
pub(super) fn batches<'p, 'a>(
    pieces: Vec<&'p mut Piece<'a>>,
    bytes_max: usize,
) -> Vec<Vec<&'p mut Piece<'a>>> {
    let mut batches: Vec<Vec<&mut Piece<'_>>> = Vec::new();
    let mut bytes = usize::MAX;
    for piece in pieces {
        let len = piece.data.len();
        if bytes.saturating_add(len) > bytes_max {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += len;
        if let Some(batch) = batches.last_mut() {
            batch.push(piece);
        }
    }
    batches
}
