//! The superblocks and the metadata of a pool. The pool opens or refuses; one that opened opens again with the
//! same volumes, and no extent has two owners.

use std::sync::Arc;

use blockd::engine::{Action, Device, Mem, Memory, run};
use blockd::pool::Pool;
use blockd::pool::format::{
    Owner, SUPERBLOCK_BYTES, Superblock, VolumeRecord, decode_metadata, encode_metadata,
};
use uuid::Uuid;

use super::{crc32c, padded, put_crc, with_mode};

pub const DICTIONARY: &[&[u8]] = &[b"CFSPOOL\x01", &[0, 0, 64, 0], &[0xff; 8], &[1, 0, 0, 0]];

const DEVICE_BYTES: u64 = 32 << 20;
thread_local! {
    static DEVICE: Mem = Mem::new(DEVICE_BYTES);
}

/// Bytes of a superblock that say something.
const HEAD: usize = 92;
const CRC_AT: usize = SUPERBLOCK_BYTES - 4;

fn superblock(generation: u64) -> Superblock {
    let uuid = Uuid::from_u128(5);
    Superblock { generation, meta_slot: 0, ..Superblock::for_device(DEVICE_BYTES, uuid).unwrap() }
}

/// A superblock's head, then the metadata that it names.
pub fn seeds() -> Vec<Vec<u8>> {
    let extents = superblock(1).extents as usize;
    let volume =
        |id, thin, bytes, name: &str| VolumeRecord { id, thin, bytes, name: name.to_owned() };
    let seed = |volumes: &[VolumeRecord], owned: &[(usize, Owner)]| {
        let mut owners = vec![Owner::default(); extents];
        owned.iter().for_each(|(at, owner)| owners[*at] = *owner);
        let metadata = encode_metadata(volumes, &owners);
        let superblock = Superblock {
            meta_len: metadata.len() as u32,
            meta_crc: crc32c(&metadata),
            ..superblock(3)
        };
        [&superblock.encode()[..HEAD], &metadata].concat()
    };
    let seeds = [
        seed(&[], &[]),
        seed(
            &[volume(1, true, 1 << 30, "thin"), volume(2, false, 8 << 20, "thick")],
            &[
                (0, Owner { volume: 2, index: 1 }),
                (1, Owner { volume: 1, index: 9 }),
                (2, Owner { volume: 2, index: 0 }),
            ],
        ),
    ];
    super::in_both_modes(seeds.to_vec())
}

fn put(device: &Mem, offset: u64, bytes: &[u8]) {
    let mut queue = device.queue().unwrap();
    let memory = Memory::copy_of(bytes);
    run(queue.as_mut(), Action::Write { offset, memory, fua: true }).unwrap();
}

/// Says what length and checksum the metadata has, and the superblock's own.
fn mend(block: &mut [u8], metadata: &[u8]) {
    block[84..88].copy_from_slice(&(metadata.len() as u32).to_le_bytes());
    block[88..92].copy_from_slice(&crc32c(metadata).to_le_bytes());
    put_crc(block, 0..CRC_AT, CRC_AT);
}

pub fn target(bytes: &[u8]) {
    opens(bytes);
}

/// Whether it is a pool that opens.
fn opens(bytes: &[u8]) -> bool {
    let (mends, bytes) = with_mode(bytes);
    let (head, metadata) = bytes.split_at(HEAD.min(bytes.len()));
    let mut block = padded(head, SUPERBLOCK_BYTES);
    if mends {
        mend(&mut block, metadata);
    }
    let read = Superblock::decode(&block);
    if let Ok(read) = &read {
        assert_eq!(Superblock::decode(&read.encode()).as_ref(), Ok(read));
    }
    let extents = superblock(1).extents;
    if let Ok((volumes, owners)) = decode_metadata(metadata, extents) {
        assert_eq!(owners.len() as u64, extents);
        let again = encode_metadata(&volumes, &owners);
        assert_eq!(decode_metadata(&again, extents), Ok((volumes, owners)));
    }
    let area =
        read.as_ref().map_or(2 * SUPERBLOCK_BYTES as u64, |read| read.area_offset(read.meta_slot));
    let device = DEVICE.with(Mem::clone);
    let len = superblock(1).area_offset(2);
    run(device.queue().unwrap().as_mut(), Action::Zero { offset: 0, len }).unwrap();
    put(&device, 0, &block);
    let fits = area.saturating_add(metadata.len() as u64) <= DEVICE_BYTES;
    if fits && !metadata.is_empty() {
        put(&device, area, metadata);
    }
    let device: Arc<dyn Device> = Arc::new(device);
    let Ok(pool) = Pool::open("the-device", Arc::clone(&device), false) else { return false };
    holds(&pool, device);
    true
}

/// What is so of every pool that opened.
fn holds(pool: &Pool, device: Arc<dyn Device>) {
    let status = pool.status();
    let names = |pool: &Pool| {
        let volumes = pool.volumes();
        volumes.iter().map(|v| (v.name.clone(), v.id, v.allocated())).collect::<Vec<_>>()
    };
    let owned: u64 = pool.volumes().iter().map(|volume| volume.allocated()).sum();
    assert_eq!(owned + status.extents_free, status.extents, "an extent with two owners");
    let before = names(pool);
    let distinct: std::collections::BTreeSet<_> = before.iter().map(|(name, ..)| name).collect();
    assert_eq!(distinct.len(), before.len(), "two volumes of one name");
    if pool.create("new", 4 << 20, false).is_ok() {
        pool.delete("new").unwrap();
    }
    let again = Pool::open("the-device", device, false).expect("what was opened opens again");
    assert_eq!(names(&again), before);
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_are_pools_once_their_checksums_are_right() {
        for seed in super::seeds() {
            assert_eq!(super::opens(&seed), seed[0] == 1);
        }
    }
}
