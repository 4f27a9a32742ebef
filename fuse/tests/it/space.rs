//! Holes, `fallocate`, `copy_file_range`, `statfs`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use super::{Mounts, noise};

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn holes_are_found() {
    let Some(mounts) = Mounts::new(1) else { return };
    let file = open(&mounts.path(0).join("file"));
    let far = 5 << 40;
    file.write_all_at(&noise(1, 4096), 1 << 20).unwrap();
    file.write_all_at(&noise(2, 4096), far).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(1 << 20));
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(&file, SeekFrom::Hole(1 << 20)), Ok((1 << 20) + 4096));
    assert_eq!(seek(&file, SeekFrom::Data((1 << 20) + 4096)), Ok(far));
    assert_eq!(seek(&file, SeekFrom::Hole(far)), Ok(far + 4096));
    assert_eq!(seek(&file, SeekFrom::Data(far + 4096)), Err(Errno::NXIO));
    file.set_len(far + (1 << 20)).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(far + 4096)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(far + 5000)), Ok(far + 5000));
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    drop(file);
    mounts.end();
}

#[test]
fn fallocate_reserves_punches_and_zeroes() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let file = open(&path);
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 20, 2048));
    fallocate(&file, FallocateFlags::KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);

    let mut model = noise(1, 1 << 20);
    file.write_all_at(&model, 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 10_000, 300_000).unwrap();
    model[10_000..310_000].fill(0);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 500_000, 1_000_000).unwrap();
    model[500_000..].fill(0);
    model.resize(1_500_000, 0);
    assert!(fs::read(&path).unwrap() == model);
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(10_000));
    assert_eq!(seek(&file, SeekFrom::Data(10_000)), Ok(310_000));
    drop(file);
    mounts.end();
}

/// The kernel does not pass these on through FUSE; should it come to, they work.
#[test]
fn collapse_and_insert_work_or_are_refused() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let file = open(&path);
    let mut model = noise(1, 65_536);
    file.write_all_at(&model, 0).unwrap();
    match fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 4096, 8192) {
        Ok(()) => _ = model.drain(4096..4096 + 8192),
        Err(error) => assert_eq!(error, Errno::OPNOTSUPP),
    }
    match fallocate(&file, FallocateFlags::INSERT_RANGE, 8192, 4096) {
        Ok(()) => _ = model.splice(8192..8192, vec![0; 4096]),
        Err(error) => assert_eq!(error, Errno::OPNOTSUPP),
    }
    drop(file);
    assert!(fs::read(&path).unwrap() == model);
    mounts.end();
}

#[test]
fn copies_of_ranges_are_references() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    let (source, target) = (open(&root.join("source")), open(&root.join("target")));
    let data = noise(1, 3 << 20);
    source.write_all_at(&data, 0).unwrap();
    let mut model = noise(2, 1 << 20);
    target.write_all_at(&model, 0).unwrap();
    let (mut from, mut to, end) = (100_000, 500_000, 3_000_000);
    while from < end {
        let left = (end - from) as usize;
        let copied = copy_file_range(&source, Some(&mut from), &target, Some(&mut to), left);
        assert!(copied.unwrap() > 0);
    }
    model.truncate(500_000);
    model.extend_from_slice(&data[100_000..3_000_000]);
    assert!(fs::read(root.join("target")).unwrap() == model);
    // No chunk of the middle was stored anew.
    let chunks = |name| -> Vec<_> {
        let extents = mounts.cluster.extents(name).into_iter().map(|extent| extent.data);
        extents.map(|data| format!("{data:?}")).collect()
    };
    let (sources, targets) = (chunks("source"), chunks("target"));
    let shared = targets.iter().filter(|data| sources.contains(data)).count();
    // The range starts and ends within chunks, and is not the whole file.
    assert!(shared * 4 > sources.len() * 3, "{shared} of {}", sources.len());
    // Into itself, also where that overlaps.
    let (mut from, mut to) = (0, 2 << 20);
    let copied = copy_file_range(&source, Some(&mut from), &source, Some(&mut to), 4096).unwrap();
    assert_eq!(copied, 4096);
    assert!(fs::read(root.join("source")).unwrap()[2 << 20..][..4096] == data[..4096]);
    let (mut from, mut to) = (0, 100);
    let overlapping = copy_file_range(&source, Some(&mut from), &source, Some(&mut to), 4096);
    assert_eq!(overlapping, Err(Errno::INVAL));
    drop((source, target));
    mounts.end();
}

#[test]
fn statfs_tells_what_is_free() {
    let Some(mounts) = Mounts::new(1) else { return };
    let free = || {
        let fs = rustix::fs::statvfs(mounts.path(0)).unwrap();
        assert_eq!(fs.f_namemax, 255);
        assert!(fs.f_files >= fs.f_ffree);
        fs.f_bfree * fs.f_frsize
    };
    let before = free();
    fs::write(mounts.path(0).join("file"), noise(1, 4 << 20)).unwrap();
    assert!(free() <= before - (4 << 20));
    mounts.end();
}

#[test]
fn the_same_bytes_are_the_same_chunks_however_they_were_written() {
    let Some(mounts) = Mounts::new(1) else { return };
    let data = noise(1, 20 << 20);
    fs::write(mounts.path(0).join("at-once"), &data).unwrap();
    let file = open(&mounts.path(0).join("in-pieces"));
    for (number, piece) in data.chunks(100_000).enumerate() {
        file.write_all_at(piece, number as u64 * 100_000).unwrap();
    }
    drop(file);
    let chunks = |name| -> Vec<_> {
        mounts.cluster.extents(name).into_iter().map(|extent| extent.data).collect()
    };
    let (at_once, in_pieces) = (chunks("at-once"), chunks("in-pieces"));
    let shared = in_pieces.iter().filter(|data| at_once.contains(data)).count();
    assert!(shared * 100 >= at_once.len() * 90, "{shared} of {}", at_once.len());
    mounts.end();
}
