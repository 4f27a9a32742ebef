//! The metadata group as the rest of a node sees it: a model of its log with exactly its promises.
//!
//! ```text
//!   propose ─ leads? quorum? ─ applied by `raftmeta::apply` ─ answer        committed entries, in one order
//!                  │ the leadership went meanwhile                          one leader that may commit, under a lease
//!                  └──▶ not known: it is done after all, or never           the others see a state of some time ago
//! ```
//! The real group, with openraft and its log, is simulated by itself (`raftmeta/src/sim.rs`), where each of its steps is
//! one of the simulation. Here it would hide the nodes' own: what they rely on are its promises. The state machine is
//! the real one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use raftmeta_types::{Command, Envelope, MetaResult, NodeId, Reply, SessionId, Time, Version};

use super::dice::Dice;
use super::history::{Applied, History, Moment};

/// A leader without a quorum leads no longer than this.
const LEASE: Duration = Duration::from_millis(1800);
/// And answers no longer than this.
const LEASE_SURE: Duration = Duration::from_millis(1620);
/// An election takes so long, or up to a second longer.
const ELECTION_MIN: Duration = Duration::from_millis(300);
/// A replica that is reached sees an entry after so long, mostly.
const LAG_MAX: Duration = Duration::from_millis(30);
/// Or so long.
const LAG_MAX_RARELY: Duration = Duration::from_secs(2);

/// Entries without which no node starts: a cluster with its first node.
const FOUNDED: Applied = 2;

/// One replica.
struct Member {
    voter: bool,
    /// As far as its log goes.
    received: Applied,
    applied: Applied,
    /// What it is going to apply, and when.
    coming: VecDeque<(Duration, Applied)>,
    /// It believes to lead.
    leads: Option<u64>,
    /// It believes that this one leads.
    follows: Option<NodeId>,
    /// It leads no more and notices then.
    notices: Option<Duration>,
}

impl Member {
    /// The entry up to which it is going to apply.
    fn bound_for(&self) -> Applied {
        self.coming.back().map_or(self.applied, |(_, applied)| *applied)
    }
}

pub(super) struct Log {
    history: History,
    last: Applied,
    term: u64,
    /// Who may commit.
    leader: Option<NodeId>,
    /// Since when it has had no quorum.
    alone_since: Option<Duration>,
    election: Duration,
    members: BTreeMap<NodeId, Member>,
}

/// Who runs and who reaches whom, now.
pub(super) trait Reach {
    fn runs(&self, id: NodeId) -> bool;
    fn reaches(&self, from: NodeId, to: NodeId) -> bool;
}

impl Log {
    pub fn new(nodes: &[NodeId]) -> Log {
        // As many voters as the leader would choose: an odd number.
        let voters = nodes.len() - usize::from(nodes.len().is_multiple_of(2));
        let member = |(at, id): (usize, &NodeId)| {
            let member = Member {
                voter: at < voters,
                received: 0,
                applied: 0,
                coming: VecDeque::new(),
                leads: None,
                follows: None,
                notices: None,
            };
            (*id, member)
        };
        Log {
            history: History::default(),
            last: 0,
            term: 0,
            leader: None,
            alone_since: None,
            election: Duration::ZERO,
            members: nodes.iter().enumerate().map(member).collect(),
        }
    }

    /// What there is before anything happens; everybody has it.
    pub fn found(&mut self, commands: Vec<Command>) -> Vec<Reply> {
        let apply = |command| self.apply(command, Duration::ZERO).expect("a new site");
        let replies = commands.into_iter().map(apply).collect();
        let last = self.last;
        for member in self.members.values_mut() {
            (member.received, member.applied) = (last, last);
        }
        replies
    }

    fn member(&mut self, id: NodeId) -> &mut Member {
        self.members.get_mut(&id).expect("every node has a replica")
    }

    /// The newest state, as nobody but the simulation knows it.
    pub fn newest(&self) -> Moment {
        self.history.at(self.last)
    }

    /// The state that a node sees.
    pub fn view(&mut self, id: NodeId, now: Duration) -> Moment {
        let member = self.member(id);
        while let Some((_, applied)) = member.coming.pop_front_if(|(at, _)| *at <= now) {
            member.applied = member.applied.max(applied);
        }
        let applied = member.applied;
        self.history.at(applied)
    }

    /// The last entry that a node sees.
    pub fn applied(&mut self, id: NodeId, now: Duration) -> Applied {
        self.view(id, now);
        self.members[&id].applied
    }

    /// The term in which a node leads, as far as it knows.
    pub fn leads(&self, id: NodeId) -> Option<u64> {
        self.members[&id].leads
    }

    /// Who leads, as far as a node knows.
    pub fn follows(&self, id: NodeId) -> Option<NodeId> {
        self.members[&id].follows
    }

    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    /// Whether what the node sees is what everybody was answered.
    pub fn lease_valid(&self, id: NodeId, now: Duration) -> bool {
        self.leader == Some(id) && self.alone_since.is_none_or(|since| now - since < LEASE_SURE)
    }

    pub fn is_voter(&self, id: NodeId) -> bool {
        self.members[&id].voter
    }

    fn has_quorum(&self, leader: NodeId, reach: &impl Reach) -> bool {
        let voters = self.members.iter().filter(|(_, member)| member.voter);
        let (mut all, mut heard) = (0, 0);
        for (id, _) in voters {
            all += 1;
            let both = || reach.reaches(leader, *id) && reach.reaches(*id, leader);
            heard += usize::from(*id == leader || (reach.runs(*id) && both()));
        }
        2 * heard > all && reach.runs(leader)
    }

    /// What a leader may commit now it may commit for good.
    pub fn may_commit(&self, id: NodeId, term: u64, reach: &impl Reach) -> bool {
        self.leader == Some(id) && self.term == term && self.has_quorum(id, reach)
    }

    /// Applies a command. The leader sees it at once, those that it reaches after some time.
    pub fn commit(
        &mut self,
        command: Command,
        now: Duration,
        dice: &mut Dice,
        reach: &impl Reach,
    ) -> MetaResult<Reply> {
        let answer = self.apply(command, now);
        self.spread(now, dice, reach);
        answer
    }

    /// A command whose author lost the leadership had reached those who will elect the next leader: it is done
    /// before anything that that one does.
    pub fn commit_late(&mut self, command: Command, now: Duration) {
        assert!(self.leader.is_none(), "a leader has decided what is in the log");
        let before = self.last;
        let _nobody_hears = self.apply(command, now);
        let last = self.last;
        let has_all = |member: &&mut Member| member.received == before;
        self.members.values_mut().filter(has_all).for_each(|member| member.received = last);
    }

    fn apply(&mut self, command: Command, now: Duration) -> MetaResult<Reply> {
        let time = Time { secs: now.as_secs() as i64, nanos: now.subsec_nanos() };
        let envelope = Envelope { session: SessionId::SERVER, slot: 0, seq: 0, time, command };
        loop {
            self.last += 1;
            let mut moment = self.history.at(self.last);
            let answer = raftmeta::apply(&mut moment, Version(self.last), &envelope);
            let answer = answer.expect("memory does not fail");
            if answer != Ok(Reply::More) {
                return answer;
            }
        }
    }

    /// Brings what is committed to those that the leader reaches.
    fn spread(&mut self, now: Duration, dice: &mut Dice, reach: &impl Reach) {
        let (leader, last) = (self.leader, self.last);
        for (id, member) in &mut self.members {
            if Some(*id) == leader {
                (member.received, member.applied) = (last, last);
                member.coming.clear();
                continue;
            }
            let reached = leader.is_some_and(|leader| reach.reaches(leader, *id));
            if !reached || !reach.runs(*id) || member.bound_for() == last {
                continue;
            }
            member.received = last;
            let most = if dice.one_in(50) { LAG_MAX_RARELY } else { LAG_MAX };
            let at = now + dice.up_to(most);
            let before = member.coming.back().map_or(now, |(before, _)| *before);
            member.coming.push_back((at.max(before), last));
        }
    }

    /// Leases run out, elections end, followers hear of the leader.
    pub fn tick(&mut self, now: Duration, dice: &mut Dice, reach: &impl Reach) {
        for member in self.members.values_mut() {
            if member.notices.is_some_and(|at| at <= now) {
                (member.leads, member.notices) = (None, None);
            }
        }
        match self.leader {
            Some(leader) if self.has_quorum(leader, reach) => {
                self.alone_since = None;
                self.spread(now, dice, reach);
                for (id, member) in &mut self.members {
                    if *id != leader && reach.reaches(leader, *id) {
                        member.follows = Some(leader);
                    }
                }
            }
            Some(_) => {
                let since = *self.alone_since.get_or_insert(now);
                if now - since >= LEASE {
                    self.depose(now, dice);
                }
            }
            None if now >= self.election => self.elect(now, dice, reach),
            None => {}
        }
    }

    /// The leader leads no more, and may notice a little later.
    pub fn depose(&mut self, now: Duration, dice: &mut Dice) {
        if let Some(leader) = self.leader.take() {
            let notices = now + dice.up_to(Duration::from_millis(400));
            let member = self.member(leader);
            (member.notices, member.follows) = (Some(notices), None);
        }
        self.alone_since = None;
        self.election = now + ELECTION_MIN + dice.up_to(Duration::from_secs(1));
    }

    fn elect(&mut self, now: Duration, dice: &mut Dice, reach: &impl Reach) {
        let able = |(id, member): &(&NodeId, &Member)| {
            member.voter && member.received == self.last && self.has_quorum(**id, reach)
        };
        let able: Vec<NodeId> = self.members.iter().filter(able).map(|(id, _)| *id).collect();
        if able.is_empty() {
            return;
        }
        let leader = able[dice.below(able.len() as u64) as usize];
        self.term += 1;
        let (term, last) = (self.term, self.last);
        self.leader = Some(leader);
        let member = self.member(leader);
        (member.leads, member.follows, member.notices) = (Some(term), None, None);
        member.applied = last;
        member.coming.clear();
        self.spread(now, dice, reach);
    }

    /// A replica was started: it has its log, and knows neither who leads nor how much of it is committed.
    /// What it had applied may be lost with the power.
    pub fn restarted(&mut self, id: NodeId, now: Duration, power_cut: bool, dice: &mut Dice) {
        if self.leader == Some(id) {
            self.depose(now, dice);
        }
        let back = if power_cut { dice.below(30) } else { 0 };
        let member = self.member(id);
        (member.leads, member.follows, member.notices) = (None, None, None);
        member.coming.clear();
        member.applied = member.applied.saturating_sub(back).max(FOUNDED.min(member.applied));
    }
}
