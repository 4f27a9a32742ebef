//! Telling the kernel what to forget.
//!
//! Dropping pages waits for their locks, and those who hold them may wait for an answer from us. So it
//! is done by a thread that serves no requests.

use raftmeta_types::{Ino, Version};

use super::abi::{self, Writer};
use super::session::Shared;

/// What the thread is asked for.
pub(super) enum Notice {
    /// Attributes and pages of the inode.
    Inode(Ino),
    /// The same, before a request is answered with nothing; the content was of this version by then.
    InodeThenDone(Ino, Version, u64),
}

impl Shared {
    /// Serves the queue of notices until it is closed.
    pub(super) fn notify(&self) {
        while let Some(notice) = self.notices.pop() {
            self.give_notice(&notice);
        }
    }

    pub(super) fn give_notice(&self, notice: &Notice) {
        match *notice {
            Notice::Inode(ino) => self.forget_inode(ino, true),
            Notice::InodeThenDone(ino, version, unique) => {
                self.forget_inode(ino, true);
                self.core.dropped(ino, version);
                self.reply(unique, Ok(Vec::new()));
            }
        }
    }

    /// The kernel forgets attributes, and with `data` pages; without it never waits.
    pub(super) fn forget_inode(&self, ino: Ino, data: bool) {
        let mut body = Writer::default();
        // A negative offset: attributes only.
        let offset = if data { 0 } else { u64::MAX };
        body.u64(ino.0).u64(offset).u64(0);
        self.send(0, abi::NOTIFY_INVAL_INODE, &body.0);
    }

    pub(super) fn forget_entry(&self, parent: Ino, name: &[u8]) {
        let mut body = Writer::default();
        body.u64(parent.0).u32(name.len() as u32).u32(0);
        body.0.extend_from_slice(name);
        body.0.push(0);
        self.send(0, abi::NOTIFY_INVAL_ENTRY, &body.0);
    }
}
