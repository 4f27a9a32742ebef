//! Who of the cluster is alive, found out by the nodes among themselves: SWIM over UDP, on the port of the network
//! door.
//!
//! ```text
//!   map of the metadata group ─ every round of `members` ─▶ others ─┐
//!   socket ─▶ datagram: open, or refuse ─▶ protocol ─▶ seal ─▶ socket ├─▶ seen: Alive, Suspect, Down
//!   time   ──────────────────────────────────▶ wake                 ─┘      │
//!                                            the leader acts upon it ◀──────┘  (`members`)
//! ```
//!
//! | file | what |
//! |---|---|
//! | `protocol` | who is probed, suspected and down: no socket, no clock |
//! | `datagram` | the seal around each message |

mod datagram;
mod protocol;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raftmeta_types::NodeId;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use uuid::Uuid;
use zeroize::Zeroizing;

use self::datagram::{DATAGRAM_LEN_MAX, Ring};
use self::protocol::{Outgoing, Refused, Swim};
use super::{Node, NodeError};
use crate::refusals::Why;

pub(crate) use protocol::Liveness;

/// How long a name may take to be looked up; datagrams to it are dropped meanwhile.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(5);
/// A name is looked up again after this.
const LOOKED_UP_FOR: Duration = Duration::from_secs(60);

/// What the rest of the node sees of it.
#[derive(Debug)]
pub(crate) struct Membership {
    seen: Mutex<BTreeMap<NodeId, Liveness>>,
    /// The other members and where they are reached.
    others: watch::Sender<BTreeMap<NodeId, String>>,
    ring: Mutex<Arc<Ring>>,
    /// How often this node was started: greater than at every earlier start.
    start: u32,
}

impl Membership {
    /// `keys`: the first one seals, all of them open.
    pub fn new(start: u32, keys: &[Zeroizing<[u8; 32]>], cluster: Uuid) -> Membership {
        Membership {
            seen: Mutex::default(),
            others: watch::Sender::default(),
            ring: Mutex::new(Arc::new(Ring::new(keys, cluster))),
            start,
        }
    }

    /// What the nodes among themselves have found out about this one.
    pub fn seen(&self, node: NodeId) -> Liveness {
        self.seen.lock().get(&node).copied().unwrap_or(Liveness::Unknown)
    }

    /// These are the other members. Called over and over: each time whoever is not heard may be greeted.
    pub fn meet(&self, others: BTreeMap<NodeId, String>) {
        self.others.send_if_modified(|known| {
            let nobody = known.is_empty() && others.is_empty();
            *known = others;
            !nobody
        });
    }

    /// The authority has changed.
    pub fn set_keys(&self, keys: &[Zeroizing<[u8; 32]>], cluster: Uuid) {
        *self.ring.lock() = Arc::new(Ring::new(keys, cluster));
    }

    fn ring(&self) -> Arc<Ring> {
        Arc::clone(&self.ring.lock())
    }
}

/// The socket beside the network door, under the same port. Where the system chose that port, nobody else can have
/// been told of it, and the node does without if the port is taken.
pub(super) async fn bind(
    address: SocketAddr,
    configured: Option<SocketAddr>,
) -> Result<Option<UdpSocket>, NodeError> {
    match UdpSocket::bind(address).await {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if configured.is_some_and(|address| address.port() == 0) => {
            tracing::warn!(%address, %error, "no datagrams are taken");
            Ok(None)
        }
        Err(source) => Err(NodeError::Datagrams { address, source }),
    }
}

/// Takes part until the node stops.
pub(super) async fn keep(node: Arc<Node>, socket: UdpSocket) {
    let mut stopping = node.stopping();
    let mut others = node.membership.others.subscribe();
    let seed = u64::from_le_bytes(crate::chunks::seal::random());
    let started = Instant::now();
    let mut swim = Swim::new(node.id, node.membership.start, seed);
    let mut addresses = Addresses::default();
    let mut buffer = vec![0; DATAGRAM_LEN_MAX + 1];
    loop {
        let next_wake = swim.next_wake().map(|at| started + at);
        let outgoing = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            // Before the timers: after a pause of this process the answers have waited here.
            received = socket.recv_from(&mut buffer) => match received {
                Ok((len, from)) => receive(&node, &mut swim, started.elapsed(), &buffer[..len], from),
                Err(error) => {
                    // Of a datagram that was sent: nobody listens there.
                    tracing::trace!(%error, "receiving a datagram");
                    Vec::new()
                }
            },
            changed = others.changed() => {
                if changed.is_err() {
                    return;
                }
                let known = others.borrow_and_update().clone();
                let ids: BTreeSet<NodeId> = known.keys().copied().collect();
                addresses.set(known);
                swim.meet(started.elapsed(), &ids)
            }
            () = until(next_wake) => swim.wake(started.elapsed()),
        };
        note(&node, &swim);
        send(&node, &socket, &mut addresses, outgoing).await;
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}

fn receive(
    node: &Node,
    swim: &mut Swim,
    now: Duration,
    datagram: &[u8],
    from: SocketAddr,
) -> Vec<Outgoing> {
    let message = match node.membership.ring().open(datagram) {
        Ok(message) => message,
        Err(error) => {
            node.refusals.note(Why::Datagram, &from.ip(), &error);
            return Vec::new();
        }
    };
    match swim.receive(now, &message) {
        Ok(outgoing) => outgoing,
        Err(error @ Refused::Stranger(_)) => {
            node.refusals.note(Why::Stranger, &from.ip(), &error);
            Vec::new()
        }
        Err(error @ Refused::Garbage(_)) => {
            node.refusals.note(Why::Datagram, &from.ip(), &error);
            Vec::new()
        }
    }
}

/// Keeps what is known now, and says what is new.
fn note(node: &Node, swim: &Swim) {
    let now = swim.seen();
    let mut seen = node.membership.seen.lock();
    if *seen == now {
        return;
    }
    for (id, liveness) in &now {
        let before = seen.get(id).copied().unwrap_or(Liveness::Unknown);
        if before != *liveness {
            tracing::info!(node = %id, before = before.name(), now = liveness.name(), "a node is seen");
        }
    }
    *seen = now;
}

async fn send(node: &Node, socket: &UdpSocket, addresses: &mut Addresses, outgoing: Vec<Outgoing>) {
    for (to, message) in outgoing {
        let Some(address) = addresses.get(to) else { continue };
        let Some(datagram) = node.membership.ring().seal(&message) else { continue };
        // One that does not leave is one that got lost: the protocol asks again.
        if let Err(error) = socket.send_to(&datagram, address).await {
            tracing::trace!(%error, %address, "sending a datagram");
        }
    }
}

type Found = Arc<Mutex<Option<(SocketAddr, Instant)>>>;

/// Where nodes are reached; names are looked up beside the protocol.
#[derive(Default)]
struct Addresses {
    known: BTreeMap<NodeId, String>,
    named: BTreeMap<String, (Found, Instant)>,
}

impl Addresses {
    fn set(&mut self, known: BTreeMap<NodeId, String>) {
        self.named.retain(|name, _| known.values().any(|address| address == name));
        self.known = known;
    }

    /// `None` while it is not known.
    fn get(&mut self, node: NodeId) -> Option<SocketAddr> {
        let address = self.known.get(&node)?;
        if let Ok(address) = address.parse() {
            return Some(address);
        }
        let now = Instant::now();
        let entry = self.named.get(address);
        let found = entry.and_then(|(found, _)| *found.lock());
        // A lookup that found nothing, or is outdated, is repeated, but not for every datagram.
        let asked = entry.is_some_and(|(_, asked)| now - *asked < LOOK_UP_WITHIN);
        let fresh = found.is_some_and(|(_, at)| now - at < LOOKED_UP_FOR);
        if !asked && !fresh {
            let place = Arc::new(Mutex::new(found));
            self.named.insert(address.clone(), (Arc::clone(&place), now));
            tokio::spawn(look_up(address.clone(), place));
        }
        found.map(|(address, _)| address)
    }
}

async fn look_up(name: String, place: Found) {
    let found = tokio::time::timeout(LOOK_UP_WITHIN, tokio::net::lookup_host(&name)).await;
    match found {
        Ok(Ok(mut addresses)) => {
            if let Some(address) = addresses.next() {
                *place.lock() = Some((address, Instant::now()));
            }
        }
        Ok(Err(error)) => tracing::debug!(name, %error, "looking up a node"),
        Err(_) => tracing::debug!(name, "looking up a node takes too long"),
    }
}
