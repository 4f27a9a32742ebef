use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::format::{GENERATION_MAX, VolumeRecord};
use super::*;
use crate::engine::{Completion, Fault, FaultSettings, Mem, Op};

const BYTES: u64 = 64 << 20;

fn open(device: &Mem, create: bool) -> Result<Pool> {
    Pool::open("mem", Arc::new(device.clone()), create)
}

fn allocate(pool: &Pool, volume: &Volume, index: u64) -> Result<()> {
    match pool.allocate(&[(volume, index)]).as_slice() {
        [0] => Ok(()),
        [libc::ENOSPC] => Err(Error::NoSpace { wanted: 1, free: 0 }),
        other => Err(failed("mem", "allocating", io::Error::from_raw_os_error(other[0]))),
    }
}

fn refusal(device: &Mem) -> FormatError {
    match open(device, true) {
        Err(Error::Format { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn patch(device: &Mem, offset: u64, change: impl Fn(&mut Vec<u8>)) {
    let mut queue = device.queue().unwrap();
    let mut bytes = read(queue.as_mut(), offset, 4096).unwrap();
    change(&mut bytes);
    write(queue.as_mut(), offset, &bytes).unwrap();
}

#[test]
fn volumes_survive_reopening() {
    let device = Mem::new(BYTES);
    assert!(matches!(open(&device, false), Err(Error::Format { reason: FormatError::Blank, .. })));
    let pool = open(&device, true).unwrap();
    let free = pool.status().extents_free;
    pool.create("thick", 9 << 20, false).unwrap();
    let thin = pool.create("thin", 1 << 40, true).unwrap();
    assert_eq!(pool.status().extents_free, free - 3);
    assert!(matches!(pool.create("thin", 1, true), Err(Error::Exists(_))));
    assert!(matches!(pool.create("big", 1 << 40, false), Err(Error::NoSpace { .. })));
    assert!(pool.create("a/b", 1, true).is_err() && pool.create("", 1, true).is_err());
    allocate(&pool, &thin, 77).unwrap();
    let physical = thin.pin(77).unwrap();
    pool.release(&thin, 0..100).unwrap();
    assert!(thin.pin(77).is_some(), "a pinned extent stays");
    thin.unpin(77);
    thin.unpin(77);
    drop(pool);

    let pool = open(&device, false).unwrap();
    let thin = pool.connect("thin").unwrap();
    assert_eq!((thin.pin(77), thin.pin(76)), (Some(physical), None));
    thin.unpin(77);
    assert!(matches!(pool.delete("thin"), Err(Error::VolumeBusy(_))));
    pool.release(&thin, 0..100).unwrap();
    assert_eq!(thin.allocated(), 0);
    thin.leave();
    pool.delete("thin").unwrap();
    pool.resize("thick", 20 << 20).unwrap();
    pool.resize("thick", 4 << 20).unwrap();
    assert_eq!(pool.status().extents_free, free - 1);
    assert_eq!(open(&device, false).unwrap().volumes().len(), 1);
}

#[test]
fn new_extents_read_as_zeros() {
    let device = Mem::new(BYTES);
    let pool = open(&device, true).unwrap();
    let volume = pool.create("v", 4 << 20, false).unwrap();
    let at = pool.extent_offset(volume.pin(0).unwrap());
    write(device.queue().unwrap().as_mut(), at, &[5; 4096]).unwrap();
    volume.unpin(0);
    pool.delete("v").unwrap();
    write(device.queue().unwrap().as_mut(), at, &[6; 4096]).unwrap();
    let volume = pool.create("w", 4 << 20, false).unwrap();
    assert_eq!(pool.extent_offset(volume.pin(0).unwrap()), at);
    assert_eq!(read(device.queue().unwrap().as_mut(), at, 4096).unwrap(), vec![0; 4096]);
}

#[test]
fn what_is_not_a_sound_pool_is_refused() {
    let made = || {
        let device = Mem::new(BYTES);
        open(&device, true).unwrap().create("v", 4 << 20, false).unwrap();
        device
    };
    let device = made();
    patch(&device, 0, |b| b[33] ^= 1);
    assert_eq!(open(&device, false).unwrap().volumes().len(), 1, "one sound superblock is enough");
    for copy in [0, 4096] {
        patch(&device, copy, |b| b[40] ^= 1);
    }
    assert_eq!(refusal(&device), FormatError::Checksum);

    let device = made();
    for copy in [0, 4096] {
        patch(&device, copy, |b| b[0] = b'X');
    }
    assert_eq!(refusal(&device), FormatError::OtherMagic);

    let device = made();
    patch(&device, 0, |b| {
        b[8] = 2;
        let crc = crc_fast::crc32_iscsi(&b[..4092]).to_le_bytes();
        b[4092..].copy_from_slice(&crc);
    });
    let refused = refusal(&device);
    assert_eq!(refused, FormatError::OtherVersion(2));
    let text = refused.to_string();
    assert!(text.contains("format 2") && text.contains("reads 1"), "{text}");

    let device = made();
    let areas = Superblock::for_device(BYTES, Uuid::nil()).unwrap();
    for slot in [0, 1] {
        patch(&device, areas.area_offset(slot), |b| b[20] ^= 1);
    }
    assert_eq!(refusal(&device), FormatError::Metadata);

    let whole = made();
    let short = Mem::new(BYTES / 2);
    let head = read(whole.queue().unwrap().as_mut(), 0, 4 << 20).unwrap();
    write(short.queue().unwrap().as_mut(), 0, &head).unwrap();
    assert!(matches!(refusal(&short), FormatError::Shorter { .. }));
    assert!(matches!(refusal(&Mem::new(1 << 20)), FormatError::TooSmall(_)));
}

/// A pool whose metadata says so, with all checksums right.
fn forged(generation: u64, volumes: &[VolumeRecord], owned: &[(usize, Owner)]) -> Mem {
    let device = Mem::new(BYTES);
    let mut superblock = Superblock::for_device(BYTES, Uuid::from_u128(5)).unwrap();
    let mut owners = vec![Owner::default(); superblock.extents as usize];
    owned.iter().for_each(|(at, owner)| owners[*at] = *owner);
    let metadata = format::encode_metadata(volumes, &owners);
    superblock.generation = generation;
    superblock.meta_len = metadata.len() as u32;
    superblock.meta_crc = crc_fast::crc32_iscsi(&metadata);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), superblock.area_offset(superblock.meta_slot), &metadata).unwrap();
    for copy in 0..2 {
        write(queue.as_mut(), copy * SUPERBLOCK_BYTES as u64, &superblock.encode()).unwrap();
    }
    device
}

#[test]
fn a_volume_table_that_was_never_written_is_refused() {
    let volume = |id, bytes, name: &str| VolumeRecord { id, thin: true, bytes, name: name.into() };
    let (one, two) = (volume(1, 1 << 40, "one"), volume(2, 4 << 20, "two"));
    let owned = [(0, Owner { volume: 2, index: 0 })];
    let sound = forged(3, &[one.clone(), two.clone()], &owned);
    let pool = open(&sound, false).unwrap();
    assert_eq!(pool.volumes().iter().map(|v| v.allocated()).collect::<Vec<_>>(), [0, 1]);
    for other in [
        VolumeRecord { id: 1, ..two.clone() },
        VolumeRecord { name: "one".into(), ..two.clone() },
        VolumeRecord { id: 0, ..two.clone() },
        volume(2, 4 << 20, ""),
        volume(2, 4 << 20, "a/b"),
        volume(2, (4 << 20) + 1, "odd"),
        // Maps for these would take gigabytes of memory.
        volume(2, 1 << 50, "pebibyte"),
        volume(2, 16 << 40, "with the other too much"),
    ] {
        let device = forged(3, &[one.clone(), other.clone()], &[]);
        assert_eq!(refusal(&device), FormatError::Metadata, "{other:?}");
    }
    let nobodys = [(0, Owner { volume: 0, index: 9 }), (1, Owner { volume: 2, index: 0 })];
    let device = forged(3, std::slice::from_ref(&two), &nobodys);
    assert_eq!(refusal(&device), FormatError::Metadata);
    assert_eq!(refusal(&forged(u64::MAX, &[one, two], &owned)), FormatError::Metadata);
}

#[test]
fn a_generation_that_cannot_grow_ends_changes_not_reading() {
    let device = forged(GENERATION_MAX, &[], &[]);
    let pool = open(&device, false).unwrap();
    assert!(matches!(pool.create("v", 4 << 20, true), Err(Error::Device { .. })));
    assert_eq!(open(&device, false).unwrap().status().generation, GENERATION_MAX);
}

#[test]
fn volumes_promise_no_more_than_their_maps_may_take() {
    let pool = open(&Mem::new(BYTES), true).unwrap();
    pool.create("a", 10 << 40, true).unwrap();
    let refused = pool.create("b", 7 << 40, true).unwrap_err().to_string();
    assert!(refused.contains("16384 GiB together and have 10240 GiB"), "{refused}");
    assert!(matches!(pool.create("b", 1 << 50, true), Err(Error::Invalid(_))));
    pool.create("b", 6 << 40, true).unwrap();
    assert!(matches!(pool.resize("b", 7 << 40), Err(Error::Invalid(_))));
    pool.resize("b", 1 << 40).unwrap();
    pool.resize("b", 6 << 40).unwrap();
}

/// Lets a number of writes and flushes through, then fails everything, as if the machine had stopped there.
struct Fuse {
    inner: Fault,
    left: Arc<AtomicI64>,
}

struct FuseQueue(Box<dyn Queue>, Arc<AtomicI64>, Vec<Completion>);

impl Device for Fuse {
    fn engine(&self) -> &'static str {
        "fuse"
    }
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(FuseQueue(self.inner.queue()?, Arc::clone(&self.left), Vec::new())))
    }
}

impl Queue for FuseQueue {
    fn submit(&mut self, op: Op) {
        let counted = !matches!(op.action, Action::Read { .. });
        if counted && self.1.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.2.push(Completion { tag: op.tag, result: Err(io::Error::other("cut")) });
        } else {
            self.0.submit(op);
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.2);
        self.0.poll(done);
    }
    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
    fn in_flight(&self) -> usize {
        self.0.in_flight() + self.2.len()
    }
}

/// Power cuts at each step of a series of changes: what was acknowledged is there, the change that was cut is there
/// whole or not at all.
#[test]
fn power_cuts_at_every_write() {
    type Change = fn(&Pool) -> Result<()>;
    let changes: [Change; 7] = [
        |p| p.create("a", 8 << 20, false).map(drop),
        |p| p.create("b", 1 << 30, true).map(drop),
        |p| p.resize("a", 16 << 20).map(drop),
        |p| allocate(p, &p.volumes()[1], 200),
        |p| p.resize("a", 4 << 20).map(drop),
        |p| p.delete("a"),
        Pool::format,
    ];
    let states =
        [(0, 0, 0), (1, 8, 0), (2, 8, 0), (2, 16, 0), (2, 16, 1), (2, 4, 1), (1, 0, 1), (0, 0, 0)];
    let describe = |pool: &Pool| {
        let volumes = pool.volumes();
        let find = |name: &str| volumes.iter().find(|v| v.name == name);
        (
            volumes.len(),
            find("a").map_or(0, |v| v.bytes >> 20),
            find("b").map_or(0, |v| v.allocated()),
        )
    };
    for seed in 0..4 {
        for cut in 0.. {
            let mem = Mem::new(BYTES);
            drop(open(&mem, true).unwrap());
            let fault = Fault::new(Arc::new(mem.clone()), FaultSettings::default()).unwrap();
            let left = Arc::new(AtomicI64::new(cut));
            let device = Fuse { inner: fault.clone(), left: Arc::clone(&left) };
            let pool = Pool::open("fuse", Arc::new(device), false).unwrap();
            let acked = changes.iter().take_while(|change| change(&pool).is_ok()).count();
            assert_eq!(describe(&pool), states[acked], "what failed is not seen");
            drop(pool);
            fault.power_cut(seed).unwrap();
            let now = describe(&open(&mem, false).unwrap());
            let allowed = &states[acked..states.len().min(acked + 2)];
            assert!(allowed.contains(&now), "seed {seed} cut {cut}: {now:?}, acked {acked}");
            if left.load(Ordering::Relaxed) >= 0 {
                assert_eq!(acked, changes.len());
                break;
            }
        }
    }
}

#[test]
fn a_pool_is_made_anew_or_wiped_when_nobody_uses_it() {
    for zero in [false, true] {
        let device = Mem::new(BYTES);
        let pool = open(&device, true).unwrap();
        let (uuid, free) = (pool.status().uuid, pool.status().extents_free);
        pool.create("v", 8 << 20, false).unwrap();
        let user = pool.connect("v").unwrap();
        for refused in [pool.format(), pool.wipe(zero)] {
            assert!(matches!(refused, Err(Error::DeviceBusy { .. })), "{refused:?}");
        }
        user.leave();
        pool.format().unwrap();
        assert_eq!((pool.volumes().len(), pool.status().extents_free), (0, free));
        let again = open(&device, false).unwrap();
        assert_ne!(again.status().uuid, uuid);
        assert_eq!(again.status().uuid, pool.status().uuid);

        pool.create("w", 8 << 20, false).unwrap();
        pool.wipe(zero).unwrap();
        assert!(pool.status().wiped && pool.volumes().is_empty());
        let refused = pool.create("x", 1, true).unwrap_err().to_string();
        assert!(refused.contains("wiped"), "{refused}");
        let refused = open(&device, false).unwrap_err();
        assert!(matches!(refused, Error::Format { reason: FormatError::Blank, .. }));
    }
}

/// Zeroes nothing before it is told to.
struct Slow {
    inner: Mem,
    goes_on: Arc<AtomicBool>,
}

struct SlowQueue(Box<dyn Queue>, Arc<AtomicBool>, Vec<Op>);

impl Device for Slow {
    fn engine(&self) -> &'static str {
        "slow"
    }
    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(SlowQueue(self.inner.queue()?, Arc::clone(&self.goes_on), Vec::new())))
    }
}

impl Queue for SlowQueue {
    fn submit(&mut self, op: Op) {
        match op.action {
            Action::Zero { .. } => self.2.push(op),
            _ => self.0.submit(op),
        }
    }
    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.1.load(Ordering::Acquire) {
            self.2.drain(..).for_each(|op| self.0.submit(op));
        }
        self.0.poll(done);
    }
    fn wait_fd(&self) -> Option<RawFd> {
        None
    }
    fn in_flight(&self) -> usize {
        self.0.in_flight() + self.2.len()
    }
}

#[test]
fn a_pool_that_is_being_wiped_can_be_asked() {
    let goes_on = Arc::new(AtomicBool::new(false));
    let device = Slow { inner: Mem::new(BYTES), goes_on: Arc::clone(&goes_on) };
    let pool = Arc::new(Pool::open("slow", Arc::new(device), true).unwrap());
    let (for_wiper, for_asker) = (Arc::clone(&pool), Arc::clone(&pool));
    let wiper = std::thread::spawn(move || for_wiper.wipe(true));
    // In a thread, so that the test ends, whatever holds the lock.
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while !for_asker.status().wiped {
            std::thread::yield_now();
        }
        tell.send(for_asker.create("v", 1, true).is_err())
    });
    let refused = told.recv_timeout(std::time::Duration::from_secs(60));
    goes_on.store(true, Ordering::Release);
    assert_eq!(refused, Ok(true), "answered while it is being wiped, and nothing is made");
    wiper.join().unwrap().unwrap();
}
