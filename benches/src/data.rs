//! Large files: written and read through, and at random places. The bytes do not compress.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::OFlags;

use crate::Arguments;
use crate::measure::{Random, Results, Unit, rate, time};
use crate::subject::Subject;

const FILE_BYTES: usize = 512 << 20;
const PIECE_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;
/// Operations of the random steps; at depth 16 each of 16 threads does this many.
const RANDOM_READS: usize = 2000;
const SYNCED_WRITES: usize = 500;
const DEPTH: usize = 16;
/// The file of the synced writes.
const SMALL_FILE_BYTES: usize = 64 << 20;

pub fn run(
    arguments: &Arguments,
    subject: &mut Subject,
    dir: &Path,
    results: &mut Results,
) -> Result<()> {
    let steps = ["sequential write", "sequential read", "random read", "random write"];
    if !steps.iter().any(|step| arguments.wants_step(step)) {
        return Ok(());
    }
    let name = subject.kind.to_string();
    let path = dir.join("large");
    let megabytes = |elapsed| rate(FILE_BYTES, elapsed) / 1e6;
    // Made before the clock starts; every piece differs, so that nothing deduplicates.
    let mut random =
        Random(dir.as_os_str().len() as u64 ^ rustix::process::getpid().as_raw_pid() as u64);
    let noise = random.noise(FILE_BYTES);
    let elapsed = time(|| {
        let mut file = File::create_new(&path)?;
        for piece in noise.chunks(PIECE_BYTES) {
            file.write_all(piece)?;
        }
        Ok(file.sync_all()?)
    })?;
    results.add("sequential write", &name, Unit::MegabytesPerSecond, megabytes(elapsed));
    subject.cool()?;
    let elapsed = time(|| read_through(&path))?;
    results.add("sequential read, cold", &name, Unit::MegabytesPerSecond, megabytes(elapsed));
    let elapsed = time(|| read_through(&path))?;
    results.add("sequential read, warm", &name, Unit::MegabytesPerSecond, megabytes(elapsed));

    subject.cool()?;
    let elapsed = time(|| read_randomly(&path, RANDOM_READS, 3))?;
    let reads = rate(RANDOM_READS, elapsed);
    results.add("random read 4 KiB, depth 1", &name, Unit::PerSecond, reads);
    subject.cool()?;
    let elapsed = time(|| {
        std::thread::scope(|scope| {
            let work = |thread: usize| {
                let path = &path;
                move || read_randomly(path, RANDOM_READS, thread as u64 + 4)
            };
            let threads: Vec<_> = (0..DEPTH).map(|thread| scope.spawn(work(thread))).collect();
            threads.into_iter().try_for_each(|t| t.join().expect("a thread does not panic"))
        })
    })?;
    let reads = rate(RANDOM_READS * DEPTH, elapsed);
    results.add("random read 4 KiB, depth 16", &name, Unit::PerSecond, reads);
    fs::remove_file(&path)?;

    let path = dir.join("small");
    fs::write(&path, &noise[..SMALL_FILE_BYTES])?;
    let file = OpenOptions::new().write(true).open(&path)?;
    file.sync_all()?;
    let elapsed = time(|| write_synced(&file, &mut random))?;
    let writes = rate(SYNCED_WRITES, elapsed);
    results.add("random write 4 KiB + fsync", &name, Unit::PerSecond, writes);
    fs::remove_file(&path)?;
    Ok(())
}

fn read_through(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut total = 0;
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => total += n,
        }
    }
    ensure!(total == FILE_BYTES, "{} bytes read of {FILE_BYTES}", total);
    Ok(())
}

/// `O_DIRECT`, into memory that begins on a block.
fn read_randomly(path: &Path, count: usize, seed: u64) -> Result<()> {
    let flags = OFlags::DIRECT.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut memory = vec![0; 2 * BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = &mut memory[start..start + BLOCK_BYTES];
    let mut random = Random(seed);
    for _ in 0..count {
        let at = random.next() as usize % (FILE_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        file.read_exact_at(block, at as u64)?;
    }
    Ok(())
}

fn write_synced(file: &File, random: &mut Random) -> Result<()> {
    let noise = random.noise(BLOCK_BYTES + SYNCED_WRITES * 8);
    for n in 0..SYNCED_WRITES {
        let at = random.next() as usize % (SMALL_FILE_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        file.write_all_at(&noise[n * 8..n * 8 + BLOCK_BYTES], at as u64)?;
        file.sync_all()?;
    }
    Ok(())
}
