//! The namespace as simple as can be: every file is its bytes, every lock is a row of cells. What the state
//! machine keeps in records, extents and counts is counted here by looking.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Files never reach beyond: their bytes are kept one by one.
pub(super) const FILE_MAX: usize = 64 * 1024;
/// Locks are on these bytes.
pub(super) const LOCK_CELLS: usize = 16;

type Cells = BTreeMap<(LockFamily, LockOwner), [Option<LockKind>; LOCK_CELLS]>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub inode: Inode,
    pub entries: BTreeMap<Vec<u8>, Ino>,
    pub data: Vec<u8>,
    pub backed: Vec<bool>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub holders: BTreeSet<SessionId>,
    pub linkable: bool,
    pub locks: Cells,
}

/// An answer, where an inode is told by its number: how it looks is compared with the model's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Inode(Ino),
    Created(Ino, bool),
    /// The inode that lost a link, as it was last.
    Unlinked(Option<Inode>),
    Copied(u64, Ino),
}

pub(super) type Outcome = MetaResult<Answer>;

#[derive(Clone, Debug)]
pub(super) struct Model {
    pub nodes: BTreeMap<Ino, Node>,
    pub sessions: BTreeSet<SessionId>,
    next: u64,
    version: Version,
    now: Time,
}

/// Byte `at` of a chunk.
pub(super) fn chunk_byte(hash: &ChunkHash, at: u32) -> u8 {
    hash.0[0].wrapping_mul(31).wrapping_add(at as u8).wrapping_add((at >> 8) as u8)
}

fn invalid<T>() -> MetaResult<T> {
    Err(MetaError::Invalid(String::new()))
}

fn check_name(name: &[u8]) -> MetaResult<()> {
    match name {
        _ if name.len() > 255 => Err(MetaError::NameTooLong),
        b"" | b"." | b".." => invalid(),
        _ if name.contains(&b'/') => invalid(),
        _ => Ok(()),
    }
}

impl Model {
    pub fn new(root: Inode) -> Model {
        let mut model = Model {
            nodes: BTreeMap::new(),
            sessions: BTreeSet::new(),
            next: 2,
            version: root.version,
            now: root.ctime,
        };
        model.add(root);
        model
    }

    fn add(&mut self, inode: Inode) {
        let node = Node {
            entries: BTreeMap::new(),
            data: vec![0; FILE_MAX],
            backed: vec![false; FILE_MAX],
            xattrs: BTreeMap::new(),
            holders: BTreeSet::new(),
            linkable: false,
            locks: BTreeMap::new(),
            inode,
        };
        self.nodes.insert(node.inode.ino, node);
    }

    pub fn apply(
        &mut self,
        version: Version,
        now: Time,
        by: SessionId,
        command: &Command,
    ) -> Outcome {
        (self.version, self.now) = (version, now);
        match command {
            Command::Create(create) => self.create(by, create),
            Command::Link { ino, parent, name } => self.link(*ino, *parent, name),
            Command::Unlink(unlink) => self.unlink(unlink),
            Command::Rename(rename) => self.rename(rename),
            Command::SetAttr(set) => self.set_attr(set),
            Command::SetXattr { ino, name, value, mode } => {
                let node = self.nodes.get_mut(ino).ok_or(MetaError::Stale)?;
                match (mode, node.xattrs.contains_key(&name[..])) {
                    (XattrMode::Create, true) => return Err(MetaError::Exists),
                    (XattrMode::Replace, false) => return Err(MetaError::NoXattr),
                    _ => node.xattrs.insert(name.to_vec(), value.to_vec()),
                };
                self.changed(*ino, false)
            }
            Command::RemoveXattr { ino, name } => {
                let node = self.nodes.get_mut(ino).ok_or(MetaError::Stale)?;
                node.xattrs.remove(&name[..]).ok_or(MetaError::NoXattr)?;
                self.changed(*ino, false)
            }
            Command::Write(write) => self.write(write),
            Command::Allocate(allocate) => self.allocate(allocate),
            Command::CopyRange(copy) => self.copy(copy),
            Command::Lock(lock) => self.lock(lock),
            Command::UnlockOwner { ino, owner } => {
                let owner = LockOwner { session: by, owner: *owner };
                if let Some(node) = self.nodes.get_mut(ino) {
                    node.locks.retain(|(_, holder), _| *holder != owner);
                }
                Ok(Answer::Done)
            }
            Command::OpenSession(info) => {
                self.sessions.insert(info.session);
                Ok(Answer::Done)
            }
            Command::CloseSession { session } => {
                self.sessions.remove(session);
                for node in self.nodes.values_mut() {
                    node.locks.retain(|(_, holder), _| holder.session != *session);
                }
                let all: Vec<Ino> = self.nodes.keys().copied().collect();
                self.release(*session, &all)
            }
            Command::ReleaseOrphans { session, inos } => self.release(*session, inos),
            other => panic!("not modelled: {other:?}"),
        }
    }

    /// Notes that the inode changed, its content too if `data`.
    fn changed(&mut self, ino: Ino, data: bool) -> Outcome {
        let inode = &mut self.nodes.get_mut(&ino).unwrap().inode;
        inode.version = self.version;
        inode.ctime = self.now;
        if data {
            inode.mtime = self.now;
            inode.data_version = self.version;
        }
        self.count(ino);
        Ok(Answer::Inode(ino))
    }

    fn count(&mut self, ino: Ino) {
        let node = self.nodes.get_mut(&ino).unwrap();
        node.inode.allocated = node.backed.iter().filter(|&&backed| backed).count() as u64;
    }

    fn directory(&self, ino: Ino) -> MetaResult<&Node> {
        let node = self.nodes.get(&ino).ok_or(MetaError::NotFound)?;
        match node.inode.kind {
            FileKind::Directory if node.inode.nlink == 0 => Err(MetaError::NotFound),
            FileKind::Directory => Ok(node),
            _ => Err(MetaError::NotDirectory),
        }
    }

    fn file(&mut self, ino: Ino) -> MetaResult<&mut Node> {
        let node = self.nodes.get_mut(&ino).ok_or(MetaError::Stale)?;
        match node.inode.kind {
            FileKind::Regular => Ok(node),
            FileKind::Directory => Err(MetaError::IsDirectory),
            _ => invalid(),
        }
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.nodes[&ino].inode.kind == FileKind::Directory
    }

    /// Puts an entry into a directory, or takes it out.
    fn enter(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>) {
        let node = self.nodes.get_mut(&parent).unwrap();
        match ino {
            Some(ino) => node.entries.insert(name.to_vec(), ino),
            None => node.entries.remove(name),
        };
        self.settle_directory(parent);
        self.changed(parent, true).unwrap();
    }

    fn settle_directory(&mut self, ino: Ino) {
        let entries: Vec<Ino> = self.nodes[&ino].entries.values().copied().collect();
        let below = entries.iter().filter(|&&entry| self.is_directory(entry)).count();
        let inode = &mut self.nodes.get_mut(&ino).unwrap().inode;
        inode.nlink = 2 + below as u32;
        inode.size = 32 * entries.len() as u64;
    }

    fn create(&mut self, by: SessionId, create: &Create) -> Outcome {
        let unnamed = create.name.is_empty();
        if unnamed && create.kind != FileKind::Regular {
            return invalid();
        }
        if !unnamed {
            check_name(&create.name)?;
        }
        let parent = self.directory(create.parent)?;
        if let Some(&there) = parent.entries.get(&create.name[..]) {
            let (kind, open) = (self.nodes[&there].inode.kind, !create.exclusive);
            return match kind {
                FileKind::Regular if open && create.kind == FileKind::Regular => {
                    Ok(Answer::Created(there, false))
                }
                FileKind::Directory if open => Err(MetaError::IsDirectory),
                _ => Err(MetaError::Exists),
            };
        }
        let setgid = parent.inode.mode & 0o2000 != 0;
        let group = if setgid { parent.inode.gid } else { create.gid };
        let directory = create.kind == FileKind::Directory;
        let ino = Ino(1 << 60 | self.next);
        self.next += 1;
        let mode = create.mode & !create.umask | if setgid && directory { 0o2000 } else { 0 };
        self.add(Inode {
            ino,
            kind: create.kind,
            mode: if create.kind == FileKind::Symlink { 0o777 } else { mode },
            uid: create.uid,
            gid: group,
            nlink: if unnamed { 0 } else { 1 + u32::from(directory) },
            size: create.target.len() as u64,
            allocated: 0,
            atime: self.now,
            mtime: self.now,
            ctime: self.now,
            btime: self.now,
            rdev: 0,
            version: self.version,
            data_version: self.version,
            parent: if directory { create.parent } else { Ino(0) },
            target: create.target.clone(),
            has_acl: false,
        });
        if unnamed {
            let node = self.nodes.get_mut(&ino).unwrap();
            (node.holders, node.linkable) = (BTreeSet::from([by]), true);
        } else {
            self.enter(create.parent, &create.name, Some(ino));
        }
        Ok(Answer::Created(ino, true))
    }

    fn link(&mut self, ino: Ino, parent: Ino, name: &[u8]) -> Outcome {
        check_name(name)?;
        let there = self.directory(parent)?.entries.contains_key(name);
        let node = self.nodes.get_mut(&ino).ok_or(MetaError::Stale)?;
        if node.inode.kind == FileKind::Directory {
            return Err(MetaError::NotPermitted);
        }
        if there {
            return Err(MetaError::Exists);
        }
        if node.inode.nlink == 0 && !node.linkable {
            return Err(MetaError::NotFound);
        }
        node.inode.nlink += 1;
        (node.holders, node.linkable) = (BTreeSet::new(), false);
        self.enter(parent, name, Some(ino));
        self.changed(ino, false)?;
        Ok(Answer::Created(ino, false))
    }

    fn unlink(&mut self, unlink: &Unlink) -> Outcome {
        check_name(&unlink.name)?;
        let parent = self.directory(unlink.parent)?;
        let ino = *parent.entries.get(&unlink.name[..]).ok_or(MetaError::NotFound)?;
        match (unlink.directory, self.is_directory(ino)) {
            (false, true) => return Err(MetaError::IsDirectory),
            (true, false) => return Err(MetaError::NotDirectory),
            (true, true) if !self.nodes[&ino].entries.is_empty() => {
                return Err(MetaError::NotEmpty);
            }
            _ => {}
        }
        self.enter(unlink.parent, &unlink.name, None);
        Ok(Answer::Unlinked(Some(self.drop_link(ino, &unlink.open_by))))
    }

    fn drop_link(&mut self, ino: Ino, open_by: &[(Ino, Vec<SessionId>)]) -> Inode {
        let named = open_by.iter().filter(|(open, _)| *open == ino).flat_map(|(_, by)| by);
        let holders = named.copied().filter(|by| self.sessions.contains(by)).collect();
        let directory = self.is_directory(ino);
        let node = self.nodes.get_mut(&ino).unwrap();
        node.inode.nlink = if directory { 0 } else { node.inode.nlink - 1 };
        node.inode.ctime = self.now;
        let goes = node.inode.nlink == 0;
        if goes {
            node.holders = holders;
        }
        if goes && self.nodes[&ino].holders.is_empty() {
            return self.nodes.remove(&ino).unwrap().inode;
        }
        self.changed(ino, false).unwrap();
        self.nodes[&ino].inode.clone()
    }

    fn release(&mut self, session: SessionId, inos: &[Ino]) -> Outcome {
        for ino in inos {
            let Some(node) = self.nodes.get_mut(ino) else { continue };
            if node.holders.remove(&session) && node.holders.is_empty() {
                self.nodes.remove(ino);
            }
        }
        Ok(Answer::Done)
    }

    fn is_below(&self, mut ino: Ino, ancestor: Ino) -> bool {
        while ino != ancestor && ino != Ino::ROOT {
            ino = self.nodes[&ino].inode.parent;
        }
        ino == ancestor
    }

    fn rename(&mut self, rename: &Rename) -> Outcome {
        check_name(&rename.name)?;
        check_name(&rename.new_name)?;
        let (old, new) = (rename.parent, rename.new_parent);
        let source = self.directory(old)?.entries.get(&rename.name[..]).copied();
        let target = self.directory(new)?.entries.get(&rename.new_name[..]).copied();
        let source = source.ok_or(MetaError::NotFound)?;
        if rename.mode == RenameMode::NoReplace && target.is_some() {
            return Err(MetaError::Exists);
        }
        if self.is_directory(source) && self.is_below(new, source) {
            return invalid();
        }
        let exchange = rename.mode == RenameMode::Exchange;
        let Some(target) = target else {
            if exchange {
                return Err(MetaError::NotFound);
            }
            self.move_to(rename, source);
            return Ok(Answer::Unlinked(None));
        };
        if target == source {
            return Ok(Answer::Unlinked(None));
        }
        if exchange {
            if self.is_directory(target) && self.is_below(old, target) {
                return invalid();
            }
            self.enter(old, &rename.name, Some(target));
            self.enter(new, &rename.new_name, Some(source));
            self.settle_directory(old);
            self.moved(source, new);
            self.moved(target, old);
            return Ok(Answer::Unlinked(None));
        }
        match (self.is_directory(source), self.is_directory(target)) {
            (true, false) => return Err(MetaError::NotDirectory),
            (false, true) => return Err(MetaError::IsDirectory),
            (true, true) if !self.nodes[&target].entries.is_empty() => {
                return Err(MetaError::NotEmpty);
            }
            _ => {}
        }
        self.move_to(rename, source);
        Ok(Answer::Unlinked(Some(self.drop_link(target, &rename.open_by))))
    }

    fn move_to(&mut self, rename: &Rename, source: Ino) {
        self.enter(rename.parent, &rename.name, None);
        self.enter(rename.new_parent, &rename.new_name, Some(source));
        self.moved(source, rename.new_parent);
    }

    fn moved(&mut self, ino: Ino, parent: Ino) {
        if self.is_directory(ino) {
            self.nodes.get_mut(&ino).unwrap().inode.parent = parent;
        }
        self.changed(ino, false).unwrap();
    }

    fn set_attr(&mut self, set: &SetAttr) -> Outcome {
        let data = match set.size {
            None => {
                self.nodes.get(&set.ino).ok_or(MetaError::Stale)?;
                false
            }
            Some(size) => {
                let node = self.file(set.ino)?;
                if size < node.inode.size {
                    node.data[size as usize..].fill(0);
                    node.backed[size as usize..].fill(false);
                }
                node.inode.size = size;
                true
            }
        };
        self.changed(set.ino, data)?;
        let inode = &mut self.nodes.get_mut(&set.ino).unwrap().inode;
        inode.mode = set.change.mode.map_or(inode.mode, |mode| mode & 0o7777);
        inode.uid = set.change.uid.unwrap_or(inode.uid);
        if let Some(SetTime::At(at)) = set.change.mtime {
            inode.mtime = at;
        }
        Ok(Answer::Inode(set.ino))
    }

    fn write(&mut self, write: &Write) -> Outcome {
        let node = self.file(write.ino)?;
        for new in &write.extents {
            let range = new.offset as usize..new.offset as usize + new.len as usize;
            for (at, byte) in node.data[range.clone()].iter_mut().enumerate() {
                *byte = match &new.data {
                    ExtentData::Inline(bytes) => bytes[at],
                    ExtentData::Chunk { hash, chunk_offset } => {
                        chunk_byte(hash, chunk_offset + at as u32)
                    }
                    ExtentData::Zero => 0,
                };
            }
            node.inode.size = node.inode.size.max(range.end as u64);
            node.backed[range].fill(true);
        }
        self.changed(write.ino, true)
    }

    fn allocate(&mut self, allocate: &Allocate) -> Outcome {
        let node = self.file(allocate.ino)?;
        if allocate.len == 0 {
            return invalid();
        }
        let size = node.inode.size;
        let (from, to) = (allocate.offset, allocate.offset + allocate.len);
        let (start, end) = (from as usize, to as usize);
        let aligned = from.is_multiple_of(4096) && allocate.len.is_multiple_of(4096);
        match allocate.mode {
            AllocateMode::PunchHole => {
                node.data[start..end].fill(0);
                node.backed[start..end].fill(false);
            }
            AllocateMode::Reserve => node.backed[start..end].fill(true),
            AllocateMode::ZeroRange => {
                node.data[start..end].fill(0);
                node.backed[start..end].fill(true);
            }
            AllocateMode::Collapse if !aligned || to >= size => return invalid(),
            AllocateMode::Insert if !aligned || from >= size => return invalid(),
            AllocateMode::Collapse => {
                node.data.drain(start..end);
                node.backed.drain(start..end);
                node.data.resize(FILE_MAX, 0);
                node.backed.resize(FILE_MAX, false);
                node.inode.size = size - allocate.len;
            }
            AllocateMode::Insert => {
                let len = end - start;
                node.data.splice(start..start, vec![0; len]);
                node.backed.splice(start..start, vec![false; len]);
                node.data.truncate(FILE_MAX);
                node.backed.truncate(FILE_MAX);
                node.inode.size = size + allocate.len;
            }
        }
        let grows = matches!(allocate.mode, AllocateMode::Reserve | AllocateMode::ZeroRange);
        if grows && !allocate.keep_size {
            node.inode.size = size.max(to);
        }
        self.changed(allocate.ino, true)
    }

    fn copy(&mut self, copy: &CopyRange) -> Outcome {
        let source = self.file(copy.source)?.clone();
        self.file(copy.target)?;
        let (from, to) = (copy.source_offset, copy.target_offset);
        let len = copy.len.min(source.inode.size.saturating_sub(from));
        if len == 0 {
            return Ok(Answer::Copied(0, copy.target));
        }
        if copy.source == copy.target && from.abs_diff(to) < len {
            return invalid();
        }
        let target = self.file(copy.target)?;
        let (from, to, n) = (from as usize, to as usize, len as usize);
        target.data[to..to + n].copy_from_slice(&source.data[from..from + n]);
        target.backed[to..to + n].copy_from_slice(&source.backed[from..from + n]);
        target.inode.size = target.inode.size.max((to + n) as u64);
        self.changed(copy.target, true)?;
        Ok(Answer::Copied(len, copy.target))
    }

    fn lock(&mut self, lock: &Lock) -> Outcome {
        let unlocks = lock.kind == LockKind::Unlock;
        let session_lives = self.sessions.contains(&lock.owner.session);
        let Some(node) = self.nodes.get_mut(&lock.ino) else {
            return if unlocks { Ok(Answer::Done) } else { Err(MetaError::Stale) };
        };
        if !unlocks && !session_lives {
            return Err(MetaError::SessionExpired);
        }
        let range = match lock.family {
            LockFamily::Flock => 0..LOCK_CELLS,
            LockFamily::Posix => lock.start as usize..lock.end as usize + 1,
        };
        let key = (lock.family, lock.owner);
        let stands_in_the_way = |held: &Option<LockKind>| match held {
            Some(LockKind::Exclusive) => true,
            Some(_) => lock.kind == LockKind::Exclusive,
            None => false,
        };
        let others = node.locks.iter().filter(|(other, _)| other.0 == key.0 && other.1 != key.1);
        if !unlocks && others.flat_map(|(_, held)| &held[range.clone()]).any(stands_in_the_way) {
            return Err(MetaError::WouldBlock);
        }
        let held = node.locks.entry(key).or_insert([None; LOCK_CELLS]);
        held[range].fill(Some(lock.kind).filter(|_| !unlocks));
        Ok(Answer::Done)
    }
}
