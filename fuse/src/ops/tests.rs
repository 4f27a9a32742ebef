//! What an open and a lock tell the kernel while others change a file, at moments that a mount does not let choose.

#[allow(dead_code, reason = "the cluster of all tests")]
#[path = "../../tests/it/memory.rs"]
mod memory;

use raftmeta_types::command::{Create, NewExtent, SetAttr, Write};
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{Epoch, ExtentData, FileKind};
use rustix::fs::OFlags;

use super::*;
use memory::{Cluster, Member};

/// A mount that is tested, and a session that changes things beside it. No event arrives but those that a test plays.
struct World {
    core: Core,
    other: Member,
    ino: Ino,
}

impl World {
    /// With a file that this mount has made, written and closed: the kernel holds its pages.
    fn new() -> World {
        let cluster = Cluster::new();
        let core = Core::new(Arc::new(cluster.connect()), &MountOptions::new("unused"));
        let create = Create {
            parent: Ino::ROOT,
            name: "file".into(),
            kind: FileKind::Regular,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            open: true,
        };
        let Reply::Created { inode, .. } = core.mutate(Command::Create(create)).unwrap() else {
            panic!()
        };
        let ino = inode.ino;
        let made = core.open_made(inode, OFlags::RDWR);
        core.write(made.fh, 0, b"ours", WriteMode::default()).unwrap();
        core.sync(made.fh).unwrap();
        core.release(made.fh);
        World { core, other: cluster.connect(), ino }
    }

    fn write_elsewhere(&self) {
        let data = ExtentData::Inline(Bytes::from_static(b"theirs"));
        let extents = vec![NewExtent { offset: 0, len: 6, data, receipt: Epoch(0) }];
        let write = Write { ino: self.ino, extents, change: AttrChange::default() };
        self.other.mutate(true, Command::Write(write)).unwrap();
    }

    fn open(&self) -> Opened {
        self.core.open(self.ino, OFlags::RDWR).unwrap()
    }

    fn lock(&self) -> Locked {
        let owner = LockOwner { session: self.core.backend.session(), owner: 1 };
        let (start, end, pid) = (0, u64::MAX, 1);
        let (family, kind) = (LockFamily::Posix, LockKind::Exclusive);
        let lock = Lock { ino: self.ino, family, owner, kind, start, end, pid };
        self.core.set_lock(&lock).unwrap()
    }

    fn is_stale(&self) -> bool {
        matches!(self.lock(), Locked::Stale(_))
    }
}

#[test]
fn pages_of_our_own_writes_are_kept() {
    let world = World::new();
    let opened = world.open();
    assert!(opened.keep_pages && !opened.changed);
    assert_eq!(world.lock(), Locked::Fresh);
    for _ in 0..3 {
        world.core.write(opened.fh, 1, b"more", WriteMode::default()).unwrap();
        world.core.sync(opened.fh).unwrap();
        assert_eq!(world.lock(), Locked::Fresh);
        assert!(world.open().keep_pages);
    }
    // By path as well.
    let set = SetAttr { ino: world.ino, change: AttrChange::default(), size: Some(2) };
    world.core.set_on_server(set.clone(), true).unwrap();
    assert!(world.open().keep_pages);
    world.write_elsewhere();
    world.core.set_on_server(set, true).unwrap();
    assert!(!world.open().keep_pages);
}

#[test]
fn of_two_opens_at_once_neither_keeps_what_the_other_is_about_to_drop() {
    let world = World::new();
    world.write_elsewhere();
    let (first, second) = (world.open(), world.open());
    assert!(!first.keep_pages && !second.keep_pages);
    // The kernel reads through a handle after it has dropped what it had.
    assert_eq!(world.core.read(second.fh, 0, 6).unwrap(), b"theirs");
    assert!(world.open().keep_pages);
}

#[test]
fn an_open_for_writing_keeps_what_it_wrote() {
    let world = World::new();
    world.write_elsewhere();
    let opened = world.open();
    world.core.write(opened.fh, 0, b"ours again", WriteMode::default()).unwrap();
    world.core.sync(opened.fh).unwrap();
    assert!(world.open().keep_pages);
    // With the other's write in between there may be older pages.
    world.write_elsewhere();
    world.core.write(opened.fh, 0, b"ours", WriteMode::default()).unwrap();
    world.core.sync(opened.fh).unwrap();
    assert!(!world.open().keep_pages);
}

#[test]
fn a_lock_under_which_another_wrote_is_stale_whatever_is_cached() {
    let world = World::new();
    assert_eq!(world.lock(), Locked::Fresh);
    // The reply to this is what `getattr` tells for a while.
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    world.core.setattr(SetAttr { ino: world.ino, change, size: None }).unwrap();
    world.write_elsewhere();
    assert!(world.is_stale());
}

#[test]
fn a_lock_is_stale_until_the_kernel_was_told() {
    let world = World::new();
    world.write_elsewhere();
    // The event was heard, and the kernel has its pages still.
    world.core.invalidate(world.ino, true);
    let Locked::Stale(version) = world.lock() else { panic!("fresh") };
    assert!(world.is_stale());
    world.core.dropped(world.ino, version);
    assert_eq!(world.lock(), Locked::Fresh);
    world.write_elsewhere();
    assert!(world.is_stale());
}

#[test]
fn an_answer_that_our_commit_overtook_is_told_from_one_of_another_change() {
    let world = World::new();
    let before = world.core.getattr(world.ino).unwrap();
    assert!(!world.core.seen.is_overtaken(&before));
    let opened = world.open();
    world.core.write(opened.fh, 0, b"newer", WriteMode::default()).unwrap();
    world.core.sync(opened.fh).unwrap();
    assert!(world.core.seen.is_overtaken(&before));
    world.core.invalidate(world.ino, true);
    assert!(world.core.seen.is_overtaken(&before));
}
