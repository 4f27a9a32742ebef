//! The client mounted for real, over a cluster in memory. Needs root and `/dev/fuse`; says so where it
//! has to skip.
#![allow(clippy::unwrap_used)]

mod data;
mod faults;
mod locks;
mod memory;
mod names;
mod space;
mod two_mounts;
mod xattrs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse::{MountOptions, Session};
use memory::Cluster;

/// A wait that is longer than any machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster with mounts on it, all gone at the end of the test.
struct Mounts {
    cluster: Arc<Cluster>,
    sessions: Vec<Session>,
    directory: tempfile::TempDir,
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("SKIPPED: mounting needs root and /dev/fuse");
    }
    can
}

impl Mounts {
    /// So many mounts of one cluster; `None` where nothing can be mounted.
    fn new(count: usize) -> Option<Mounts> {
        Mounts::with(count, |_| {})
    }

    fn with(count: usize, adjust: impl Fn(&mut MountOptions)) -> Option<Mounts> {
        if !can_mount() {
            return None;
        }
        let cluster = Cluster::new();
        let directory = tempfile::tempdir().unwrap();
        let mut mounts = Mounts { cluster, sessions: Vec::new(), directory };
        (0..count).for_each(|_| mounts.add(&adjust));
        Some(mounts)
    }

    fn add(&mut self, adjust: impl Fn(&mut MountOptions)) {
        let path = self.path(self.sessions.len());
        std::fs::create_dir(&path).unwrap();
        let mut options = MountOptions::new(path);
        options.nodev = false;
        adjust(&mut options);
        self.sessions.push(fuse::mount(options, self.cluster.connect()).unwrap());
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.path().join(number.to_string())
    }

    /// Unmounts everything in order; then nothing may be wrong in the namespace.
    fn end(mut self) {
        for session in self.sessions.drain(..) {
            // The kernel may still be releasing files that were closed a moment ago.
            eventually("unmounting", || session.unmount().is_ok());
            session.join().unwrap();
        }
        assert_eq!(self.cluster.check(), Vec::<String>::new());
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for session in self.sessions.drain(..) {
            session.abort();
            // An aborted mount has lost what it had not sent.
            _ = session.join();
        }
    }
}

/// Polls until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "still not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that do not compress, do not repeat, and are the same every time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

/// What this test binary does when it is started as the child of a test: see `locks.rs`.
fn run_child(what: &str, path: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["locks::as_child", "--exact", "--nocapture", "--test-threads=1"])
        .env("FUSE_TEST_CHILD", what)
        .env("FUSE_TEST_PATH", path)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}
