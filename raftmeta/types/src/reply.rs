//! What commands answer.

use serde::{Deserialize, Serialize};

use crate::ids::ChunkHash;
use crate::ids::Epoch;
use crate::inode::Inode;

/// The positive answer of a command; refusals are [`crate::MetaError`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The inode as it is after the command (`SetAttr`, `Write`, `Allocate`, …).
    Inode(Inode),
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
    /// `CopyRange`: bytes copied (short at the end of the source) and the target.
    Copied {
        len: u64,
        inode: Inode,
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
