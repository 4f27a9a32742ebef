//! What changes when this node begins, or ceases, to lead the metadata group.
//!
//! ```text
//!   Leading    sessions of the state machine are awaited ─ deletions under way end ─ clients are served
//!   Following  nobody is served any more ─ connections end ─ they come back and are passed on to the leader
//! ```
//! To clients a change of the leader is what a restart of the only node is: they come back, say what they have
//! open, and repeat what was not answered under the same number.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::message::{Failure, Hello, Role};
use fsd_rpc::nodes::{Target, Upstream};
use fsd_rpc::server::Peer;
use raftmeta::group::{Group, Leadership};
use raftmeta::read;
use raftmeta_types::{Command, Envelope, NodeId, SessionId, Time};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Node, NodeError};
use crate::sessions::Sessions;

/// How long the leader may take to answer the greeting of a connection that is passed on.
const RELAY_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection waits for the next leader; clients ask another node after 4 s.
const LEADER_WITHIN: Duration = Duration::from_secs(2);

impl Node {
    /// The term in which this node leads, now and whenever it changes.
    pub(crate) fn leading(&self) -> watch::Receiver<Option<u64>> {
        self.leads.subscribe()
    }

    /// Whether this node leads, and is ready to.
    pub(crate) fn leads(&self) -> bool {
        self.leads.borrow().is_some()
    }

    /// Whether what is read here is what everybody was answered, whichever node did.
    pub(crate) fn may_answer(&self) -> Result<(), Failure> {
        if self.leads() && self.group.lease_valid() {
            return Ok(());
        }
        Err(Failure::NotReady("another node leads the cluster".into()))
    }

    /// Who leads, if it is another node.
    pub(crate) fn leader(&self) -> Result<Target, Failure> {
        match &*self.group.leadership().borrow() {
            Leadership::Following { leader: Some((id, address)) } => {
                Ok(Target { node: NodeId(*id), address: address.clone() })
            }
            Leadership::Following { leader: None } => {
                Err(Failure::NotReady("the cluster has no leader at the moment".into()))
            }
            Leadership::Leading { .. } => {
                Err(Failure::NotReady("this node is about to lead the cluster".into()))
            }
        }
    }

    /// A connection to the leader, for this client. While there is none, or it is gone, a session waits a little
    /// here: who has to come again and again finds the next one later. Others are told at once.
    pub(crate) async fn pass_on(&self, peer: &Peer, hello: &Hello) -> Result<Upstream, Failure> {
        let mut leadership = self.group.leadership();
        let mut leads = self.leading();
        let waits = matches!(hello.role, Role::Session { .. });
        let until = Instant::now() + if waits { LEADER_WITHIN } else { Duration::ZERO };
        loop {
            leadership.mark_unchanged();
            leads.mark_unchanged();
            if self.leads() {
                return Err(Failure::NotReady("this node leads the cluster by now".into()));
            }
            let failure = tokio::select! {
                biased;
                _ = leadership.changed() => continue,
                _ = leads.changed() => continue,
                passed = self.pass_on_now(peer, hello) => match passed {
                    Ok(upstream) => return Ok(upstream),
                    Err(failure) => failure,
                },
            };
            tokio::select! {
                biased;
                () = sleep_until(until) => return Err(failure),
                _ = leadership.changed() => {}
                _ = leads.changed() => {}
            }
        }
    }

    async fn pass_on_now(&self, peer: &Peer, hello: &Hello) -> Result<Upstream, Failure> {
        let leader = self.leader()?;
        let nodes = self.peers.nodes()?;
        nodes.relay(&leader, peer, hello, RELAY_WITHIN).await.map_err(|error| {
            Failure::NotReady(format!("the leader, {leader}, does not answer: {error}"))
        })
    }

    /// This node leads from now on.
    pub(super) async fn take_over(&self, term: u64) -> Result<(), NodeError> {
        let known = read::sessions(&self.group.view())?.into_iter().map(|info| info.session);
        *self.sessions.lock() = Sessions::restarted(known, self.uptime());
        end_interrupted_deletions(&self.group).await?;
        self.leads.send_replace(Some(term));
        // Connections that were passed on to another leader come again.
        if let Some(doors) = self.doors.get() {
            doors.send_away();
        }
        self.upkeep.kick();
        Ok(())
    }

    /// Another one does.
    fn step_back(&self) {
        let led = self.leads.send_replace(None).is_some();
        if led {
            self.events.clear();
            self.order.locks.wake_all();
        }
        if let Some(doors) = self.doors.get() {
            doors.send_away();
        }
    }

    /// Before a stop: whoever leads hands over, so that nobody has to wait until it is missed.
    pub(super) async fn leave(&self) {
        let others = self.group.members().iter().filter(|member| member.voter).count() > 1;
        if !self.leads() || !others {
            return;
        }
        if let Err(error) = self.group.transfer_leadership(None).await {
            tracing::info!(%error, "nobody takes the leadership over");
        }
    }
}

/// Follows the leadership until the node stops.
pub(super) async fn follow(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut leadership = node.group.leadership();
    let mut known = None;
    loop {
        let now = leadership.borrow_and_update().clone();
        match now {
            Leadership::Leading { term } if *node.leads.borrow() != Some(term) => {
                match node.take_over(term).await {
                    Ok(()) => tracing::info!(term, "this node leads the cluster"),
                    Err(NodeError::Group(error)) => {
                        tracing::info!(%error, "the leadership went before it was taken up");
                    }
                    Err(error) => return node.fail(format!("taking up the leadership: {error}")),
                }
            }
            Leadership::Leading { .. } => {}
            Leadership::Following { leader } => {
                // Also when another one leads than before: who is passed on has to come again.
                if node.leads() || known.as_ref() != Some(&leader) {
                    node.step_back();
                }
                known = Some(leader);
            }
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// A deletion under way at a crash may or may not have been carried out; it is ended, not repeated
/// (docs/decisions.md, D7).
async fn end_interrupted_deletions(group: &Group) -> Result<(), NodeError> {
    for (shard, pending) in read::pending_deletes(&group.view())? {
        let command = Command::EndDelete { shard, epoch: pending.epoch };
        let session = SessionId::SERVER;
        let envelope = Envelope { session, slot: 0, seq: 0, time: Time::default(), command };
        let ended = group.propose(envelope, false).await?;
        ended.map_err(|source| NodeError::Refused { doing: "ending a deletion", source })?;
        tracing::info!(%shard, epoch = %pending.epoch, "a deletion that was interrupted is ended");
    }
    Ok(())
}
