//! Voters and learners of the group, and changes of them.
//!
//! Voters change in two steps, of which openraft takes both: first a quorum of the old and one of the new set is
//! needed for everything, then the new one's alone. A leader that dies in between leaves the second step to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::type_config::TypeConfigExt;
use openraft::{BasicNode, ChangeMembers};

use super::{Group, GroupError, Leadership, Types, raft_error, write_error};

/// Most voters: a sixth would only make every command wait for one more.
const VOTERS_MAX: usize = 5;
/// A replica becomes a voter when it lacks no more entries than this, and leader likewise: the group would wait for it.
const LAG_MAX: u64 = 1024;
/// Longest wait for another leader after a handover.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// A replica of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub address: String,
    /// It votes, now or after a change that is under way.
    pub voter: bool,
    /// Last entry that it is known to have; the leader alone knows.
    pub matched: Option<u64>,
    /// Entries that it lacks; the leader alone knows.
    pub lag: Option<u64>,
}

type Change = ChangeMembers<u64, BasicNode>;

fn refuse<T>(reason: impl Into<String>) -> Result<T, GroupError> {
    Err(GroupError::Membership { reason: reason.into() })
}

impl Group {
    /// Everybody in the newest membership this replica knows, by id.
    pub fn members(&self) -> Vec<Member> {
        let m = self.0.metrics.borrow_watched();
        let voters: BTreeSet<u64> = m.membership_config.voter_ids().collect();
        let last = m.last_log_index;
        let member = |(id, node): (&u64, &BasicNode)| {
            let progress = m.replication.as_ref().and_then(|all| all.get(id));
            let matched = progress.copied().flatten().map(|matched| matched.index);
            let count = |index: Option<u64>| index.map_or(0, |index| index + 1);
            let lag = progress.map(|_| count(last).saturating_sub(count(matched)));
            let address = node.addr.clone();
            Member { id: *id, address, voter: voters.contains(id), matched, lag }
        };
        m.membership_config.nodes().map(member).collect()
    }

    fn member(&self, id: u64) -> Result<Member, GroupError> {
        match self.members().into_iter().find(|member| member.id == id) {
            Some(member) => Ok(member),
            None => refuse(format!("replica {id} is not in the group")),
        }
    }

    /// Makes a replica a learner: it gets everything and has no vote. It must be new, or blank and never have been in the
    /// group. Adding one again that is there with this address changes nothing.
    pub async fn add_learner(&self, id: u64, address: &str) -> Result<(), GroupError> {
        self.must_lead()?;
        if let Ok(known) = self.member(id) {
            if known.address == address {
                return Ok(());
            }
            return refuse(format!("replica {id} is in the group already, at {}", known.address));
        }
        let node = BasicNode::new(address);
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, node)])), true).await
    }

    /// Makes these the voters, and learners of the other ones. Who becomes a voter must have nearly caught up. A leader
    /// that is not among them hands over first and says so with [`GroupError::NotLeader`].
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), GroupError> {
        self.must_lead()?;
        if voters.is_empty() || voters.len() > VOTERS_MAX {
            return refuse(format!("{} voters, 1 to {VOTERS_MAX} can be", voters.len()));
        }
        for id in &voters {
            let member = self.member(*id)?;
            if !member.voter && *id != self.0.node_id && member.lag.is_none_or(|lag| lag > LAG_MAX)
            {
                return refuse(format!("replica {id} has not caught up yet, wait for it"));
            }
        }
        if !voters.contains(&self.0.node_id) {
            return self.leave_to(&voters).await;
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters), true).await
    }

    /// Takes a replica out of the group. If it votes it stops that first; a leader that is to go hands over and says so
    /// with [`GroupError::NotLeader`]. Removing one that is not there changes nothing.
    pub async fn remove(&self, id: u64) -> Result<(), GroupError> {
        self.must_lead()?;
        let Ok(member) = self.member(id) else { return Ok(()) };
        if !member.voter {
            return self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await;
        }
        let voters: BTreeSet<u64> =
            self.voters().into_iter().filter(|voter| *voter != id).collect();
        if voters.is_empty() {
            return refuse(format!("replica {id} is the last voter"));
        }
        if id == self.0.node_id {
            return self.leave_to(&voters).await;
        }
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false).await
    }

    /// From now on a replica is reached at this address.
    pub async fn update_address(&self, id: u64, address: &str) -> Result<(), GroupError> {
        self.must_lead()?;
        if self.member(id)?.address == address {
            return Ok(());
        }
        let node = BasicNode::new(address);
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, node)])), true).await
    }

    /// Makes another voter the leader: this one, or the one that lacks least. Returns when it leads. No command is
    /// taken meanwhile; those under way are finished.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), GroupError> {
        let term = self.must_lead()?;
        let to = self.successor(to)?;
        self.0.leader.hand_over(term);
        let raft = self.0.raft.clone();
        let order = async move { raft.trigger().transfer_leader(to).await };
        let ordered = super::home::drive(&self.0.home, order).await?;
        let error = raft_error("handover");
        ordered.map_err(|e| error(e.to_string()))?;
        let me = self.0.node_id;
        let mut metrics = self.0.raft.metrics();
        let replaced = async move {
            loop {
                let leader = metrics.borrow_and_update().current_leader;
                if leader.is_some_and(|leader| leader != me) {
                    return Ok::<(), &str>(());
                }
                metrics.changed().await.map_err(|_| "this replica has stopped")?;
            }
        };
        let timed = async move { Types::timeout(HANDOVER_TIMEOUT, replaced).await };
        match super::home::drive(&self.0.home, timed).await? {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(error(reason.to_owned())),
            Err(_) => Err(error(format!("replica {to} does not lead yet, and this one no more"))),
        }
    }

    fn successor(&self, to: Option<u64>) -> Result<u64, GroupError> {
        let me = self.0.node_id;
        let able = |member: &Member| {
            member.voter && member.id != me && member.lag.is_some_and(|lag| lag <= LAG_MAX)
        };
        if let Some(id) = to {
            return match self.member(id)? {
                member if able(&member) => Ok(id),
                _ => {
                    refuse(format!("replica {id} cannot lead: it is no voter, or behind, or leads"))
                }
            };
        }
        let found = self.members().into_iter().filter(able).min_by_key(|member| member.lag);
        match found {
            Some(member) => Ok(member.id),
            None => refuse("no other voter could lead"),
        }
    }

    /// Hands over to one of these, because this replica is to stop being a voter; the caller asks the next leader.
    async fn leave_to(&self, voters: &BTreeSet<u64>) -> Result<(), GroupError> {
        let able = |member: &Member| voters.contains(&member.id) && member.voter;
        let next = self.members().into_iter().filter(able).min_by_key(|member| member.lag);
        let Some(next) = next else {
            return refuse("the leader is to go and none of the others votes yet");
        };
        self.transfer_leadership(Some(next.id)).await?;
        Err(GroupError::NotLeader { leader: Some((next.id, next.address)) })
    }

    /// The one of these that lacks least, if it could lead.
    pub(super) fn next_leader(&self, voters: &BTreeSet<u64>) -> Option<Member> {
        let able = |member: &Member| {
            voters.contains(&member.id) && member.lag.is_some_and(|lag| lag <= LAG_MAX)
        };
        self.members().into_iter().filter(able).min_by_key(|member| member.lag)
    }

    /// Those of the newest membership, or of the one that a change under way leads to.
    pub(super) fn voters(&self) -> BTreeSet<u64> {
        let m = self.0.metrics.borrow_watched();
        let configs = m.membership_config.membership().get_joint_config();
        configs.last().cloned().unwrap_or_default()
    }

    /// The term, if this replica leads.
    fn must_lead(&self) -> Result<u64, GroupError> {
        match &*self.leadership().borrow() {
            Leadership::Leading { .. } => Ok(self.status().term),
            Leadership::Following { leader } => {
                Err(GroupError::NotLeader { leader: leader.clone() })
            }
        }
    }

    async fn change(&self, change: Change, retain: bool) -> Result<(), GroupError> {
        let raft = self.0.raft.clone();
        let changing = async move { raft.change_membership(change, retain).await.map(|_| ()) };
        self.while_leading(ended(changing)).await?
    }

    /// Waits until this replica is in the group and has applied what its leader has told it to be committed.
    pub async fn wait_until_caught_up(&self, timeout: Duration) -> Result<(), GroupError> {
        let me = self.0.node_id;
        let mut metrics = self.0.raft.metrics();
        let reached = async move {
            loop {
                {
                    let m = metrics.borrow_and_update();
                    if let Err(error) = &m.running_state {
                        return Err(error.to_string());
                    }
                    let known = m.membership_config.membership().get_node(&me).is_some();
                    if known
                        && m.current_leader.is_some()
                        && m.cluster_committed.is_some()
                        && m.last_applied >= m.cluster_committed
                    {
                        return Ok(());
                    }
                }
                metrics.changed().await.map_err(|_| "this replica has stopped".to_owned())?;
            }
        };
        let error = raft_error("catching up");
        let timed = async move { Types::timeout(timeout, reached).await };
        match super::home::drive(&self.0.home, timed).await? {
            Ok(done) => done.map_err(error),
            Err(_) => Err(error("not within the time given".to_owned())),
        }
    }
}

/// The two steps of a change: what the second one says is what the caller hears.
async fn ended(
    changing: impl Future<Output = Result<(), RaftError<Types, ClientWriteError<Types>>>>,
) -> Result<(), GroupError> {
    changing.await.map_err(|error| write_error("change of members", error))
}
