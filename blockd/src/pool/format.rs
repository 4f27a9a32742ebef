//! The bytes of a pool on its device. All integers are little-endian; `docs/formats/pool.md` has the same tables.
//!
//! ```text
//! 0        4096     8192          8192+area     8192+2*area → up to 4 MiB   data_start
//! | SB A   | SB B   | metadata 0  | metadata 1  | unused                    | extent 0 | extent 1 | …
//! ```
//!
//! A change writes the metadata area that is not in use, flushes, then writes superblock A, flushes, then B, flushes.
//! Whichever write a power cut tears, one superblock with its metadata is whole.

use uuid::Uuid;

use crate::error::FormatError;

/// First bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"CFSPOOL\x01";
/// The format this program writes; it reads no newer one.
pub const VERSION: u32 = 1;
/// Bytes of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Bytes of an extent.
pub const EXTENT_BYTES: u64 = 4 << 20;
/// Smallest device.
pub const DEVICE_BYTES_MIN: u64 = 16 << 20;
/// Longest name of a volume in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most volumes of a pool; a further one is refused.
pub const VOLUMES_MAX: usize = 1024;
const VOLUME_BYTES: usize = 88;
const META_HEADER_BYTES: usize = 16;
/// Highest generation, which no pool reaches: a higher one is damage, and nothing is changed after it.
pub const GENERATION_MAX: u64 = 1 << 62;
const CRC_AT: usize = SUPERBLOCK_BYTES - 4;

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Uuid,
    pub generation: u64,
    pub device_bytes: u64,
    pub data_start: u64,
    pub extents: u64,
    pub area_bytes: u64,
    pub meta_slot: u32,
    pub meta_len: u32,
    pub meta_crc: u32,
}

impl Superblock {
    /// The layout for a new pool.
    pub fn for_device(device_bytes: u64, uuid: Uuid) -> Result<Superblock, FormatError> {
        if device_bytes < DEVICE_BYTES_MIN {
            return Err(FormatError::TooSmall(device_bytes));
        }
        let extents_max = device_bytes / EXTENT_BYTES;
        let area = META_HEADER_BYTES as u64 + (VOLUMES_MAX * VOLUME_BYTES) as u64 + extents_max * 8;
        let area_bytes = area.div_ceil(4096) * 4096;
        let data_start =
            (2 * SUPERBLOCK_BYTES as u64 + 2 * area_bytes).div_ceil(EXTENT_BYTES) * EXTENT_BYTES;
        let extents = device_bytes.saturating_sub(data_start) / EXTENT_BYTES;
        Ok(Superblock {
            uuid,
            generation: 0,
            device_bytes,
            data_start,
            extents,
            area_bytes,
            meta_slot: 1,
            meta_len: 0,
            meta_crc: 0,
        })
    }

    /// Where the metadata area of that slot starts.
    #[must_use]
    pub fn area_offset(&self, slot: u32) -> u64 {
        2 * SUPERBLOCK_BYTES as u64 + u64::from(slot) * self.area_bytes
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; SUPERBLOCK_BYTES];
        b[0..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&(crate::engine::BLOCK_BYTES as u32).to_le_bytes());
        b[16..32].copy_from_slice(self.uuid.as_bytes());
        b[32..40].copy_from_slice(&self.generation.to_le_bytes());
        b[40..48].copy_from_slice(&self.device_bytes.to_le_bytes());
        b[48..56].copy_from_slice(&EXTENT_BYTES.to_le_bytes());
        b[56..64].copy_from_slice(&self.data_start.to_le_bytes());
        b[64..72].copy_from_slice(&self.extents.to_le_bytes());
        b[72..80].copy_from_slice(&self.area_bytes.to_le_bytes());
        b[80..84].copy_from_slice(&self.meta_slot.to_le_bytes());
        b[84..88].copy_from_slice(&self.meta_len.to_le_bytes());
        b[88..92].copy_from_slice(&self.meta_crc.to_le_bytes());
        let crc = crc_fast::crc32_iscsi(&b[..CRC_AT]);
        b[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads one, believing nothing before its checksum, and no layout that does not add up.
    pub fn decode(b: &[u8]) -> Result<Superblock, FormatError> {
        if b.len() < SUPERBLOCK_BYTES || b[0..8] != MAGIC {
            let blank = b.iter().all(|byte| *byte == 0);
            return Err(if blank { FormatError::Blank } else { FormatError::OtherMagic });
        }
        if u32_at(b, CRC_AT) != crc_fast::crc32_iscsi(&b[..CRC_AT]) {
            return Err(FormatError::Checksum);
        }
        let version = u32_at(b, 8);
        if version != VERSION {
            return Err(FormatError::OtherVersion(version));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&b[16..32]);
        let read = Superblock {
            uuid: Uuid::from_bytes(uuid),
            generation: u64_at(b, 32),
            device_bytes: u64_at(b, 40),
            data_start: u64_at(b, 56),
            extents: u64_at(b, 64),
            area_bytes: u64_at(b, 72),
            meta_slot: u32_at(b, 80),
            meta_len: u32_at(b, 84),
            meta_crc: u32_at(b, 88),
        };
        let expected = Superblock::for_device(read.device_bytes, read.uuid)
            .map_err(|_| FormatError::Metadata)?;
        let same_layout = expected.data_start == read.data_start
            && expected.extents == read.extents
            && expected.area_bytes == read.area_bytes
            && u64_at(b, 48) == EXTENT_BYTES;
        let sane = read.meta_slot <= 1
            && u64::from(read.meta_len) <= read.area_bytes
            && read.generation <= GENERATION_MAX;
        if !same_layout || !sane {
            return Err(FormatError::Metadata);
        }
        Ok(read)
    }
}

/// A volume as the metadata records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    pub id: u32,
    pub thin: bool,
    pub bytes: u64,
    pub name: String,
}

/// Whose an extent is. Volume 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub volume: u32,
    /// Index of the extent in its volume.
    pub index: u32,
}

/// The volume table and the extent map: owners by physical extent, up to the last that has one.
#[must_use]
pub fn encode_metadata(volumes: &[VolumeRecord], owners: &[Owner]) -> Vec<u8> {
    let used = owners.iter().rposition(|o| o.volume != 0).map_or(0, |last| last + 1);
    let mut b = Vec::with_capacity(META_HEADER_BYTES + volumes.len() * VOLUME_BYTES + used * 8);
    b.extend_from_slice(&(volumes.len() as u32).to_le_bytes());
    b.extend_from_slice(&(used as u32).to_le_bytes());
    b.extend_from_slice(&[0; 8]);
    for volume in volumes {
        b.extend_from_slice(&volume.id.to_le_bytes());
        b.extend_from_slice(&u32::from(volume.thin).to_le_bytes());
        b.extend_from_slice(&volume.bytes.to_le_bytes());
        b.extend_from_slice(&(volume.name.len() as u64).to_le_bytes());
        let mut name = [0; NAME_BYTES_MAX];
        name[..volume.name.len()].copy_from_slice(volume.name.as_bytes());
        b.extend_from_slice(&name);
    }
    for owner in &owners[..used] {
        b.extend_from_slice(&owner.volume.to_le_bytes());
        b.extend_from_slice(&owner.index.to_le_bytes());
    }
    b
}

/// Reads what [`encode_metadata`] wrote; `extents` is the pool's.
pub fn decode_metadata(
    b: &[u8],
    extents: u64,
) -> Result<(Vec<VolumeRecord>, Vec<Owner>), FormatError> {
    if b.len() < META_HEADER_BYTES {
        return Err(FormatError::Metadata);
    }
    let (count, used) = (u32_at(b, 0) as usize, u32_at(b, 4) as usize);
    let fits = count <= VOLUMES_MAX
        && used as u64 <= extents
        && b.len() == META_HEADER_BYTES + count * VOLUME_BYTES + used * 8;
    if !fits {
        return Err(FormatError::Metadata);
    }
    let mut volumes = Vec::with_capacity(count);
    for record in b[META_HEADER_BYTES..].chunks_exact(VOLUME_BYTES).take(count) {
        let len = u64_at(record, 16);
        let name = (len <= NAME_BYTES_MAX as u64)
            .then(|| std::str::from_utf8(&record[24..24 + len as usize]).ok())
            .flatten()
            .ok_or(FormatError::Metadata)?;
        volumes.push(VolumeRecord {
            id: u32_at(record, 0),
            thin: u32_at(record, 4) & 1 == 1,
            bytes: u64_at(record, 8),
            name: name.to_owned(),
        });
    }
    let mut owners = vec![Owner::default(); extents as usize];
    let map = &b[META_HEADER_BYTES + count * VOLUME_BYTES..];
    for (owner, bytes) in owners.iter_mut().zip(map.chunks_exact(8)) {
        *owner = Owner { volume: u32_at(bytes, 0), index: u32_at(bytes, 4) };
        if owner.volume == 0 && owner.index != 0 {
            return Err(FormatError::Metadata);
        }
    }
    Ok((volumes, owners))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(bytes)
}
