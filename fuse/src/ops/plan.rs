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

/// A range of dirty bytes.
pub(super) type Part<'a> = (u64, &'a [u8]);

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

/// Whether all of it travels in one command.
pub(super) fn is_inline(dirty: &Dirty, limits: &Limits) -> bool {
    dirty.bytes() <= (limits.inline_max as usize).min(INLINE_WRITE_MAX)
}

/// All of it, to travel in one command.
pub(super) fn inline(dirty: &Dirty) -> Vec<Piece<'_>> {
    dirty.ranges().map(|(offset, data)| Piece::new(offset, data, true)).collect()
}

/// Cuts dirty bytes by content, so that the same bytes make the same chunks wherever they stand; a piece at
/// a time, for the first are on their way while the last are being cut.
pub(super) struct Cutter<'a> {
    ranges: std::vec::IntoIter<Part<'a>>,
    range: Option<(Part<'a>, FastCDC<'a>)>,
    /// Least, average and largest chunk.
    sizes: [u32; 3],
    more: bool,
    tail: Option<Part<'a>>,
}

impl<'a> Cutter<'a> {
    /// With `more` to come the last chunk of the last range stays out, if it is not the only one: its end is
    /// where the bytes end, not where their content says.
    pub(super) fn new(dirty: &'a Dirty, limits: &Limits, more: bool) -> Cutter<'a> {
        // The bounds of the algorithm itself, should a server ask for anything odd.
        let max = limits.chunk_max.clamp(1024, CHUNK_MAX as u32);
        let avg = limits.chunk_avg.clamp(256, max);
        let sizes = [limits.chunk_min.clamp(64, avg), avg, max];
        let ranges = dirty.ranges().collect::<Vec<_>>().into_iter();
        Cutter { ranges, range: None, sizes, more, tail: None }
    }

    /// What stayed out, at the end.
    pub(super) fn tail(self) -> Option<Part<'a>> {
        self.tail
    }

    /// The next pieces, about `bytes` of them. Empty at the end.
    pub(super) fn batch(&mut self, bytes: usize) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut left = bytes;
        while left > 0
            && let Some(piece) = self.piece()
        {
            left = left.saturating_sub(piece.len());
            pieces.push(piece);
        }
        pieces
    }

    fn piece(&mut self) -> Option<Piece<'a>> {
        loop {
            if let Some(((offset, data), chunks)) = &mut self.range {
                let Some(chunk) = chunks.next() else {
                    self.range = None;
                    continue;
                };
                let (start, end) = (chunk.offset, chunk.offset + chunk.length);
                let piece = Piece::new(*offset + start as u64, &data[start..end], false);
                let last = end == data.len() && self.ranges.as_slice().is_empty();
                if last && self.more && start > 0 {
                    self.tail = Some((piece.offset, piece.data));
                    self.range = None;
                    return None;
                }
                return Some(piece);
            }
            let (offset, data) = self.ranges.next()?;
            if data.len() <= INLINE_PIECE_MAX {
                return Some(Piece::new(offset, data, true));
            }
            let [min, avg, max] = self.sizes;
            let chunks = FastCDC::new(data, min as _, avg as _, max as _);
            self.range = Some(((offset, data), chunks));
        }
    }
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
