//! Reads everything that this node holds again and again, and has what is damaged put right.
//!
//! ```text
//!   shard by shard, segment by segment ─ verify ─ not whole ─▶ mend from another replica
//!   a read found a damaged chunk ───────────────────────────▶ mend at once, and once a minute until it is good
//! ```
//! A pass takes about a week; `cfs admin scrub` makes one as fast as half of the device's time allows. Where it is
//! stands in a file of the data directory after every shard, so that a node that is started again goes on there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, ScrubAsk, ScrubState};
use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::ShardId;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::chunks::{Kind, SegmentNumber};
use crate::node::Node;
use crate::replication;
use crate::service::storage;

/// A pass in which nobody hurries.
const PASS: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two segments of such a pass.
const STEP_MIN: Duration = Duration::from_millis(100);
/// Between two looks at what is known to be damaged and could not be mended.
const AGAIN: Duration = Duration::from_secs(60);
/// Chunks mended in one go.
const CHUNKS_MAX: usize = 1024;
/// Name of the file in the data directory.
const FILE: &str = "scrub";

/// What the scrub of a node knows; anybody may look.
#[derive(Debug)]
pub(crate) struct Scrub {
    state: Mutex<ScrubState>,
    kicked: Notify,
    file: PathBuf,
}

/// What the file says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    pass: u64,
    next_shard: u32,
}

impl Scrub {
    /// Goes on where the file says.
    pub fn new(data_dir: &std::path::Path) -> Scrub {
        let file = data_dir.join(FILE);
        // A file that is not there or makes no sense costs a pass, nothing else.
        let saved = std::fs::read(&file).ok();
        let saved = saved.and_then(|bytes| postcard::from_bytes::<Saved>(&bytes).ok());
        let Saved { pass, next_shard } = saved.unwrap_or_default();
        let state = ScrubState { pass, next_shard, ..ScrubState::default() };
        Scrub { state: Mutex::new(state), kicked: Notify::new(), file }
    }

    /// Something was found damaged.
    pub fn kick(&self) {
        self.kicked.notify_one();
    }

    pub fn state(&self) -> ScrubState {
        self.state.lock().clone()
    }

    /// Begins a pass from the start, in a hurry; the number of the pass.
    pub fn hurry(&self) -> ScrubState {
        let mut state = self.state.lock();
        let pass = state.pass + 1;
        *state = ScrubState { pass, hurried: true, ..ScrubState::default() };
        self.kick();
        state.clone()
    }

    /// The pass goes on at its usual pace.
    pub fn relax(&self) {
        self.state.lock().hurried = false;
    }

    /// `NodeRequest::Scrub`.
    pub fn answer(&self, ask: ScrubAsk) -> ScrubState {
        match ask {
            ScrubAsk::Look => {}
            ScrubAsk::Hurry => return self.hurry(),
            ScrubAsk::Relax => self.relax(),
        }
        self.state()
    }

    fn save(&self) {
        let saved = {
            let state = self.state.lock();
            Saved { pass: state.pass, next_shard: state.next_shard }
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
        if node.upkeep.scrub.state.lock().hurried {
            return self.took;
        }
        let usage = node.chunks.usage();
        // The end of each shard, and of the pass, is a step as well.
        let steps = usage.segments_closed + usage.segments_open + node.cluster.shard_count + 1;
        let step = (PASS / steps).max(STEP_MIN);
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
        let known = node.chunks.damaged(CHUNKS_MAX);
        // After a kick at once, else once a minute.
        if !known.is_empty() {
            self.mended = Some(Instant::now());
            for hash in known {
                replication::mend_chunk(node, &hash).await?;
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
        let ScrubState { pass, next_shard, .. } = scrub.state();
        if self.pass != pass {
            (self.pass, self.segments) = (pass, None);
        }
        if self.segments.is_none() && next_shard >= node.cluster.shard_count {
            let mut state = scrub.state.lock();
            // Who asked for this pass looks at what it found until the next one begins.
            if state.hurried {
                state.hurried = false;
                state.done = true;
            } else {
                *state = ScrubState { pass: pass + 1, ..ScrubState::default() };
            }
            drop(state);
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
            let mut state = scrub.state.lock();
            if state.pass == pass {
                state.next_shard += 1;
            }
            drop(state);
            scrub.save();
            return Ok(());
        };
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
                let mut state = scrub.state.lock();
                if state.pass == pass {
                    (state.segments, state.damaged) = (state.segments + 1, state.damaged + 1);
                }
                drop(state);
                return Err(node.chunk_failure(&error, None));
            }
        };
        let mut mended = false;
        if !found.whole {
            tracing::warn!(%shard, %number, chunks = found.bad.len(), "a segment is damaged");
            mended = replication::mend_segment(node, shard, &found).await?;
        }
        let mut state = scrub.state.lock();
        if state.pass == pass {
            state.segments += 1;
            state.bytes += u64::from(found.info.len);
            state.damaged += u64::from(!found.whole);
            state.mended += u64::from(mended);
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
        assert_eq!(scrub.state(), ScrubState::default());
        scrub.state.lock().next_shard = 7;
        scrub.save();
        let scrub = Scrub::new(dir.path());
        assert_eq!((scrub.state().pass, scrub.state().next_shard), (0, 7));
        let begun = scrub.hurry();
        assert_eq!((begun.pass, begun.next_shard, begun.hurried), (1, 0, true));
        scrub.relax();
        assert!(!scrub.state().hurried);
        // Whatever stands there.
        std::fs::write(dir.path().join(FILE), b"\xff\xff\xff").unwrap();
        assert_eq!(Scrub::new(dir.path()).state(), ScrubState::default());
    }
}
