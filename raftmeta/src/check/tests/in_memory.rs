//! The check as it was first written, all of the store in memory: what the other has to find as well.

use std::collections::{BTreeMap, BTreeSet};

use raftmeta_types::cluster::{ClusterInfo, ShardInfo};
use raftmeta_types::{
    ChunkHash, Epoch, Extent, ExtentData, FileKind, Ino, Inode, ShardId, Version,
};

use super::super::Finding;
use crate::apply::INLINE_KEEP_MAX;
use crate::kv::{KvError, KvRead};
use crate::records::{self, Counters, Dentry, ExtentRecord, Orphan, Remembered};
use crate::{keys, read};

/// Everything found, in the order of the classes. Empty is healthy.
pub(super) fn check(kv: &impl KvRead) -> Result<Vec<Finding>, KvError> {
    let inodes: BTreeMap<Ino, Inode> = read::class::<Inode>(kv, b'I')?
        .into_iter()
        .map(|(key, inode)| (Ino(keys::first_number(&key)), inode))
        .collect();
    let mut findings = Vec::new();
    let cluster = read::cluster(kv)?;
    if cluster.is_some() && !inodes.contains_key(&Ino::ROOT) {
        findings.push(Finding::NoRoot);
    }
    check_entries(kv, &inodes, &mut findings)?;
    check_orphans(kv, &inodes, &mut findings)?;
    let counted = check_extents(kv, &inodes, &mut findings)?;
    check_references(kv, cluster.as_ref(), &counted, &mut findings)?;
    check_attributes(kv, &inodes, &mut findings)?;
    let recorded = read::counters(kv)?;
    let files = inodes.values().filter(|inode| inode.kind == FileKind::Regular);
    let counted = Counters {
        inodes: inodes.len() as u64,
        logical_bytes: files.fold(0, |sum: u64, inode| sum.saturating_add(inode.size)),
    };
    if recorded != counted {
        findings.push(Finding::Counters { recorded, counted });
    }
    Ok(findings)
}

fn check_entries(
    kv: &impl KvRead,
    inodes: &BTreeMap<Ino, Inode>,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
    let mut parents: BTreeMap<Ino, Vec<Ino>> = BTreeMap::new();
    let mut entries: BTreeMap<Ino, u64> = BTreeMap::new();
    for (key, dentry) in read::class::<Dentry>(kv, b'D')? {
        let parent = Ino(keys::first_number(&key));
        let name = keys::name(&key).escape_ascii().to_string();
        *entries.entry(parent).or_default() += 1;
        if !inodes.get(&parent).is_some_and(|inode| inode.kind == FileKind::Directory) {
            findings.push(Finding::EntryOutsideDirectory { parent, name: name.clone() });
        }
        let ino = dentry.ino;
        match inodes.get(&ino) {
            None => findings.push(Finding::DanglingEntry { parent, name, ino }),
            Some(inode) if inode.kind != dentry.kind => {
                findings.push(Finding::EntryKind { parent, name, ino });
            }
            Some(_) => {}
        }
        *links.entry(ino).or_default() += 1;
        if dentry.kind == FileKind::Directory {
            // The `..` of the child; its own `.` and its entry make the other two.
            *links.entry(parent).or_default() += 1;
            *links.entry(ino).or_default() += 1;
            parents.entry(ino).or_default().push(parent);
        }
    }
    *links.entry(Ino::ROOT).or_default() += 2;
    for (&ino, inode) in inodes {
        let counted = links.get(&ino).copied().unwrap_or(0);
        if inode.nlink != counted {
            findings.push(Finding::Links { ino, recorded: inode.nlink, counted });
        }
        if inode.kind != FileKind::Directory || inode.nlink == 0 {
            continue;
        }
        let size = entries.get(&ino).copied().unwrap_or(0) * crate::apply::DENTRY_SIZE;
        if inode.size != size {
            let recorded = inode.size;
            findings.push(Finding::DirectorySize { ino, recorded, counted: size });
        }
        let found = parents.remove(&ino).unwrap_or_default();
        if ino != Ino::ROOT && found != [inode.parent] {
            findings.push(Finding::Parent { ino, recorded: inode.parent, found });
        }
        if !reaches_root(inodes, ino) {
            findings.push(Finding::Unreachable { ino });
        }
    }
    Ok(())
}

fn reaches_root(inodes: &BTreeMap<Ino, Inode>, mut ino: Ino) -> bool {
    let mut seen = BTreeSet::new();
    while ino != Ino::ROOT {
        match inodes.get(&ino) {
            Some(inode) if seen.insert(ino) => ino = inode.parent,
            _ => return false,
        }
    }
    true
}

fn check_orphans(
    kv: &impl KvRead,
    inodes: &BTreeMap<Ino, Inode>,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let sessions: BTreeSet<_> = read::sessions(kv)?.into_iter().map(|info| info.session).collect();
    let orphans: BTreeMap<Ino, Orphan> = read::orphans(kv)?.into_iter().collect();
    for (&ino, orphan) in &orphans {
        let unlinked = inodes.get(&ino).is_some_and(|inode| inode.nlink == 0);
        let held = orphan.sessions.iter().all(|session| sessions.contains(session));
        if !unlinked || !held || orphan.sessions.is_empty() {
            findings.push(Finding::Orphan { ino });
        }
    }
    let lost = inodes.values().filter(|inode| inode.nlink == 0);
    for inode in lost.filter(|inode| !orphans.contains_key(&inode.ino)) {
        findings.push(Finding::Lost { ino: inode.ino });
    }
    Ok(())
}

/// Checks extents and their index of unsettled data; returns the references of each chunk.
fn check_extents(
    kv: &impl KvRead,
    inodes: &BTreeMap<Ino, Inode>,
    findings: &mut Vec<Finding>,
) -> Result<BTreeMap<ChunkHash, u64>, KvError> {
    let dead: BTreeSet<Ino> = read::class::<Version>(kv, b'B')?
        .into_iter()
        .map(|(key, _)| Ino(keys::first_number(&key)))
        .collect();
    let mut unsettled: BTreeMap<(Ino, u64), Version> = read::unsettled(kv, None, usize::MAX)?
        .into_iter()
        .map(|found| ((found.ino, found.offset), found.version))
        .collect();
    let mut references = BTreeMap::new();
    let mut allocated: BTreeMap<Ino, u64> = BTreeMap::new();
    let mut last = (Ino(0), 0);
    for (key, record) in read::class::<ExtentRecord>(kv, b'E')? {
        let (ino, offset) = (Ino(keys::first_number(&key)), keys::second_number(&key));
        let ExtentRecord { len, data, version } = record;
        let extent = Extent { offset, len, data, version };
        if let Some(reason) = damage(&extent) {
            findings.push(Finding::Extent { ino, offset, reason });
        }
        if last.0 == ino && offset < last.1 {
            findings.push(Finding::Overlap { ino, offset });
        }
        last = (ino, offset.saturating_add(u64::from(len)));
        *allocated.entry(ino).or_default() += u64::from(len);
        if let ExtentData::Chunk { hash, .. } = extent.data {
            *references.entry(hash).or_default() += 1;
        }
        let waits = matches!(extent.data, ExtentData::Inline(_)) && len > INLINE_KEEP_MAX;
        let listed = unsettled.remove(&(ino, offset));
        if dead.contains(&ino) {
            continue;
        }
        if listed != waits.then_some(version) {
            findings.push(Finding::Unsettled { ino, offset });
        }
        if !inodes.contains_key(&ino) {
            findings.push(Finding::NoInode { ino, class: 'E' });
        }
    }
    findings.extend(unsettled.into_keys().map(|(ino, offset)| Finding::Unsettled { ino, offset }));
    for (&ino, inode) in inodes {
        let counted = allocated.get(&ino).copied().unwrap_or(0);
        if inode.allocated != counted {
            findings.push(Finding::Allocated { ino, recorded: inode.allocated, counted });
        }
    }
    Ok(references)
}

fn damage(extent: &Extent) -> Option<&'static str> {
    if extent.len == 0 {
        return Some("empty");
    }
    if extent.offset.checked_add(u64::from(extent.len)).is_none() {
        return Some("beyond the largest offset");
    }
    match &extent.data {
        ExtentData::Inline(bytes) if bytes.len() != extent.len as usize => Some("length of data"),
        _ => None,
    }
}

fn check_references(
    kv: &impl KvRead,
    cluster: Option<&ClusterInfo>,
    counted: &BTreeMap<ChunkHash, u64>,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut recorded: BTreeMap<ChunkHash, u64> = read::class::<u64>(kv, b'R')?
        .into_iter()
        .map(|(key, count)| (keys::hash(&key), count))
        .collect();
    for (&hash, &counted) in counted {
        let recorded = recorded.remove(&hash).unwrap_or(0);
        if recorded != counted {
            findings.push(Finding::References { hash, recorded, counted });
        }
    }
    for (hash, recorded) in recorded {
        findings.push(Finding::References { hash, recorded, counted: 0 });
    }
    for (key, _) in read::class::<Version>(kv, b'Z')? {
        let hash = keys::hash(&key);
        let home = cluster.map(|cluster| keys::garbage(hash.shard(cluster.shard_count), &hash));
        if counted.contains_key(&hash) || home.as_deref() != Some(&key[..]) {
            findings.push(Finding::Garbage { hash });
        }
    }
    let epochs: BTreeMap<ShardId, ShardInfo> =
        read::shards(kv)?.into_iter().map(|shard| (shard.id, shard)).collect();
    for (shard, pending) in read::pending_deletes(kv)? {
        if epochs.get(&shard).map(|info| info.gc_epoch) != Some(pending.epoch) {
            findings.push(Finding::PendingEpoch { shard });
        }
    }
    check_deletions(kv, findings)
}

/// The deletions that are remembered: each is listed, and known of every chunk that it was the last for.
fn check_deletions(kv: &impl KvRead, findings: &mut Vec<Finding>) -> Result<(), KvError> {
    let shard_of = |key: &[u8]| match key {
        [_, high, low, ..] => ShardId(u16::from_be_bytes([*high, *low])),
        _ => ShardId(0),
    };
    let mut last: BTreeMap<(ShardId, ChunkHash), Epoch> = BTreeMap::new();
    let mut listed: BTreeMap<ShardId, Vec<(Epoch, u32)>> = BTreeMap::new();
    let mut summaries: BTreeMap<ShardId, Vec<(Epoch, u32)>> = BTreeMap::new();
    let (from, to) = keys::class(b'F');
    for (key, value) in kv.scan(&from, &to, usize::MAX, false)? {
        let shard = shard_of(&key);
        if key == keys::remembered(shard) {
            let summary: Remembered = records::decode(&key, &value)?;
            summaries.insert(shard, summary.deletions.into());
            continue;
        }
        let epoch = Epoch(key.get(3..).map_or(0, |epoch| {
            epoch.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
        }));
        let marked: Vec<ChunkHash> = records::decode(&key, &value)?;
        listed.entry(shard).or_default().push((epoch, marked.len() as u32));
        last.extend(marked.into_iter().map(|hash| ((shard, hash), epoch)));
    }
    for shard in summaries.keys().chain(listed.keys()).collect::<BTreeSet<_>>() {
        let summary = summaries.get(shard).map_or(&[][..], Vec::as_slice);
        if listed.get(shard).map_or(&[][..], Vec::as_slice) != summary {
            findings.push(Finding::Deletions { shard: *shard });
        }
    }
    let recorded: BTreeMap<(ShardId, ChunkHash), Epoch> = read::class::<Epoch>(kv, b'G')?
        .into_iter()
        .map(|(key, epoch)| ((shard_of(&key), keys::hash(&key)), epoch))
        .collect();
    if recorded != last {
        let differs = recorded.iter().find(|(key, epoch)| last.get(key) != Some(epoch));
        let differs = differs.or_else(|| last.iter().find(|(key, _)| !recorded.contains_key(key)));
        findings.extend(differs.map(|((shard, _), _)| Finding::Deletions { shard: *shard }));
    }
    Ok(())
}

/// Extended attributes and locks belong to inodes that exist; the ACL mark is right.
fn check_attributes(
    kv: &impl KvRead,
    inodes: &BTreeMap<Ino, Inode>,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut acls = BTreeSet::new();
    for class in [b'X', b'L'] {
        let (from, to) = keys::class(class);
        for (key, _) in kv.scan(&from, &to, usize::MAX, false)? {
            let ino = Ino(keys::first_number(&key));
            if !inodes.contains_key(&ino) {
                findings.push(Finding::NoInode { ino, class: char::from(class) });
            }
            let name = keys::name(&key);
            if class == b'X'
                && (name == crate::apply::ACL_ACCESS || name == crate::apply::ACL_DEFAULT)
            {
                acls.insert(ino);
            }
        }
    }
    for (&ino, inode) in inodes {
        if inode.has_acl != acls.contains(&ino) {
            findings.push(Finding::AclMark { ino });
        }
    }
    Ok(())
}
