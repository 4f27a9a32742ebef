//! What commands answer.

use serde::{Deserialize, Serialize};

use crate::ids::ChunkHash;
use crate::ids::{Epoch, Version};
use crate::inode::Inode;

/// The positive answer of a command; refusals are [`crate::MetaError`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The inode as it is after a command that left its content alone (`SetXattr`, `SetAttr` without a size, …).
    Inode(Inode),
    /// The inode as it is after a command that changed its content (`Write`, `Allocate`, `SetAttr` with a size).
    Content {
        inode: Inode,
        /// The content's version before: who knew that one knows that nobody else has changed it in between. Of a
        /// command in parts, before the last one.
        before: Version,
    },
    /// `Create`, `Link`: the inode, and whether this command made it. `changed`: its directory after the
    /// command.
    Created {
        inode: Inode,
        new: bool,
        changed: Vec<Inode>,
    },
    /// `Unlink`, `Rename`: the inode that lost a link, if any, as it is after the command. `changed`: the
    /// directories, and what moved, after the command.
    Unlinked {
        inode: Option<Inode>,
        changed: Vec<Inode>,
    },
    /// `CopyRange`: bytes copied (short at the end of the source), the target, and as above.
    Copied {
        len: u64,
        inode: Inode,
        before: Version,
    },
    /// `Settle`: how many were replaced; the others had been overwritten meanwhile.
    Settled {
        count: u32,
    },
    /// `Reap`: extents freed, and whether more are waiting.
    Reaped {
        extents: u32,
        more: bool,
    },
    /// `BeginDelete`: the hashes that may be deleted, under this epoch.
    Deleting {
        epoch: Epoch,
        hashes: Vec<ChunkHash>,
    },
    /// A bounded part of the work is done, and the same command, proposed again, does the next one. Its
    /// slot keeps no reply. `Group::propose` does that itself: nobody else sees this.
    More,
}
