//! Random commands that are likely to meet: few names, few inodes, small files.

use super::model::{FILE_MAX, LOCK_CELLS, Model};
use super::*;

/// Six random numbers, from which a command is made in the light of what is there.
pub(super) type Raw = [u16; 6];

pub(super) const SESSIONS: [SessionId; 3] = [SessionId(7), SessionId(8), SessionId(9)];

const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", ".", "", "x/y"];

fn pick<T: Copy>(from: &[T], by: u16) -> T {
    from[usize::from(by) % from.len()]
}

fn name(by: u16) -> Bytes {
    match by % 60 {
        59 => Bytes::from(vec![b'n'; 256]),
        by => Bytes::from_static(pick(&NAMES[..if by < 50 { 6 } else { 9 }], by).as_bytes()),
    }
}

/// An inode of the model, now and then one that is not there.
fn any_ino(model: &Model, by: u16) -> Ino {
    let inos: Vec<Ino> = model.nodes.keys().copied().collect();
    if by % 40 == 39 { Ino(99) } else { pick(&inos, (by / 40) ^ by) }
}

fn directory(model: &Model, by: u16) -> Ino {
    let of = |node: &&super::model::Node| node.inode.kind == FileKind::Directory;
    let inos: Vec<Ino> = model.nodes.values().filter(of).map(|node| node.inode.ino).collect();
    if by % 30 == 29 { any_ino(model, by) } else { pick(&inos, by) }
}

fn file(model: &Model, by: u16) -> Ino {
    let of = |node: &&super::model::Node| node.inode.kind == FileKind::Regular;
    let inos: Vec<Ino> = model.nodes.values().filter(of).map(|node| node.inode.ino).collect();
    if inos.is_empty() || by % 30 == 29 { any_ino(model, by) } else { pick(&inos, by) }
}

/// Who has what open: every session that the bits name.
fn open_by(model: &Model, parent: Ino, name: &[u8], by: u16) -> Vec<(Ino, Vec<SessionId>)> {
    let found = model.nodes.get(&parent).and_then(|node| node.entries.get(name));
    let sessions = (0..3).filter(|bit| by >> bit & 1 == 1).map(|bit| SESSIONS[bit]).collect();
    found.map(|&ino| (ino, sessions)).into_iter().collect()
}

/// A range within a quarter of the largest file, so that moves stay within it.
fn range(a: u16, b: u16) -> (u64, u64) {
    let quarter = FILE_MAX as u64 / 4;
    match a % 3 {
        0 => (u64::from(a) % 4 * 4096, (u64::from(b) % 3 + 1) * 4096),
        1 => (u64::from(a) % 16, u64::from(b) % 16),
        _ => (u64::from(a) % quarter, u64::from(b) % 6000),
    }
}

fn extents(raw: &Raw) -> Vec<NewExtent> {
    let (mut offset, len) = range(raw[2], raw[3]);
    let mut found = Vec::new();
    for part in 0..=raw[4] % 3 {
        let len = (len / (u64::from(part) + 1)).max(1) as u32;
        let data = match (raw[5] >> (2 * part)) % 4 {
            0 => ExtentData::Zero,
            1 | 2 => ExtentData::Inline(vec![raw[5] as u8; len as usize].into()),
            _ => ExtentData::Chunk {
                hash: hash(raw[4] as u8 % 5),
                chunk_offset: u32::from(raw[5] % 99),
            },
        };
        found.push(NewExtent { offset, len, data, receipt: Epoch(0) });
        offset += u64::from(len) + u64::from(raw[4] % 2) * 100;
    }
    found
}

fn create(model: &Model, raw: &Raw) -> Command {
    let kinds = [FileKind::Regular, FileKind::Regular, FileKind::Directory, FileKind::Symlink];
    let kind = pick(&kinds, raw[3]);
    let unnamed = kind == FileKind::Regular && raw[4].is_multiple_of(8);
    Command::Create(Create {
        parent: directory(model, raw[1]),
        name: if unnamed { Bytes::new() } else { name(raw[2]) },
        kind,
        mode: u32::from(raw[4]) & 0o777,
        umask: 0o022,
        uid: 1,
        gid: u32::from(raw[5] % 3),
        rdev: 0,
        target: if kind == FileKind::Symlink { "there".into() } else { Bytes::new() },
        exclusive: raw[5].is_multiple_of(2),
        open: raw[5].is_multiple_of(3),
    })
}

fn lock(model: &Model, by: SessionId, raw: &Raw) -> Command {
    let start = u64::from(raw[3]) % LOCK_CELLS as u64;
    Command::Lock(Lock {
        ino: file(model, raw[1]),
        family: pick(&[LockFamily::Posix, LockFamily::Posix, LockFamily::Flock], raw[2]),
        owner: LockOwner { session: by, owner: u64::from(raw[4] % 2) },
        kind: pick(&[LockKind::Shared, LockKind::Exclusive, LockKind::Unlock], raw[5]),
        start,
        end: start + u64::from(raw[4]) % (LOCK_CELLS as u64 - start),
        pid: 1,
    })
}

fn rename(model: &Model, raw: &Raw) -> Command {
    let (parent, new_parent) = (directory(model, raw[1]), directory(model, raw[2]));
    let modes =
        [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
    let new_name = name(raw[4]);
    Command::Rename(Rename {
        parent,
        name: name(raw[3]),
        new_parent,
        open_by: open_by(model, new_parent, &new_name, raw[5] / 4),
        new_name,
        mode: pick(&modes, raw[5]),
    })
}

fn attributes(model: &Model, raw: &Raw) -> Command {
    let change = AttrChange {
        mode: (raw[3].is_multiple_of(2)).then_some(u32::from(raw[3]) & 0o7777),
        uid: (raw[3].is_multiple_of(3)).then_some(5),
        mtime: (raw[3].is_multiple_of(5)).then_some(SetTime::At(Time { secs: 3, nanos: 4 })),
        ..AttrChange::default()
    };
    let cuts = !raw[5].is_multiple_of(3);
    let ino = if cuts { file(model, raw[1]) } else { any_ino(model, raw[1]) };
    let size = cuts.then_some(u64::from(raw[4]) % (FILE_MAX as u64 / 3));
    Command::SetAttr(SetAttr { ino, change, size })
}

/// Whether inserting `len` bytes would move anything beyond what the model keeps.
fn fits(model: &Model, ino: Ino, len: u64) -> bool {
    model.nodes.get(&ino).is_none_or(|node| {
        let last = node.backed.iter().rposition(|&backed| backed).map_or(0, |at| at as u64 + 1);
        last.max(node.inode.size) + len <= FILE_MAX as u64
    })
}

fn allocate(model: &Model, raw: &Raw) -> Command {
    let modes = [
        AllocateMode::Reserve,
        AllocateMode::PunchHole,
        AllocateMode::ZeroRange,
        AllocateMode::Collapse,
        AllocateMode::Insert,
    ];
    let (ino, (offset, len)) = (file(model, raw[1]), range(raw[2], raw[3]));
    let mut mode = pick(&modes, raw[4]);
    if mode == AllocateMode::Insert && !fits(model, ino, len) {
        mode = AllocateMode::Collapse;
    }
    Command::Allocate(Allocate { ino, mode, offset, len, keep_size: raw[5].is_multiple_of(2) })
}

/// The command of a client.
pub(super) fn command(model: &Model, by: SessionId, raw: &Raw) -> Command {
    match raw[0] % 32 {
        0..5 => create(model, raw),
        5..7 => Command::Link {
            ino: any_ino(model, raw[1]),
            parent: directory(model, raw[2]),
            name: name(raw[3]),
        },
        7..10 => {
            let (parent, name) = (directory(model, raw[1]), name(raw[2]));
            let open_by = open_by(model, parent, &name, raw[3]);
            Command::Unlink(Unlink { parent, name, directory: raw[4].is_multiple_of(3), open_by })
        }
        10..13 => rename(model, raw),
        13..16 => attributes(model, raw),
        16..21 => Command::Write(Write {
            ino: file(model, raw[1]),
            extents: extents(raw),
            change: AttrChange::default(),
        }),
        21..24 => allocate(model, raw),
        24..26 => {
            let ((source_offset, len), (target_offset, _)) =
                (range(raw[3], raw[4]), range(raw[5], 0));
            let (source, target) = (file(model, raw[1]), file(model, raw[2]));
            Command::CopyRange(CopyRange { source, source_offset, target, target_offset, len })
        }
        26 => Command::SetXattr {
            ino: any_ino(model, raw[1]),
            name: pick(&["user.a", "user.b"], raw[2]).into(),
            value: vec![1; usize::from(raw[3] % 50)].into(),
            mode: pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace], raw[4]),
        },
        27 => Command::RemoveXattr {
            ino: any_ino(model, raw[1]),
            name: pick(&["user.a", "user.b"], raw[2]).into(),
        },
        28..30 => lock(model, by, raw),
        30 => Command::UnlockOwner { ino: file(model, raw[1]), owner: u64::from(raw[2] % 2) },
        _ => Command::ReleaseOrphans { session: by, inos: vec![any_ino(model, raw[1])] },
    }
}
