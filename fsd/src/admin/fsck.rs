//! `fsck`: the namespace and its counters, and that every referenced chunk is there.
//!
//! ```text
//!   view ─ raftmeta::check ─▶ findings ─▶ repair: one command for each batch, then checked again
//!        └ R records ─ is the chunk stored? ─ (read_data) does it read back as its name says?
//!   chunks of the store that the view knows nothing of: garbage, for gc and the sweep
//! ```
//! The cluster goes on meanwhile. What is found on the view stays found; a chunk that seems missing is looked
//! for again under the present references, for it may have been deleted since.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use fsd_rpc::admin::{FINDINGS_MAX, Finding, FsckOptions, FsckReport};
use fsd_rpc::message::Failure;
use raftmeta::apply::REPAIRS_MAX;
use raftmeta::{KvRead, check, keys, read};
use raftmeta_types::{ChunkHash, Command, ShardId};

use super::jobs::{Entry, blocking};
use crate::jobs;
use crate::node::Node;
use crate::service::storage;

/// Keys read at once, and chunks between two reports of progress.
const BATCH: usize = 4096;
/// Repairs are checked and what is left repaired again this often: one correction may bring out another.
const REPAIR_ROUNDS_MAX: usize = 4;

pub(super) async fn fsck(
    node: &Arc<Node>,
    entry: &Arc<Entry>,
    options: FsckOptions,
) -> Result<FsckReport, Failure> {
    entry.progress("checking the namespace", 0, 0, "")?;
    let mut report = FsckReport::default();
    let found = namespace(node).await?;
    report.inodes = read::counters(&node.group.view()).map_err(storage)?.inodes;
    let left = if options.repair { repair(node, entry, &found).await? } else { found.clone() };
    let left: HashSet<String> = left.iter().map(ToString::to_string).collect();
    for finding in &found {
        let detail = finding.to_string();
        let repaired = options.repair && !left.contains(&detail);
        add(&mut report, finding.code(), detail, repaired);
    }
    let referenced = references(node, entry).await?;
    report.chunks = referenced.len() as u64;
    presence(node, entry, &referenced, options.read_data, &mut report).await?;
    unreferenced(node, entry, &referenced, &mut report).await?;
    if options.repair && report.unreferenced_chunks > 0 {
        entry.progress("deleting garbage", 0, 0, "")?;
        jobs::collect_all(node).await?;
    }
    Ok(report)
}

fn add(report: &mut FsckReport, code: &str, detail: String, repaired: bool) {
    report.found += 1;
    report.repaired += u64::from(repaired);
    if report.findings.len() < FINDINGS_MAX {
        report.findings.push(Finding { code: code.to_owned(), detail, repaired });
    }
}

async fn namespace(node: &Arc<Node>) -> Result<Vec<check::Finding>, Failure> {
    let view = node.group.view();
    blocking(move || check::check(&view).map_err(storage)).await
}

/// Corrects what can be; returns what is left.
async fn repair(
    node: &Arc<Node>,
    entry: &Entry,
    found: &[check::Finding],
) -> Result<Vec<check::Finding>, Failure> {
    let mut left = found.to_vec();
    for _ in 0..REPAIR_ROUNDS_MAX {
        let repairs: Vec<_> = left.iter().filter_map(check::Finding::repair).collect();
        if repairs.is_empty() {
            break;
        }
        let total = repairs.len() as u64;
        for (batch, done) in repairs.chunks(REPAIRS_MAX).zip((0..).step_by(REPAIRS_MAX)) {
            entry.progress("repairing", done, total, "findings")?;
            tracing::warn!(?batch, "fsck corrects the metadata");
            node.command(Command::Repair(batch.to_vec()), true).await?;
        }
        entry.progress("checking again", 0, 0, "")?;
        left = namespace(node).await?;
    }
    Ok(left)
}

/// Every chunk that the namespace references.
async fn references(node: &Arc<Node>, entry: &Arc<Entry>) -> Result<HashSet<ChunkHash>, Failure> {
    let (view, entry) = (node.group.view(), Arc::clone(entry));
    blocking(move || {
        let mut all = HashSet::new();
        let (mut from, to) = keys::class(b'R');
        loop {
            let pairs = view.scan(&from, &to, BATCH, false).map_err(storage)?;
            let Some((last, _)) = pairs.last() else { return Ok(all) };
            from = [last.as_slice(), &[0]].concat();
            all.extend(pairs.iter().map(|(key, _)| keys::hash(key)));
            entry.progress("reading references", all.len() as u64, 0, "chunks")?;
        }
    })
    .await
}

async fn presence(
    node: &Arc<Node>,
    entry: &Entry,
    referenced: &HashSet<ChunkHash>,
    read_data: bool,
    report: &mut FsckReport,
) -> Result<(), Failure> {
    let phase = if read_data { "reading chunks" } else { "looking for chunks" };
    let total = referenced.len() as u64;
    let every = if read_data { 16 } else { BATCH };
    let all: Vec<ChunkHash> = referenced.iter().copied().collect();
    for (done, some) in (0..).step_by(every).zip(all.chunks(every)) {
        entry.progress(phase, done, total, "chunks")?;
        tokio::task::yield_now().await;
        if read_data {
            for (hash, found) in some.iter().zip(node.get_chunks(some).await) {
                read_back(node, hash, found, report)?;
            }
            continue;
        }
        for (hash, size) in some.iter().zip(node.sizes(some).await?) {
            if size.is_none() {
                missing(node, hash, report).await?;
            }
        }
    }
    Ok(())
}

async fn missing(node: &Node, hash: &ChunkHash, report: &mut FsckReport) -> Result<(), Failure> {
    // It may have gone, or moved to another node, since.
    let references = read::references(&node.group.view(), hash).map_err(storage)?;
    if references > 0 && node.sizes(std::slice::from_ref(hash)).await?[0].is_none() {
        told_missing(hash, references, report);
    }
    Ok(())
}

fn told_missing(hash: &ChunkHash, references: u64, report: &mut FsckReport) {
    let detail = format!("chunk {hash} is not stored, and {references} extents refer to it");
    add(report, "CHUNK_MISSING", detail, false);
}

fn read_back(
    node: &Node,
    hash: &ChunkHash,
    found: Result<Bytes, Failure>,
    report: &mut FsckReport,
) -> Result<(), Failure> {
    match found {
        Ok(plain) if blake3::hash(&plain).as_bytes() == &hash.0 => report.chunks_read += 1,
        Ok(_) => {
            let detail = format!("chunk {hash} reads back as something else");
            add(report, "CHUNK_DAMAGED", detail, false);
        }
        Err(Failure::NoChunk(_)) => {
            let references = read::references(&node.group.view(), hash).map_err(storage)?;
            if references > 0 {
                told_missing(hash, references, report);
            }
        }
        Err(failure @ Failure::Damaged { .. }) => {
            add(report, "CHUNK_DAMAGED", failure.to_string(), false);
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}

/// Counts chunks that are stored, and neither referenced now nor listed as garbage that gc will take.
async fn unreferenced(
    node: &Arc<Node>,
    entry: &Entry,
    referenced: &HashSet<ChunkHash>,
    report: &mut FsckReport,
) -> Result<(), Failure> {
    for shard in 0..node.cluster.shard_count {
        entry.progress(
            "looking for garbage",
            shard.into(),
            node.cluster.shard_count.into(),
            "shards",
        )?;
        tokio::task::yield_now().await;
        let stored = node.chunks.iter_hashes(Some(ShardId(shard as u16)));
        let view = node.group.view();
        for hash in stored.iter().filter(|hash| !referenced.contains(hash)) {
            if read::references(&view, hash).map_err(storage)? == 0 {
                report.unreferenced_chunks += 1;
                report.unreferenced_bytes += u64::from(node.chunks.stored_len(hash).unwrap_or(0));
            }
        }
    }
    Ok(())
}
