//! What the leader decides about shards, one round a second and whenever a primary asks.
//!
//! ```text
//!   primary gone          ─▶ another replica in sync is the primary        (at once)
//!   replica gone          ─▶ not in sync any more, unless too few are left (when the node is down)
//!   plan has a new holder ─▶ its primary brings it up ─▶ in sync           (several at a time)
//!   plan has one less     ─▶ out of the map ─▶ it may forget the shard
//! ```
//! The plan is [`placement::plan`] over the nodes that are up. Every step is one change of the map that is refused if
//! the shard's epoch is another one by now, so a step that comes late does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest, NodeUsage, ShardUsage};
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState, ShardChange, ShardInfo};
use raftmeta_types::{Command, Epoch, MetaError, NodeId, ShardId, Time};

use super::host::Host;
use super::keeper;
use crate::chunks::Share;
use crate::clock;
use crate::node::{members, now, skew};
use crate::pace::Pace;
use crate::placement::{self, Held, Place};
use crate::service::storage;

#[cfg(test)]
mod tests;

/// Replicas that are brought up at once, in all and to one node.
const MOVES_MAX: usize = 16;
const MOVES_TO_ONE_MAX: usize = 4;
/// Longest time for one of them.
const BRING_UP_WITHIN: Duration = Duration::from_secs(1800);
const FORGET_WITHIN: Duration = Duration::from_secs(10);
/// How often a node is told that it may forget a shard.
const FORGET_TRIES: usize = 3;
/// Before a move that failed is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// A node whose device has not ended a write for so long is no primary while others can be.
const STALLED_MAX: Duration = Duration::from_secs(5);
/// Changes of the map in one command.
const CHANGES_MAX: usize = 512;

/// What the leader has under way.
#[derive(Debug, Default)]
pub(crate) struct Director {
    moving: BTreeSet<(ShardId, NodeId)>,
    failed: BTreeMap<(ShardId, NodeId), Instant>,
    /// Nodes that are told to forget a shard.
    releasing: BTreeSet<(ShardId, NodeId)>,
    /// What is under way as a whole, from the moment when something was not where the plan wants it.
    pub works: BTreeMap<Cause, Work>,
}

/// Why a shard is to lie elsewhere, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It has fewer copies than it should.
    Copies,
    /// One that holds it drains.
    Drain,
    /// Others hold more than their share.
    Balance,
}

/// Copies on their way to where the plan wants them.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub since: Time,
    pub left: Amount,
    /// The most of either that was left at once.
    pub total: Amount,
    pub pace: Pace,
}

/// How much is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Copies to be made or dropped.
    pub steps: u64,
    /// Of the copies to be made; 0 also while nobody has said how large they are.
    pub bytes: u64,
}

impl Work {
    fn new(since: Time) -> Work {
        Work { since, left: Amount::default(), total: Amount::default(), pace: Pace::default() }
    }

    fn note(&mut self, left: Amount) {
        self.left = left;
        self.total.steps = self.total.steps.max(left.steps);
        self.total.bytes = self.total.bytes.max(left.bytes);
        self.pace.note(clock::now(), if self.is_in_bytes() { left.bytes } else { left.steps });
    }

    /// Whether it is known how large the copies are.
    pub fn is_in_bytes(&self) -> bool {
        self.total.bytes > 0
    }
}

impl Director {
    /// Whether nothing is under way.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.moving.is_empty() && self.releasing.is_empty() && self.works.is_empty()
    }

    /// So much is left to be done.
    fn note(&mut self, left: &BTreeMap<Cause, Amount>) {
        self.works.retain(|cause, _| left.contains_key(cause));
        for (cause, left) in left {
            self.works.entry(*cause).or_insert_with(|| Work::new(now())).note(*left);
        }
    }
}

/// The nodes as a round sees them.
#[derive(Default)]
struct Nodes {
    /// Answers, and may be a primary.
    alive: BTreeSet<NodeId>,
    /// Has a clock that is wrong, and is no primary where another can be.
    wrong: BTreeSet<NodeId>,
    /// Known to be down.
    down: BTreeSet<NodeId>,
    /// To be left empty.
    draining: BTreeSet<NodeId>,
    places: Vec<Place>,
}

impl Nodes {
    fn may_lead(&self, id: &NodeId) -> bool {
        self.alive.contains(id) && !self.wrong.contains(id)
    }
}

fn nodes(node: &impl Host, known: &[NodeInfo]) -> Nodes {
    let beats = node.beats().lock();
    let wrong = skew::wrong(node.id(), &beats);
    let mut nodes = Nodes { wrong, ..Nodes::default() };
    for info in known {
        let stalled = match beats.get(&info.id).and_then(|beat| beat.usage.as_ref()) {
            Some(usage) => Duration::from_millis(usage.stalled_ms),
            None if info.id == node.id() => node.chunks().stalled(),
            None => Duration::ZERO,
        };
        let heard =
            info.id == node.id() || beats.get(&info.id).is_none_or(|beat| !beat.is_suspect());
        let heard = heard && stalled < STALLED_MAX;
        if info.state == NodeState::Draining {
            nodes.draining.insert(info.id);
        }
        match info.state {
            NodeState::Up => {
                nodes.places.push(Place { node: info.id, weight: info.capacity_bytes });
                if heard {
                    nodes.alive.insert(info.id);
                }
            }
            NodeState::Draining if heard => {
                nodes.alive.insert(info.id);
            }
            // It is still to be drained when it comes back.
            NodeState::Draining if beats.get(&info.id).is_some_and(members::Beat::is_silent) => {
                nodes.down.insert(info.id);
            }
            NodeState::Down | NodeState::Removed => {
                nodes.down.insert(info.id);
            }
            NodeState::Draining | NodeState::Joining | NodeState::Drained => {}
        }
    }
    nodes
}

/// One round.
pub(crate) async fn direct<H: Host>(node: &Arc<H>) -> Result<(), Failure> {
    let (known, shards, protection) = {
        let view = node.view();
        let known = read::nodes(&view).map_err(storage)?;
        if known.len() < 2 {
            return Ok(());
        }
        let shards = read::shards(&view).map_err(storage)?;
        (known, shards, read::protection(&view).map_err(storage)?)
    };
    let nodes = nodes(&**node, &known);
    let least = usize::from(protection.in_sync_min);
    let urgent: Vec<ShardChange> =
        shards.iter().filter_map(|shard| rescue(shard, &nodes, least)).collect();
    let rescued: BTreeSet<ShardId> = urgent.iter().map(|change| change.id).collect();
    commit(&**node, urgent).await?;
    let held: Vec<Held> = shards.iter().map(held).collect();
    let left_over = left_over(&**node);
    let mut begun = node.director().lock().moving.clone();
    begun.extend(left_over.iter().copied());
    let plan = placement::plan(&nodes.places, usize::from(protection.replicas), &held, &begun);
    let mut changes = Vec::new();
    let mut left: BTreeMap<Cause, Amount> = BTreeMap::new();
    let mut sizes = None;
    let mut complete = true;
    for (shard, planned) in shards.iter().zip(&plan) {
        if rescued.contains(&shard.id) || planned.by.is_empty() {
            continue;
        }
        let missing: Vec<NodeId> =
            planned.by.iter().copied().filter(|id| !shard.in_sync.contains(id)).collect();
        let change = match missing.as_slice() {
            [] => follow(shard, planned, &nodes, usize::from(protection.replicas)),
            _ => None,
        };
        let steps = missing.len() + usize::from(change.is_some());
        if steps > 0 {
            let amount = left.entry(cause(shard, planned, &nodes)).or_default();
            amount.steps += steps as u64;
            let sizes = sizes.get_or_insert_with(|| copy_sizes(&**node, &shards));
            amount.bytes += missing.len() as u64 * sizes.of(shard.id);
        }
        complete &= missing.is_empty();
        changes.extend(change);
        if nodes.alive.contains(&shard.primary) {
            let able = missing.into_iter().filter(|id| nodes.alive.contains(id));
            able.for_each(|id| bring(node, shard, id));
        }
    }
    if complete && !knows_damage(&**node) {
        let_go(node, &left_over, &nodes, &shards, &plan);
    }
    node.director().lock().note(&left);
    let leaving: Vec<(ShardId, NodeId)> = shards
        .iter()
        .flat_map(|shard| {
            let change = changes.iter().find(|change| change.id == shard.id);
            let gone = |id: &&NodeId| change.is_some_and(|change| !change.in_sync.contains(id));
            shard.in_sync.iter().filter(gone).map(|id| (shard.id, *id)).collect::<Vec<_>>()
        })
        .collect();
    commit(&**node, changes).await?;
    leaving.into_iter().for_each(|(shard, id)| release(node, shard, id));
    Ok(())
}

/// Why a shard is to lie elsewhere.
fn cause(shard: &ShardInfo, planned: &Held, nodes: &Nodes) -> Cause {
    let present = shard.in_sync.iter().filter(|id| !nodes.down.contains(id)).count();
    if present < planned.by.len() {
        Cause::Copies
    } else if shard.in_sync.iter().any(|id| nodes.draining.contains(id)) {
        Cause::Drain
    } else {
        Cause::Balance
    }
}

/// What a copy of each shard takes, in bytes, as the primaries have said.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    told: BTreeMap<ShardId, u64>,
    /// Of one whose primary has not said it yet, or is gone.
    mean: u64,
}

impl Sizes {
    pub fn new(told: BTreeMap<ShardId, u64>) -> Sizes {
        let mean = told.values().sum::<u64>().checked_div(told.len() as u64).unwrap_or(0);
        Sizes { told, mean }
    }

    pub fn of(&self, shard: ShardId) -> u64 {
        self.told.get(&shard).copied().unwrap_or(self.mean)
    }
}

pub(crate) fn copy_sizes(node: &impl Host, shards: &[ShardInfo]) -> Sizes {
    let primary: BTreeMap<ShardId, NodeId> =
        shards.iter().map(|shard| (shard.id, shard.primary)).collect();
    let mut told: BTreeMap<ShardId, u64> = BTreeMap::new();
    let mut note = |id: NodeId, usages: &[ShardUsage]| {
        let led = usages.iter().filter(|usage| primary.get(&usage.shard) == Some(&id));
        told.extend(led.map(|usage| (usage.shard, usage.bytes)));
    };
    note(node.id(), &led(node));
    for (id, beat) in node.beats().lock().iter() {
        if let Some(usage) = &beat.usage {
            note(*id, &usage.shards);
        }
    }
    Sizes::new(told)
}

/// What the shards are of which this node is the primary, as far as it knows.
pub(crate) fn led(node: &impl Host) -> Vec<ShardUsage> {
    let Ok(shards) = read::shards(&node.view()) else { return Vec::new() };
    let shares = node.chunks().shares();
    let led = shards.iter().filter(|shard| shard.primary == node.id());
    let usage = |shard: &ShardInfo| {
        let Share { bytes, live, chunks, .. } = *shares.get(usize::from(shard.id.0))?;
        Some(ShardUsage { shard: shard.id, bytes, live_bytes: live, chunks })
    };
    led.filter_map(usage).collect()
}

/// Whether anything is known to be damaged: then no copy goes that is only left over, for it may be the good one.
fn knows_damage(node: &impl Host) -> bool {
    let beats = node.beats().lock();
    let there = |beat: &members::Beat| beat.usage.as_ref().is_some_and(|u| u.damaged_chunks > 0);
    node.chunks().damaged_count() > 0 || beats.values().any(there)
}

/// What nodes have of shards that they are not in sync of.
fn left_over(node: &impl Host) -> Vec<(ShardId, NodeId)> {
    let own = node.upkeep().strays.of(node).into_iter().map(|shard| (shard, node.id()));
    let beats = node.beats().lock();
    let told = beats.iter().filter_map(|(id, beat)| Some((id, beat.usage.as_ref()?)));
    let strays = |(id, usage): (&NodeId, &NodeUsage)| {
        let id = *id;
        usage.strays.clone().into_iter().map(move |shard| (shard, id))
    };
    own.chain(told.flat_map(strays)).collect()
}

/// What nodes have left of shards that are whole without them, and that they are not to get.
fn let_go<H: Host>(
    node: &Arc<H>,
    left_over: &[(ShardId, NodeId)],
    nodes: &Nodes,
    shards: &[ShardInfo],
    plan: &[Held],
) {
    // Who does not answer is told when it does.
    let answers = |id: &NodeId| *id == node.id() || nodes.alive.contains(id);
    for &(stray, id) in left_over.iter().filter(|(_, id)| answers(id)) {
        let needed = shards.iter().zip(plan).any(|(shard, planned)| {
            shard.id == stray && (shard.in_sync.contains(&id) || planned.by.contains(&id))
        });
        if !needed {
            release(node, stray, id);
        }
    }
}

/// In the order of the plan: the primary first.
pub(crate) fn held(shard: &ShardInfo) -> Held {
    let others = shard.in_sync.iter().copied().filter(|id| *id != shard.primary);
    Held { shard: shard.id, by: std::iter::once(shard.primary).chain(others).collect() }
}

/// A change that cannot wait: the primary does not answer, or a replica is down. With fewer replicas than it needs a shard
/// takes no writes, and nobody is left out who may come back; who is left makes copies of it (`keeper::bring_up`).
fn rescue(shard: &ShardInfo, nodes: &Nodes, least: usize) -> Option<ShardChange> {
    let alive: Vec<NodeId> =
        shard.in_sync.iter().copied().filter(|id| nodes.alive.contains(id)).collect();
    let lost = shard.in_sync.iter().any(|id| nodes.down.contains(id));
    let primary_lost = !nodes.alive.contains(&shard.primary);
    if !(lost || primary_lost) {
        return change_clocks(shard, nodes);
    }
    if alive.len() < least || alive.is_empty() {
        let first = alive.iter().find(|id| nodes.may_lead(id)).or(alive.first());
        let (expected, in_sync) = (shard.epoch, shard.in_sync.clone());
        let change =
            |primary: &NodeId| ShardChange { id: shard.id, expected, primary: *primary, in_sync };
        return first.filter(|_| primary_lost).map(change);
    }
    // Who is only suspected stays, unless it has to lead.
    let in_sync: Vec<NodeId> = match primary_lost {
        true => alive,
        false => {
            let stays = |id: &NodeId| !nodes.down.contains(id);
            shard.in_sync.iter().copied().filter(stays).collect()
        }
    };
    let first = in_sync.iter().find(|id| nodes.may_lead(id)).unwrap_or(&in_sync[0]);
    let primary = if primary_lost { *first } else { shard.primary };
    Some(ShardChange { id: shard.id, expected: shard.epoch, primary, in_sync })
}

/// Whoever has a wrong clock leads no more where another can. Its copy stays in sync.
fn change_clocks(shard: &ShardInfo, nodes: &Nodes) -> Option<ShardChange> {
    if nodes.may_lead(&shard.primary) {
        return None;
    }
    let primary = *shard.in_sync.iter().find(|id| nodes.may_lead(id))?;
    let (expected, in_sync) = (shard.epoch, shard.in_sync.clone());
    Some(ShardChange { id: shard.id, expected, primary, in_sync })
}

/// The last step of a plan whose replicas are all in sync. Where there are too few nodes for all of them, nobody
/// is left out. Who does not answer at the moment is not made primary.
fn follow(
    shard: &ShardInfo,
    planned: &Held,
    nodes: &Nodes,
    replicas: usize,
) -> Option<ShardChange> {
    let first = planned.by.first()?;
    let present = planned.by.iter().filter(|id| **id == shard.primary);
    let able = std::iter::once(first).chain(present).chain(&planned.by);
    let any = || able.clone().find(|id| nodes.alive.contains(id));
    let primary = *able.clone().find(|id| nodes.may_lead(id)).or_else(any)?;
    let mut in_sync = planned.by.clone();
    if in_sync.len() < replicas {
        let others = shard.in_sync.iter().filter(|id| !planned.by.contains(id));
        in_sync.extend(others.copied());
    }
    let wanted: BTreeSet<NodeId> = in_sync.iter().copied().collect();
    let present: BTreeSet<NodeId> = shard.in_sync.iter().copied().collect();
    let (id, expected) = (shard.id, shard.epoch);
    (wanted != present || primary != shard.primary).then_some(ShardChange {
        id,
        expected,
        primary,
        in_sync,
    })
}

async fn commit(node: &impl Host, changes: Vec<ShardChange>) -> Result<(), Failure> {
    for some in changes.chunks(CHANGES_MAX) {
        match node.command(Command::SetShards(some.to_vec()), true).await {
            Ok(_) => {}
            // One of them has changed meanwhile: singly, then.
            Err(Failure::Meta(MetaError::StaleEpoch(_))) => {
                for one in some {
                    match node.command(Command::SetShards(vec![one.clone()]), true).await {
                        Ok(_) | Err(Failure::Meta(MetaError::StaleEpoch(_))) => {}
                        Err(failure) => return Err(failure),
                    }
                }
            }
            Err(failure) => return Err(failure),
        }
        for ShardChange { id, primary, in_sync, .. } in some {
            tracing::debug!(shard = %id, %primary, ?in_sync, "a shard has a new placement");
        }
    }
    Ok(())
}

/// Has the primary bring a node up, and enters it then; unless enough of that is under way.
fn bring<H: Host>(node: &Arc<H>, shard: &ShardInfo, id: NodeId) {
    let key = (shard.id, id);
    {
        let mut director = node.director().lock();
        let busy = director.moving.iter().filter(|(_, to)| *to == id).count();
        let paused = director.failed.get(&key).is_some_and(|at| clock::elapsed(*at) < PAUSE);
        if director.moving.len() >= MOVES_MAX
            || busy >= MOVES_TO_ONE_MAX
            || paused
            || director.releasing.contains(&key)
            || !director.moving.insert(key)
        {
            return;
        }
        director.failed.remove(&key);
    }
    let (node, shard) = (Arc::clone(node), shard.clone());
    tokio::spawn(async move {
        let brought = brought(&node, &shard, id).await;
        let mut director = node.director().lock();
        director.moving.remove(&key);
        if let Err(failure) = brought {
            tracing::info!(shard = %shard.id, node = %id, %failure, "a replica is not brought up");
            director.failed.insert(key, clock::now());
        }
    });
}

async fn brought(node: &Arc<impl Host>, shard: &ShardInfo, id: NodeId) -> Result<(), Failure> {
    let ShardInfo { id: shard_id, epoch, primary, .. } = *shard;
    if primary == node.id() {
        keeper::bring_up(node, shard_id, epoch, id).await?;
    } else {
        let request = NodeRequest::BringUp { shard: shard_id, epoch, node: id };
        let target = node.target_of(primary)?;
        tokio::select! {
            biased;
            asked = node.ask(&target, request, BRING_UP_WITHIN) => { asked?; }
            () = overtaken(&**node, shard) => {
                return Err(Failure::NotReady("the shard has another epoch or no primary".into()));
            }
        }
    }
    let mut in_sync = shard.in_sync.clone();
    in_sync.push(id);
    let change = ShardChange { id: shard_id, expected: epoch, primary, in_sync };
    node.command(Command::SetShards(vec![change]), true).await.map(drop)
}

/// Ends when the shard has another epoch, or its primary does not answer.
async fn overtaken(node: &impl Host, shard: &ShardInfo) {
    loop {
        clock::sleep(Duration::from_secs(1)).await;
        let now = read::shard(&node.view(), shard.id).ok().flatten();
        let silent = node.beats().lock().get(&shard.primary).is_some_and(members::Beat::is_suspect);
        if silent || now.is_none_or(|now| now.epoch != shard.epoch) {
            return;
        }
    }
}

/// Lets a node that holds a shard no more give its space back, once its own map says so, too.
fn release<H: Host>(node: &Arc<H>, shard: ShardId, id: NodeId) {
    let key = (shard, id);
    {
        let mut director = node.director().lock();
        if director.moving.contains(&key) || !director.releasing.insert(key) {
            return;
        }
    }
    let node = Arc::clone(node);
    tokio::spawn(async move {
        for tries in 1..=FORGET_TRIES {
            let Err(failure) = released(&*node, shard, id).await else { break };
            tracing::info!(%shard, node = %id, %failure, tries, "a node keeps a shard");
            if tries + 1 == FORGET_TRIES
                && let Failure::Meta(MetaError::StaleEpoch(epoch)) = failure
                && let Err(failure) = end_epoch(&*node, shard, id, epoch).await
            {
                tracing::info!(%shard, %epoch, %failure, "the shard stays in its epoch");
            }
            clock::sleep(PAUSE).await;
        }
        node.director().lock().releasing.remove(&key);
    });
}

/// A new epoch for a shard as it is, after an attempt to bring that node up that came to nothing: as long as the epoch
/// lasts under which it got its copy, it might still be entered, and does not let go of it.
async fn end_epoch(
    node: &impl Host,
    shard: ShardId,
    id: NodeId,
    epoch: Epoch,
) -> Result<(), Failure> {
    let info = read::shard(&node.view(), shard).map_err(storage)?;
    let ended = |info: &ShardInfo| info.epoch != epoch || info.in_sync.contains(&id);
    let Some(info) = info.filter(|info| !ended(info)) else { return Ok(()) };
    let ShardInfo { primary, in_sync, .. } = info;
    let change = ShardChange { id: shard, expected: epoch, primary, in_sync };
    node.command(Command::SetShards(vec![change]), true).await.map(drop)
}

async fn released(node: &impl Host, shard: ShardId, id: NodeId) -> Result<(), Failure> {
    let info = read::shard(&node.view(), shard).map_err(storage)?;
    let epoch = match info {
        Some(info) if !info.in_sync.contains(&id) => info.epoch,
        // It holds it again.
        Some(_) | None => return Ok(()),
    };
    if id == node.id() {
        return keeper::forget(node, shard, epoch).await;
    }
    let request = NodeRequest::Forget { shard, epoch };
    node.ask(&node.target_of(id)?, request, FORGET_WITHIN).await.map(drop)
}

/// `NodeRequest::Reclaim`: new epochs for all shards that this node is in sync of, whatever the present ones are: it has
/// been started. As a primary it does not know what it promised; as a replica it is to be compared with the others, for the
/// end of what it wrote may be damaged without its knowledge. Answers with the epochs of all shards.
pub(crate) async fn reclaim(
    node: &Arc<impl Host>,
    from: NodeId,
) -> Result<Vec<(ShardId, Epoch)>, Failure> {
    loop {
        let shards = read::shards(&node.view()).map_err(storage)?;
        let own = shards.iter().filter(|shard| shard.in_sync.contains(&from));
        let changes: Vec<ShardChange> = own
            .map(|shard| ShardChange {
                id: shard.id,
                expected: shard.epoch,
                primary: shard.primary,
                in_sync: shard.in_sync.clone(),
            })
            .collect();
        let mut epochs: BTreeMap<ShardId, Epoch> =
            shards.iter().map(|shard| (shard.id, shard.epoch)).collect();
        let mut done = true;
        for some in changes.chunks(CHANGES_MAX) {
            match node.command(Command::SetShards(some.to_vec()), true).await {
                Ok(_) => epochs.extend(some.iter().map(|one| (one.id, Epoch(one.expected.0 + 1)))),
                // Somebody was faster: look again.
                Err(Failure::Meta(MetaError::StaleEpoch(_))) => {
                    done = false;
                    break;
                }
                Err(failure) => return Err(failure),
            }
        }
        if done {
            return Ok(epochs.into_iter().collect());
        }
    }
}

/// `NodeRequest::NewEpoch`, of the primary.
pub(crate) async fn new_epoch(
    node: &Arc<impl Host>,
    from: NodeId,
    shard: ShardId,
    epoch: Epoch,
    without: Option<NodeId>,
) -> Result<(), Failure> {
    let (info, least) = {
        let view = node.view();
        let info = read::shard(&view, shard).map_err(storage)?;
        let least = read::protection(&view).map_err(storage)?.in_sync_min;
        (info.ok_or(Failure::Meta(MetaError::NotFound))?, usize::from(least))
    };
    if info.primary != from {
        return Err(Failure::Refused(format!("node {from} is not the primary of shard {shard}")));
    }
    if info.epoch != epoch {
        return Err(MetaError::StaleEpoch(info.epoch).into());
    }
    let stays = |id: &NodeId| Some(*id) != without || *id == from;
    let in_sync: Vec<NodeId> = info.in_sync.iter().copied().filter(stays).collect();
    // Who does not answer does not count: with too few others the shard would never get a primary again.
    let answering = {
        let beats = node.beats().lock();
        let answers = |id: &&NodeId| {
            let heard = |beat: &members::Beat| beat.usage.is_some() && !beat.is_suspect();
            [from, node.id()].contains(*id) || beats.get(id).is_some_and(heard)
        };
        in_sync.iter().filter(answers).count()
    };
    if in_sync.len() < info.in_sync.len() && answering < least {
        let why = format!("shard {shard} would have {answering} of {least} replicas");
        return Err(Failure::NotReady(why));
    }
    tracing::info!(%shard, %epoch, ?without, "a primary gets a new epoch");
    let change = ShardChange { id: shard, expected: epoch, primary: from, in_sync };
    node.command(Command::SetShards(vec![change]), true).await.map(drop)
}
