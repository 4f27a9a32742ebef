//! What the replies to this mount's own commands said about inodes, for as long as the kernel itself would
//! have believed it.
//!
//! The kernel forgets a directory's attributes when it changes an entry, and a file's when it writes, and asks
//! for them at the next permission check: half of all requests of an unpacking `tar` were that question.
//! Another session's change takes the inode out at once (`Event::Inode`); what no event tells of is as old as
//! the kernel's own cache would have it (D6).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raftmeta_types::{Ino, Inode};

/// How long an answer is good.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Inodes remembered, at most.
const INODES_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Attrs(Mutex<HashMap<Ino, (Inode, Instant)>>);

impl Attrs {
    /// Takes note of an inode as a reply had it; of two replies the newer counts, whatever their order here.
    pub(crate) fn learn(&self, inode: &Inode) {
        let mut known = self.0.lock();
        if inode.nlink == 0 {
            known.remove(&inode.ino);
            return;
        }
        let now = Instant::now();
        if known.len() >= INODES_MAX && !known.contains_key(&inode.ino) {
            known.retain(|_, (_, since)| now - *since < GOOD_FOR);
            if known.len() >= INODES_MAX {
                known.clear();
            }
        }
        let newer = known.get(&inode.ino).is_none_or(|(mine, _)| mine.version <= inode.version);
        if newer {
            known.insert(inode.ino, (inode.clone(), now));
        }
    }

    pub(crate) fn get(&self, ino: Ino) -> Option<Inode> {
        let known = self.0.lock();
        let (inode, since) = known.get(&ino)?;
        (since.elapsed() < GOOD_FOR).then(|| inode.clone())
    }

    pub(crate) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }

    pub(crate) fn forget_all(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use raftmeta_types::{FileKind, Time, Version};

    use super::*;

    fn inode(ino: u64, version: u64) -> Inode {
        let time = Time { secs: 0, nanos: 0 };
        Inode {
            ino: Ino(ino),
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            rdev: 0,
            version: Version(version),
            data_version: Version(version),
            parent: Ino::ROOT,
            target: bytes::Bytes::new(),
            has_acl: false,
        }
    }

    #[test]
    fn the_newer_reply_counts_and_what_is_gone_is_forgotten() {
        let attrs = Attrs::default();
        assert_eq!(attrs.get(Ino(7)), None);
        attrs.learn(&inode(7, 3));
        attrs.learn(&inode(7, 2));
        assert_eq!(attrs.get(Ino(7)).unwrap().version, Version(3));
        attrs.learn(&Inode { nlink: 0, ..inode(7, 4) });
        assert_eq!(attrs.get(Ino(7)), None);
        attrs.learn(&inode(8, 1));
        attrs.forget(Ino(8));
        assert_eq!(attrs.get(Ino(8)), None);
    }

    #[test]
    fn it_stays_small() {
        let attrs = Attrs::default();
        (0..3 * INODES_MAX as u64).for_each(|ino| attrs.learn(&inode(ino, 1)));
        assert!(attrs.0.lock().len() <= INODES_MAX);
        assert!(attrs.get(Ino(3 * INODES_MAX as u64 - 1)).is_some());
    }
}
