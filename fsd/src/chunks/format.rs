//! Bytes on the volume; drawn in `docs/formats/segment.md`. Everything is little-endian.
//!
//! ```text
//! 0        4 KiB    64 KiB
//! header A header B slot 0 | slot 1 | …      slot: header 4 KiB, batches of records, … , footer
//! ```

use raftmeta_types::{ChunkHash, Epoch, ShardId};
use uuid::Uuid;

use super::replicate::SegmentNumber;

/// Unit of every write; batches are padded to it.
pub const BLOCK: usize = 4096;
/// Where the first slot begins.
pub const SLOTS_START: u64 = 64 << 10;
/// 2: segments are named by shard and number, so that those of all replicas are the same bytes.
pub const VERSION: u32 = 2;
pub const RECORD_HEADER: usize = 80;
/// Records start at multiples of this, so that a scan finds its way after damage.
pub const RECORD_ALIGN: usize = 16;
pub const FOOTER_ENTRY: usize = 48;
pub const FOOTER_TRAILER: usize = 32;
/// Bits of a segment number that count; above them stands the epoch of the shard under which a primary began
/// the segment. So no two primaries ever give the same number, whatever they know of each other.
const COUNT_BITS: u32 = 38;
/// Highest epoch of a shard: one change a second reaches it after half a year of nothing else.
pub const EPOCH_MAX: Epoch = Epoch((1 << 24) - 1);
/// Highest segment number. What names a higher one is damaged.
pub const NUMBER_MAX: SegmentNumber = SegmentNumber((1 << 62) - 1);

/// The number before the first one of an epoch.
pub fn before_epoch(epoch: Epoch) -> SegmentNumber {
    SegmentNumber(epoch.0 << COUNT_BITS)
}

/// The epoch under which the segment was begun.
pub fn epoch_of(number: SegmentNumber) -> Epoch {
    Epoch(number.0 >> COUNT_BITS)
}

/// Which segment. The same on every replica of the shard, wherever it lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    pub shard: ShardId,
    pub number: SegmentNumber,
}

const VOLUME_MAGIC: &[u8; 8] = b"CFSCHUNK";
const SEGMENT_MAGIC: &[u8; 8] = b"CFSSEGMT";
const RECORD_MAGIC: u32 = 0x4352_4643;
const FOOTER_MAGIC: u32 = 0x5446_4643;

/// The start of a volume, twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeHeader {
    pub cluster: Uuid,
    /// Drawn when formatting.
    pub volume: Uuid,
    pub shard_count: u32,
    pub segment_bytes: u32,
    pub slots: u32,
}

/// What the start of a volume turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<T> {
    Valid(T),
    /// Our magic, a newer version.
    Newer(u32),
    /// Our magic, an older version.
    Older(u32),
    /// Our magic, a wrong checksum.
    Damaged,
    /// Something else.
    Absent,
}

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub cluster: Uuid,
    pub id: SegmentId,
}

/// What precedes the stored bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub hash: ChunkHash,
    pub plain_len: u32,
    /// With the tag of 16 bytes.
    pub stored_len: u32,
    pub codec: u8,
    pub key_id: u32,
    pub nonce: [u8; 12],
    /// crc32c of the stored bytes: made by whoever seals, so that the committer has little to do.
    pub stored_crc: u32,
}

/// One line of a footer; also what a scan finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub hash: ChunkHash,
    /// Bytes from the start of the segment.
    pub offset: u32,
    pub stored_len: u32,
    pub plain_len: u32,
}

/// Whether records can lie so: one after the other, in the segment.
fn are_sane(entries: &[Entry], segment_bytes: usize) -> bool {
    let mut end = BLOCK;
    entries.iter().all(|entry| {
        let offset = entry.offset as usize;
        let follows = offset >= end && offset.is_multiple_of(RECORD_ALIGN);
        end = offset + record_bytes(entry.stored_len);
        follows && end <= segment_bytes
    })
}

pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    digest.finalize() as u32
}

/// For comparing what should be equal.
pub fn digest(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(blake3::hash(bytes).as_bytes()[..8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

fn hash_at(bytes: &[u8], at: usize) -> ChunkHash {
    ChunkHash(bytes[at..at + 32].try_into().expect("32 bytes"))
}

/// Bytes of a record in its segment.
pub fn record_bytes(stored_len: u32) -> usize {
    (RECORD_HEADER + stored_len as usize).next_multiple_of(RECORD_ALIGN)
}

/// Bytes of a footer, in whole blocks.
pub fn footer_bytes(records: usize) -> usize {
    (records * FOOTER_ENTRY + FOOTER_TRAILER).next_multiple_of(BLOCK)
}

/// The reason why a store cannot have these parameters.
pub fn check_parameters(shard_count: u32, segment_bytes: u32) -> Result<(), String> {
    if !shard_count.is_power_of_two() || shard_count > 1 << 16 {
        return Err(format!("{shard_count} shards are not a power of two up to 65536"));
    }
    let sizes = 64 << 10..=64 << 20;
    if !segment_bytes.is_multiple_of(BLOCK as u32) || !sizes.contains(&segment_bytes) {
        return Err(format!(
            "segments of {segment_bytes} bytes are not a multiple of 4096 from 64 KiB to 64 MiB"
        ));
    }
    Ok(())
}

impl VolumeHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        out[..8].copy_from_slice(VOLUME_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.cluster.as_bytes());
        out[32..48].copy_from_slice(self.volume.as_bytes());
        out[48..52].copy_from_slice(&self.shard_count.to_le_bytes());
        out[52..56].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out[56..60].copy_from_slice(&self.slots.to_le_bytes());
        let crc = crc32c(&[&out[..12], &out[16..512]]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Found<VolumeHeader> {
        if &bytes[..8] != VOLUME_MAGIC {
            return Found::Absent;
        }
        if u32_at(bytes, 12) != crc32c(&[&bytes[..12], &bytes[16..512]]) {
            return Found::Damaged;
        }
        match u32_at(bytes, 8) {
            VERSION => Found::Valid(VolumeHeader {
                cluster: uuid_at(bytes, 16),
                volume: uuid_at(bytes, 32),
                shard_count: u32_at(bytes, 48),
                segment_bytes: u32_at(bytes, 52),
                slots: u32_at(bytes, 56),
            }),
            version if version < VERSION => Found::Older(version),
            version => Found::Newer(version),
        }
    }
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.cluster.as_bytes());
        out[32..40].copy_from_slice(&self.id.number.0.to_le_bytes());
        out[40..42].copy_from_slice(&self.id.shard.0.to_le_bytes());
        let crc = crc32c(&[&out[..12], &out[16..64]]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Found<SegmentHeader> {
        if bytes[..64].iter().all(|&byte| byte == 0) {
            return Found::Absent;
        }
        if u32_at(bytes, 12) != crc32c(&[&bytes[..12], &bytes[16..64]]) {
            // One wrong bit in the magic must not lose a segment either.
            return Found::Damaged;
        }
        if &bytes[..8] != SEGMENT_MAGIC {
            return Found::Absent;
        }
        match u32_at(bytes, 8) {
            VERSION if u64_at(bytes, 32) > NUMBER_MAX.0 => Found::Damaged,
            VERSION => Found::Valid(SegmentHeader {
                cluster: uuid_at(bytes, 16),
                id: SegmentId {
                    shard: ShardId(u16::from_le_bytes([bytes[40], bytes[41]])),
                    number: SegmentNumber(u64_at(bytes, 32)),
                },
            }),
            version if version < VERSION => Found::Older(version),
            version => Found::Newer(version),
        }
    }
}

impl RecordHeader {
    /// The header as it stands before the stored bytes.
    pub fn encode(&self, number: SegmentNumber) -> [u8; RECORD_HEADER] {
        let mut head = [0; RECORD_HEADER];
        head[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&number.0.to_le_bytes());
        head[16..48].copy_from_slice(&self.hash.0);
        head[48..52].copy_from_slice(&self.plain_len.to_le_bytes());
        head[52..56].copy_from_slice(&self.stored_len.to_le_bytes());
        head[56] = self.codec;
        head[60..64].copy_from_slice(&self.key_id.to_le_bytes());
        head[64..76].copy_from_slice(&self.nonce);
        head[76..80].copy_from_slice(&self.stored_crc.to_le_bytes());
        let crc = crc32c(&[&head[8..]]);
        head[4..8].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// The header at the start of `bytes` and the segment number it names, if its checksum holds.
    pub fn decode_head(bytes: &[u8]) -> Option<(RecordHeader, SegmentNumber)> {
        let bytes = bytes.get(..RECORD_HEADER)?;
        if u32_at(bytes, 0) != RECORD_MAGIC || u32_at(bytes, 4) != crc32c(&[&bytes[8..]]) {
            return None;
        }
        let number = SegmentNumber(u64_at(bytes, 8));
        if number > NUMBER_MAX {
            return None;
        }
        let header = RecordHeader {
            hash: hash_at(bytes, 16),
            plain_len: u32_at(bytes, 48),
            stored_len: u32_at(bytes, 52),
            codec: bytes[56],
            key_id: u32_at(bytes, 60),
            nonce: bytes[64..76].try_into().expect("twelve bytes"),
            stored_crc: u32_at(bytes, 76),
        };
        Some((header, number))
    }

    /// The record at the start of `bytes`, if it names `number` and its checksums hold. It is of that
    /// segment if its hash is of the segment's shard, which the caller knows or checks.
    pub fn decode(bytes: &[u8], number: SegmentNumber) -> Option<(RecordHeader, &[u8])> {
        let (header, of) = RecordHeader::decode_head(bytes)?;
        let stored = bytes[RECORD_HEADER..].get(..header.stored_len as usize)?;
        (of == number && crc32c(&[stored]) == header.stored_crc).then_some((header, stored))
    }
}

impl Entry {
    fn new(head: &RecordHeader, offset: usize) -> Entry {
        let RecordHeader { hash, stored_len, plain_len, .. } = *head;
        Entry { hash, offset: offset as u32, stored_len, plain_len }
    }

    /// Where the next record may begin.
    pub fn end(&self) -> usize {
        self.offset as usize + record_bytes(self.stored_len)
    }
}

/// The segment that a slot with a damaged header holds: what its first record says, else its footer.
pub fn recognise(segment: &[u8], shard_count: u32) -> Option<SegmentId> {
    if let Some((head, number)) = RecordHeader::decode_head(&segment[BLOCK..]) {
        return Some(SegmentId { shard: head.hash.shard(shard_count), number });
    }
    let id = footer_id(segment)?;
    let known = id.number <= NUMBER_MAX && u32::from(id.shard.0) < shard_count;
    let whole = matches!(decode_footer(segment, id, segment.len()), Footer::Lines(_));
    (known && whole).then_some(id)
}

/// Every valid record of a segment: damage hides the damaged records alone.
pub fn scan(segment: &[u8], id: SegmentId, shard_count: u32) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut at = BLOCK;
    while at + RECORD_HEADER <= segment.len() {
        match RecordHeader::decode(&segment[at..], id.number) {
            Some((head, _)) if head.hash.shard(shard_count) == id.shard => {
                found.push(Entry::new(&head, at));
                at += record_bytes(head.stored_len);
            }
            Some(_) | None => at += RECORD_ALIGN,
        }
    }
    found
}

/// The records of whole batches that begin at `start` of the segment, a multiple of [`BLOCK`]: one after
/// the other, with nothing but zeros behind the last one of each batch. `Err` is where it is otherwise.
pub fn parse(
    batches: &[u8],
    start: usize,
    id: SegmentId,
    shard_count: u32,
) -> Result<Vec<Entry>, usize> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < batches.len() {
        match RecordHeader::decode(&batches[at..], id.number) {
            Some((head, _)) if head.hash.shard(shard_count) == id.shard => {
                let entry = Entry::new(&head, start + at);
                let stored = at + RECORD_HEADER + head.stored_len as usize;
                at = entry.end() - start;
                if at > batches.len() || batches[stored..at].iter().any(|&byte| byte != 0) {
                    return Err(start + stored);
                }
                found.push(entry);
            }
            Some(_) | None => {
                let next = at.next_multiple_of(BLOCK);
                if next == at || batches[at..next].iter().any(|&byte| byte != 0) {
                    return Err(start + at);
                }
                at = next;
            }
        }
    }
    Ok(found)
}

/// A footer in whole blocks, to be written at the end of the segment.
pub fn encode_footer(id: SegmentId, entries: &[Entry]) -> Vec<u8> {
    let len = footer_bytes(entries.len());
    let mut out = vec![0; len - FOOTER_TRAILER - entries.len() * FOOTER_ENTRY];
    let start = out.len();
    for entry in entries {
        out.extend_from_slice(&entry.hash.0);
        out.extend_from_slice(&entry.offset.to_le_bytes());
        out.extend_from_slice(&entry.stored_len.to_le_bytes());
        out.extend_from_slice(&entry.plain_len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }
    let mut trailer = [0; FOOTER_TRAILER];
    trailer[..4].copy_from_slice(&FOOTER_MAGIC.to_le_bytes());
    trailer[8..16].copy_from_slice(&id.number.0.to_le_bytes());
    trailer[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    trailer[20..22].copy_from_slice(&id.shard.0.to_le_bytes());
    let crc = crc32c(&[&out[start..], &trailer[8..]]);
    trailer[4..8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&trailer);
    out
}

/// The segment that a footer at the end of these blocks names, before anything of it is checked.
fn footer_id(tail: &[u8]) -> Option<SegmentId> {
    let trailer = &tail[tail.len() - FOOTER_TRAILER..];
    let shard = ShardId(u16::from_le_bytes([trailer[20], trailer[21]]));
    let id = SegmentId { shard, number: SegmentNumber(u64_at(trailer, 8)) };
    has_footer(tail).then_some(id)
}

/// Whether blocks end in something like a footer, of whatever segment.
pub fn has_footer(tail: &[u8]) -> bool {
    u32_at(tail, tail.len() - FOOTER_TRAILER) == FOOTER_MAGIC
}

/// What the end of a segment says about its footer.
#[derive(Debug, PartialEq, Eq)]
pub enum Footer {
    Lines(Vec<Entry>),
    /// It is this many bytes long, whole blocks: read more of the end.
    Longer(usize),
    /// None of this segment, or a damaged one: scan.
    None,
}

/// The footer of `id` at the end of a segment of `segment_bytes`; `tail` is whole blocks.
pub fn decode_footer(tail: &[u8], id: SegmentId, segment_bytes: usize) -> Footer {
    let (rest, trailer) = tail.split_at(tail.len() - FOOTER_TRAILER);
    if footer_id(tail) != Some(id) {
        return Footer::None;
    }
    let count = u32_at(trailer, 16) as usize;
    let longest = segment_bytes - BLOCK;
    if count > longest / FOOTER_ENTRY || footer_bytes(count) > longest {
        return Footer::None;
    }
    let Some(start) = rest.len().checked_sub(count * FOOTER_ENTRY) else {
        return Footer::Longer(footer_bytes(count));
    };
    let lines = &rest[start..];
    if u32_at(trailer, 4) != crc32c(&[lines, &trailer[8..]]) {
        return Footer::None;
    }
    let entry = |line: &[u8]| Entry {
        hash: hash_at(line, 0),
        offset: u32_at(line, 32),
        stored_len: u32_at(line, 36),
        plain_len: u32_at(line, 40),
    };
    let entries: Vec<Entry> = lines.chunks_exact(FOOTER_ENTRY).map(entry).collect();
    match are_sane(&entries, segment_bytes) {
        true => Footer::Lines(entries),
        false => Footer::None,
    }
}

#[cfg(test)]
mod tests;
