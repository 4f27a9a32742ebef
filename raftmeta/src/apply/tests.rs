mod any;
mod lost;
mod model;
mod nodes;
mod orders;
mod property;
mod repair;
mod rotation;

use bytes::Bytes;
use raftmeta_types::cluster::{CertificateInfo, ClusterInfo, SessionInfo, TokenInfo, TokenRefusal};
use raftmeta_types::command::*;
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::*;

use super::{ACL_ACCESS, ACL_DEFAULT, apply};
use crate::check::check;
use crate::kv::MemKv;
use crate::read;

const S: SessionId = SessionId(7);

/// A cluster with one session; every command checks the store afterwards.
struct Fs {
    kv: MemKv,
    index: u64,
    seq: u64,
}

impl Fs {
    fn new() -> Fs {
        let mut fs = Fs { kv: MemKv::new(), index: 0, seq: 0 };
        let cluster = ClusterInfo {
            uuid: uuid::Uuid::from_u128(1),
            name: "t".into(),
            site: 1,
            shard_count: 2,
            created: Time::default(),
        };
        fs.server(Command::InitCluster { cluster, sealed_ca: Bytes::new() }).unwrap();
        fs.open(S);
        fs
    }

    fn open(&mut self, session: SessionId) {
        let info = SessionInfo {
            session,
            client: "c".into(),
            identity: "uid=0".into(),
            opened: Time::default(),
            secret: [0; 16],
        };
        self.server(Command::OpenSession(info)).unwrap();
    }

    fn envelope(&mut self, session: SessionId, command: Command) -> MetaResult<Reply> {
        self.index += 1;
        self.seq += 1;
        let time = Time { secs: self.index as i64, nanos: 0 };
        let envelope = Envelope { session, slot: 0, seq: self.seq, time, command };
        let answer = apply(&mut self.kv, Version(self.index), &envelope).unwrap();
        assert_eq!(check(&self.kv).unwrap(), [], "after {:?}", envelope.command);
        answer
    }

    fn server(&mut self, command: Command) -> MetaResult<Reply> {
        self.envelope(SessionId::SERVER, command)
    }

    fn run(&mut self, command: Command) -> MetaResult<Reply> {
        self.envelope(S, command)
    }

    fn make(&mut self, parent: Ino, name: &str, kind: FileKind, mode: u32) -> MetaResult<Inode> {
        let target = if kind == FileKind::Symlink { "there" } else { "" };
        let create = Create {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            kind,
            mode,
            umask: 0o022,
            uid: 1,
            gid: 2,
            rdev: 0,
            target: target.into(),
            exclusive: true,
            open: false,
        };
        match self.run(Command::Create(create))? {
            Reply::Created { inode, new: true, .. } => Ok(inode),
            other => panic!("{other:?}"),
        }
    }

    fn file(&mut self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, FileKind::Regular, 0o666).unwrap().ino
    }

    /// A file with these extents, made by the server.
    fn server_file(&mut self, extents: Vec<NewExtent>) -> Ino {
        let create = Create {
            parent: Ino::ROOT,
            name: "server's".into(),
            kind: FileKind::Regular,
            mode: 0o600,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            open: false,
        };
        let Ok(Reply::Created { inode, .. }) = self.server(Command::Create(create)) else {
            panic!("created");
        };
        let write = Write { ino: inode.ino, extents, change: AttrChange::default() };
        self.server(Command::Write(write)).unwrap();
        inode.ino
    }

    fn dir(&mut self, parent: Ino, name: &str) -> Ino {
        self.make(parent, name, FileKind::Directory, 0o777).unwrap().ino
    }

    fn inode(&self, ino: Ino) -> Option<Inode> {
        read::inode(&self.kv, ino).unwrap()
    }

    fn unlink(
        &mut self,
        parent: Ino,
        name: &str,
        directory: bool,
        open: bool,
    ) -> MetaResult<Reply> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let found = read::lookup(&self.kv, parent, &name).unwrap();
        let open_by = found.filter(|_| open).map(|inode| (inode.ino, vec![S]));
        let open_by = open_by.into_iter().collect();
        self.run(Command::Unlink(Unlink { parent, name, directory, open_by }))
    }

    fn rename(
        &mut self,
        from: (Ino, &str),
        to: (Ino, &str),
        mode: RenameMode,
    ) -> MetaResult<Reply> {
        self.run(Command::Rename(Rename {
            parent: from.0,
            name: Bytes::copy_from_slice(from.1.as_bytes()),
            new_parent: to.0,
            new_name: Bytes::copy_from_slice(to.1.as_bytes()),
            mode,
            open_by: vec![],
        }))
    }

    fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> MetaResult<Reply> {
        let data = ExtentData::Inline(Bytes::copy_from_slice(bytes));
        let extent = NewExtent { offset, len: bytes.len() as u32, data, receipt: Epoch(0) };
        let change = AttrChange::default();
        self.run(Command::Write(Write { ino, extents: vec![extent], change }))
    }

    fn set(&mut self, ino: Ino, change: AttrChange, size: Option<u64>) -> MetaResult<Reply> {
        self.run(Command::SetAttr(SetAttr { ino, change, size }))
    }
}

fn hash(id: u8) -> ChunkHash {
    ChunkHash([id; 32])
}

#[test]
fn links_and_directories_are_counted() {
    let mut fs = Fs::new();
    let dir = fs.dir(Ino::ROOT, "d");
    assert_eq!(fs.inode(Ino::ROOT).unwrap().nlink, 3);
    let file = fs.file(dir, "f");
    assert_eq!(fs.inode(file).unwrap().mode, 0o644);
    fs.run(Command::Link { ino: file, parent: Ino::ROOT, name: "g".into() }).unwrap();
    assert_eq!(fs.inode(file).unwrap().nlink, 2);
    let again = fs.run(Command::Link { ino: file, parent: Ino::ROOT, name: "g".into() });
    assert_eq!(again, Err(MetaError::Exists));
    let of_dir = fs.run(Command::Link { ino: dir, parent: Ino::ROOT, name: "h".into() });
    assert_eq!(of_dir, Err(MetaError::NotPermitted));
    assert_eq!(fs.unlink(Ino::ROOT, "d", true, false), Err(MetaError::NotEmpty));
    assert_eq!(fs.unlink(Ino::ROOT, "d", false, false), Err(MetaError::IsDirectory));
    assert_eq!(fs.unlink(dir, "f", true, false), Err(MetaError::NotDirectory));
    fs.unlink(dir, "f", false, false).unwrap();
    fs.unlink(Ino::ROOT, "d", true, false).unwrap();
    fs.unlink(Ino::ROOT, "g", false, false).unwrap();
    assert_eq!(fs.inode(file), None);
    assert_eq!(fs.inode(Ino::ROOT).unwrap().nlink, 2);
    assert_eq!(read::counters(&fs.kv).unwrap().inodes, 1);
}

#[test]
fn renames() {
    let mut fs = Fs::new();
    let (a, b) = (fs.dir(Ino::ROOT, "a"), fs.dir(Ino::ROOT, "b"));
    let inner = fs.dir(a, "inner");
    let file = fs.file(a, "f");
    let root = Ino::ROOT;
    let into_itself = fs.rename((root, "a"), (inner, "x"), RenameMode::Replace);
    assert!(matches!(into_itself, Err(MetaError::Invalid(_))));
    let swap_below = fs.rename((a, "inner"), (root, "a"), RenameMode::Exchange);
    assert!(matches!(swap_below, Err(MetaError::Invalid(_))));
    let full = fs.rename((root, "b"), (root, "a"), RenameMode::Replace);
    assert_eq!(full, Err(MetaError::NotEmpty));
    let exists = fs.rename((root, "b"), (root, "a"), RenameMode::NoReplace);
    assert_eq!(exists, Err(MetaError::Exists));
    assert_eq!(fs.rename((a, "f"), (root, "b"), RenameMode::Replace), Err(MetaError::IsDirectory));
    assert_eq!(fs.rename((root, "b"), (a, "f"), RenameMode::Replace), Err(MetaError::NotDirectory));
    fs.rename((a, "inner"), (root, "b"), RenameMode::Replace).unwrap();
    assert_eq!(fs.inode(b), None);
    assert_eq!(fs.inode(inner).unwrap().parent, root);
    fs.rename((root, "b"), (a, "f"), RenameMode::Exchange).unwrap();
    assert_eq!(read::lookup(&fs.kv, root, b"b").unwrap().unwrap().ino, file);
    assert_eq!(fs.inode(inner).unwrap().parent, a);
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    fs.write(file, 0, b"data").unwrap();
    fs.unlink(Ino::ROOT, "f", false, true).unwrap();
    assert_eq!(fs.inode(file).unwrap().nlink, 0);
    let revived = fs.run(Command::Link { ino: file, parent: Ino::ROOT, name: "g".into() });
    assert_eq!(revived, Err(MetaError::NotFound));
    assert_eq!(read::orphans_of(&fs.kv, S).unwrap(), [file]);
    fs.run(Command::ReleaseOrphans { session: S, inos: vec![file] }).unwrap();
    assert_eq!(fs.inode(file), None);

    let unnamed = fs.make(Ino::ROOT, "", FileKind::Regular, 0o600).unwrap().ino;
    fs.run(Command::Link { ino: unnamed, parent: Ino::ROOT, name: "t".into() }).unwrap();
    assert_eq!(fs.inode(unnamed).unwrap().nlink, 1);
    let other = fs.make(Ino::ROOT, "", FileKind::Regular, 0o600).unwrap().ino;
    fs.server(Command::CloseSession { session: S }).unwrap();
    assert_eq!(fs.inode(other), None);
    assert_eq!(fs.write(unnamed, 0, b"x"), Err(MetaError::SessionExpired));
}

#[test]
fn a_retry_is_answered_and_not_done_again() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    let command = Command::Link { ino: file, parent: Ino::ROOT, name: "g".into() };
    let first = fs.run(command.clone()).unwrap();
    fs.seq -= 1;
    assert_eq!(fs.run(command.clone()).unwrap(), first);
    fs.seq -= 2;
    assert_eq!(fs.run(command), Err(MetaError::OutOfSequence));
    assert_eq!(fs.inode(file).unwrap().nlink, 2);
}

#[test]
fn locks_split_join_and_conflict() {
    let mut fs = Fs::new();
    let ino = fs.file(Ino::ROOT, "f");
    let lock = |owner, kind, start, end| Lock {
        ino,
        family: LockFamily::Posix,
        owner: LockOwner { session: S, owner },
        kind,
        start,
        end,
        pid: 1,
    };
    fs.run(Command::Lock(lock(1, LockKind::Exclusive, 0, 99))).unwrap();
    let refused = fs.run(Command::Lock(lock(2, LockKind::Shared, 50, 60)));
    assert_eq!(refused, Err(MetaError::WouldBlock));
    fs.run(Command::Lock(lock(1, LockKind::Unlock, 40, 59))).unwrap();
    fs.run(Command::Lock(lock(2, LockKind::Shared, 40, 59))).unwrap();
    assert_eq!(read::locks(&fs.kv, ino).unwrap().len(), 3);
    fs.run(Command::UnlockOwner { ino, owner: 2 }).unwrap();
    fs.run(Command::Lock(lock(1, LockKind::Exclusive, 40, 59))).unwrap();
    let held = read::locks(&fs.kv, ino).unwrap();
    assert_eq!(held, [lock(1, LockKind::Exclusive, 0, 99)]);
}

/// Entries `(tag, permissions)` without ids.
fn acl(entries: &[(u16, u16)]) -> Bytes {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&5u32.to_le_bytes());
    }
    bytes.into()
}

#[test]
fn acls_and_modes_go_together() {
    let mut fs = Fs::new();
    let dir = fs.dir(Ino::ROOT, "d");
    let value = acl(&[(1, 7), (2, 7), (4, 5), (16, 7), (32, 0)]);
    let set = |ino, name: &[u8], value: &Bytes| Command::SetXattr {
        ino,
        name: Bytes::copy_from_slice(name),
        value: value.clone(),
        mode: XattrMode::Set,
    };
    fs.run(set(dir, ACL_DEFAULT, &value)).unwrap();
    let file = fs.make(dir, "f", FileKind::Regular, 0o666).unwrap();
    assert_eq!(file.mode, 0o660, "the umask does not count, the default ACL does");
    let access = read::xattr(&fs.kv, file.ino, ACL_ACCESS).unwrap().unwrap();
    assert_eq!(access, acl(&[(1, 6), (2, 7), (4, 5), (16, 6), (32, 0)]));
    let sub = fs.dir(dir, "sub");
    assert_eq!(read::xattr(&fs.kv, sub, ACL_DEFAULT).unwrap().unwrap(), value);
    fs.set(file.ino, AttrChange { mode: Some(0o640), ..AttrChange::default() }, None).unwrap();
    let access = read::xattr(&fs.kv, file.ino, ACL_ACCESS).unwrap().unwrap();
    assert_eq!(access, acl(&[(1, 6), (2, 7), (4, 5), (16, 4), (32, 0)]));
    fs.run(set(file.ino, ACL_ACCESS, &acl(&[(1, 6), (4, 4), (32, 4)]))).unwrap();
    let inode = fs.inode(file.ino).unwrap();
    assert_eq!((inode.mode, inode.has_acl), (0o644, false));
}

#[test]
fn tokens_are_used_once_and_in_time() {
    let mut fs = Fs::new();
    let token = |id: u8, expires| TokenInfo {
        hash: [id; 32],
        created: Time::default(),
        expires: Time { secs: expires, nanos: 0 },
        uses_left: 1,
    };
    let certificate = |serial| CertificateInfo {
        serial,
        subject: "client:x".into(),
        expires: Time::default(),
        revoked: false,
    };
    fs.server(Command::CreateToken(token(1, 1 << 40))).unwrap();
    fs.server(Command::CreateToken(token(2, 0))).unwrap();
    let mut take = |id: u8, serial| {
        let certificate = certificate(serial);
        fs.server(Command::UseToken { token_hash: [id; 32], certificate })
    };
    assert_eq!(take(1, 1), Ok(Reply::Done));
    assert_eq!(take(1, 2), Err(MetaError::Token(TokenRefusal::Used)));
    assert_eq!(take(2, 3), Err(MetaError::Token(TokenRefusal::Expired)));
    assert_eq!(take(3, 4), Err(MetaError::Token(TokenRefusal::Unknown)));
}

#[test]
fn a_huge_file_is_reaped_by_and_by() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    let extents = (0..1100u64)
        .map(|at| NewExtent {
            offset: at * 8,
            len: 4,
            data: ExtentData::Chunk { hash: hash(1), chunk_offset: 0 },
            receipt: Epoch(0),
        })
        .collect();
    let write = Write { ino: file, extents, change: AttrChange::default() };
    fs.run(Command::Write(write)).unwrap();
    fs.unlink(Ino::ROOT, "f", false, false).unwrap();
    assert!(read::has_dead(&fs.kv).unwrap());
    let first = fs.server(Command::Reap { limit: 1000 }).unwrap();
    assert_eq!(first, Reply::Reaped { extents: 1000, more: true });
    let second = fs.server(Command::Reap { limit: 1000 }).unwrap();
    assert_eq!(second, Reply::Reaped { extents: 100, more: false });
    assert_eq!(read::garbage(&fs.kv, hash(1).shard(2), 9).unwrap(), [hash(1)]);
}

#[test]
fn settling_never_undoes_a_newer_write() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    fs.write(file, 0, &[7; 1000]).unwrap();
    let found = read::unsettled(&fs.kv, None, 10).unwrap();
    assert_eq!(found.len(), 1);
    let item = Settle {
        ino: file,
        offset: 0,
        len: 1000,
        version: found[0].version,
        hash: hash(3),
        chunk_offset: 0,
        receipt: Epoch(0),
    };
    fs.write(file, 0, &[8; 1000]).unwrap();
    let late = fs.server(Command::Settle(vec![item.clone()]));
    assert_eq!(late, Ok(Reply::Settled { count: 0 }));
    let version = read::unsettled(&fs.kv, None, 10).unwrap()[0].version;
    let fresh = Settle { version, ..item };
    let done = fs.server(Command::Settle(vec![fresh.clone(), fresh]));
    assert_eq!(done, Ok(Reply::Settled { count: 1 }));
    assert_eq!(read::references(&fs.kv, &hash(3)).unwrap(), 1);
}

#[test]
fn more_than_a_command_may_free_is_left_to_later_ones() {
    let mut fs = Fs::new();
    let extents = |count: u64| {
        let extent = |at: u64| NewExtent {
            offset: at * 8,
            len: 4,
            data: ExtentData::Zero,
            receipt: Epoch(0),
        };
        (0..count).map(extent).collect()
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        let ino = fs.make(Ino::ROOT, "", FileKind::Regular, 0o600).unwrap().ino;
        let write = Write { ino, extents: extents(500), change: AttrChange::default() };
        fs.run(Command::Write(write)).unwrap();
        held.push(ino);
    }
    fs.server(Command::CloseSession { session: S }).unwrap();
    assert!(held.iter().all(|&ino| fs.inode(ino).is_none()));
    let reaped = fs.server(Command::Reap { limit: 10_000 }).unwrap();
    assert_eq!(reaped, Reply::Reaped { extents: 500, more: false });

    let file = fs.server_file(extents(2500));
    let punch = Command::Allocate(Allocate {
        ino: file,
        mode: AllocateMode::PunchHole,
        offset: 8,
        len: 8 * 2400,
        keep_size: true,
    });
    let mut steps = 1;
    while fs.server(punch.clone()).unwrap() == Reply::More {
        steps += 1;
    }
    assert_eq!(steps, 3);
    assert_eq!(fs.inode(file).unwrap().allocated, 4 * 100);
}

#[test]
fn a_step_of_a_large_command_keeps_no_reply() {
    let mut fs = Fs::new();
    let file = fs.file(Ino::ROOT, "f");
    let extent =
        |at: u64| NewExtent { offset: at * 8, len: 4, data: ExtentData::Zero, receipt: Epoch(0) };
    let write = Write {
        ino: file,
        extents: (0..1500).map(extent).collect(),
        change: AttrChange::default(),
    };
    fs.run(Command::Write(write)).unwrap();
    assert_eq!(fs.set(file, AttrChange::default(), Some(1)), Ok(Reply::More));
    assert!(fs.inode(file).unwrap().size > 1);
    fs.seq -= 1;
    let done = fs.set(file, AttrChange::default(), Some(1)).unwrap();
    assert_eq!(fs.inode(file).unwrap().size, 1);
    fs.seq -= 1;
    assert_eq!(fs.set(file, AttrChange::default(), Some(1)).unwrap(), done);
}
