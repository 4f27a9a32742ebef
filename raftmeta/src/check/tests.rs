mod in_memory;

use proptest::prelude::*;
use raftmeta_types::cluster::{ClusterInfo, SessionInfo, ShardInfo};
use raftmeta_types::*;

use super::*;
use crate::keys;
use crate::kv::{Kv, MemKv, Pair};
use crate::records::*;

fn hash(number: u8) -> ChunkHash {
    ChunkHash([number; 32])
}

fn put<T: serde::Serialize>(kv: &mut MemKv, key: &[u8], value: &T) {
    kv.put(key, &encode(value)).unwrap();
}

fn inode(ino: Ino, kind: FileKind, parent: Ino) -> Inode {
    Inode {
        ino,
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        allocated: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        btime: Time::default(),
        rdev: 0,
        version: Version(1),
        data_version: Version(1),
        parent,
        target: bytes::Bytes::new(),
        has_acl: false,
    }
}

/// Puts one record, right or wrong, into a store of a few inodes and chunks.
fn any_record(kv: &mut MemKv, class: u8, [a, b, c]: [u8; 3]) {
    let (one, other) = (Ino(1 + u64::from(a % 6)), Ino(1 + u64::from(b % 6)));
    let offset = u64::from(c % 4) * 1000;
    let version = Version(u64::from(c % 2));
    let shard = ShardId(u16::from(a % 3));
    let kind = if c & 1 == 0 { FileKind::Directory } else { FileKind::Regular };
    match class % 16 {
        0 | 1 => {
            let mut inode = inode(one, kind, other);
            inode.nlink = u32::from(c % 5);
            inode.size = u64::from(c >> 6) * 32;
            inode.allocated = u64::from(c >> 5 & 1) * 1000;
            inode.has_acl = c % 7 == 0;
            put(kv, &keys::inode(one), &inode);
        }
        2 | 3 => {
            let dentry = Dentry { ino: other, kind };
            put(kv, &keys::dentry(one, &[b'a' + c % 3]), &dentry);
        }
        4 | 5 => {
            let len = if c & 16 == 0 { 1000 } else { u32::from(b % 4) * 600 };
            let data = match c >> 6 {
                0 => ExtentData::Zero,
                1 => ExtentData::Inline(vec![1; 1000].into()),
                _ => ExtentData::Chunk { hash: hash(b % 4), chunk_offset: 0 },
            };
            put(kv, &keys::extent(one, offset), &ExtentRecord { len, data, version });
        }
        6 => put(kv, &keys::unsettled(one, offset), &version),
        7 => put(kv, &keys::dead(one), &version),
        8 => {
            let name: &[u8] = if b & 1 == 0 { crate::apply::ACL_ACCESS } else { b"user.x" };
            kv.put(&keys::xattr(one, name), &[VERSION]).unwrap();
            if b & 2 == 0 {
                kv.put(&keys::locks(one), &[VERSION, 0]).unwrap();
            }
        }
        9 => {
            let sessions = (0..c % 3).map(|number| SessionId(number.into())).collect();
            put(kv, &keys::orphan(one), &Orphan { sessions, linkable: false });
            let info = SessionInfo {
                session: SessionId(u64::from(b % 2)),
                client: String::new(),
                identity: String::new(),
                opened: Time::default(),
                secret: [0; 16],
            };
            put(kv, &keys::session(info.session), &info);
        }
        10 | 11 => put(kv, &keys::references(&hash(b % 4)), &u64::from(c % 3)),
        12 => put(kv, &keys::garbage(shard, &hash(b % 4)), &version),
        13 => {
            let info = ShardInfo {
                id: shard,
                epoch: Epoch(0),
                gc_epoch: Epoch(u64::from(b % 2)),
                primary: NodeId(1),
                in_sync: Vec::new(),
            };
            put(kv, &keys::shard(shard), &info);
            let pending = PendingDelete { epoch: Epoch(u64::from(c % 2)), hashes: Vec::new() };
            put(kv, &keys::pending_delete(shard), &pending);
        }
        14 => {
            let epoch = Epoch(1 + u64::from(b % 2));
            let marked: Vec<ChunkHash> = (0..c % 3).map(hash).collect();
            match c >> 6 {
                0 => put(kv, &keys::deletion(shard, epoch), &marked),
                1 => put(kv, &keys::last_deletion(shard, &hash(c % 3)), &epoch),
                _ => {
                    let deletions = [(epoch, u32::from(c % 3))].into_iter().collect();
                    let remembered = Remembered { since: Epoch(0), deletions };
                    put(kv, &keys::remembered(shard), &remembered);
                }
            }
        }
        _ => {
            let counters = Counters { inodes: u64::from(a % 6), logical_bytes: u64::from(b) * 32 };
            put(kv, keys::COUNTERS, &counters);
            put(kv, keys::CLUSTER, &cluster());
        }
    }
}

fn cluster() -> ClusterInfo {
    ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "t".into(),
        site: 1,
        shard_count: 2,
        created: Time::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// In bounded memory it finds what it finds with everything in memory, in the same order.
    #[test]
    fn it_finds_what_a_check_in_memory_finds(
        records in prop::collection::vec(any::<(u8, [u8; 3])>(), 0..80),
    ) {
        let mut kv = MemKv::new();
        for (class, numbers) in records {
            any_record(&mut kv, class, numbers);
        }
        prop_assert_eq!(check(&kv).unwrap(), in_memory::check(&kv).unwrap());
    }
}

/// Refuses to give much at once.
struct Sparing<'a>(&'a MemKv);

/// Well below what the test puts into the large classes, and above what is read at once.
const SPARE: usize = 2000;

impl KvRead for Sparing<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.0.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        reverse: bool,
    ) -> Result<Vec<Pair>, KvError> {
        let found = self.0.scan(from, to, limit, reverse)?;
        assert!(found.len() < SPARE, "{} pairs of {}", found.len(), from.escape_ascii());
        Ok(found)
    }
}

/// A directory with so many files of one extent each, and their chunks.
fn large(files: u64) -> MemKv {
    let mut kv = MemKv::new();
    let mut root = inode(Ino::ROOT, FileKind::Directory, Ino::ROOT);
    (root.nlink, root.size) = (2, files * 32);
    put(&mut kv, &keys::inode(Ino::ROOT), &root);
    for number in 0..files {
        let ino = Ino(2 + number);
        let mut file = inode(ino, FileKind::Regular, Ino(0));
        (file.size, file.allocated) = (10, 10);
        put(&mut kv, &keys::inode(ino), &file);
        let dentry = Dentry { ino, kind: FileKind::Regular };
        put(&mut kv, &keys::dentry(Ino::ROOT, format!("{number}").as_bytes()), &dentry);
        let mut name = [0; 32];
        name[..8].copy_from_slice(&number.to_be_bytes());
        let data = ExtentData::Chunk { hash: ChunkHash(name), chunk_offset: 0 };
        let record = ExtentRecord { len: 10, data, version: Version(1) };
        put(&mut kv, &keys::extent(ino, 0), &record);
        put(&mut kv, &keys::references(&ChunkHash(name)), &1u64);
    }
    let counters = Counters { inodes: files + 1, logical_bytes: files * 10 };
    put(&mut kv, keys::COUNTERS, &counters);
    kv
}

#[test]
fn a_large_store_is_read_in_parts_and_one_wrong_number_in_it_is_found() {
    let files = 5000;
    let mut kv = large(files);
    assert_eq!(check(&Sparing(&kv)).unwrap(), []);
    let ino = Ino(files / 2);
    let mut file = crate::read::inode(&kv, ino).unwrap().unwrap();
    file.nlink = 2;
    put(&mut kv, &keys::inode(ino), &file);
    put(&mut kv, &keys::references(&hash(9)), &3u64);
    let expected = [
        Finding::Links { ino, recorded: 2, counted: 1 },
        Finding::References { hash: hash(9), recorded: 3, counted: 0 },
    ];
    assert_eq!(check(&Sparing(&kv)).unwrap(), expected);
}

/// Directories that lie in each other, deep and in a circle.
#[test]
fn the_way_to_the_root_is_found_from_any_depth_and_never_in_a_circle() {
    let mut kv = MemKv::new();
    let depth = 3000;
    for number in 1..=depth {
        let parent = Ino(if number == 1 { 1 } else { number - 1 });
        let mut directory = inode(Ino(number), FileKind::Directory, parent);
        (directory.nlink, directory.size) = (if number == depth { 2 } else { 3 }, 32);
        if number == depth {
            directory.size = 0;
        }
        put(&mut kv, &keys::inode(Ino(number)), &directory);
        if number > 1 {
            let dentry = Dentry { ino: Ino(number), kind: FileKind::Directory };
            put(&mut kv, &keys::dentry(parent, b"d"), &dentry);
        }
    }
    put(&mut kv, keys::COUNTERS, &Counters { inodes: depth, logical_bytes: 0 });
    assert_eq!(check(&kv).unwrap(), []);
    // A third of them hangs on itself.
    let cut = depth - depth / 3;
    let mut directory = crate::read::inode(&kv, Ino(cut)).unwrap().unwrap();
    directory.parent = Ino(depth);
    put(&mut kv, &keys::inode(Ino(cut)), &directory);
    let found = check(&kv).unwrap();
    let lost = found.iter().filter(|finding| matches!(finding, Finding::Unreachable { .. }));
    assert_eq!(lost.count() as u64, depth / 3 + 1);
}
