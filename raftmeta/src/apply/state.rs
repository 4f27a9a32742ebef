//! What every command needs: the store, its own time and version, and the records by name.

use serde::Serialize;
use serde::de::DeserializeOwned;

use raftmeta_types::{
    Envelope, FileKind, Ino, Inode, MetaError, NAME_MAX, SessionId, Time, Version,
};

use crate::keys;
use crate::kv::{Kv, KvError, Pair};
use crate::records::{self, Counters, Dentry};

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The store failed: the replica stops.
    Store(KvError),
    /// The command is refused.
    Refused(MetaError),
}

impl From<KvError> for Stop {
    fn from(error: KvError) -> Stop {
        Stop::Store(error)
    }
}

impl From<MetaError> for Stop {
    fn from(error: MetaError) -> Stop {
        Stop::Refused(error)
    }
}

pub(super) type Step<T> = Result<T, Stop>;

/// Refuses with `Invalid`.
pub(super) fn invalid<T>(reason: impl Into<String>) -> Step<T> {
    Err(MetaError::Invalid(reason.into()).into())
}

/// How much an entry adds to the size of its directory: a hint for `st_size`.
pub(crate) const DENTRY_SIZE: u64 = 32;

/// One command's view of the store.
pub(super) struct State<'a> {
    kv: &'a mut dyn Kv,
    pub version: Version,
    pub now: Time,
    pub session: SessionId,
    /// Extents that this command may still free at once.
    pub free_extents: usize,
}

/// Most extents that one command takes away or moves, where it can stop in between; what is left of a
/// larger job is done by proposing the command again, or by `Reap`.
pub const EXTENTS_AT_ONCE_MAX: usize = 1024;

impl<'a> State<'a> {
    pub fn new(kv: &'a mut dyn Kv, version: Version, envelope: &Envelope) -> State<'a> {
        State {
            kv,
            version,
            now: envelope.time,
            session: envelope.session,
            free_extents: EXTENTS_AT_ONCE_MAX,
        }
    }

    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Step<Option<T>> {
        Ok(records::get(&*self.kv, key)?)
    }

    pub fn has(&self, key: &[u8]) -> Step<bool> {
        Ok(self.kv.get(key)?.is_some())
    }

    pub fn put<T: Serialize>(&mut self, key: &[u8], value: &T) -> Step<()> {
        Ok(self.kv.put(key, &records::encode(value))?)
    }

    pub fn get_raw(&self, key: &[u8]) -> Step<Option<Vec<u8>>> {
        Ok(self.kv.get(key)?)
    }

    pub fn put_raw(&mut self, key: &[u8], value: &[u8]) -> Step<()> {
        Ok(self.kv.put(key, value)?)
    }

    pub fn delete(&mut self, key: &[u8]) -> Step<()> {
        Ok(self.kv.delete(key)?)
    }

    pub fn scan(&self, range: &(Vec<u8>, Vec<u8>), limit: usize, reverse: bool) -> Step<Vec<Pair>> {
        Ok(self.kv.scan(&range.0, &range.1, limit, reverse)?)
    }

    pub fn delete_range(&mut self, range: &(Vec<u8>, Vec<u8>)) -> Step<()> {
        for (key, _) in self.scan(range, usize::MAX, false)? {
            self.delete(&key)?;
        }
        Ok(())
    }

    // --- inodes --------------------------------------------------------------------------------

    /// The inode, or `Stale`.
    pub fn inode(&self, ino: Ino) -> Step<Inode> {
        self.get(&keys::inode(ino))?.ok_or(MetaError::Stale.into())
    }

    /// A regular file, or the refusal that fits what it is instead.
    pub fn file(&self, ino: Ino) -> Step<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(MetaError::IsDirectory.into()),
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => invalid("not a regular file"),
        }
    }

    /// A directory that still has its place in the tree: what entries can be made in.
    pub fn directory(&self, ino: Ino) -> Step<Inode> {
        let inode: Inode = self.get(&keys::inode(ino))?.ok_or(MetaError::NotFound)?;
        if inode.kind != FileKind::Directory {
            return Err(MetaError::NotDirectory.into());
        }
        if inode.nlink == 0 {
            return Err(MetaError::NotFound.into());
        }
        Ok(inode)
    }

    /// Writes the inode back as changed by this command.
    pub fn put_inode(&mut self, inode: &mut Inode) -> Step<()> {
        let key = keys::inode(inode.ino);
        let before: Option<Inode> = self.get(&key)?;
        let bytes = |inode: &Inode| match inode.kind {
            FileKind::Regular => inode.size,
            _ => 0,
        };
        let (count, old) = before.as_ref().map_or((0, 0), |before| (1, bytes(before)));
        self.count(count, old, 1, bytes(inode))?;
        inode.version = self.version;
        self.put(&key, inode)
    }

    /// Removes the inode's record; what hangs on it is the caller's to remove.
    pub fn delete_inode(&mut self, inode: &Inode) -> Step<()> {
        let bytes = if inode.kind == FileKind::Regular { inode.size } else { 0 };
        self.count(1, bytes, 0, 0)?;
        self.delete(&keys::inode(inode.ino))
    }

    fn count(&mut self, inodes: u64, bytes: u64, inodes_new: u64, bytes_new: u64) -> Step<()> {
        if inodes == inodes_new && bytes == bytes_new {
            return Ok(());
        }
        let mut counters: Counters = self.get(keys::COUNTERS)?.unwrap_or_default();
        counters.inodes = (counters.inodes + inodes_new).saturating_sub(inodes);
        counters.logical_bytes =
            counters.logical_bytes.saturating_sub(bytes).saturating_add(bytes_new);
        self.put(keys::COUNTERS, &counters)
    }

    // --- entries -------------------------------------------------------------------------------

    pub fn dentry(&self, parent: Ino, name: &[u8]) -> Step<Option<Dentry>> {
        self.get(&keys::dentry(parent, name))
    }

    pub fn put_dentry(&mut self, parent: Ino, name: &[u8], inode: &Inode) -> Step<()> {
        self.put(&keys::dentry(parent, name), &Dentry { ino: inode.ino, kind: inode.kind })
    }

    pub fn is_empty_directory(&self, ino: Ino) -> Step<bool> {
        Ok(self.scan(&keys::dentries(ino), 1, false)?.is_empty())
    }

    /// The times of a directory whose entries change.
    pub fn touch_directory(&self, directory: &mut Inode) {
        directory.mtime = self.now;
        directory.ctime = self.now;
        directory.data_version = self.version;
    }
}

/// Refuses what cannot be the name of an entry.
pub(super) fn check_name(name: &[u8]) -> Step<()> {
    if name.len() > NAME_MAX {
        return Err(MetaError::NameTooLong.into());
    }
    if name.is_empty() || name == b"." || name == b".." {
        return invalid("not a name for an entry");
    }
    if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return invalid("a name cannot hold '/' or NUL");
    }
    Ok(())
}
