//! `du`: what a subtree takes, on a view of one moment.
//!
//! Every chunk is counted once, however often the subtree references it. A chunk is unique to the subtree if
//! the subtree holds all of its references. Memory: 40 bytes a chunk of the subtree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use fsd_rpc::admin::{DuReport, Target};
use fsd_rpc::message::{ChunkSize, Failure};
use raftmeta::KvRead;
use raftmeta::read;
use raftmeta_types::{ChunkHash, ExtentData, FileKind, Ino, Inode};

use super::jobs::{Entry, blocking};
use super::path::resolve;
use crate::node::Node;
use crate::service::storage;

/// Entries or extents read at once, and inodes or chunks between two reports of progress.
const BATCH: usize = 1024;

pub(super) async fn du(
    node: &Arc<Node>,
    entry: &Arc<Entry>,
    target: Target,
) -> Result<DuReport, Failure> {
    let view = Arc::new(node.group.view());
    let walked = {
        let (entry, view) = (Arc::clone(entry), Arc::clone(&view));
        blocking(move || {
            let view = view.as_ref();
            let inode = resolve(view, &target)?;
            let mut walk = Walk::default();
            let inodes = read::counters(view).map_err(storage)?.inodes;
            let total = if inode.ino == Ino::ROOT { inodes } else { 0 };
            walk.subtree(view, inode, |done| entry.progress("walking", done, total, "inodes"))?;
            Ok(walk)
        })
        .await?
    };
    let mut report = walked.report;
    let chunks: Vec<(ChunkHash, u64)> = walked.chunks.into_iter().collect();
    let total = chunks.len() as u64;
    for (done, some) in (0..).step_by(BATCH).zip(chunks.chunks(BATCH)) {
        entry.progress("sizing", done, total, "chunks")?;
        let hashes: Vec<ChunkHash> = some.iter().map(|(hash, _)| *hash).collect();
        for ((hash, here), size) in some.iter().zip(node.sizes(&hashes).await?) {
            weigh(node, view.as_ref(), hash, *here, size, &mut report)?;
        }
    }
    // Each shard on its primary.
    let asked = node.ask_usages().await?;
    let shards = asked.iter().flat_map(|(_, usage)| &usage.shards);
    report.pool_live_bytes = shards.map(|shard| shard.live_bytes).sum();
    Ok(report)
}

/// Adds a chunk to which the subtree refers `here` times.
fn weigh(
    node: &Node,
    view: &impl KvRead,
    hash: &ChunkHash,
    here: u64,
    size: Option<ChunkSize>,
    report: &mut DuReport,
) -> Result<(), Failure> {
    let Some(ChunkSize { plain, stored }) = size else {
        // Gone since the view was taken, or missing.
        if read::references(&node.group.view(), hash).map_err(storage)? > 0 {
            report.missing_chunks += 1;
        }
        return Ok(());
    };
    let stored = u64::from(stored);
    report.chunks += 1;
    report.stored_bytes += stored;
    report.plain_bytes += u64::from(plain);
    if read::references(view, hash).map_err(storage)? <= here {
        report.unique_bytes += stored;
    } else {
        report.shared_bytes += stored;
    }
    Ok(())
}

#[derive(Default)]
struct Walk {
    report: DuReport,
    /// References of the subtree to each chunk.
    chunks: HashMap<ChunkHash, u64>,
    /// Files with several links that were counted.
    linked: HashSet<Ino>,
    done: u64,
}

impl Walk {
    fn subtree(
        &mut self,
        view: &impl KvRead,
        inode: Inode,
        mut progress: impl FnMut(u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut directories = Vec::new();
        self.inode(view, &inode, &mut directories)?;
        while let Some(directory) = directories.pop() {
            let mut after = Vec::new();
            loop {
                progress(self.done)?;
                let entries = read::readdir(view, directory, &after, BATCH).map_err(storage)?;
                let Some(last) = entries.last() else { break };
                after = last.name.clone();
                for entry in entries {
                    // A dangling entry is for fsck to find.
                    if let Some(inode) = read::inode(view, entry.ino).map_err(storage)? {
                        self.inode(view, &inode, &mut directories)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn inode(
        &mut self,
        view: &impl KvRead,
        inode: &Inode,
        directories: &mut Vec<Ino>,
    ) -> Result<(), Failure> {
        if inode.kind != FileKind::Directory && inode.nlink > 1 && !self.linked.insert(inode.ino) {
            return Ok(());
        }
        self.done += 1;
        match inode.kind {
            FileKind::Directory => {
                self.report.directories += 1;
                directories.push(inode.ino);
            }
            FileKind::Regular => {
                self.report.files += 1;
                self.report.logical_bytes += inode.size;
                self.extents(view, inode.ino)?;
            }
            FileKind::Symlink
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => self.report.others += 1,
        }
        Ok(())
    }

    fn extents(&mut self, view: &impl KvRead, ino: Ino) -> Result<(), Failure> {
        let mut from = 0;
        loop {
            let extents = read::extents(view, ino, from, u64::MAX, BATCH).map_err(storage)?;
            let Some(last) = extents.last() else { return Ok(()) };
            from = last.offset.saturating_add(u64::from(last.len));
            for extent in extents {
                let len = u64::from(extent.len);
                self.report.allocated_bytes += len;
                match extent.data {
                    ExtentData::Inline(_) => self.report.inline_bytes += len,
                    ExtentData::Zero => self.report.zero_bytes += len,
                    ExtentData::Chunk { hash, .. } => {
                        self.report.chunked_bytes += len;
                        *self.chunks.entry(hash).or_default() += 1;
                    }
                }
            }
        }
    }
}
