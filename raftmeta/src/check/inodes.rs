//! What hangs on inodes: orphans, extended attributes and locks; and how many inodes there are.

use std::collections::BTreeSet;

use raftmeta_types::{FileKind, Ino, Inode};

use super::Finding;
use super::stream::{Beside, Pairs, class, inodes};
use crate::apply::{ACL_ACCESS, ACL_DEFAULT};
use crate::kv::{KvError, KvRead};
use crate::records::{Counters, Orphan};
use crate::{keys, read};

/// What all inodes come to.
#[derive(Default)]
pub(super) struct Totals {
    pub counted: Counters,
    /// Bytes that they say are allocated.
    pub allocated: u64,
}

/// Checks who is without links, and adds everybody up.
pub(super) fn check_orphans(
    kv: &impl KvRead,
    findings: &mut Vec<Finding>,
) -> Result<Totals, KvError> {
    // There are not more sessions than clients.
    let sessions: BTreeSet<_> = read::sessions(kv)?.into_iter().map(|info| info.session).collect();
    for record in class::<Orphan, _>(kv, b'O') {
        let (key, orphan) = record?;
        let ino = Ino(keys::first_number(&key));
        let unlinked = read::inode(kv, ino)?.is_some_and(|inode| inode.nlink == 0);
        let held = orphan.sessions.iter().all(|session| sessions.contains(session));
        if !unlinked || !held || orphan.sessions.is_empty() {
            findings.push(Finding::Orphan { ino });
        }
    }
    let mut totals = Totals::default();
    for record in inodes(kv) {
        let (ino, inode) = record?;
        let Totals { counted, allocated } = &mut totals;
        counted.inodes += 1;
        *allocated = allocated.saturating_add(inode.allocated);
        if inode.kind == FileKind::Regular {
            counted.logical_bytes = counted.logical_bytes.saturating_add(inode.size);
        }
        if inode.nlink == 0 && kv.get(&keys::orphan(ino))?.is_none() {
            findings.push(Finding::Lost { ino });
        }
    }
    Ok(totals)
}

/// Extended attributes and locks belong to inodes that exist; the ACL mark is right.
pub(super) fn check_attributes(
    kv: &impl KvRead,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut marks = Vec::new();
    along(kv, b'X', findings, |ino, inode, keys_of_it| {
        let is_acl = |key: &Vec<u8>| matches!(keys::name(key), ACL_ACCESS | ACL_DEFAULT);
        if inode.has_acl != keys_of_it.iter().any(is_acl) {
            marks.push(Finding::AclMark { ino });
        }
    })?;
    along(kv, b'L', findings, |_, _, _| {})?;
    findings.extend(marks);
    Ok(())
}

/// Goes along a class of records that belong to inodes; `each` is told the keys of every inode.
fn along(
    kv: &impl KvRead,
    of: u8,
    findings: &mut Vec<Finding>,
    mut each: impl FnMut(Ino, &Inode, &[Vec<u8>]),
) -> Result<(), KvError> {
    let mut records = Beside::new(Pairs::class(kv, of).map(|pair| {
        let (key, _) = pair?;
        Ok((Ino(keys::first_number(&key)), key))
    }));
    let mut without = |ino| findings.push(Finding::NoInode { ino, class: char::from(of) });
    let mut keys_of_it = Vec::new();
    for record in inodes(kv) {
        let (ino, inode) = record?;
        while let Some((ino, _)) = records.below(Some(ino))? {
            without(ino);
        }
        keys_of_it.clear();
        while let Some(key) = records.at(ino)? {
            keys_of_it.push(key);
        }
        each(ino, &inode, &keys_of_it);
    }
    while let Some((ino, _)) = records.below(None)? {
        without(ino);
    }
    Ok(())
}
