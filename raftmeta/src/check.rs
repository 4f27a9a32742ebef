//! fsck of the namespace: recounts everything that the state machine keeps twice.
//!
//! The store is read in the order of its keys, several classes side by side and each several times, so what is
//! in memory at once does not grow with it; run it on a snapshot, it takes a while.
//!
//! | module | what | reads beside each other |
//! |---|---|---|
//! | [`entries`] | entries, links, parents, the way to the root | D, I |
//! | [`inodes`] | orphans, attributes, locks, totals | O; X, I; L, I |
//! | [`extents`] | extents and unsettled data | E, I, B, U |
//! | [`references`] | references, garbage, deletions | R; Z; F, G |
//! | [`stream`] | a class of records in order | |
//! | [`sums`] | which of many numbers are wrong, where what is said lies in another order than what is counted | |

mod entries;
mod extents;
mod inodes;
mod references;
mod repair;
mod stream;
mod sums;

use raftmeta_types::{ChunkHash, Ino, ShardId};

use crate::kv::{KvError, KvRead};
use crate::read;
use crate::records::Counters;

/// Something that is not as the state machine would have left it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    #[error("the root directory is missing")]
    NoRoot,
    #[error("entry {name:?} of directory {parent} names inode {ino}, which does not exist")]
    DanglingEntry { parent: Ino, name: String, ino: Ino },
    #[error("entry {name:?} lies in {parent}, which is not a directory")]
    EntryOutsideDirectory { parent: Ino, name: String },
    #[error("entry {name:?} of directory {parent} has another type than inode {ino}")]
    EntryKind { parent: Ino, name: String, ino: Ino },
    #[error("inode {ino} says {recorded} links and has {counted}")]
    Links { ino: Ino, recorded: u32, counted: u32 },
    #[error("directory {ino} says its parent is {recorded}, its entry lies in {found:?}")]
    Parent { ino: Ino, recorded: Ino, found: Vec<Ino> },
    #[error("directory {ino} cannot be reached from the root")]
    Unreachable { ino: Ino },
    #[error("inode {ino} has no links and no session holds it")]
    Lost { ino: Ino },
    #[error("orphan {ino} has links, or no inode, or no live session that holds it")]
    Orphan { ino: Ino },
    #[error("extents of inode {ino} overlap at {offset}")]
    Overlap { ino: Ino, offset: u64 },
    #[error("extent of inode {ino} at {offset} is damaged: {reason}")]
    Extent { ino: Ino, offset: u64, reason: &'static str },
    #[error("{class} record of inode {ino}, which does not exist")]
    NoInode { ino: Ino, class: char },
    #[error("inode {ino} says {recorded} bytes allocated and has {counted}")]
    Allocated { ino: Ino, recorded: u64, counted: u64 },
    #[error("chunk {hash} says {recorded} references and has {counted}")]
    References { hash: ChunkHash, recorded: u64, counted: u64 },
    #[error("chunk {hash} is listed as garbage and has references, or is of another shard")]
    Garbage { hash: ChunkHash },
    #[error("shard {shard}: pending deletion and gc epoch disagree")]
    PendingEpoch { shard: ShardId },
    #[error("shard {shard}: what is remembered of its last deletions is not consistent")]
    Deletions { shard: ShardId },
    #[error("inline extent of inode {ino} at {offset} and the index of unsettled data disagree")]
    Unsettled { ino: Ino, offset: u64 },
    #[error("inode {ino}: the mark for ACLs is wrong")]
    AclMark { ino: Ino },
    #[error("directory {ino} says its size is {recorded}, its entries make {counted}")]
    DirectorySize { ino: Ino, recorded: u64, counted: u64 },
    #[error("counters say {recorded:?}, counted {counted:?}")]
    Counters { recorded: Counters, counted: Counters },
}

/// Bytes of a chunk, for a guess at how many there are.
const CHUNK_AVERAGE: u64 = 64 << 10;

/// Everything found, in the order of the classes. Empty is healthy.
pub fn check(kv: &impl KvRead) -> Result<Vec<Finding>, KvError> {
    let mut findings = Vec::new();
    let cluster = read::cluster(kv)?;
    if cluster.is_some() && read::inode(kv, Ino::ROOT)?.is_none() {
        findings.push(Finding::NoRoot);
    }
    let recorded = read::counters(kv)?;
    entries::check(kv, recorded.inodes, &mut findings)?;
    let inodes::Totals { counted, allocated } = inodes::check_orphans(kv, &mut findings)?;
    let chunks = allocated / CHUNK_AVERAGE + counted.inodes;
    let mut counts = sums::Sums::new(chunks);
    let extents = extents::check(kv, &mut counts, &mut findings)?;
    references::check(kv, cluster.as_ref(), counts, extents, &mut findings)?;
    inodes::check_attributes(kv, &mut findings)?;
    if recorded != counted {
        findings.push(Finding::Counters { recorded, counted });
    }
    Ok(findings)
}

#[cfg(test)]
mod tests;
