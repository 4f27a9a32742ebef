//! SWIM without sockets and clocks: what is received, and the time, go in; datagrams and the next time come out.
//!
//! ```text
//!   meet(others)  ─┐                     ┌─ send: datagrams for nodes
//!   receive(bytes) ├─▶ foca, timers ─────┤
//!   wake(now)     ─┘                     └─ next_wake: nothing while nobody else is there
//! ```
//! A node is probed every second by some other one, directly and then through others; who does not answer is
//! suspected, and down six seconds later unless it objects. The map alone says who is a member: messages of
//! anybody else are refused, and nothing is sent to them. A node is known by its number and its *life*, which
//! grows with every start and with every return from the dead, so what is told of an earlier life is outdated.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Codec, Foca, NoCustomBroadcast, Notification, PostcardCodec, State, Timer};
use raftmeta_types::NodeId;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

/// How often each node probes another one.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A direct answer that takes longer is asked for through others.
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// How long a suspect may take to object.
const SUSPECT_FOR: Duration = Duration::from_secs(6);
/// How often what is new is told to others, beside the probes.
const GOSSIP_EVERY: Duration = Duration::from_millis(500);
/// Who is not heard is greeted this often.
const GREET_EVERY: Duration = Duration::from_secs(1);
/// Nodes asked to probe for another, and told what is new at once.
const HELPERS: NonZeroUsize = NonZeroUsize::new(3).expect("it is not zero");
/// How often one piece of news is told.
const TELL_TIMES: NonZeroU8 = NonZeroU8::new(10).expect("it is not zero");
/// Longest message, in bytes: with its seal and the headers of UDP it fits into a frame of Ethernet.
pub const MESSAGE_LEN_MAX: usize = 1300;

/// What the nodes among themselves have found out about one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It was not met yet.
    Unknown,
    Alive,
    /// It did not answer, and may still object.
    Suspect,
    Down,
}

impl Liveness {
    pub fn name(self) -> &'static str {
        match self {
            Liveness::Unknown => "unknown",
            Liveness::Alive => "alive",
            Liveness::Suspect => "suspect",
            Liveness::Down => "down",
        }
    }
}

/// Why a message was dropped.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("node {0} is not a member of the cluster")]
    Stranger(NodeId),
    #[error("not a message: {0}")]
    Garbage(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    node: NodeId,
    life: u64,
}

impl foca::Identity for Peer {
    type Addr = NodeId;

    fn renew(&self) -> Option<Peer> {
        Some(Peer { life: self.life + 1, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, other: &Peer) -> bool {
        self.life > other.life
    }
}

/// Bytes for a node.
pub type Outgoing = (NodeId, Vec<u8>);

/// What a step of foca asks for.
#[derive(Default)]
struct Effects {
    send: Vec<(Peer, Vec<u8>)>,
    timers: Vec<(Timer<Peer>, Duration)>,
}

impl foca::Runtime<Peer> for Effects {
    fn notify(&mut self, _notification: Notification<'_, Peer>) {}

    fn send_to(&mut self, to: Peer, data: &[u8]) {
        self.send.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Peer>, after: Duration) {
        self.timers.push((event, after));
    }
}

/// One node's part of the protocol. Times count from any moment, the same for all calls.
pub struct Swim {
    foca: Foca<Peer, PostcardCodec, SmallRng, NoCustomBroadcast>,
    others: BTreeSet<NodeId>,
    greeted: BTreeMap<NodeId, Duration>,
    timers: BTreeMap<(Duration, u64), Timer<Peer>>,
    /// Tells timers of one moment apart.
    submitted: u64,
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swim").field("own", self.foca.identity()).finish_non_exhaustive()
    }
}

impl Swim {
    /// `start` is greater than at every earlier start of this node; `seed` chooses whom it probes.
    pub fn new(own: NodeId, start: u32, seed: u64) -> Swim {
        let config = foca::Config {
            probe_period: PROBE_EVERY,
            probe_rtt: ANSWER_WITHIN,
            num_indirect_probes: HELPERS,
            max_transmissions: TELL_TIMES,
            suspect_to_down_after: SUSPECT_FOR,
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(MESSAGE_LEN_MAX).expect("it is not zero"),
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: GOSSIP_EVERY,
                num_members: HELPERS,
            }),
        };
        // The lower half is for returns from the dead during one start.
        let own = Peer { node: own, life: u64::from(start) << 32 };
        Swim {
            foca: Foca::new(own, config, SmallRng::seed_from_u64(seed), PostcardCodec),
            others: BTreeSet::new(),
            greeted: BTreeMap::new(),
            timers: BTreeMap::new(),
            submitted: 0,
        }
    }

    /// These are the other members now. Those that are not heard are greeted.
    pub fn meet(&mut self, now: Duration, others: &BTreeSet<NodeId>) -> Vec<Outgoing> {
        self.others.clone_from(others);
        self.greeted.retain(|node, _| others.contains(node));
        let mut effects = Effects::default();
        for (node, liveness) in self.seen() {
            if matches!(liveness, Liveness::Alive | Liveness::Suspect) {
                continue;
            }
            let due = self.greeted.get(&node).is_none_or(|at| now >= *at + GREET_EVERY);
            if due {
                self.greeted.insert(node, now);
                // Whatever its present life is: greetings count for all of them.
                let announced = self.foca.announce(Peer { node, life: 0 }, &mut effects);
                announced.expect("a greeting fits into a message");
            }
        }
        self.carry_out(now, effects)
    }

    /// A message that was verified to come from a holder of the cluster's key.
    ///
    /// # Errors
    /// It counts for nothing.
    pub fn receive(&mut self, now: Duration, message: &[u8]) -> Result<Vec<Outgoing>, Refused> {
        let garbage = |error: &dyn std::fmt::Display| Refused::Garbage(error.to_string());
        let header: foca::Header<Peer> =
            PostcardCodec.decode_header(message).map_err(|error| garbage(&error))?;
        if !self.others.contains(&header.src.node) {
            return Err(Refused::Stranger(header.src.node));
        }
        let mut effects = Effects::default();
        let handled = self.foca.handle_data(message, &mut effects);
        let outgoing = self.carry_out(now, effects);
        handled.map_err(|error| garbage(&error))?;
        Ok(outgoing)
    }

    /// When [`Swim::wake`] has something to do; never, while nobody else is there.
    pub fn next_wake(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Does what is due.
    pub fn wake(&mut self, now: Duration) -> Vec<Outgoing> {
        let mut outgoing = Vec::new();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let mut effects = Effects::default();
            // An error says that a round of probing was lost, and the next one has begun.
            if let Err(error) = self.foca.handle_timer(entry.remove(), &mut effects) {
                tracing::debug!(%error, "a timer of the membership");
            }
            outgoing.extend(self.carry_out(now, effects));
        }
        outgoing
    }

    /// What is known of each other member.
    pub fn seen(&self) -> BTreeMap<NodeId, Liveness> {
        let mut seen: BTreeMap<NodeId, Liveness> =
            self.others.iter().map(|node| (*node, Liveness::Unknown)).collect();
        for member in self.foca.iter_membership_state() {
            if let Some(liveness) = seen.get_mut(&member.id().node) {
                *liveness = match member.state() {
                    State::Alive => Liveness::Alive,
                    State::Suspect => Liveness::Suspect,
                    State::Down => Liveness::Down,
                };
            }
        }
        seen
    }

    fn carry_out(&mut self, now: Duration, effects: Effects) -> Vec<Outgoing> {
        for (timer, after) in effects.timers {
            self.submitted += 1;
            self.timers.insert((now + after, self.submitted), timer);
        }
        let to_members = effects.send.into_iter().filter(|(to, _)| self.others.contains(&to.node));
        to_members.map(|(to, bytes)| (to.node, bytes)).collect()
    }
}
