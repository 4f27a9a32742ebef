//! Bytes on the volume; drawn in `docs/formats/segment.md`. Everything is little-endian.
//!
//! ```text
//! 0        4 KiB    64 KiB
//! header A header B slot 0 | slot 1 | …      slot: header 4 KiB, batches of records, … , footer
//! ```

use raftmeta_types::{ChunkHash, ShardId};
use uuid::Uuid;

/// Unit of every write; batches are padded to it.
pub const BLOCK: usize = 4096;
/// Where the first slot begins.
pub const SLOTS_START: u64 = 64 << 10;
pub const VERSION: u32 = 1;
pub const RECORD_HEADER: usize = 80;
/// Records start at multiples of this, so that a scan finds its way after damage.
pub const RECORD_ALIGN: usize = 16;
pub const FOOTER_ENTRY: usize = 48;
pub const FOOTER_TRAILER: usize = 32;
/// Highest sequence, which a million segments a second reach after 146 000 years. What names a higher one is
/// damaged, and no segment is begun after it.
pub const SEQUENCE_MAX: u64 = 1 << 62;

const VOLUME_MAGIC: &[u8; 8] = b"CFSCHUNK";
const SEGMENT_MAGIC: &[u8; 8] = b"CFSSEGMT";
const RECORD_MAGIC: u32 = 0x4352_4643;
const FOOTER_MAGIC: u32 = 0x5446_4643;

/// The start of a volume, twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeHeader {
    pub cluster: Uuid,
    /// Drawn when formatting: segments of an earlier life of the volume are not taken.
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
    /// Our magic, a wrong checksum.
    Damaged,
    /// Something else.
    Absent,
}

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub volume: Uuid,
    pub sequence: u64,
    pub shard: ShardId,
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
            version => Found::Newer(version),
        }
    }
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(self.volume.as_bytes());
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[40..42].copy_from_slice(&self.shard.0.to_le_bytes());
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
            VERSION if u64_at(bytes, 32) > SEQUENCE_MAX => Found::Damaged,
            VERSION => Found::Valid(SegmentHeader {
                volume: uuid_at(bytes, 16),
                sequence: u64_at(bytes, 32),
                shard: ShardId(u16::from_le_bytes([bytes[40], bytes[41]])),
            }),
            version => Found::Newer(version),
        }
    }
}

impl RecordHeader {
    /// The header as it stands before the stored bytes.
    pub fn encode(&self, sequence: u64) -> [u8; RECORD_HEADER] {
        let mut head = [0; RECORD_HEADER];
        head[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&sequence.to_le_bytes());
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

    /// The header at the start of `bytes` and the sequence it names, if its checksum holds.
    pub fn decode_head(bytes: &[u8]) -> Option<(RecordHeader, u64)> {
        let bytes = bytes.get(..RECORD_HEADER)?;
        if u32_at(bytes, 0) != RECORD_MAGIC || u32_at(bytes, 4) != crc32c(&[&bytes[8..]]) {
            return None;
        }
        let sequence = u64_at(bytes, 8);
        if sequence > SEQUENCE_MAX {
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
        Some((header, sequence))
    }

    /// The record at the start of `bytes`, if it belongs to `sequence` and its checksums hold.
    pub fn decode(bytes: &[u8], sequence: u64) -> Option<(RecordHeader, &[u8])> {
        let (header, of) = RecordHeader::decode_head(bytes)?;
        let stored = bytes[RECORD_HEADER..].get(..header.stored_len as usize)?;
        (of == sequence && crc32c(&[stored]) == header.stored_crc).then_some((header, stored))
    }
}

/// The newest sequence that a valid record names. Records of earlier lives of the slot may lie
/// behind those of the last.
pub fn newest_sequence(segment: &[u8]) -> Option<u64> {
    (BLOCK..segment.len().saturating_sub(RECORD_HEADER))
        .step_by(RECORD_ALIGN)
        .filter_map(|at| {
            let bytes = &segment[at..];
            let (_, sequence) = RecordHeader::decode_head(bytes)?;
            RecordHeader::decode(bytes, sequence).map(|_| sequence)
        })
        .max()
}

/// Every valid record of a segment: damage hides the damaged records alone.
pub fn scan(segment: &[u8], sequence: u64) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut at = BLOCK;
    while at + RECORD_HEADER <= segment.len() {
        match RecordHeader::decode(&segment[at..], sequence) {
            Some((head, _)) => {
                found.push(Entry {
                    hash: head.hash,
                    offset: at as u32,
                    stored_len: head.stored_len,
                    plain_len: head.plain_len,
                });
                at += record_bytes(head.stored_len);
            }
            None => at += RECORD_ALIGN,
        }
    }
    found
}

/// A footer in whole blocks, to be written at the end of the segment.
pub fn encode_footer(sequence: u64, entries: &[Entry]) -> Vec<u8> {
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
    trailer[8..16].copy_from_slice(&sequence.to_le_bytes());
    trailer[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    let crc = crc32c(&[&out[start..], &trailer[8..]]);
    trailer[4..8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&trailer);
    out
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
    /// None of this sequence, or a damaged one: scan.
    None,
}

/// The footer of `sequence` at the end of a segment of `segment_bytes`; `tail` is whole blocks.
pub fn decode_footer(tail: &[u8], sequence: u64, segment_bytes: usize) -> Footer {
    let (rest, trailer) = tail.split_at(tail.len() - FOOTER_TRAILER);
    if u32_at(trailer, 0) != FOOTER_MAGIC || u64_at(trailer, 8) != sequence {
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
