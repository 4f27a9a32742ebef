//! References of chunks, their garbage, and the deletions that are remembered.

use std::collections::BTreeMap;

use raftmeta_types::cluster::ClusterInfo;
use raftmeta_types::{ChunkHash, Epoch, ExtentData, ShardId, Version};

use super::Finding;
use super::extents::extents;
use super::stream::{Beside, Pairs, class};
use super::sums::{Sums, Suspects};
use crate::kv::{KvError, KvRead};
use crate::records::{self, Remembered};
use crate::{keys, read};

fn references<K: KvRead>(kv: &K) -> impl Iterator<Item = Result<(ChunkHash, u64), KvError>> {
    class::<u64, K>(kv, b'R').map(|record| record.map(|(key, count)| (keys::hash(&key), count)))
}

/// Compares what is recorded with what the extents have added to `sums`; there are so many of them.
pub(super) fn check(
    kv: &impl KvRead,
    cluster: Option<&ClusterInfo>,
    mut sums: Sums,
    extents: u64,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut number = extents;
    for record in references(kv) {
        let (hash, count) = record?;
        sums.said(&hash.0, b"", count);
        if count == 0 {
            // A record of nothing should not be.
            sums.said(&hash.0, b"nothing", 1);
        }
        number += 1;
    }
    let mut wrong = BTreeMap::new();
    for suspects in sums.suspects(number) {
        recount(kv, &suspects, &mut wrong)?;
    }
    let finding = |(&hash, count): (&ChunkHash, &Count)| {
        let recorded = count.recorded.unwrap_or(0);
        Finding::References { hash, recorded, counted: count.counted }
    };
    findings.extend(wrong.iter().filter(|(_, count)| count.counted > 0).map(finding));
    findings.extend(wrong.iter().filter(|(_, count)| count.counted == 0).map(finding));
    for record in class::<Version, _>(kv, b'Z') {
        let (key, _) = record?;
        let hash = keys::hash(&key);
        let referenced = match wrong.get(&hash) {
            Some(count) => count.counted > 0,
            None => kv.get(&keys::references(&hash))?.is_some(),
        };
        let home = cluster.map(|cluster| keys::garbage(hash.shard(cluster.shard_count), &hash));
        if referenced || home.as_deref() != Some(&key[..]) {
            findings.push(Finding::Garbage { hash });
        }
    }
    for (shard, pending) in read::pending_deletes(kv)? {
        let epoch = read::shard(kv, shard)?.map(|info| info.gc_epoch);
        if epoch != Some(pending.epoch) {
            findings.push(Finding::PendingEpoch { shard });
        }
    }
    check_deletions(kv, findings)
}

#[derive(Default)]
struct Count {
    recorded: Option<u64>,
    counted: u64,
}

/// Counts the references of the suspects one by one; keeps what is wrong.
fn recount(
    kv: &impl KvRead,
    suspects: &Suspects,
    wrong: &mut BTreeMap<ChunkHash, Count>,
) -> Result<(), KvError> {
    let mut all: BTreeMap<ChunkHash, Count> = BTreeMap::new();
    for record in extents(kv) {
        let (_, extent) = record?;
        if let ExtentData::Chunk { hash, .. } = extent.data
            && suspects.contains(&hash.0)
        {
            all.entry(hash).or_default().counted += 1;
        }
    }
    for record in references(kv) {
        let (hash, count) = record?;
        if suspects.contains(&hash.0) {
            all.entry(hash).or_default().recorded = Some(count);
        }
    }
    all.retain(|_, count| count.counted == 0 || count.recorded != Some(count.counted));
    wrong.append(&mut all);
    Ok(())
}

fn shard_of(key: &[u8]) -> ShardId {
    match key {
        [_, high, low, ..] => ShardId(u16::from_be_bytes([*high, *low])),
        _ => ShardId(0),
    }
}

/// What the records of one shard say of its last deletions.
#[derive(Default)]
struct Deletions {
    summary: Vec<(Epoch, u32)>,
    listed: Vec<(Epoch, u32)>,
    /// The last deletion that marked each chunk.
    last: BTreeMap<ChunkHash, Epoch>,
}

impl Deletions {
    fn add(&mut self, shard: ShardId, key: &[u8], value: &[u8]) -> Result<(), KvError> {
        if key == keys::remembered(shard) {
            let summary: Remembered = records::decode(key, value)?;
            self.summary = summary.deletions.into();
            return Ok(());
        }
        let epoch = Epoch(key.get(3..).map_or(0, |epoch| {
            epoch.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
        }));
        let marked: Vec<ChunkHash> = records::decode(key, value)?;
        self.listed.push((epoch, marked.len() as u32));
        self.last.extend(marked.into_iter().map(|hash| (hash, epoch)));
        Ok(())
    }
}

/// The deletions that are remembered: each is listed, and known of every chunk that it was the last for. The
/// state machine bounds what one shard remembers.
fn check_deletions(kv: &impl KvRead, findings: &mut Vec<Finding>) -> Result<(), KvError> {
    let mut listed = Beside::new(Pairs::class(kv, b'F').map(|pair| {
        let (key, value) = pair?;
        Ok((shard_of(&key), (key, value)))
    }));
    let mut known = Beside::new(class::<Epoch, _>(kv, b'G').map(|record| {
        let (key, epoch) = record?;
        Ok((shard_of(&key), (keys::hash(&key), epoch)))
    }));
    // The first shard whose chunks say what was not, and the first that do not say what was.
    let (mut differs, mut lacks) = (None, None);
    while let Some(shard) = listed.number()? {
        while let Some((shard, _)) = known.below(Some(shard))? {
            differs.get_or_insert(shard);
        }
        let mut deletions = Deletions::default();
        while let Some((key, value)) = listed.at(shard)? {
            deletions.add(shard, &key, &value)?;
        }
        if deletions.listed != deletions.summary {
            findings.push(Finding::Deletions { shard });
        }
        while let Some((hash, epoch)) = known.at(shard)? {
            if deletions.last.remove(&hash) != Some(epoch) {
                differs.get_or_insert(shard);
            }
        }
        if !deletions.last.is_empty() {
            lacks.get_or_insert(shard);
        }
    }
    while let Some((shard, _)) = known.below(None)? {
        differs.get_or_insert(shard);
    }
    findings.extend(differs.or(lacks).map(|shard| Finding::Deletions { shard }));
    Ok(())
}
