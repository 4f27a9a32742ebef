//! Reads everything that this node holds again and again, and has what is damaged put right.
//!
//! ```text
//!   shard by shard, segment by segment ─ verify ─ not whole ─▶ mend from another replica
//!   a read found a damaged chunk ───────────────────────────▶ mend at once, and once a minute until it is good
//! ```
//! A pass takes about a week; `cfs admin scrub` makes one as fast as half of the device's time allows. Where it is
//! stands in a file of the data directory after every shard, so that a node that is started again goes on there.
//! The leader hears of it with the node's space, and tells it as a job (`admin::status`).

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockd_ipc::volume::Volume;
use fsd_rpc::message::{Failure, ScrubAsk, ScrubState};
use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::{ChunkHash, ShardId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::chunks::{ChunkStore, Kind, SegmentNumber, Share};
use crate::node::Node;
use crate::node::skew::clock_now_ms;
use crate::replication::{self, Mended};
use crate::service::storage;

/// A pass in which nobody hurries.
const PASS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two segments of such a pass.
const STEP_MIN: Duration = Duration::from_millis(100);
/// Between two looks at what is known to be damaged and could not be mended.
const AGAIN: Duration = Duration::from_secs(60);
/// How fast a hurried pass is shows after this.
const RATE_AFTER: Duration = Duration::from_secs(3);
/// Chunks mended in one go.
const CHUNKS_MAX: usize = 1024;
/// Chunks that reads have found damaged, of which that is known; the repair of further ones is not counted.
const FOUND_MAX: usize = 1 << 16;
/// Name of the file in the data directory.
const FILE: &str = "scrub";

/// What the scrub of a node knows; anybody may look.
#[derive(Debug)]
pub(crate) struct Scrub {
    at: Mutex<At>,
    kicked: Notify,
    file: PathBuf,
    /// By reads, and still damaged.
    found: Mutex<HashSet<ChunkHash>>,
}

/// How far a pass is.
#[derive(Debug)]
struct At {
    /// Without what follows from what the node holds.
    state: ScrubState,
    /// Segments of the next shard that were looked at, and the bytes that were read of them.
    segments: u32,
    bytes: u64,
    /// When the pass began, or the node was started in it.
    since: Instant,
}

impl At {
    fn begin(pass: u64, begun_ms: i64, hurried: bool) -> At {
        let state = ScrubState { pass, begun_ms, hurried, ..ScrubState::default() };
        At { state, segments: 0, bytes: 0, since: Instant::now() }
    }

    /// The next shard, if this pass is still that one.
    fn end_shard(&mut self, pass: u64) {
        if self.state.pass == pass {
            self.state.next_shard += 1;
            (self.segments, self.bytes) = (0, 0);
        }
    }

    /// With what a node that holds this of each shard has yet to read.
    fn told(&self, shares: &[Share]) -> ScrubState {
        let mut state = self.state.clone();
        let ahead = shares.get(state.next_shard as usize..).unwrap_or_default();
        state.total_bytes = shares.iter().map(|share| share.bytes).sum();
        if state.done {
            return state;
        }
        let left: u64 = ahead.iter().map(|share| share.bytes).sum();
        state.left_bytes = left.saturating_sub(self.bytes);
        let eta = if state.hurried {
            let took = self.since.elapsed();
            let known = took >= RATE_AFTER && state.bytes > 0;
            known.then(|| took.mul_f64(state.left_bytes as f64 / state.bytes as f64))
        } else {
            let segments = |shares: &[Share]| shares.iter().map(|share| share.segments).sum();
            let all: u32 = segments(shares);
            let left: u32 = segments(ahead);
            let steps = left.saturating_sub(self.segments) + ahead.len() as u32 + 1;
            Some(step_time(all, shares.len() as u32) * steps)
        };
        state.eta_ms = eta.map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX));
        state
    }
}

/// Between two steps of a pass in which nobody hurries. The end of each shard, and of the pass, is a step as well.
fn step_time(segments: u32, shards: u32) -> Duration {
    (PASS / (segments + shards + 1)).max(STEP_MIN)
}

/// What the file says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    pass: u64,
    begun_ms: i64,
    next_shard: u32,
}

impl Scrub {
    /// Goes on where the file says.
    pub fn new(data_dir: &std::path::Path) -> Scrub {
        let file = data_dir.join(FILE);
        // A file that is not there or makes no sense costs a pass, nothing else.
        let saved = std::fs::read(&file).ok();
        let saved = saved.and_then(|bytes| postcard::from_bytes::<Saved>(&bytes).ok());
        let first = || Saved { begun_ms: clock_now_ms(), ..Saved::default() };
        let Saved { pass, begun_ms, next_shard } = saved.unwrap_or_else(first);
        let mut at = At::begin(pass, begun_ms, false);
        at.state.next_shard = next_shard;
        Scrub { at: Mutex::new(at), kicked: Notify::new(), file, found: Mutex::default() }
    }

    /// A read has found a chunk damaged.
    pub fn note_found(&self, hash: ChunkHash) {
        let mut found = self.found.lock();
        if found.len() < FOUND_MAX {
            found.insert(hash);
        }
        drop(found);
        self.kicked.notify_one();
    }

    /// Some of the chunks that are known to be damaged.
    fn damaged(&self, chunks: &ChunkStore<impl Volume>) -> Vec<ChunkHash> {
        // A read marks a chunk first and notes it then: none is forgotten here that is about to be mended.
        let mut found = self.found.lock();
        let damaged = chunks.damaged(CHUNKS_MAX);
        if damaged.len() < CHUNKS_MAX {
            found.retain(|hash| damaged.contains(hash));
        }
        damaged
    }

    /// Whether the repair of a chunk is owed to a read.
    fn was_found(&self, hash: &ChunkHash) -> bool {
        self.found.lock().remove(hash)
    }

    /// How far it is, on a node that holds this of each shard.
    pub fn state(&self, shares: &[Share]) -> ScrubState {
        self.at.lock().told(shares)
    }

    /// Begins a pass from the start, in a hurry.
    fn hurry(&self) {
        let mut at = self.at.lock();
        *at = At::begin(at.state.pass + 1, clock_now_ms(), true);
        self.kicked.notify_one();
    }

    /// The pass goes on at its usual pace.
    fn relax(&self) {
        self.at.lock().state.hurried = false;
    }

    /// `NodeRequest::Scrub`.
    pub fn answer(&self, ask: ScrubAsk, shares: &[Share]) -> ScrubState {
        match ask {
            ScrubAsk::Look => {}
            ScrubAsk::Hurry => self.hurry(),
            ScrubAsk::Relax => self.relax(),
        }
        self.state(shares)
    }

    fn save(&self) {
        let saved = {
            let ScrubState { pass, begun_ms, next_shard, .. } = self.at.lock().state;
            Saved { pass, begun_ms, next_shard }
        };
        let written =
            postcard::to_stdvec(&saved).map_err(std::io::Error::other).and_then(|bytes| {
                let new = self.file.with_extension("new");
                std::fs::write(&new, bytes)?;
                std::fs::rename(&new, &self.file)
            });
        if let Err(error) = written {
            tracing::debug!(%error, "noting how far the scrub is");
        }
    }
}

/// Until the node stops.
pub(super) async fn work(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut pace = Pace::default();
    loop {
        let wait = pace.wait(&node);
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = node.upkeep.scrub.kicked.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        // Nothing in it is lost when the node stops.
        let step = async {
            if let Err(failure) = pace.step(&node).await {
                tracing::debug!(%failure, "scrubbing");
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = step => {}
        }
    }
}

/// Where the pass is, and when something is due.
#[derive(Default)]
struct Pace {
    /// Of which pass, and what is left of the shard under way.
    pass: u64,
    segments: Option<(ShardId, std::vec::IntoIter<SegmentNumber>)>,
    verified: Option<Instant>,
    mended: Option<Instant>,
    /// How long the last verification took.
    took: Duration,
}

impl Pace {
    fn until_verify(&self, node: &Node) -> Duration {
        if node.upkeep.scrub.at.lock().state.hurried {
            return self.took;
        }
        let usage = node.chunks.usage();
        let segments = usage.segments_closed + usage.segments_open;
        let step = step_time(segments, node.cluster.shard_count);
        step.saturating_sub(self.verified.map_or(Duration::ZERO, |at| at.elapsed()))
    }

    fn until_mend(&self, node: &Node) -> Option<Duration> {
        (node.chunks.damaged_count() > 0)
            .then(|| AGAIN.saturating_sub(self.mended.map_or(AGAIN, |at| at.elapsed())))
    }

    fn wait(&mut self, node: &Node) -> Duration {
        // The first step of a life is not at once: a node that starts has other things to do.
        self.verified.get_or_insert_with(Instant::now);
        let verify = self.until_verify(node);
        self.until_mend(node).map_or(verify, |mend| mend.min(verify))
    }

    async fn step(&mut self, node: &Arc<Node>) -> Result<(), Failure> {
        let known = node.upkeep.scrub.damaged(&node.chunks);
        // After a kick at once, else once a minute.
        if !known.is_empty() {
            self.mended = Some(Instant::now());
            for hash in known {
                let mended = replication::mend_chunk(node, &hash).await?;
                if mended == Mended::Repaired && node.upkeep.scrub.was_found(&hash) {
                    node.metrics.read_repaired();
                }
            }
        }
        if self.until_verify(node) > self.took {
            return Ok(());
        }
        let since = Instant::now();
        let done = self.verify_next(node).await;
        self.took = since.elapsed();
        self.verified = Some(Instant::now());
        done
    }

    /// One segment, or the end of a shard or of the pass.
    async fn verify_next(&mut self, node: &Arc<Node>) -> Result<(), Failure> {
        let scrub = &node.upkeep.scrub;
        let ScrubState { pass, next_shard, .. } = scrub.at.lock().state;
        if self.pass != pass {
            (self.pass, self.segments) = (pass, None);
        }
        if self.segments.is_none() && next_shard >= node.cluster.shard_count {
            let mut at = scrub.at.lock();
            // Who asked for this pass looks at what it found until the next one begins.
            if at.state.hurried {
                at.state.hurried = false;
                at.state.done = true;
            } else {
                *at = At::begin(pass + 1, clock_now_ms(), false);
            }
            drop(at);
            scrub.save();
            return Ok(());
        }
        let shard = ShardId(next_shard as u16);
        let (shard, left) = self
            .segments
            .get_or_insert_with(|| (shard, node.chunks.segment_numbers(shard).into_iter()));
        let shard = *shard;
        let Some(number) = left.next() else {
            self.segments = None;
            scrub.at.lock().end_shard(pass);
            scrub.save();
            return Ok(());
        };
        {
            let mut at = scrub.at.lock();
            at.segments += u32::from(at.state.pass == pass);
        }
        let held = read::shard(&node.group.view(), shard).map_err(storage)?;
        if held.is_none_or(|info| !info.in_sync.contains(&node.id)) {
            // It is being brought up, or is to go.
            return Ok(());
        }
        let found = match node.chunks.verify_segment(shard, number).await {
            Ok(found) => found,
            // It was freed, or has moved.
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => {
                // What cannot be read is not clean, and is looked at again in the next pass.
                let mut at = scrub.at.lock();
                if at.state.pass == pass {
                    at.state.segments += 1;
                    at.state.damaged += 1;
                }
                drop(at);
                return Err(node.chunk_failure(&error, None));
            }
        };
        let mut mended = false;
        if !found.whole {
            tracing::warn!(%shard, %number, chunks = found.bad.len(), "a segment is damaged");
            mended = replication::mend_segment(node, shard, &found).await?;
        }
        // One that is sealed is read as a whole.
        let segment_bytes = node.chunks.segment_bytes();
        let bytes = if found.info.sealed { segment_bytes } else { found.info.len };
        let mut at = scrub.at.lock();
        if at.state.pass == pass {
            at.bytes += u64::from(bytes);
            at.state.segments += 1;
            at.state.bytes += u64::from(bytes);
            at.state.damaged += u64::from(!found.whole);
            at.state.mended += u64::from(mended);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_goes_on_after_a_restart_and_begins_anew_in_a_hurry() {
        let dir = tempfile::tempdir().unwrap();
        let scrub = Scrub::new(dir.path());
        let first = scrub.state(&[]);
        assert_eq!((first.pass, first.next_shard, first.hurried), (0, 0, false));
        scrub.at.lock().state.next_shard = 7;
        scrub.save();
        let scrub = Scrub::new(dir.path());
        let second = scrub.state(&[]);
        assert_eq!((second.pass, second.next_shard), (0, 7));
        assert_eq!(second.begun_ms, first.begun_ms, "it is the same pass");
        let begun = scrub.answer(ScrubAsk::Hurry, &[]);
        assert_eq!((begun.pass, begun.next_shard, begun.hurried), (1, 0, true));
        assert!(begun.begun_ms >= first.begun_ms);
        assert!(!scrub.answer(ScrubAsk::Relax, &[]).hurried);
        // Whatever stands there.
        std::fs::write(dir.path().join(FILE), b"\xff\xff\xff").unwrap();
        let anew = Scrub::new(dir.path()).state(&[]);
        assert_eq!((anew.pass, anew.next_shard), (0, 0));
    }

    #[test]
    fn what_is_left_is_told_in_bytes_and_time() {
        let share = |bytes, segments| Share { bytes, segments, ..Share::default() };
        let shares = [share(1000, 2), share(3000, 3), share(0, 0), share(500, 1)];
        let mut at = At::begin(3, 0, false);
        let told = |at: &At| {
            let state = at.told(&shares);
            (state.total_bytes, state.left_bytes, state.eta_ms)
        };
        // Six segments, four shards, and the end.
        let step = |steps: u32| (PASS / 11 * steps).as_millis() as u64;
        assert_eq!(told(&at), (4500, 4500, Some(step(11))));
        (at.segments, at.bytes) = (1, 400);
        assert_eq!(told(&at), (4500, 4100, Some(step(10))));
        at.end_shard(2);
        assert_eq!(told(&at).1, 4100, "a shard of another pass");
        at.end_shard(3);
        assert_eq!(told(&at), (4500, 3500, Some(step(8))));
        // More was read of a shard than is left of it by now.
        (at.segments, at.bytes) = (9, 9000);
        assert_eq!(told(&at).1, 0);
        at.state.next_shard = 4;
        assert_eq!(told(&at), (4500, 0, Some(step(1))));
        // In a hurry as fast as it was up to now, if that is known.
        let mut at = At::begin(4, 0, true);
        assert_eq!(told(&at), (4500, 4500, None));
        at.since = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        (at.bytes, at.state.bytes) = (900, 900);
        let (_, left, eta_ms) = told(&at);
        assert_eq!(left, 3600);
        assert!((400_000..600_000).contains(&eta_ms.unwrap()), "{eta_ms:?}");
        at.state.done = true;
        assert_eq!(told(&at), (4500, 0, None));
    }
}
