//! The certificate authority is replaced under a mount with open files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cfs_dev::random::{Random, fill};
use cfs_dev::topology::Topology;
use fsd_rpc::credentials::Credentials;
use fsd_rpc::tls::CaFingerprint;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::Value;

use crate::site::{LIMIT, Site};
use crate::world::{PROGRAM, World, in_namespaces, is_root};

/// Between two lines that are written: the machine has other things to do as well.
const PAUSE: Duration = Duration::from_millis(20);
/// Lines that have to be written after something happened, to show that it goes on.
const LINES: u64 = 25;
/// Of a file that lies in chunks.
const LARGE_BYTES: usize = 1 << 20;

/// A file of the mount that stays open while lines are appended, synced and read back through the same descriptor.
struct Journal {
    file: File,
    lines: AtomicU64,
    stop: AtomicBool,
}

fn line(number: u64) -> String {
    format!("line {number:08}\n")
}

impl Journal {
    fn open(path: &Path) -> Journal {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).unwrap();
        Journal { file, lines: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    /// Until told to stop, or panics.
    fn write(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.lines.load(Ordering::Relaxed);
            let line = line(number);
            (&self.file).write_all(line.as_bytes()).unwrap();
            self.file.sync_all().unwrap();
            let mut back = vec![0; line.len()];
            self.file.read_exact_at(&mut back, number * line.len() as u64).unwrap();
            assert_eq!(back, line.as_bytes());
            self.lines.store(number + 1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
    }

    fn goes_on(&self) {
        let before = self.lines.load(Ordering::Relaxed);
        until("the mount goes on writing", || self.lines.load(Ordering::Relaxed) >= before + LINES);
    }
}

/// Stops the journal also when the test panics, so that its thread ends.
struct Stop<'a>(&'a Journal);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < LIMIT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The certificate itself, and the authorities that are trusted, the signer first.
fn certificate(identity: &Path) -> (String, Vec<CaFingerprint>) {
    let Credentials { identity, .. } = Credentials::load(identity).unwrap();
    let trusted = CaFingerprint::all_of_pem(&identity.ca_pem).unwrap();
    (identity.certificate_pem, trusted)
}

/// A mount with the certificate of this directory, which is refused; what it says.
fn refused(site: &Site, identity: &Path, mountpoint: &Path) -> String {
    fs::create_dir(mountpoint).unwrap();
    let server = format!("{}:9400", site.node(1).address());
    let mut mount = Command::new(Path::new(PROGRAM).with_file_name("cfs"));
    mount.args(["mount", "--timeout", "60s", "--server", &server, "--identity"]);
    let output = mount.arg(identity).arg(mountpoint).output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_mount_with_open_files_goes_on_while_the_authority_is_replaced() {
    let name = "a_mount_with_open_files_goes_on_while_the_authority_is_replaced";
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED {name}: it needs root and /dev/fuse, for mounts and namespaces");
        return;
    }
    if !in_namespaces(&format!("rotate::{name}")) {
        return;
    }
    let world = World::new();
    let topology = Topology { replicas: 2, shard_count: 4, ..Topology::of(3, 1) };
    let site = Site::up(&world.state(), "rotate", &topology);
    let mount = site.mount(0);
    let identity = site.cluster.clients()[0].directory().join("identity");
    let (first, old) = certificate(&identity);
    assert_eq!(old.len(), 1);
    let stolen = world.path("stolen");
    let copied = Command::new("cp").arg("-a").args([&identity, &stolen]).status().unwrap();
    assert!(copied.success());

    let mut large = Vec::new();
    fill(&mut large, &mut Random::branch(7, &[]), LARGE_BYTES);
    fs::write(mount.join("read"), &large).unwrap();
    let mut read = File::open(mount.join("read")).unwrap();
    let mut gone = File::create_new(mount.join("gone")).unwrap();
    fs::remove_file(mount.join("gone")).unwrap();
    let locked = File::create_new(mount.join("locked")).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let journal = Journal::open(&mount.join("journal"));
    std::thread::scope(|scope| {
        scope.spawn(|| journal.write());
        let stop = Stop(&journal);
        journal.goes_on();
        let begun = site.admin(1, &["ca", "rotate"]);
        assert_eq!(begun["rotation"]["stage"], "introduced", "{begun}");
        let mut stages: Vec<Value> = Vec::new();
        until("the old authority is gone", || {
            let stage = site.admin(2, &["ca", "status"])["rotation"]["stage"].clone();
            if stages.last() != Some(&stage) {
                stages.push(stage);
            }
            stages.last() == Some(&Value::Null)
        });
        // Nobody said that clients need not be waited for: the mount has renewed its certificate by itself.
        eprintln!("rotate: {stages:?} after {} lines", journal.lines.load(Ordering::Relaxed));
        assert!(stages.contains(&"issuing".into()), "{stages:?}");
        let (renewed, trusted) = certificate(&identity);
        assert!(renewed != first && trusted[0] != old[0]);
        until("the mount trusts the old authority no more", || {
            certificate(&identity).1 == trusted[..1]
        });
        journal.goes_on();
        // It greets others with the new certificate, and is let in.
        let leader = site.leader().expect("there is a leader");
        site.node(leader).kill9().unwrap();
        journal.goes_on();
        site.node(leader).start().unwrap();
        journal.goes_on();
        drop(stop);
    });

    // What was open before is open, and locked what was locked.
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).unwrap();
    assert!(bytes == large, "what was written before is read as it was");
    gone.write_all(b"nobody sees this").unwrap();
    gone.sync_all().unwrap();
    let again = File::open(mount.join("locked")).unwrap();
    let denied = flock(&again, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(denied, Err(Errno::WOULDBLOCK));
    let lines = journal.lines.load(Ordering::Relaxed);
    let mut written = String::new();
    let mut file = &journal.file;
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut written).unwrap();
    assert!(written == (0..lines).map(line).collect::<String>(), "{lines} lines were written");

    let said = refused(&site, &stolen, &world.path("mnt"));
    assert!(said.contains("authority was replaced"), "{said}");
    site.cluster.settled().unwrap();
    let findings = site.fsck(1);
    assert!(findings.is_empty(), "{findings:#?}");
}
