//! Who leads, and until when a leader may answer from its own state.
//!
//! ```text
//!   leader     │ heartbeat sent at t ───────▶ a quorum answers ──▶ lease until t + 0.9 L
//!   follower   │        └─ received at u >= t: no vote for anybody else before u + L
//! ```
//! While its lease is valid no other leader can have been elected, so the leader's state contains everything that
//! anybody was answered, and a read needs no round trip. Why it holds:
//!
//! - A new leader needs votes of a quorum, which shares a replica with the quorum that answered. That replica gives none
//!   before `u + L`, on its own clock. The leader counts from the *sending*, on its own, and a tenth less: the two
//!   clocks may run apart by a tenth in the meantime. They are never compared.
//! - A replica that is restarted has forgotten whom it promised what. It gives no votes, and asks for none, before
//!   `L` has passed since then.
//! - A handover is the exception that lets followers vote at once. The leader that orders it gives its lease up before
//!   and for the rest of its term.
//! - A leader that is no voter of the newest membership has none, so it hands over by itself. It becomes one if the
//!   leader that began the change of voters died before its second step; or by an election: openraft lets a replica
//!   stand that lost its vote, as long as it does not know whether that was committed.
//! - A leader's state lacks what former leaders have answered until the first entry of its own term is applied. Before
//!   that it does not count as leading.
//!
//! Followers may hear a leader that does not hear them, and it would go on leading without ever finishing a command. So
//! a leader that no quorum answers becomes silent, until the others have had the time to elect another one.
//!
//! What is outside of this: a machine that stops *with its clock* (a virtual machine that is paused and goes on later)
//! and answers a request that came before. The clock is the kernel's monotonic one, which runs while a process is stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::InstantOf;
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};
use tokio::sync::watch;

use super::open::LEASE_MS;
use super::{Group, GroupError, Inner, Types, replace};
use crate::network::link::Links;
#[cfg(test)]
use crate::sim;
use crate::store::View;

/// How long a follower that heard from a leader votes for nobody else.
pub(super) const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// What of it a leader relies on.
const LEASE_USED: Duration = Duration::from_millis(LEASE_MS / 10 * 9);
/// A leader that no quorum has answered for so long does not count as leading: by now there may be another.
const LEASE_LOST: Duration = Duration::from_millis(LEASE_MS * 2);
/// How often a leader looks at its lease while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A leader that no quorum answers is silent for so long: until the leases that it gave have passed and others have
/// voted ...
const SILENT: Duration = Duration::from_millis(LEASE_MS * 5 / 2);
/// ... and then tries again for so long, and so on.
const TRYING: Duration = Duration::from_millis(LEASE_MS);
/// How long a replica must have been the only one before its runtime is lent out again, so that what is under way comes
/// to its end.
const QUIET: Duration = Duration::from_secs(2);

type Instant = InstantOf<Types>;

/// What this replica is to the group at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It leads, and has applied everything that former leaders committed. A term may see a second leader, with a
    /// higher node id, after this one: term and node together tell them apart.
    Leading { term: u64 },
    /// It does not, or cannot because no quorum answers. With the leader's id and address, if that is known.
    Following { leader: Option<(u64, String)> },
}

/// What is known here of the leadership.
pub(super) struct Leader {
    now: watch::Sender<Leadership>,
    /// One more than the term in which this replica has handed over.
    handed_over: AtomicU64,
    opened: Instant,
}

impl Leader {
    /// `term`: this replica leads in it, as the only voter.
    pub fn new(term: Option<u64>) -> Leader {
        let now = match term {
            Some(term) => Leadership::Leading { term },
            None => Leadership::Following { leader: None },
        };
        let now = watch::channel(now).0;
        Leader { now, handed_over: AtomicU64::new(0), opened: Types::now() }
    }

    /// Whether this replica may still be bound by a lease that it gave before it was opened.
    pub fn may_have_promised(&self) -> bool {
        self.opened.elapsed() <= LEASE
    }

    /// No lease any more in this term.
    pub fn hand_over(&self, term: u64) {
        self.handed_over.fetch_max(term + 1, Ordering::SeqCst);
    }

    fn has_handed_over(&self, term: u64) -> bool {
        self.handed_over.load(Ordering::SeqCst) > term
    }
}

/// Whether these metrics are of a leader that has applied the first entry of its own.
fn leads(m: &RaftMetrics<Types>) -> bool {
    let own = |id: openraft::type_config::alias::LogIdOf<Types>| {
        *id.committed_leader_id() == m.vote.leader_id
    };
    m.state == ServerState::Leader && m.vote.committed && m.last_applied.is_some_and(own)
}

/// Time since a quorum was last known to follow; `None` if it never was.
fn unheard(m: &RaftMetrics<Types>) -> Option<Duration> {
    let now = Types::now();
    m.last_quorum_acked.map(|acked| now.saturating_duration_since(acked.into_inner()))
}

fn lease_used() -> Duration {
    #[cfg(test)]
    if sim::has(sim::Flaw::LongLease) {
        return LEASE_USED * 2;
    }
    LEASE_USED
}

impl Inner {
    fn has_lease(&self) -> bool {
        let m = self.metrics.borrow_watched();
        if !leads(&m) || self.leader.has_handed_over(m.current_term) {
            return false;
        }
        let mut voters = m.membership_config.membership().get_joint_config().iter();
        if self.log.is_sole_voter() {
            return true;
        }
        voters.any(|voters| voters.contains(&self.node_id))
            && unheard(&m).is_some_and(|since| since < lease_used())
    }

    /// What the metrics say about the leadership.
    fn judge(&self) -> Leadership {
        let m = self.metrics.borrow_watched();
        let sole = self.log.is_sole_voter();
        if m.running_state.is_ok()
            && leads(&m)
            && (sole || unheard(&m).is_some_and(|since| since < LEASE_LOST))
        {
            return Leadership::Leading { term: m.current_term };
        }
        let leader = m.current_leader.filter(|leader| *leader != self.node_id).and_then(|leader| {
            let node = m.membership_config.membership().get_node(&leader)?;
            Some((leader, node.addr.clone()))
        });
        Leadership::Following { leader }
    }

    /// Whether this replica leads, is not answered, and should let others elect a leader. `elected` keeps its term and
    /// since when it is known.
    fn is_silent(&self, elected: &mut Option<(u64, Instant)>) -> bool {
        let m = self.metrics.borrow_watched();
        if m.state != ServerState::Leader || self.log.is_sole_voter() {
            *elected = None;
            return false;
        }
        let term = m.current_term;
        let (_, at) = *elected.get_or_insert((term, Types::now()));
        if elected.is_none_or(|(known, _)| known != term) {
            *elected = Some((term, Types::now()));
            return false;
        }
        let since = unheard(&m).unwrap_or_else(|| at.elapsed());
        let Some(over) = since.checked_sub(LEASE) else { return false };
        over.as_millis() % (SILENT + TRYING).as_millis() < SILENT.as_millis()
    }

    /// Whether this replica is all there is of the group.
    fn is_all(&self) -> bool {
        let m = self.metrics.borrow_watched();
        let mut nodes = m.membership_config.nodes();
        nodes.next().is_some_and(|(id, _)| *id == self.node_id) && nodes.next().is_none()
    }
}

impl Group {
    /// What this replica is to the group, now and whenever it changes.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leader.now.subscribe()
    }

    /// Whether the state here contains everything that any leader had answered up to this moment. It is a look at
    /// memory; a [`Group::view`] taken afterwards may be read, whatever happens meanwhile, for a request that came
    /// before.
    pub fn lease_valid(&self) -> bool {
        self.0.has_lease()
    }

    /// A view that contains everything answered before by whichever leader.
    pub fn read_view(&self) -> Result<View, GroupError> {
        if self.lease_valid() {
            return Ok(self.view());
        }
        match &*self.0.leader.now.borrow() {
            Leadership::Following { leader } => {
                Err(GroupError::NotLeader { leader: leader.clone() })
            }
            Leadership::Leading { .. } => Err(GroupError::NotLeader { leader: None }),
        }
    }
}

/// Starts the task that keeps [`Leadership`], the addresses of the others and the runtime's mode up to date. It ends with
/// the group.
pub(super) fn watch(group: &Group, links: Links) {
    let inner = &group.0;
    inner.home.set_driven(!inner.is_all());
    inner.leader.now.send_replace(inner.judge());
    Types::spawn(allow_elections(Arc::downgrade(inner)));
    Types::spawn(replace::watch(Arc::downgrade(inner)));
    Types::spawn(keep(Arc::downgrade(inner), links));
}

async fn allow_elections(inner: Weak<Inner>) {
    // The tick after it is later than the promise.
    Types::sleep(LEASE + Duration::from_millis(10)).await;
    if let Some(inner) = inner.upgrade() {
        inner.raft.runtime_config().elect(true);
    }
}

async fn keep(inner: Weak<Inner>, links: Links) {
    let (mut server, mut metrics) = match inner.upgrade() {
        Some(inner) => (inner.raft.server_metrics(), inner.raft.metrics()),
        None => return,
    };
    let mut others_seen = None::<Instant>;
    let mut elected = None;
    loop {
        let (waiting, timed) = {
            let Some(inner) = inner.upgrade() else { return };
            let addresses: BTreeMap<_, _> = {
                let m = metrics.borrow_watched();
                m.membership_config.nodes().map(|(id, node)| (*id, node.addr.clone())).collect()
            };
            links.book.replace(addresses);
            links.silence.set(inner.is_silent(&mut elected));
            if !inner.is_all() {
                others_seen = Some(Types::now());
            }
            inner.home.set_driven(others_seen.is_some_and(|seen| seen.elapsed() < QUIET));
            let now = inner.judge();
            let changed = inner.leader.now.send_if_modified(|known| {
                let changed = *known != now;
                known.clone_from(&now);
                changed
            });
            if changed {
                tracing::info!(?now, "metadata group");
            }
            if let Leadership::Leading { term } = now
                && !steps_aside(&inner, term)
            {
                finish_change(&inner, changed);
            }
            let m = metrics.borrow_watched();
            let waiting =
                m.state == ServerState::Leader && !matches!(now, Leadership::Leading { .. });
            (waiting, inner.home.is_driven())
        };
        // A new leader has to apply its first entry, of which only these metrics tell.
        let applied =
            async { if waiting { metrics.changed().await } else { std::future::pending().await } };
        let tick = async {
            if timed { Types::sleep(LOOK_EVERY).await } else { std::future::pending().await }
        };
        tokio::select! {
            biased;
            changed = server.changed() => if changed.is_err() { return },
            changed = applied => if changed.is_err() { return },
            () = tick => {}
        }
    }
}

/// Whether this leader is not among the voters of the newest membership, or of the one that a change under way leads
/// to. Then it hands over to one of them, who finishes the change if there is one: a leader without a vote has no lease,
/// and openraft leaves one that stays a learner where it is.
fn steps_aside(inner: &Arc<Inner>, term: u64) -> bool {
    let group = Group(Arc::clone(inner));
    let voters = group.voters();
    if voters.contains(&inner.node_id) {
        return false;
    }
    // Where nobody could follow yet it is asked again.
    if !inner.leader.has_handed_over(term)
        && let Some(next) = group.next_leader(&voters)
    {
        tracing::info!(to = next.id, "a leader without a vote hands over");
        inner.leader.hand_over(term);
        let raft = inner.raft.clone();
        Types::spawn(async move {
            if let Err(error) = raft.trigger().transfer_leader(next.id).await {
                tracing::warn!(%error, "a leader without a vote stays");
            }
        });
    }
    true
}

/// A change of voters whose leader died between its two steps is brought to its end by the next one.
fn finish_change(inner: &Arc<Inner>, newly: bool) {
    let joint = {
        let m = inner.metrics.borrow_watched();
        m.membership_config.membership().get_joint_config().len() > 1
    };
    if newly && joint {
        let raft = inner.raft.clone();
        Types::spawn(async move {
            let nobody = ChangeMembers::AddVoterIds(Default::default());
            if let Err(error) = raft.change_membership(nobody, true).await {
                tracing::warn!(%error, "a change of the voters stays unfinished");
            }
        });
    }
}
