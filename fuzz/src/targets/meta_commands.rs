//! The state machine under commands that no client of ours would send, in any order.
//!
//! The store never fails, every replica has the same bytes, a refusal changes nothing but its slot, and what is
//! left is as fsck wants it. Corrections (`Repair`) of what is right make it wrong: after one, only the first
//! half counts.

use std::cell::Cell;

use bytes::Bytes;
use raftmeta::{MemKv, apply, check};
use raftmeta_types::cluster::{
    CertificateInfo, ClusterInfo, NodeInfo, NodeState, SessionInfo, TokenInfo,
};
use raftmeta_types::command::*;
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::*;

use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[&[0xff; 8], &[0, 16, 0, 0, 0, 0, 0, 0], &[1, 0], &[0, 0]];

const SHARDS: u32 = 4;
/// Most commands of one input.
const COMMANDS_MAX: u64 = 48;
/// How often a command that answers `More` is proposed again.
const AGAIN_MAX: usize = 4;

pub fn seeds() -> Vec<Vec<u8>> {
    // Enough bytes for some commands; what they mean is decided by `command`.
    let mut seeds: Vec<Vec<u8>> = (0..24_u8)
        .map(|kind| {
            let create = [0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let mut bytes = create.repeat(2);
            bytes.extend((0..60_u8).flat_map(|n| [kind, n % 5, 0, kind ^ n, 0, 1]));
            bytes
        })
        .collect();
    let mut dice = crate::mutate::Dice(1);
    seeds.extend((0..8).map(|_| (0..600).map(|_| dice.next() as u8 & 0x3f).collect()));
    seeds
}

/// What commands are likely to meet.
struct Made<'b> {
    cursor: Cursor<'b>,
    inos: Vec<Ino>,
    repaired: &'b Cell<bool>,
}

impl Made<'_> {
    fn ino(&mut self) -> Ino {
        match self.cursor.u8() {
            0xff => Ino(self.cursor.u64()),
            // The youngest are asked for most.
            by => self.inos[self.inos.len() - 1 - usize::from(by) % self.inos.len()],
        }
    }

    fn name(&mut self) -> Bytes {
        match self.cursor.u8() % 32 {
            31 => Bytes::from(vec![b'n'; 256]),
            30 => Bytes::copy_from_slice(self.cursor.bytes(5)),
            29 => Bytes::new(),
            28 => "..".into(),
            27 => "a/b".into(),
            by => Bytes::from(vec![b'a' + by % 6]),
        }
    }

    fn number(&mut self) -> u64 {
        match self.cursor.u8() % 8 {
            0..4 => u64::from(self.cursor.u8() % 16) * 4096,
            4 | 5 => u64::from(self.cursor.u16()),
            6 => (i64::MAX as u64).wrapping_sub(u64::from(self.cursor.u8())).wrapping_add(8),
            _ => self.cursor.u64(),
        }
    }

    fn session(&mut self) -> SessionId {
        SessionId(u64::from(self.cursor.u8() % 4))
    }

    fn sessions(&mut self) -> Vec<SessionId> {
        let bits = self.cursor.u8();
        (1..4).filter(|n| bits >> n & 1 == 1).map(SessionId).collect()
    }

    fn hash(&mut self) -> ChunkHash {
        ChunkHash([self.cursor.u8() % 6 * 43; 32])
    }

    fn time(&mut self) -> Time {
        Time { secs: self.number().cast_signed(), nanos: self.cursor.u32() }
    }

    fn change(&mut self) -> AttrChange {
        let bits = self.cursor.u8();
        let has = |bit: u8| bits >> bit & 1 == 1;
        let set = |made: &mut Self| match made.cursor.bool() {
            true => SetTime::Now,
            false => SetTime::At(made.time()),
        };
        AttrChange {
            mode: has(0).then(|| self.cursor.u32()),
            uid: has(1).then(|| self.cursor.u32()),
            gid: has(2).then(|| self.cursor.u32()),
            atime: has(3).then(|| set(self)),
            mtime: has(4).then(|| set(self)),
        }
    }

    fn extent(&mut self, from: u64) -> NewExtent {
        let gap = u64::from(self.cursor.u8() % 3) * 100;
        let offset = if self.cursor.u8() == 0xff { self.number() } else { from.wrapping_add(gap) };
        let len = u32::from(self.cursor.u16() % 6000);
        let (data, len) = match self.cursor.u8() % 8 {
            0..3 => (ExtentData::Inline(vec![7; len as usize].into()), len),
            3..6 => {
                let chunk_offset = u32::from(self.cursor.u8());
                (ExtentData::Chunk { hash: self.hash(), chunk_offset }, len)
            }
            6 => (ExtentData::Zero, len),
            _ => {
                let chunk_offset = self.cursor.u32();
                (ExtentData::Chunk { hash: self.hash(), chunk_offset }, self.cursor.u32())
            }
        };
        NewExtent { offset, len, data, receipt: Epoch(u64::from(self.cursor.u8() % 4)) }
    }

    fn write(&mut self) -> Command {
        let ino = self.ino();
        let mut from = self.number();
        let mut extents = Vec::new();
        for _ in 0..self.cursor.u8() % 4 {
            let extent = self.extent(from);
            from = extent.offset.wrapping_add(u64::from(extent.len));
            extents.push(extent);
        }
        Command::Write(Write { ino, extents, change: self.change() })
    }

    fn create(&mut self) -> Command {
        let (parent, name) = (self.ino(), self.name());
        let kinds = [
            FileKind::Regular,
            FileKind::Directory,
            FileKind::Symlink,
            FileKind::Fifo,
            FileKind::CharDevice,
            FileKind::Socket,
            FileKind::BlockDevice,
        ];
        let kind = self.cursor.pick(&kinds);
        let has_target = kind == FileKind::Symlink || self.cursor.u8() == 0xff;
        Command::Create(Create {
            parent,
            name,
            kind,
            mode: u32::from(self.cursor.u16()),
            umask: u32::from(self.cursor.u8()),
            uid: 1,
            gid: u32::from(self.cursor.u8() % 3),
            rdev: u32::from(self.cursor.u8()),
            target: if has_target { "there".into() } else { Bytes::new() },
            exclusive: self.cursor.bool(),
            open: self.cursor.bool(),
        })
    }

    fn open_by(&mut self) -> Vec<(Ino, Vec<SessionId>)> {
        let inos = self.inos.clone();
        let sessions = self.sessions();
        inos.into_iter().map(|ino| (ino, sessions.clone())).collect()
    }

    fn repair(&mut self) -> Repair {
        self.repaired.set(true);
        let by = self.number().cast_signed();
        match self.cursor.u8() % 7 {
            0 => Repair::Counters { inodes: by, logical_bytes: self.number().cast_signed() },
            1 => Repair::References { hash: self.hash(), by },
            2 => Repair::Inode {
                ino: self.ino(),
                links: self.cursor.u32().cast_signed(),
                allocated: by,
                directory_size: self.number().cast_signed(),
            },
            3 => Repair::AclMark { ino: self.ino() },
            4 => Repair::Unsettled { ino: self.ino(), offset: self.number() },
            5 => Repair::Orphan { ino: self.ino() },
            _ => Repair::Leftovers { ino: self.ino() },
        }
    }

    fn xattr(&mut self) -> Command {
        let names = [
            "user.a",
            "user.b",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "trusted.x",
        ];
        let name = Bytes::from_static(self.cursor.pick(&names).as_bytes());
        let ino = self.ino();
        if self.cursor.u8() % 4 == 3 {
            return Command::RemoveXattr { ino, name };
        }
        // An ACL, more or less: version 2 and entries of 8 bytes.
        let entries = usize::from(self.cursor.u8() % 6);
        let value = [&2u32.to_le_bytes()[..], self.cursor.bytes(entries * 8)].concat();
        let mode = self.cursor.pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace]);
        Command::SetXattr { ino, name, value: value.into(), mode }
    }

    fn allocate(&mut self) -> Command {
        let modes = [
            AllocateMode::Reserve,
            AllocateMode::PunchHole,
            AllocateMode::ZeroRange,
            AllocateMode::Collapse,
            AllocateMode::Insert,
        ];
        Command::Allocate(Allocate {
            ino: self.ino(),
            mode: self.cursor.pick(&modes),
            offset: self.number(),
            len: self.number(),
            keep_size: self.cursor.bool(),
        })
    }

    fn lock(&mut self) -> Command {
        Command::Lock(Lock {
            ino: self.ino(),
            family: self.cursor.pick(&[LockFamily::Posix, LockFamily::Flock]),
            owner: LockOwner { session: self.session(), owner: u64::from(self.cursor.u8() % 3) },
            kind: self.cursor.pick(&[LockKind::Shared, LockKind::Exclusive, LockKind::Unlock]),
            start: self.number(),
            end: self.number(),
            pid: self.cursor.u32(),
        })
    }

    fn settle(&mut self) -> Settle {
        Settle {
            ino: self.ino(),
            offset: self.number(),
            len: u32::from(self.cursor.u16() % 6000),
            version: Version(u64::from(self.cursor.u8())),
            hash: self.hash(),
            chunk_offset: u32::from(self.cursor.u8()),
            receipt: Epoch(u64::from(self.cursor.u8() % 4)),
        }
    }

    fn session_info(&mut self) -> SessionInfo {
        SessionInfo {
            session: self.session(),
            client: "c".into(),
            identity: "uid=0".into(),
            opened: Time::default(),
            secret: [0; 16],
        }
    }

    fn of_cluster(&mut self) -> Command {
        let certificate = CertificateInfo {
            serial: u64::from(self.cursor.u8() % 3),
            subject: "client:a".into(),
            expires: self.time(),
            revoked: self.cursor.bool(),
        };
        let token_hash = [self.cursor.u8() % 2; 32];
        match self.cursor.u8() % 6 {
            0 => Command::InitCluster { cluster: cluster(), sealed_ca: "ca".into() },
            1 => Command::SetNode(NodeInfo {
                id: NodeId(u64::from(self.cursor.u8() % 3)),
                name: "n".into(),
                address: "a:1".into(),
                state: self.cursor.pick(&[NodeState::Up, NodeState::Drained, NodeState::Removed]),
                capacity_bytes: self.number(),
            }),
            2 => Command::CreateToken(TokenInfo {
                hash: token_hash,
                created: Time::default(),
                expires: self.time(),
                uses_left: u32::from(self.cursor.u8() % 3),
            }),
            3 => Command::UseToken { token_hash, certificate },
            4 => Command::RevokeCertificate { serial: certificate.serial },
            _ => Command::RecordCertificate { certificate },
        }
    }

    fn command(&mut self) -> Command {
        match self.cursor.u8() % 40 {
            0..7 => self.create(),
            7..9 => Command::Link { ino: self.ino(), parent: self.ino(), name: self.name() },
            9..12 => Command::Unlink(Unlink {
                parent: self.ino(),
                name: self.name(),
                directory: self.cursor.bool(),
                open_by: self.open_by(),
            }),
            12..15 => Command::Rename(Rename {
                parent: self.ino(),
                name: self.name(),
                new_parent: self.ino(),
                new_name: self.name(),
                mode: self.cursor.pick(&[
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                ]),
                open_by: self.open_by(),
            }),
            15 | 16 => Command::SetAttr(SetAttr {
                ino: self.ino(),
                change: self.change(),
                size: self.cursor.bool().then(|| self.number()),
            }),
            17..21 => self.write(),
            21 | 22 => self.allocate(),
            23 => Command::CopyRange(CopyRange {
                source: self.ino(),
                source_offset: self.number(),
                target: self.ino(),
                target_offset: self.number(),
                len: self.number(),
            }),
            24 | 25 => self.xattr(),
            26 => self.lock(),
            27 => Command::UnlockOwner { ino: self.ino(), owner: u64::from(self.cursor.u8() % 3) },
            _ => self.server_command(),
        }
    }

    fn server_command(&mut self) -> Command {
        let shard = ShardId(u16::from(self.cursor.u8() % 5));
        let epoch = Epoch(u64::from(self.cursor.u8() % 8));
        match self.cursor.u8() % 16 {
            0 | 1 => Command::Settle((0..self.cursor.u8() % 3).map(|_| self.settle()).collect()),
            2 => Command::OpenSession(self.session_info()),
            3 => Command::CloseSession { session: self.session() },
            4 | 5 => {
                let (session, inos) = (self.session(), vec![self.ino(), self.ino()]);
                Command::ReleaseOrphans { session, inos }
            }
            6..8 => Command::Reap { limit: u32::from(self.cursor.u8()) },
            8..10 => {
                let count = self.cursor.u8() % 7;
                let hashes = (0..count).map(|_| self.hash()).collect();
                Command::BeginDelete { shard, epoch, hashes }
            }
            10..12 => Command::EndDelete { shard, epoch },
            12 if self.cursor.u8() % 8 == 7 => Command::Repair(vec![self.repair()]),
            _ => self.of_cluster(),
        }
    }
}

fn cluster() -> ClusterInfo {
    ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "fuzz".into(),
        site: 1,
        shard_count: SHARDS,
        created: Time::default(),
    }
}

/// One replica, and the commands it was given.
fn run(commands: &mut dyn FnMut(&MetaResult<Reply>) -> Option<Envelope>) -> MemKv {
    let mut kv = MemKv::new();
    let mut last = Ok(Reply::Done);
    let mut index = 0;
    while let Some(envelope) = commands(&last) {
        for _ in 0..AGAIN_MAX {
            index += 1;
            last = apply(&mut kv, Version(index), &envelope).expect("a store in memory");
            if last != Ok(Reply::More) {
                break;
            }
        }
    }
    kv
}

fn envelope(number: u64, session: SessionId, command: Command) -> Envelope {
    let time = Time { secs: number as i64, nanos: 0 };
    Envelope { session, slot: (number % 3) as u16, seq: number, time, command }
}

pub fn target(bytes: &[u8]) {
    let repaired = Cell::new(false);
    let mut made = Made { cursor: Cursor(bytes), inos: vec![Ino::ROOT], repaired: &repaired };
    let init = Command::InitCluster { cluster: cluster(), sealed_ca: Bytes::new() };
    let mut given = vec![envelope(1, SessionId::SERVER, init)];
    for session in 1..3 {
        let info = SessionInfo { session: SessionId(session), ..made.session_info() };
        given.push(envelope(1 + session, SessionId::SERVER, Command::OpenSession(info)));
    }
    made.cursor = Cursor(bytes);
    let mut number = 0;
    let kv = run(&mut |last| {
        if let Ok(Reply::Created { inode, .. }) = last
            && !made.inos.contains(&inode.ino)
        {
            made.inos.push(inode.ino);
        }
        number += 1;
        if number > given.len() as u64 {
            if made.cursor.is_empty() || number > COMMANDS_MAX {
                return None;
            }
            let session = made.session();
            let command = made.command();
            given.push(envelope(number, session, command));
        }
        Some(given[number as usize - 1].clone())
    });
    let mut replay = given.iter().cloned();
    assert!(run(&mut |_| replay.next()) == kv, "two replicas differ after {given:#?}");
    let findings = check::check(&kv).expect("what was written is read");
    assert!(repaired.get() || findings.is_empty(), "{findings:?} after {given:#?}");
}
