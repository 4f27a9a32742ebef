//! What the leader does about the other nodes: takes them in, chooses voters, notices who is gone.
//!
//! ```text
//!   SWIM: suspect, down (`swim`) ─┬ and unheard here ─▶ suspected, down          ┐
//!   twice a second: your usage? ──┘ unheard for 10 s ─▶ down     heard ─▶ up     ├─ commands in the log
//!                 joining ─▶ learner ─ caught up ─▶ up                           │
//!                 5, 3 or 1 voters of those that are up, one step at a time      ┘
//! ```
//! What the nodes find out among themselves and what the leader hears itself belong together: a node that the
//! leader cannot reach is of no use to it, and one that answers it is not gone, whatever becomes of its datagrams
//! (docs/decisions.md, D30).
//!
//! Every node says itself how it is called and reached (`announce`), whenever that is news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest, NodeUsage, Response};
use fsd_rpc::nodes::Target;
use fsd_rpc::server::Peer;
use raftmeta::group::{GroupError, Member};
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState};
use raftmeta_types::{Command, NodeId};

use super::open::node_info;
use super::skew::{self, Off, off_ms};
use super::swim::Liveness;
use super::{Node, trust};
use crate::clock;
use crate::refusals::Why;
use crate::replication::{self, Host};
use crate::service::storage;

/// Code of the refusal of a second process with the number of a node.
const TWIN: &str = "TWIN";
const EVERY: Duration = Duration::from_millis(500);
/// The same when something may have happened to a node.
const HURRY: Duration = Duration::from_millis(100);
/// A node that did not answer the leader for this long is down.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A primary that did not answer for this long is replaced, where another replica is in sync; one that the other
/// nodes hold for down is.
const SUSPECT_AFTER: Duration = Duration::from_millis(2500);
/// An answer that is this late confirms a suspicion of the other nodes.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// A node that takes longer than this to answer has given no sign.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A replica that lacks no more entries than this has caught up.
const LAG_MAX: u64 = 64;

/// The last sign of life of each node, and what it said of its space.
pub(crate) type Beats = BTreeMap<NodeId, Beat>;

#[derive(Clone, Debug)]
pub(crate) struct Beat {
    /// Or when this node began to listen.
    pub seen: Instant,
    /// What it said last.
    pub usage: Option<NodeUsage>,
    /// How far its clock is from this node's, in milliseconds.
    pub clock_off_ms: i64,
    /// It has been asked and has not answered yet.
    asked: bool,
    /// How often it could not be asked since it was heard last.
    failed: u32,
    /// What the nodes have found out among themselves.
    swim: Liveness,
    /// Since when it answers here, and is not heard by datagrams.
    odd_since: Option<Instant>,
}

impl Beat {
    fn new() -> Beat {
        let swim = Liveness::Unknown;
        let seen = clock::now();
        let odd_since = None;
        Beat { seen, usage: None, clock_off_ms: 0, asked: false, failed: 0, swim, odd_since }
    }

    /// It may be gone: the nodes suspect it and it is late here, too; or it was not heard here for a while; or
    /// nobody is there to be asked, twice.
    pub fn is_suspect(&self) -> bool {
        self.is_suspect_after(clock::elapsed(self.seen))
    }

    /// It is gone: the nodes hold it for down and it does not answer here, or it has not answered for long.
    pub fn is_silent(&self) -> bool {
        self.is_silent_after(clock::elapsed(self.seen))
    }

    /// It answers the leader, and its datagrams have been missing for long: something is between the nodes.
    pub fn lacks_datagrams(&self) -> bool {
        self.odd_since.is_some_and(|since| clock::elapsed(since) > SILENCE_MAX)
    }

    /// What is known now by SWIM.
    fn observe(&mut self, swim: Liveness) {
        self.swim = swim;
        let missed = matches!(swim, Liveness::Down | Liveness::Unknown);
        let answers = self.usage.is_some() && clock::elapsed(self.seen) < SUSPECT_AFTER;
        self.odd_since = match missed && answers {
            true => self.odd_since.or_else(|| Some(clock::now())),
            false => None,
        };
    }

    fn is_suspect_after(&self, unheard: Duration) -> bool {
        let suspected = matches!(self.swim, Liveness::Suspect | Liveness::Down);
        unheard > SUSPECT_AFTER || self.failed >= 2 || (suspected && unheard > LATE_AFTER)
    }

    fn is_silent_after(&self, unheard: Duration) -> bool {
        unheard > SILENCE_MAX || (self.swim == Liveness::Down && unheard > SUSPECT_AFTER)
    }
}

/// Until the node stops: announces this node, and does what the leader does while it leads.
pub(super) async fn keep(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut announced = None;
    let mut complained = None;
    let mut leading = node.leading();
    loop {
        let work = async {
            meet(&node)?;
            node.follow_authority().map_err(|error| error.to_string())?;
            if announced != Some(node.group.status().term) {
                announced = announce(&node).await;
            }
            if node.leads() {
                look_after(&node).await
            } else {
                node.beats.lock().clear();
                Ok(())
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            done = work => match done {
                Ok(()) => complained = None,
                Err(why) if complained.as_ref() == Some(&why) => {}
                Err(why) => {
                    tracing::warn!(why, "looking after the nodes");
                    complained = Some(why);
                }
            }
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(EVERY) => {}
            // Whoever begins to lead looks at once.
            _ = leading.changed() => {}
            () = alarmed(&node) => {}
        }
    }
}

/// Ends a moment after something happened to a node: it may be seen by then.
async fn alarmed(node: &Node) {
    node.alarm.notified().await;
    tokio::time::sleep(HURRY).await;
}

impl Node {
    /// A connection of this node has ended, as they all do when its process dies.
    pub(crate) fn parted(&self, id: NodeId) {
        self.group.parted(id.0);
        if self.leads() {
            self.alarm.notify_one();
        }
    }

    /// The nodes that are down, with their names; with those that drain, whose state does not say it.
    pub(crate) fn down(&self, nodes: &[NodeInfo]) -> BTreeMap<NodeId, String> {
        let beats = self.beats.lock();
        let is_down = |info: &&NodeInfo| match info.state {
            NodeState::Down => true,
            NodeState::Up | NodeState::Draining => beats.get(&info.id).is_some_and(Beat::is_silent),
            NodeState::Joining | NodeState::Drained | NodeState::Removed => false,
        };
        nodes.iter().filter(is_down).map(|info| (info.id, info.name.clone())).collect()
    }
}

/// Tells the membership who belongs to the cluster and is reached by others.
fn meet(node: &Node) -> Done {
    let nodes = read::nodes(&node.group.view()).map_err(|error| error.to_string())?;
    let others = nodes.into_iter().filter(|other| other.id != node.id && is_heard(other));
    node.membership.meet(others.map(|other| (other.id, other.address)).collect());
    Ok(())
}

/// One that joins has no metadata yet, and takes no part.
fn is_heard(node: &NodeInfo) -> bool {
    match node.state {
        NodeState::Joining | NodeState::Removed => false,
        NodeState::Up | NodeState::Draining | NodeState::Drained | NodeState::Down => {
            !node.address.is_empty()
        }
    }
}

/// Tells the leader what this node is; the term in which that was done.
async fn announce(node: &Arc<Node>) -> Option<u64> {
    let term = node.group.status().term;
    let own = node_info(&node.config, node.id, node.chunks.capacity_bytes());
    let told = match node.leads() {
        true => enter(node, own).await,
        false => {
            let NodeInfo { name, address, capacity_bytes, .. } = own;
            let instance = node.instance;
            tell_leader(node, NodeRequest::Announce { name, address, capacity_bytes, instance })
                .await
        }
    };
    match told {
        Ok(()) => Some(term),
        Err(Failure::Admin { code, what, why, next }) if code == TWIN => {
            node.fail(format!("{what}: {why}; {next}"));
            None
        }
        Err(failure) => {
            tracing::debug!(%failure, "announcing this node");
            None
        }
    }
}

/// Asks the leader, or, while it is not known here, all others in turn: a node that has moved is not found by the
/// leader until it has said where it is.
async fn tell_leader(node: &Arc<Node>, request: NodeRequest) -> Result<(), Failure> {
    if let Ok(leader) = node.leader() {
        return node.peers.ask(&leader, request, &[], ANSWER_WITHIN).await.map(drop);
    }
    let nodes = read::nodes(&node.group.view()).map_err(storage)?;
    let mut last = Failure::NotReady("no other node is known".into());
    for other in nodes.into_iter().filter(|other| other.id != node.id && is_heard(other)) {
        let target = Target { node: other.id, address: other.address };
        match node.peers.ask(&target, request.clone(), &[], ANSWER_WITHIN * 2).await {
            Ok(_) => return Ok(()),
            Err(failure @ Failure::Admin { .. }) => return Err(failure),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// `NodeRequest::Announce`: enters what is news. The state is the leader's to change.
pub(crate) async fn enter(node: &Arc<Node>, told: NodeInfo) -> Result<(), Failure> {
    let known = read::node(&node.group.view(), told.id).map_err(storage)?;
    let Some(known) = known else {
        return Err(Failure::Refused(format!("node {} is not of this cluster", told.id)));
    };
    if !told.address.is_empty() {
        let addressed = node.group.update_address(told.id.0, &told.address).await;
        addressed.map_err(|error| Failure::NotReady(error.to_string()))?;
    }
    let told = NodeInfo { state: known.state, ..told };
    if told != known {
        node.command(Command::SetNode(told), true).await?;
    }
    Ok(())
}

pub(crate) type Done = Result<(), String>;

/// One round of the leader.
async fn look_after(node: &Arc<Node>) -> Done {
    let nodes = read::nodes(&node.group.view()).map_err(|error| error.to_string())?;
    let others: Vec<&NodeInfo> = nodes
        .iter()
        .filter(|other| other.id != node.id && other.state != NodeState::Removed)
        .collect();
    listen(node, &others);
    note_clocks(node);
    // None of these keeps the others from being done: shards are rescued whatever happens.
    let members = node.group.members();
    let mut failed = Vec::new();
    failed.extend(rise(&**node, &nodes).await.err());
    failed.extend(finish_leaving(node, &nodes).await.err());
    for other in &others {
        let member = members.iter().find(|member| member.id == other.id.0);
        failed.extend(attend(node, other, member).await.err());
    }
    if !others.is_empty() {
        failed.extend(choose_voters(node, &nodes, &members).await.err());
        let directed = replication::direct(node).await;
        failed.extend(directed.err().map(|failure| failure.to_string()));
    }
    failed.extend(trust::advance(node).await.err());
    failed.extend(yield_to_a_clock(node, &members).await.err());
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// A node that drains and holds nothing any more is drained; one that was removed leaves the metadata group.
async fn finish_leaving(node: &Arc<Node>, nodes: &[NodeInfo]) -> Done {
    for info in nodes {
        if info.state == NodeState::Removed
            && node.group.members().iter().any(|m| m.id == info.id.0)
        {
            match node.group.remove(info.id.0).await {
                // Whoever leads next goes on.
                Ok(()) | Err(GroupError::NotLeader { .. } | GroupError::Unknown { .. }) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        if info.state != NodeState::Draining {
            continue;
        }
        let shards = read::shards(&node.group.view()).map_err(|error| error.to_string())?;
        if shards.iter().any(|shard| shard.in_sync.contains(&info.id)) {
            continue;
        }
        if info.id == node.id && node.group.members().iter().filter(|m| m.voter).count() > 1 {
            // The next leader says that this node is drained.
            return node.group.transfer_leadership(None).await.map_err(|error| error.to_string());
        }
        let (from, to) = (NodeState::Draining, NodeState::Drained);
        let command = Command::SetNodeState { node: info.id, from, to };
        node.command(command, true).await.map_err(|failure| failure.to_string())?;
        tracing::info!(node = %info.id, name = info.name, "a node is drained");
    }
    Ok(())
}

/// Asks all of them that do not owe an answer.
pub(crate) fn listen<H: Host>(node: &Arc<H>, others: &[&NodeInfo]) {
    for other in others {
        {
            let mut beats = node.beats().lock();
            let swim = node.liveness(other.id);
            let beat = beats.entry(other.id).or_insert_with(Beat::new);
            beat.observe(swim);
            if std::mem::replace(&mut beat.asked, true) {
                continue;
            }
        }
        let target = Target { node: other.id, address: other.address.clone() };
        let node = Arc::clone(node);
        tokio::spawn(async move {
            let asked = node.clock_ms();
            // How large shards are is of interest while some of them move.
            let with_shards = !node.director().lock().works.is_empty();
            let request = NodeRequest::Usage { with_shards };
            let told = node.ask(&target, request, ANSWER_WITHIN).await;
            let answered = node.clock_ms();
            if let Some(beat) = node.beats().lock().get_mut(&target.node) {
                beat.asked = false;
                beat.failed += 1;
                if let Ok(Response::Usage(usage)) = told {
                    beat.clock_off_ms = off_ms(asked, usage.clock_ms, answered);
                    (beat.seen, beat.usage) = (clock::now(), Some(usage));
                    beat.failed = 0;
                }
                // The second time it counts, and there may be shards that wait for it.
                if (1..=2).contains(&beat.failed) {
                    node.alarm();
                }
            }
        });
    }
}

/// Says of whom the clock is far off.
fn note_clocks(node: &Node) {
    let off = skew::from_middle(node.id, &node.beats.lock());
    for (id, off) in off.into_iter().filter(|(_, off)| skew::is_wrong(*off)) {
        let what = format!(
            "its clock is {} the others': set it (NTP); while most agree, it leads nothing",
            Off(off)
        );
        node.refusals.note(Why::Clock, &format!("node {id}"), &what);
    }
}

/// A leader whose clock is wrong would stamp everything with it: another voter leads, if one can.
async fn yield_to_a_clock(node: &Arc<Node>, members: &[Member]) -> Done {
    let successor = {
        let beats = node.beats.lock();
        let wrong = skew::wrong(node.id, &beats);
        if !wrong.contains(&node.id) {
            return Ok(());
        }
        let heard = |id| {
            let beat: Option<&Beat> = beats.get(&id);
            beat.is_some_and(|beat| beat.usage.is_some() && !beat.is_suspect())
        };
        successor(node.id, members, |id| !wrong.contains(&id) && heard(id))
    };
    let Some(next) = successor else { return Ok(()) };
    tracing::warn!(next, "the clock of this node is wrong: another one is to lead");
    node.group.transfer_leadership(Some(next)).await.map_err(|error| error.to_string())
}

/// The voter that lacks least of those that may lead.
fn successor(own: NodeId, members: &[Member], may: impl Fn(NodeId) -> bool) -> Option<u64> {
    let able = |member: &&Member| {
        let caught_up = member.lag.is_some_and(|lag| lag <= LAG_MAX);
        member.voter && caught_up && member.id != own.0 && may(NodeId(member.id))
    };
    let found = members.iter().filter(able).min_by_key(|member| (member.lag, member.id));
    found.map(|member| member.id)
}

/// Two processes with one number, of a data directory that was copied, must not both be heard: the one stays that
/// answers where the number is known to be.
pub(crate) async fn refuse_twin(
    node: &Arc<Node>,
    peer: &Peer,
    told: &NodeInfo,
    instance: u64,
) -> Result<(), Failure> {
    let known = read::node(&node.group.view(), told.id).map_err(storage)?;
    let known = known.filter(|known| !known.address.is_empty() && known.address != told.address);
    let Some(known) = known else { return Ok(()) };
    let target = Target { node: told.id, address: known.address };
    let request = NodeRequest::Usage { with_shards: false };
    let there = node.peers.ask(&target, request, &[], ANSWER_WITHIN).await;
    let Ok((Response::Usage(there), _)) = there else { return Ok(()) };
    if there.instance == instance {
        return Ok(());
    }
    let failure = Failure::Admin {
        code: TWIN.into(),
        what: format!("node {} at {}", told.id, told.address),
        why: format!("another process is this node already, at {}", target.address),
        next:
            "a copy of a data directory is no new node: stop this one, and let it join with a token"
                .into(),
    };
    node.refusals.note(Why::Twin, &peer.source(), &failure);
    Err(failure)
}

/// Takes a node in, or notes that it has gone or come back.
async fn attend(node: &Arc<Node>, other: &NodeInfo, member: Option<&Member>) -> Done {
    let beat = node.beats.lock().get(&other.id).cloned();
    let caught_up = member.and_then(|member| member.lag).is_some_and(|lag| lag <= LAG_MAX);
    if other.state == NodeState::Joining && member.is_none() {
        let added = node.group.add_learner(other.id.0, &other.address).await;
        return added.map_err(|error| error.to_string());
    }
    let Some(to) = next_state(other.state, beat, caught_up) else { return Ok(()) };
    let from = other.state;
    let command = Command::SetNodeState { node: other.id, from, to };
    node.command(command, true).await.map_err(|failure| failure.to_string())?;
    tracing::info!(node = %other.id, name = other.name, %from, %to, "a node changes its state");
    Ok(())
}

/// Who leads is up, whatever an earlier leader said of it.
pub(crate) async fn rise(node: &impl Host, nodes: &[NodeInfo]) -> Done {
    let own = nodes.iter().find(|info| info.id == node.id());
    let Some(from) = own.map(|own| own.state) else { return Ok(()) };
    if !matches!(from, NodeState::Joining | NodeState::Down) {
        return Ok(());
    }
    let command = Command::SetNodeState { node: node.id(), from, to: NodeState::Up };
    node.command(command, true).await.map(drop).map_err(|failure| failure.to_string())
}

/// What a node becomes, from what was heard of it and whether its replica of the metadata has caught up.
pub(crate) fn next_state(
    state: NodeState,
    beat: Option<Beat>,
    caught_up: bool,
) -> Option<NodeState> {
    let silent = beat.as_ref().is_none_or(Beat::is_silent);
    let heard = beat.is_some_and(|beat| beat.usage.is_some() && !beat.is_silent());
    match state {
        NodeState::Joining | NodeState::Down if heard && caught_up => Some(NodeState::Up),
        NodeState::Up if silent => Some(NodeState::Down),
        NodeState::Joining
        | NodeState::Up
        | NodeState::Down
        | NodeState::Draining
        | NodeState::Drained
        | NodeState::Removed => None,
    }
}

/// How many voters a cluster of so many nodes has.
fn voters_wanted(nodes: usize) -> usize {
    match nodes {
        0..=2 => 1,
        3..=4 => 3,
        _ => 5,
    }
}

/// The voters there should be: those that are up before those that are not, present ones before others.
fn voters(own: NodeId, nodes: &[NodeInfo], members: &[Member]) -> BTreeSet<u64> {
    let counted = |node: &&NodeInfo| !matches!(node.state, NodeState::Joining | NodeState::Removed);
    let wanted = voters_wanted(nodes.iter().filter(counted).count());
    let mut able: Vec<(bool, bool, bool, u64)> = Vec::new();
    for node in nodes.iter().filter(counted) {
        let Some(member) = members.iter().find(|member| member.id == node.id.0) else { continue };
        let here = node.id == own;
        let caught_up = here || member.lag.is_some_and(|lag| lag <= LAG_MAX);
        if member.voter || (caught_up && node.state == NodeState::Up) {
            // `false` comes first.
            let up = node.state == NodeState::Up;
            able.push((!(here && up), !up, !member.voter, node.id.0));
        }
    }
    able.sort_unstable();
    let mut chosen: Vec<u64> = able.into_iter().map(|(.., id)| id).take(wanted).collect();
    // Two voters are worse than one: neither may be missing. And four are no better than three.
    if chosen.len().is_multiple_of(2) {
        chosen.pop();
    }
    chosen.into_iter().collect()
}

async fn choose_voters(node: &Arc<Node>, nodes: &[NodeInfo], members: &[Member]) -> Done {
    let now: BTreeSet<u64> =
        members.iter().filter(|member| member.voter).map(|member| member.id).collect();
    let wanted = voters(node.id, nodes, members);
    // Fewer than now only if nodes have left the cluster for good.
    let shrinks = wanted.len() < now.len()
        && now.iter().all(|id| nodes.iter().any(|node| node.id.0 == *id && is_member(node)));
    if wanted == now || wanted.is_empty() || shrinks {
        return Ok(());
    }
    // Who is to lead after this node has to vote first.
    let mut next = wanted.clone();
    if !wanted.contains(&node.id.0) && wanted.iter().all(|id| !now.contains(id)) {
        next.insert(node.id.0);
    }
    tracing::info!(?now, ?next, "the voters of the metadata group change");
    match node.group.set_voters(next).await {
        Ok(()) => Ok(()),
        Err(GroupError::NotLeader { .. } | GroupError::Unknown { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn is_member(node: &NodeInfo) -> bool {
    node.state != NodeState::Removed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, state: NodeState) -> NodeInfo {
        let name = format!("n{id}");
        let address = format!("{name}:9400");
        NodeInfo { id: NodeId(id), name, address, state, capacity_bytes: 1 }
    }

    fn member(id: u64, voter: bool, lag: u64) -> Member {
        Member { id, address: String::new(), voter, matched: Some(1), lag: Some(lag) }
    }

    fn chosen(states: &[NodeState], members: &[Member]) -> Vec<u64> {
        let nodes: Vec<NodeInfo> = (1..).zip(states).map(|(id, state)| node(id, *state)).collect();
        voters(NodeId(1), &nodes, members).into_iter().collect()
    }

    #[test]
    fn the_nodes_and_the_leader_decide_together_who_is_gone() {
        use Liveness::{Alive, Down, Suspect, Unknown};
        let judged = |swim, failed, unheard_ms| {
            let beat = Beat { failed, swim, ..Beat::new() };
            let unheard = Duration::from_millis(unheard_ms);
            (beat.is_suspect_after(unheard), beat.is_silent_after(unheard))
        };
        for (swim, failed, unheard_ms, expected) in [
            (Alive, 0, 600, (false, false)),
            // Nobody is there to be asked, twice: at once.
            (Alive, 2, 600, (true, false)),
            (Suspect, 0, 600, (false, false)),
            (Suspect, 0, 1100, (true, false)),
            (Suspect, 0, 9000, (true, false)),
            (Down, 2, 2000, (true, false)),
            (Down, 2, 2600, (true, true)),
            // Its datagrams get lost, and it answers.
            (Down, 0, 600, (false, false)),
            // The others hear it, and the leader does not.
            (Alive, 0, 2600, (true, false)),
            (Alive, 0, 10_100, (true, true)),
            (Unknown, 0, 2000, (false, false)),
            (Unknown, 0, 10_100, (true, true)),
        ] {
            let found = judged(swim, failed, unheard_ms);
            assert_eq!(found, expected, "{swim:?}, {failed} failed, {unheard_ms} ms");
        }
    }

    #[test]
    fn one_three_or_five_and_never_two_or_four() {
        use NodeState::Up;
        let all =
            |count: u64| -> Vec<Member> { (1..=count).map(|id| member(id, id == 1, 0)).collect() };
        for (count, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (12, 5)] {
            let states = vec![Up; count as usize];
            assert_eq!(chosen(&states, &all(count)).len(), voters, "{count} nodes");
        }
        // One that is behind does not vote yet, and two would be worse than one.
        let members = [member(1, true, 0), member(2, false, 0), member(3, false, 1 << 20)];
        assert_eq!(chosen(&[Up; 3], &members), [1]);
    }

    #[test]
    fn a_leader_with_a_wrong_clock_hands_over_to_a_voter_that_is_there() {
        let members = [
            member(1, true, 0),
            member(2, true, 9),
            member(3, true, 1 << 20),
            member(4, false, 0),
            member(5, true, 7),
        ];
        let to = |may: &[u64]| successor(NodeId(1), &members, |id| may.contains(&id.0));
        assert_eq!(to(&[1, 2, 3, 4, 5]), Some(5));
        assert_eq!(to(&[2, 3, 4]), Some(2));
        assert_eq!(to(&[1, 3, 4]), None);
    }

    #[test]
    fn a_node_that_is_down_votes_only_if_nobody_else_can() {
        use NodeState::{Down, Drained, Joining, Up};
        let voting = |votes: &[u64], count: u64| -> Vec<Member> {
            (1..=count).map(|id| member(id, votes.contains(&id), 0)).collect()
        };
        assert_eq!(chosen(&[Up, Up, Down], &voting(&[1, 2, 3], 3)), [1, 2, 3]);
        assert_eq!(chosen(&[Up, Up, Down, Up], &voting(&[1, 2, 3], 4)), [1, 2, 4]);
        assert_eq!(chosen(&[Up, Up, Joining], &voting(&[1], 3)), [1]);
        assert_eq!(chosen(&[Up, Up, Up, Drained], &voting(&[1, 2, 4], 4)), [1, 2, 3]);
    }
}
