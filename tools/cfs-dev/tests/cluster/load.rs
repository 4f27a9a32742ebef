//! Clients that write files and read them again while something happens to the cluster: whatever fails is told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cfs_dev::random::{Random, fill};
use rustix::fs::OFlags;

use crate::site::LIMIT;

/// Between two operations of a thread: the load must not be all that the machine can do.
const PAUSE: Duration = Duration::from_millis(5);
/// Findings that are kept.
const WRONG_MAX: usize = 20;

/// A file that was written as a whole and synced.
#[derive(Clone, Debug)]
struct Written {
    name: String,
    number: u64,
    len: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Load {
    mounts: Vec<PathBuf>,
    seed: u64,
    /// Bytes of the files that are written under way.
    len: usize,
    written: Mutex<Vec<Written>>,
    wrong: Mutex<Vec<String>>,
    /// Operations of each thread: two of every mount, a writer and a reader.
    turns: Vec<AtomicUsize>,
    stop: AtomicBool,
}

/// The bytes of a file: they neither compress nor repeat.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    fill(&mut bytes, &mut Random::branch(number, &[5]), len);
    bytes
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl Load {
    /// On these mounts, in files of so many bytes. There is one file of every `(count, bytes)` to begin with.
    pub fn prepare(mounts: Vec<PathBuf>, seed: u64, len: usize, first: (u64, usize)) -> Load {
        let turns = (0..2 * mounts.len()).map(|_| AtomicUsize::new(0)).collect();
        let (written, wrong, stop) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let load = Load { mounts, seed, len, written, wrong, turns, stop };
        let (count, len) = first;
        for number in 0..count {
            let written = Written { name: format!("first-{number}"), number, len };
            write(&load.mounts[0].join(&written.name), &content(number, len)).unwrap();
            load.written.lock().unwrap().push(written);
        }
        load
    }

    /// All threads work while `event` runs, and have worked before and do so after it. Its result.
    pub fn during<T>(&self, event: impl FnOnce() -> T) -> T {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            // Also if the event panics.
            let stop = Stop(&self.stop);
            for thread in 0..self.turns.len() {
                scope.spawn(move || self.work(thread));
            }
            self.turns_pass();
            let outcome = event();
            self.turns_pass();
            drop(stop);
            outcome
        })
    }

    /// Waits until every thread has done some more.
    pub fn turns_pass(&self) {
        let before: Vec<usize> = self.turns.iter().map(|t| t.load(Ordering::Relaxed)).collect();
        let since = Instant::now();
        let pass =
            |(now, before): (&AtomicUsize, &usize)| now.load(Ordering::Relaxed) >= before + 5;
        while !self.turns.iter().zip(&before).all(pass) {
            assert!(since.elapsed() < LIMIT, "the clients stand still: {:?}", self.turns);
            std::thread::sleep(PAUSE);
        }
    }

    fn work(&self, thread: usize) {
        let (client, reads) = (thread / 2, thread % 2 == 1);
        let mount = &self.mounts[client];
        let mut random = Random::branch(self.seed, &[thread as u64]);
        let mut number = (thread as u64 + 1) << 32;
        while !self.stop.load(Ordering::Relaxed) {
            if reads {
                let some = random.pick(&self.written.lock().unwrap()).clone();
                self.check(mount, &some, random.chance(70));
            } else {
                number += 1;
                let written =
                    Written { name: format!("{client}-{number:x}"), number, len: self.len };
                match write(&mount.join(&written.name), &content(number, self.len)) {
                    Ok(()) => self.written.lock().unwrap().push(written),
                    Err(error) => self.is_wrong(format!("writing {}: {error}", written.name)),
                }
            }
            self.turns[thread].fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    fn is_wrong(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap();
        if wrong.len() < WRONG_MAX {
            wrong.push(what);
        }
    }

    /// Reads a file; with `direct` from the nodes, whatever the kernel has of it.
    fn check(&self, mount: &Path, written: &Written, direct: bool) {
        let mut flags = OFlags::empty();
        flags.set(OFlags::DIRECT, direct);
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits() as i32);
        let mut bytes = Vec::with_capacity(written.len + 1);
        let read = options
            .open(mount.join(&written.name))
            .and_then(|mut file| file.read_to_end(&mut bytes));
        match read {
            Err(error) => self.is_wrong(format!("reading {}: {error}", written.name)),
            Ok(_) if bytes != content(written.number, written.len) => {
                let len = bytes.len();
                self.is_wrong(format!("{} has {len} bytes, and not those written", written.name));
            }
            Ok(_) => {}
        }
    }

    /// Reads all files by every mount, and says whatever has gone wrong since the beginning.
    pub fn findings(&self) -> Vec<String> {
        let written = self.written.lock().unwrap().clone();
        for mount in &self.mounts {
            written.iter().for_each(|written| self.check(mount, written, true));
            let listed = fs::read_dir(mount).unwrap().count();
            // What a write that failed has left is no finding of its own.
            if listed < written.len() {
                self.is_wrong(format!("{listed} names of {} files", written.len()));
            }
        }
        self.wrong.lock().unwrap().clone()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.written.lock().unwrap().iter().map(|written| written.len as u64).sum()
    }
}
