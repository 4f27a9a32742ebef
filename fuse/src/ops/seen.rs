//! As of which version of the content the pages are that the kernel holds.
//!
//! The kernel keeps the pages of a file over its close; an open or a lock decides whether they are still good. For that
//! it is not enough to know the version of our last commit: another mount may have written before it, and the event
//! of that may still be on its way. So every reply that changes content names the version before (`Reply::Content`),
//! and versions that follow on one another by our own commands make a chain:
//!
//! ```text
//!   another's    ours  ours  ours
//!   … 12 ─────── 15 ── 16 ── 19         pages of 15 or later, and nothing else was written: good as of 19
//!                base        version    pages of 12: not
//! ```

use std::collections::HashMap;

use parking_lot::Mutex;
use raftmeta_types::{Ino, Inode, Version};

/// See the module. One record an inode, until the kernel forgets it.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashMap<Ino, Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    /// Since this version of the content only commands of ours have changed it…
    base: Version,
    /// …up to this one.
    version: Version,
    /// Every page that the kernel holds shows this version, or a later one. `None`: nobody knows.
    pages: Option<Version>,
}

impl Seen {
    /// Whether the pages that the kernel holds show the inode as it is. If not they have to be dropped, and count as
    /// unknown until that was done.
    pub(super) fn is_current_or_going(&self, inode: &Inode) -> bool {
        let mut all = self.0.lock();
        let Some(known) = all.get_mut(&inode.ino) else { return false };
        let current = known.version == inode.data_version
            && known.pages.is_some_and(|pages| pages >= known.base);
        if !current {
            known.pages = None;
        }
        current
    }

    /// Whether an answer of the server is older than what was heard of while it was under way.
    pub(super) fn is_overtaken(&self, inode: &Inode) -> bool {
        self.0.lock().get(&inode.ino).is_some_and(|known| known.version > inode.data_version)
    }

    /// This mount has made the inode.
    pub(super) fn made(&self, inode: &Inode) {
        let version = inode.data_version;
        self.0.lock().insert(inode.ino, Known { base: version, version, pages: Some(version) });
    }

    /// A command of ours changed the content, which was of version `before`.
    pub(super) fn changed(&self, inode: &Inode, before: Version) {
        let version = inode.data_version;
        let mut all = self.0.lock();
        let new = Known { base: before, version, pages: None };
        let known = all.entry(inode.ino).or_insert(new);
        if known.version == before {
            known.version = version;
        } else if known.version < version {
            // Somebody else was in between.
            (known.base, known.version) = (before, version);
        }
    }

    /// The kernel has dropped the pages that it had when the server already had this version.
    pub(super) fn dropped(&self, ino: Ino, version: Version) {
        let mut all = self.0.lock();
        let known = all.entry(ino).or_insert(Known { base: version, version, pages: None });
        if known.version < version {
            (known.base, known.version) = (version, version);
        }
        known.pages = known.pages.max(Some(version));
    }

    /// Another session has changed the content.
    pub(super) fn stale(&self, ino: Ino) {
        if let Some(known) = self.0.lock().get_mut(&ino) {
            known.pages = None;
        }
    }

    /// The kernel has forgotten the inode, and its pages.
    pub(super) fn forget(&self, ino: Ino) {
        self.0.lock().remove(&ino);
    }

    /// Nothing is known any more; answers of which inodes something was.
    pub(super) fn clear(&self) -> Vec<Ino> {
        self.0.lock().drain().map(|(ino, _)| ino).collect()
    }
}
