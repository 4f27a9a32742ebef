//! What each finding is called, and what corrects it.

use raftmeta_types::command::Repair;

use super::Finding;

impl Finding {
    /// A name to search for; findings of one kind share it.
    pub fn code(&self) -> &'static str {
        match self {
            Finding::NoRoot
            | Finding::DanglingEntry { .. }
            | Finding::EntryOutsideDirectory { .. }
            | Finding::EntryKind { .. }
            | Finding::Parent { .. }
            | Finding::Unreachable { .. } => "NAMESPACE",
            Finding::Links { .. } => "LINKS",
            Finding::Lost { .. } | Finding::Orphan { .. } => "ORPHAN",
            Finding::Overlap { .. } | Finding::Extent { .. } => "EXTENT",
            Finding::NoInode { .. } => "LEFTOVERS",
            Finding::Allocated { .. } | Finding::DirectorySize { .. } | Finding::AclMark { .. } => {
                "INODE"
            }
            Finding::References { .. } => "REFERENCES",
            Finding::Garbage { .. } | Finding::PendingEpoch { .. } | Finding::Deletions { .. } => {
                "GARBAGE"
            }
            Finding::Unsettled { .. } => "UNSETTLED",
            Finding::Counters { .. } => "COUNTERS",
        }
    }

    /// What corrects it. Nothing where that would be a guess about somebody's files.
    pub fn repair(&self) -> Option<Repair> {
        let inode = |ino, links, allocated, directory_size| {
            Some(Repair::Inode { ino, links, allocated, directory_size })
        };
        match *self {
            Finding::NoRoot
            | Finding::DanglingEntry { .. }
            | Finding::EntryOutsideDirectory { .. }
            | Finding::EntryKind { .. }
            | Finding::Parent { .. }
            | Finding::Unreachable { .. }
            | Finding::Overlap { .. }
            | Finding::Extent { .. }
            | Finding::PendingEpoch { .. }
            | Finding::Deletions { .. } => None,
            Finding::Links { ino, recorded, counted } => {
                let by = i64::from(counted) - i64::from(recorded);
                inode(ino, i32::try_from(by).ok()?, 0, 0)
            }
            Finding::Allocated { ino, recorded, counted } => {
                inode(ino, 0, difference(recorded, counted), 0)
            }
            Finding::DirectorySize { ino, recorded, counted } => {
                inode(ino, 0, 0, difference(recorded, counted))
            }
            Finding::Lost { ino } | Finding::Orphan { ino } => Some(Repair::Orphan { ino }),
            Finding::NoInode { ino, class: _ } => Some(Repair::Leftovers { ino }),
            Finding::References { hash, recorded, counted } => {
                Some(Repair::References { hash, by: difference(recorded, counted) })
            }
            Finding::Garbage { hash } => Some(Repair::References { hash, by: 0 }),
            Finding::Unsettled { ino, offset } => Some(Repair::Unsettled { ino, offset }),
            Finding::AclMark { ino } => Some(Repair::AclMark { ino }),
            Finding::Counters { recorded, counted } => Some(Repair::Counters {
                inodes: difference(recorded.inodes, counted.inodes),
                logical_bytes: difference(recorded.logical_bytes, counted.logical_bytes),
            }),
        }
    }
}

/// What is to be added to `recorded`; more than fits in the type is added in several rounds.
fn difference(recorded: u64, counted: u64) -> i64 {
    let by = i128::from(counted) - i128::from(recorded);
    i64::try_from(by).unwrap_or(if by < 0 { i64::MIN } else { i64::MAX })
}
