//! What a node does by itself, in one task, one thing after the other.
//!
//! ```text
//!   every second, or soon after a kick
//!     expiry      sessions whose lease is over
//!     reap        extents that unlinked files left behind
//!     settle      inline extents older than ten seconds go into chunks
//!     gc          chunks that nothing references any more are deleted
//!     sweep       chunks that nothing ever referenced are found (rarely; each node of its own shards)
//!     clean       poor segments are copied together
//!     checkpoint  (hourly)
//! ```
//! A round that finds nothing to do remembers up to where the log was applied, and no later round looks
//! again before something was: an idle node rests.

mod clean;
mod expiry;
mod gc;
mod reap;
mod scrub;
mod settle;
mod strays;
mod sweep;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest};
use fsd_rpc::nodes::Target;
use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::{ChunkHash, ShardId};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::chunks::all::all;
use crate::clock;
use crate::node::{Node, is_asked};
use crate::replication::Host;

pub use gc::Collected;
use scrub::Scrub;
use strays::Strays;
#[cfg(test)]
pub(crate) use {gc::collect_in_turn, sweep::Sweep};

const ROUND_EVERY: Duration = Duration::from_secs(1);
/// Between two rounds, however often they are asked for: a round looks at much, and what it frees can wait so long.
const REST_MIN: Duration = Duration::from_millis(200);
/// A write that had to put its chunks again keeps deletions of their shards away for this long.
const HOLD: Duration = Duration::from_secs(10);
/// How often room is made for writers on a full pool, at most.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);
/// How long inline data stays where it is when the pool is found full.
const FULL_PAUSE: Duration = Duration::from_secs(30);
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// Fewer entries since the last checkpoint are not worth one.
const CHECKPOINT_ENTRIES_MIN: u64 = 1000;
/// Longest time for another node to clean what is worth it.
const CLEAN_WITHIN: Duration = Duration::from_secs(1800);
/// How often the network door gets a new certificate; one is good for a year.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the background work knows, and what others tell it.
pub(crate) struct Upkeep {
    kicked: Notify,
    /// Deletions, cleaning: one at a time, whoever asks.
    turn: tokio::sync::Mutex<()>,
    /// Chunks were put since the last sweep.
    puts: AtomicBool,
    /// Chunks that were deleted since the start.
    deleted: AtomicU64,
    shards: Mutex<Vec<Shard>>,
    room_made: Mutex<Option<Instant>>,
    /// Log positions over the last seconds: tells how old an entry is at least.
    positions: Mutex<VecDeque<(Instant, u64)>>,
    pub scrub: Scrub,
    pub strays: Strays,
}

/// Pace of the deletions in a shard.
#[derive(Clone, Copy, Debug, Default)]
struct Shard {
    deleted: Option<Instant>,
    held_until: Option<Instant>,
}

impl Upkeep {
    pub fn new(shard_count: u32, data_dir: &Path) -> Upkeep {
        Upkeep {
            kicked: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            // What an earlier server left behind is not known.
            puts: AtomicBool::new(true),
            deleted: AtomicU64::new(0),
            shards: Mutex::new(vec![Shard::default(); shard_count as usize]),
            room_made: Mutex::default(),
            positions: Mutex::default(),
            scrub: Scrub::new(data_dir),
            strays: Strays::default(),
        }
    }

    /// There may be something to do: the next round comes soon.
    pub fn kick(&self) {
        self.kicked.notify_one();
    }

    pub fn note_put(&self) {
        if !self.puts.load(Ordering::Relaxed) {
            self.puts.store(true, Ordering::Relaxed);
        }
    }

    /// Chunks that this node, leading, had deleted since its start.
    pub fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
    }

    /// A write has to put these chunks again: their shards delete nothing until it had the time to, so
    /// that it cannot be refused for ever.
    pub fn hold_deletions(&self, hashes: &[ChunkHash], shard_count: u32) {
        let until = clock::now() + HOLD;
        let mut shards = self.shards.lock();
        for hash in hashes {
            if let Some(shard) = shards.get_mut(usize::from(hash.shard(shard_count).0)) {
                shard.held_until = Some(until);
            }
        }
    }

    /// Whether the shard may delete now; `pause` since its last deletion.
    fn may_delete(&self, shard: ShardId, pause: Duration) -> bool {
        let now = clock::now();
        let shards = self.shards.lock();
        let Some(shard) = shards.get(usize::from(shard.0)) else { return false };
        shard.held_until.is_none_or(|until| now >= until)
            && shard.deleted.is_none_or(|at| now.duration_since(at) >= pause)
    }

    fn note_deleted(&self, shard: ShardId) {
        if let Some(shard) = self.shards.lock().get_mut(usize::from(shard.0)) {
            shard.deleted = Some(clock::now());
        }
    }

    /// Remembers where the log is now, and answers where it was `age` ago: what was written up to there
    /// is at least that old.
    fn position_before(&self, applied: u64, age: Duration) -> Option<u64> {
        let now = Instant::now();
        let mut positions = self.positions.lock();
        if positions.back().is_none_or(|(_, last)| *last != applied) || positions.len() < 2 {
            positions.push_back((now, applied));
        }
        // The newest of those that are old enough stays in front.
        while positions.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= age) {
            positions.pop_front();
        }
        let (at, position) = positions.front()?;
        (now.duration_since(*at) >= age).then_some(*position)
    }
}

/// The running jobs.
#[derive(Debug)]
pub(crate) struct Jobs {
    tasks: [JoinHandle<()>; 2],
}

impl Jobs {
    /// Waits for their end, which comes when the node stops.
    pub async fn end(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "background work failed");
            }
        }
    }
}

/// Starts them; they end when the node stops.
pub(crate) fn start(node: &Arc<Node>) -> Jobs {
    let (work, scrub) = (work(Arc::clone(node)), scrub::work(Arc::clone(node)));
    Jobs { tasks: [tokio::spawn(work), tokio::spawn(scrub)] }
}

/// What rounds remember.
#[derive(Debug, Default)]
struct Rounds {
    /// The term in which this node leads, if it does.
    led: Option<u64>,
    /// Up to here was the log applied when a whole round found nothing to do.
    rested_at: Option<u64>,
    settled_up_to: settle::Cursor,
    settle_again: Option<Instant>,
    sweep: sweep::Sweep,
    checkpointed: Option<(Instant, u64)>,
    certificate: Option<Instant>,
    /// One message for a failure that stays, not one a second.
    complained: HashMap<&'static str, String>,
}

async fn work(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut leading = node.leading();
    let mut rounds = Rounds::default();
    loop {
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = node.upkeep.kicked.notified() => {}
            () = tokio::time::sleep(ROUND_EVERY) => {}
        }
        let led = *leading.borrow_and_update();
        if led != rounds.led {
            // What another leader did meanwhile is not known.
            rounds = Rounds { led, certificate: rounds.certificate, ..Rounds::default() };
        }
        // A round ends at its next step when the node stops; nothing in it is lost by that.
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = rounds.round(&node) => {}
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(REST_MIN) => {}
        }
    }
}

/// Whether a job found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// In a later round.
    Something,
    /// Soon.
    More,
}

impl Rounds {
    async fn round(&mut self, node: &Arc<Node>) {
        self.renew_certificate(node);
        if self.led.is_none() {
            // The rest is the leader's; the store below is this node's own.
            let swept = self.sweep.step(&**node).await;
            self.note("sweep", swept);
            let cleaned = clean::round(node).await;
            self.note("clean", cleaned);
            return;
        }
        let expired = expiry::expire(node).await;
        self.note("expiry", expired.map(|()| Found::Nothing));
        let applied = node.group.status().applied.unwrap_or(0);
        let old = node.upkeep.position_before(applied, settle::AGE);
        if self.rested_at == Some(applied) && !self.sweep.is_due(&**node) {
            return;
        }
        let mut found = Vec::new();
        let reaped = reap::reap(node).await;
        found.push(self.note("reap", reaped));
        if self.settle_again.is_none_or(|at| Instant::now() >= at) {
            let settled = settle::settle(node, &mut self.settled_up_to, old).await;
            // It can wait, and packing chunks in vain every second is work.
            let full = matches!(settled, Err(Failure::NoSpace));
            self.settle_again = full.then(|| Instant::now() + FULL_PAUSE);
            found.push(self.note("settle", settled));
        } else {
            found.push(Found::Something);
        }
        let collected = gc::round(node).await;
        found.push(self.note("gc", collected));
        let swept = self.sweep.step(&**node).await;
        found.push(self.note("sweep", swept));
        let cleaned = clean::round(node).await;
        found.push(self.note("clean", cleaned));
        self.checkpoint(node, applied).await;
        let nothing = found.iter().all(|found| *found == Found::Nothing);
        // What the round itself committed counts as news: one more round looks at it.
        self.rested_at = nothing.then_some(applied);
        if found.contains(&Found::More) {
            node.upkeep.kick();
        }
    }

    /// A failure is told once for as long as it stays the same, and the work is tried again.
    fn note(&mut self, job: &'static str, outcome: Result<Found, Failure>) -> Found {
        match outcome {
            Ok(found) => {
                self.complained.remove(job);
                found
            }
            Err(failure) => {
                let text = failure.to_string();
                if !Node::is_passing(&failure) && self.complained.get(job) != Some(&text) {
                    tracing::warn!(job, failure = text, "background work");
                }
                self.complained.insert(job, text);
                Found::Something
            }
        }
    }

    fn renew_certificate(&mut self, node: &Node) {
        let made = *self.certificate.get_or_insert_with(Instant::now);
        if node.config.door.tcp.is_none() || made.elapsed() < CERTIFICATE_EVERY {
            return;
        }
        self.certificate = Some(Instant::now());
        match (node.tls(), node.doors.get()) {
            (Ok(tls), Some(doors)) => doors.set_tls(tls),
            (Err(error), _) => tracing::error!(%error, "the network door's certificate"),
            (Ok(_), None) => {}
        }
    }

    async fn checkpoint(&mut self, node: &Arc<Node>, applied: u64) {
        let Some((at, before)) = self.checkpointed else {
            self.checkpointed = Some((Instant::now(), applied));
            return;
        };
        let enough = applied.saturating_sub(before) >= CHECKPOINT_ENTRIES_MIN;
        if at.elapsed() < CHECKPOINT_EVERY || !enough {
            return;
        }
        self.checkpointed = Some((Instant::now(), applied));
        if let Err(error) = node.group.checkpoint().await {
            tracing::warn!(%error, "checkpoint");
        }
    }
}

/// For the primary of the shard, which found nothing that references them; what does by now stays.
pub(crate) async fn delete_unreferenced(
    node: &impl Host,
    shard: ShardId,
    hashes: Vec<ChunkHash>,
) -> Result<(), Failure> {
    let _turn = node.upkeep().turn.lock().await;
    let (chunks, bytes) = gc::delete(node, shard, hashes).await?;
    tracing::info!(%shard, chunks, bytes, "chunks that nothing referenced are deleted");
    Ok(())
}

/// For a writer on a full pool: frees what deleted files have left, at once. Whether anything was freed,
/// or somebody else has just done the same.
pub(crate) async fn make_room(node: &Arc<Node>) -> Result<bool, Failure> {
    let asked = Instant::now();
    let _turn = node.upkeep.turn.lock().await;
    let last = *node.upkeep.room_made.lock();
    match last {
        Some(at) if at >= asked => return Ok(true),
        Some(at) if at.elapsed() < MAKE_ROOM_EVERY => return Ok(false),
        Some(_) | None => {}
    }
    reap::reap_all(node).await?;
    let collected = gc::collect(&**node, Duration::ZERO).await?;
    *node.upkeep.room_made.lock() = Some(Instant::now());
    // The store itself copies poor segments together when a put needs it.
    Ok(collected.chunks > 0)
}

/// Deletes everything that nothing references and cleans what is worth it on all nodes, for an administrator.
pub(crate) async fn collect_all(node: &Arc<Node>) -> Result<Collected, Failure> {
    let collected = {
        let _turn = node.upkeep.turn.lock().await;
        reap::reap_all(node).await?;
        gc::collect(&**node, Duration::ZERO).await?
    };
    let (here, ()) = tokio::join!(clean_all(node), clean_elsewhere(node));
    here?;
    Ok(collected)
}

/// `NodeRequest::Clean`: until it is not worth it any more.
pub(crate) async fn clean_all(node: &Arc<Node>) -> Result<(), Failure> {
    while clean::round(node).await? != Found::Nothing {}
    Ok(())
}

/// The same on the other nodes. One that does not answer does it by itself sooner or later.
async fn clean_elsewhere(node: &Arc<Node>) {
    let nodes = read::nodes(&node.group.view()).unwrap_or_default();
    let others = nodes.into_iter().filter(|other| other.id != node.id && is_asked(other));
    let asked = others.map(|other| async move {
        let target = Target { node: other.id, address: other.address };
        if let Err(failure) = node.peers.ask(&target, NodeRequest::Clean, &[], CLEAN_WITHIN).await {
            tracing::info!(%target, %failure, "a node does not say that it has cleaned its segments");
        }
    });
    all(asked).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_as_old_as_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let upkeep = Upkeep::new(2, dir.path());
        let age = Duration::from_millis(1);
        assert_eq!(upkeep.position_before(5, Duration::from_secs(3600)), None);
        while upkeep.position_before(5, age).is_none() {
            std::thread::sleep(age);
        }
        assert_eq!(upkeep.position_before(9, age), Some(5), "the new one is too young");
        loop {
            match upkeep.position_before(9, age) {
                Some(5) => std::thread::sleep(age),
                other => break assert_eq!(other, Some(9)),
            }
        }
    }

    #[test]
    fn a_refused_write_holds_the_deletions_of_its_shards() {
        let dir = tempfile::tempdir().unwrap();
        let upkeep = Upkeep::new(2, dir.path());
        let hash = ChunkHash([0xff; 32]);
        assert!(upkeep.may_delete(ShardId(1), Duration::ZERO));
        upkeep.hold_deletions(&[hash], 2);
        assert!(!upkeep.may_delete(ShardId(1), Duration::ZERO));
        assert!(upkeep.may_delete(ShardId(0), Duration::ZERO));
        upkeep.note_deleted(ShardId(0));
        assert!(!upkeep.may_delete(ShardId(0), Duration::from_secs(3600)));
    }
}
