//! Full disks and flipped bytes.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Doing, Result};
use crate::random::Random;

/// Records that are damaged at a time, at most.
const DAMAGES_MAX: usize = 40;
/// What every record in a pool starts with, at a multiple of 16 bytes (docs/formats).
const RECORD_MAGIC: &[u8] = b"CFRC";
const RECORD_ALIGN: usize = 16;
/// Of a record, what is flipped: within what its checksums are of.
const FLIPPED: std::ops::Range<u64> = 100..108;
/// How much of a pool is looked at at once.
const WINDOW_BYTES: usize = 4 << 20;

/// The file that takes all room of a node's disk.
fn filler(directory: &Path) -> PathBuf {
    directory.join("filler")
}

/// Whether this directory is on another file system than the one above it.
pub fn is_own(directory: &Path, above: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|of| of.dev());
    matches!((device(directory), device(above)), (Ok(own), Ok(above)) if own != above)
}

/// Writes until there is no room for another page.
pub fn fill(directory: &Path) -> Result<()> {
    let path = filler(directory);
    let doing = || format!("cannot fill {}", path.display());
    let mut file = File::create(&path).doing(doing)?;
    for len in [1 << 20, 4 << 10] {
        let bytes = vec![1; len];
        loop {
            match file.write_all(&bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).doing(doing),
            }
        }
    }
    Ok(())
}

/// Gives the room back, if it was taken.
pub fn empty(directory: &Path) -> Result<()> {
    let path = filler(directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).doing(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Flips bytes in some records of a pool, as a bad disk would; how many.
pub fn damage(pool: &Path, choice: u64) -> Result<usize> {
    let doing = || format!("cannot damage {}", pool.display());
    let file = File::options().read(true).write(true).open(pool).doing(doing)?;
    let starts = records(&file).doing(doing)?;
    let chosen = Random::branch(choice, &[3]).some(&starts, starts.len().min(DAMAGES_MAX));
    let mut bytes = [0; (FLIPPED.end - FLIPPED.start) as usize];
    for at in &chosen {
        file.read_exact_at(&mut bytes, at + FLIPPED.start).doing(doing)?;
        bytes = bytes.map(|byte| !byte);
        file.write_all_at(&bytes, at + FLIPPED.start).doing(doing)?;
    }
    Ok(chosen.len())
}

/// Where what may be a record starts, holes left out.
fn records(file: &File) -> std::io::Result<Vec<u64>> {
    let len = file.metadata()?.len();
    let (mut starts, mut at) = (Vec::new(), 0);
    let mut window = vec![0; WINDOW_BYTES];
    while at < len {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / RECORD_ALIGN as u64 * RECORD_ALIGN as u64,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let room = (len - data).min(WINDOW_BYTES as u64) as usize;
        file.read_exact_at(&mut window[..room], data)?;
        let found = (0..room).step_by(RECORD_ALIGN);
        let found = found.filter(|at| window[*at..room].starts_with(RECORD_MAGIC));
        let whole = |at: &u64| at + FLIPPED.end <= len;
        starts.extend(found.map(|at| data + at as u64).filter(whole));
        at = data + room as u64;
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_between_holes_and_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        let places = [16, 4096, (4 << 20) - 16, 40 << 20];
        for at in places {
            file.write_all_at(RECORD_MAGIC, at).unwrap();
        }
        // Neither aligned nor whole.
        file.write_all_at(RECORD_MAGIC, 8200).unwrap();
        file.write_all_at(RECORD_MAGIC, (64 << 20) - 16).unwrap();
        assert_eq!(records(&File::open(&path).unwrap()).unwrap(), places);
        assert_eq!(damage(&path, 1).unwrap(), places.len());
        let mut bytes = [0; 8];
        for at in places {
            File::open(&path).unwrap().read_exact_at(&mut bytes, at + FLIPPED.start).unwrap();
            assert_eq!(bytes, [0xff; 8]);
        }
        assert!(!is_own(&path, directory.path()));
        assert!(is_own(Path::new("/proc"), Path::new("/")));
        empty(directory.path()).unwrap();
    }
}
