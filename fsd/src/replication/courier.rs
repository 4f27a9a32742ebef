//! Takes the ops of this node's store to the other replicas: to each node in their order.
//!
//! ```text
//!   replicate(ops) ─ who hears of each shard? ─┬─ queue of node 2 ─ worker ─▶ Apply ─▶ answers ─┐
//!                                              ├─ queue of node 3 ─ worker ─▶ …                 ├─▶ done
//!                                              └─ held, for who is just comparing               ┘
//! ```
//! Who is in sync is waited for. Who is being brought up hears everything too, and one that does not answer
//! is only not brought up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use fsd_rpc::nodes::Target;
use parking_lot::Mutex;
use raftmeta_types::{Epoch, NodeId, ShardId};
use tokio::sync::{Notify, mpsc, oneshot};

use super::courtesy::Courtesy;
use super::host::Wire;
use super::remote::ask;
use super::wire::{Ask, OPS_BYTES_MAX, Refused, Told};
use crate::chunks::{Error, Kind, Op, OpNumber, Replicated, ReplicationError, Replicator, ShardOp};
use crate::clock;

/// A replica that does not answer for this long is taken out of those in sync.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// For how long a node is taken for full after it said so. What is deleted and cleaned meanwhile tells of itself.
const FULL_FOR: Duration = Duration::from_secs(2);
/// Bytes that may wait for a node before those are given up that nobody waits for. What is waited for is bounded
/// by the puts in flight.
const WAITING_BYTES_MAX: usize = 128 << 20;
/// Bytes held for one replica that compares; it is not brought up if they become more.
const HELD_BYTES_MAX: usize = 64 << 20;

/// Ops for a node, and who waits for what becomes of them.
struct Parcel {
    /// Whose ops these are, or after whose ops this comes.
    shards: Vec<ShardId>,
    ops: Vec<ShardOp>,
    answer: Option<oneshot::Sender<BTreeMap<ShardId, Failed>>>,
}

/// Why a shard's ops are not on a node.
type Failed = ReplicationError;

/// Somebody who hears the ops of a shard.
struct Listener {
    node: NodeId,
    /// Waited for.
    in_sync: bool,
    /// Kept back until it has compared.
    held: Option<Vec<ShardOp>>,
    /// Missed something that nobody waited for.
    broken: bool,
}

/// Who hears of a shard, under one epoch.
struct Audience {
    epoch: Epoch,
    listeners: Vec<Listener>,
}

/// Parcels for one node, and how many bytes they are.
#[derive(Clone)]
struct Queue {
    parcels: mpsc::UnboundedSender<Parcel>,
    bytes: Arc<AtomicUsize>,
}

/// See the module.
pub(crate) struct Courier {
    /// Itself, for what goes on behind a call.
    me: Weak<Courier>,
    audiences: Mutex<HashMap<ShardId, Audience>>,
    queues: Mutex<HashMap<NodeId, Queue>>,
    wire: OnceLock<Weak<dyn Wire>>,
    /// Who is being brought up.
    turns: Mutex<BTreeSet<(ShardId, NodeId)>>,
    /// Replicas that did not answer, for the keeper.
    suspects: Mutex<BTreeMap<(ShardId, Epoch), Option<NodeId>>>,
    suspected: Notify,
    /// Nodes without a free segment, and when they said so.
    full: Mutex<BTreeMap<NodeId, Instant>>,
    /// Epochs that cannot be begun, since too few of the replicas in sync answer.
    alone: Mutex<BTreeMap<ShardId, Epoch>>,
    moved_bytes: AtomicU64,
    vain_bytes: AtomicU64,
    courtesy: Courtesy,
}

impl std::fmt::Debug for Courier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}

/// What [`Courier::expect`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It has to compare.
    New,
    /// It has been brought up, and is waited for.
    Included,
}

/// Bytes of segments that this node has sent or fetched since its start, to bring replicas up and make them equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub bytes: u64,
    /// Of those, the ones sent that were not taken: the epoch was over, or the other node gave no answer.
    pub in_vain: u64,
}

/// A segment on its way.
pub(crate) struct Sent<'a> {
    courier: &'a Courier,
    bytes: u64,
    pub taken: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.courier.vain_bytes.fetch_add(self.bytes, Ordering::Relaxed);
        }
    }
}

/// An attempt to bring a node up; over when dropped.
pub(crate) struct Turn {
    courier: Arc<Courier>,
    key: (ShardId, NodeId),
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.courier.turns.lock().remove(&self.key);
    }
}

fn missed(node: NodeId) -> Error {
    Error::new(Kind::NotReplicated, format!("node {node} missed something meanwhile"))
}

fn bytes(op: &ShardOp) -> usize {
    let content = match &op.op {
        Op::Append { bytes, .. } => bytes.len(),
        Op::Seal { footer, .. } => footer.len(),
        Op::Delete { hashes, .. } => hashes.len() * 32,
        Op::Free { .. } => 0,
    };
    content + 64
}

impl Courier {
    pub fn new() -> Arc<Courier> {
        Arc::new_cyclic(|me| Courier {
            me: Weak::clone(me),
            audiences: Mutex::default(),
            queues: Mutex::default(),
            wire: OnceLock::new(),
            turns: Mutex::default(),
            suspects: Mutex::default(),
            suspected: Notify::new(),
            full: Mutex::default(),
            alone: Mutex::default(),
            moved_bytes: AtomicU64::new(0),
            vain_bytes: AtomicU64::new(0),
            courtesy: Courtesy::default(),
        })
    }

    /// A client's chunks are read or written here.
    pub fn note_served(&self) {
        self.courtesy.note();
    }

    /// After a segment that took so long to send: lets clients go first.
    pub async fn give_way(&self, took: Duration) {
        let copies = self.turns.lock().len();
        self.courtesy.rest(took, copies).await;
    }

    /// So many bytes of a segment came from another node.
    pub fn note_fetched(&self, bytes: usize) {
        self.moved_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So many bytes of a segment go to another node: in vain, unless it is said that they were taken.
    pub fn note_sent(&self, bytes: usize) -> Sent<'_> {
        self.note_fetched(bytes);
        Sent { courier: self, bytes: bytes as u64, taken: false }
    }

    pub fn moved(&self) -> Moved {
        Moved {
            bytes: self.moved_bytes.load(Ordering::Relaxed),
            in_vain: self.vain_bytes.load(Ordering::Relaxed),
        }
    }

    /// The node whose connections and map are used. The store is opened before there is one.
    pub fn attach(&self, node: Weak<dyn Wire>) {
        // Attached twice it is the same one.
        let _ = self.wire.set(node);
    }

    /// From now on, under this epoch, these other replicas are in sync. Who has been entered since an earlier attempt
    /// at the same epoch stays.
    pub fn begin(&self, shard: ShardId, epoch: Epoch, in_sync: &[NodeId]) {
        let listener =
            |node: &NodeId| Listener { node: *node, in_sync: true, held: None, broken: false };
        let mut audiences = self.audiences.lock();
        let before = audiences.remove(&shard).filter(|before| before.epoch == epoch);
        let joiners = before.into_iter().flat_map(|before| before.listeners);
        let joiners = joiners.filter(|other| !in_sync.contains(&other.node));
        let listeners = in_sync.iter().map(listener).chain(joiners).collect();
        audiences.insert(shard, Audience { epoch, listeners });
    }

    /// The leader has refused to go on with those that answer: they are too few.
    pub fn note_alone(&self, shard: ShardId, epoch: Epoch) {
        self.alone.lock().insert(shard, epoch);
    }

    pub fn is_alone(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.alone.lock().get(&shard) == Some(&epoch)
    }

    /// Enters a node that is going to compare: what happens from now on is held for it.
    pub fn expect(&self, shard: ShardId, epoch: Epoch, node: NodeId) -> Result<Expected, Error> {
        let mut audiences = self.audiences.lock();
        let audience = audiences.get_mut(&shard).filter(|audience| audience.epoch == epoch);
        let Some(audience) = audience else {
            let why = format!("epoch {epoch} of shard {shard} is not led here");
            return Err(Error::new(Kind::StaleEpoch, why));
        };
        audience.listeners.retain(|listener| listener.node != node || listener.in_sync);
        if audience.listeners.iter().any(|listener| listener.node == node) {
            // To compare again would take away from it what somebody counts on.
            return Ok(Expected::Included);
        }
        let held = Some(Vec::new());
        audience.listeners.push(Listener { node, in_sync: false, held, broken: false });
        Ok(Expected::New)
    }

    /// It has compared: what was held since goes to it, and what follows.
    pub fn release(
        &self,
        shard: ShardId,
        node: NodeId,
        epoch: Epoch,
        next: OpNumber,
    ) -> Result<(), Error> {
        let mut audiences = self.audiences.lock();
        let listener = audiences
            .get_mut(&shard)
            .filter(|audience| audience.epoch == epoch)
            .and_then(|audience| audience.listeners.iter_mut().find(|other| other.node == node));
        let Some(listener) = listener.filter(|listener| !listener.broken) else {
            return Err(missed(node));
        };
        let mut held = listener.held.take().unwrap_or_default();
        held.retain(|op| op.epoch == epoch && op.number >= next);
        if !held.is_empty() {
            // In the same breath, so that no later op overtakes them.
            self.send(node, Parcel { shards: vec![shard], ops: held, answer: None });
        }
        Ok(())
    }

    /// From now on it is waited for like those in sync. When this returns it has everything that anybody was
    /// answered before, so it may be entered in the map.
    pub async fn include(&self, shard: ShardId, node: NodeId, epoch: Epoch) -> Result<(), Error> {
        let answered = {
            let mut audiences = self.audiences.lock();
            let listener = audiences
                .get_mut(&shard)
                .filter(|audience| audience.epoch == epoch)
                .and_then(|audience| audience.listeners.iter_mut().find(|one| one.node == node))
                .filter(|listener| !listener.broken && listener.held.is_none());
            let Some(listener) = listener else { return Err(missed(node)) };
            listener.in_sync = true;
            let (answer, answered) = oneshot::channel();
            // Behind everything that was sent before.
            let parcel = Parcel { shards: vec![shard], ops: Vec::new(), answer: Some(answer) };
            self.send(node, parcel);
            answered
        };
        let failed = answered.await.map_or(true, |failed| failed.contains_key(&shard));
        if failed || !self.is_whole(shard, node, epoch) { Err(missed(node)) } else { Ok(()) }
    }

    /// One attempt at a time to bring a node up. `None`: there is one.
    pub fn turn(self: &Arc<Courier>, shard: ShardId, node: NodeId) -> Option<Turn> {
        let new = self.turns.lock().insert((shard, node));
        new.then(|| Turn { courier: Arc::clone(self), key: (shard, node) })
    }

    /// It is not going to be brought up. One that is waited for stays: only a new epoch is without it.
    pub fn dismiss(&self, shard: ShardId, node: NodeId, epoch: Epoch) {
        let mut audiences = self.audiences.lock();
        let audience = audiences.get_mut(&shard).filter(|audience| audience.epoch == epoch);
        if let Some(audience) = audience {
            audience.listeners.retain(|other| other.node != node || other.in_sync);
        }
    }

    fn is_whole(&self, shard: ShardId, node: NodeId, epoch: Epoch) -> bool {
        let audiences = self.audiences.lock();
        let audience = audiences.get(&shard).filter(|audience| audience.epoch == epoch);
        let mut listeners = audience.into_iter().flat_map(|audience| &audience.listeners);
        listeners.any(|other| other.node == node && !other.broken)
    }

    /// Whether one of these shards still has the node among its listeners, with nothing missed.
    fn hears(&self, node: NodeId, shards: &[ShardId]) -> bool {
        let audiences = self.audiences.lock();
        shards.iter().filter_map(|shard| audiences.get(shard)).any(|audience| {
            audience.listeners.iter().any(|other| other.node == node && !other.broken)
        })
    }

    fn note_room(&self, node: NodeId, room: bool) {
        let mut full = self.full.lock();
        match room {
            true => full.remove(&node),
            false => full.insert(node, clock::now()),
        };
    }

    /// Shards whose ops did not reach everybody, with who failed, if that is known.
    pub fn take_suspects(&self) -> BTreeMap<(ShardId, Epoch), Option<NodeId>> {
        std::mem::take(&mut self.suspects.lock())
    }

    fn suspect(&self, shard: ShardId, epoch: Epoch, node: Option<NodeId>) {
        let mut suspects = self.suspects.lock();
        let known = suspects.entry((shard, epoch)).or_insert(node);
        *known = known.or(node);
        self.suspected.notify_one();
    }

    /// Ends when there is a suspect that was not there at the call before.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }

    fn send(&self, to: NodeId, parcel: Parcel) {
        let size = parcel.ops.iter().map(bytes).sum();
        let mut queues = self.queues.lock();
        let parcel = match queues.get(&to) {
            Some(queue) => {
                queue.bytes.fetch_add(size, Ordering::Relaxed);
                match queue.parcels.send(parcel) {
                    Ok(()) => return,
                    Err(mpsc::error::SendError(parcel)) => parcel,
                }
            }
            None => parcel,
        };
        let Some(wire) = self.wire.get().cloned() else { return };
        let (sender, parcels) = mpsc::unbounded_channel();
        // It has just been made, so somebody takes it.
        let _ = sender.send(parcel);
        let queue = Queue { parcels: sender, bytes: Arc::new(AtomicUsize::new(size)) };
        queues.insert(to, queue.clone());
        tokio::spawn(deliver(Weak::clone(&self.me), wire, to, parcels, queue.bytes));
    }

    /// Whether so much waits for the node that one that nobody waits for had better stop listening.
    fn is_behind(&self, node: NodeId) -> bool {
        let queues = self.queues.lock();
        queues
            .get(&node)
            .is_some_and(|queue| queue.bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX)
    }

    fn broke(&self, to: NodeId, shards: impl Iterator<Item = ShardId>) {
        let mut audiences = self.audiences.lock();
        for shard in shards {
            let listeners = audiences.get_mut(&shard).map(|audience| &mut audience.listeners);
            for listener in listeners.into_iter().flatten() {
                listener.broken |= listener.node == to;
            }
        }
    }
}

impl Replicator for Courier {
    fn has_audience(&self, shard: ShardId) -> bool {
        let audiences = self.audiences.lock();
        audiences.get(&shard).is_some_and(|audience| !audience.listeners.is_empty())
    }

    fn has_room(&self, shard: ShardId) -> bool {
        let mut full = self.full.lock();
        full.retain(|_, said| clock::elapsed(*said) < FULL_FOR);
        if full.is_empty() {
            return true;
        }
        let audiences = self.audiences.lock();
        let mut listeners = audiences.get(&shard).into_iter().flat_map(|one| &one.listeners);
        !listeners.any(|listener| listener.in_sync && full.contains_key(&listener.node))
    }

    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated {
        self.note_served();
        let mut waited: BTreeMap<NodeId, Vec<ShardOp>> = BTreeMap::new();
        let mut told: BTreeMap<NodeId, Vec<ShardOp>> = BTreeMap::new();
        let mut failed = BTreeMap::new();
        let mut epochs = BTreeMap::new();
        let mut audiences = self.audiences.lock();
        for op in ops {
            epochs.insert(op.shard, op.epoch);
            let audience = audiences.get_mut(&op.shard);
            let Some(audience) = audience.filter(|audience| audience.epoch == op.epoch) else {
                // The keeper is about to begin another epoch.
                failed.insert(op.shard, ReplicationError::NotNow);
                continue;
            };
            for listener in &mut audience.listeners {
                match &mut listener.held {
                    _ if listener.broken && listener.in_sync => {
                        failed.insert(op.shard, ReplicationError::NotNow);
                    }
                    _ if listener.broken => {}
                    Some(held) => {
                        held.push(op.clone());
                        let total: usize = held.iter().map(bytes).sum();
                        if total > HELD_BYTES_MAX {
                            (listener.broken, listener.held) = (true, None);
                        }
                    }
                    None if listener.in_sync => {
                        waited.entry(listener.node).or_default().push(op.clone());
                    }
                    None if self.is_behind(listener.node) => listener.broken = true,
                    None => told.entry(listener.node).or_default().push(op.clone()),
                }
            }
        }
        let mut answers = Vec::new();
        for (node, ops) in waited {
            let shards: Vec<ShardId> = ops.iter().map(|op| op.shard).collect();
            let (answer, answered) = oneshot::channel();
            self.send(node, Parcel { shards: shards.clone(), ops, answer: Some(answer) });
            answers.push((node, shards, answered));
        }
        for (node, ops) in told {
            let shards = ops.iter().map(|op| op.shard).collect();
            self.send(node, Parcel { shards, ops, answer: None });
        }
        drop(audiences);
        let me = Weak::clone(&self.me);
        Box::pin(async move {
            let mut unheard = Vec::new();
            for (to, shards, answered) in answers {
                let all =
                    || shards.iter().map(|shard| (*shard, ReplicationError::NotNow)).collect();
                for (shard, why) in answered.await.unwrap_or_else(|_| all()) {
                    unheard.push((shard, to, why));
                    failed.insert(shard, why);
                }
            }
            if let Some(courier) = me.upgrade() {
                for (shard, to, why) in unheard {
                    let epoch = epochs.get(&shard).copied().unwrap_or_default();
                    let who = matches!(why, ReplicationError::NotNow).then_some(to);
                    courier.suspect(shard, epoch, who);
                }
                for shard in failed.keys() {
                    let epoch = epochs.get(shard).copied().unwrap_or_default();
                    courier.suspect(*shard, epoch, None);
                }
            }
            failed.into_iter().collect()
        })
    }
}

/// Takes parcels to one node, one message at a time, until the node stops.
async fn deliver(
    courier: Weak<Courier>,
    wire: Weak<dyn Wire>,
    to: NodeId,
    mut parcels: mpsc::UnboundedReceiver<Parcel>,
    waiting: Arc<AtomicUsize>,
) {
    while let Some(first) = parcels.recv().await {
        let (Some(courier), Some(wire)) = (courier.upgrade(), wire.upgrade()) else { return };
        let mut batch = vec![first];
        let mut size: usize = batch[0].ops.iter().map(bytes).sum();
        while size < OPS_BYTES_MAX
            && let Ok(next) = parcels.try_recv()
        {
            size += next.ops.iter().map(bytes).sum::<usize>();
            batch.push(next);
        }
        waiting.fetch_sub(size, Ordering::Relaxed);
        // What nobody waits for need not go to one that has missed something.
        let useful =
            |parcel: &&Parcel| parcel.answer.is_some() || courier.hears(to, &parcel.shards);
        let ops: Vec<ShardOp> =
            batch.iter().filter(useful).flat_map(|parcel| &parcel.ops).cloned().collect();
        let failed = apply(&courier, &*wire, to, ops).await;
        // Whoever waits hears of it; of the others it has to be remembered.
        let unwaited = batch.iter().filter(|parcel| parcel.answer.is_none());
        let missed = unwaited.flat_map(|parcel| &parcel.shards).filter(|s| failed.contains_key(s));
        courier.broke(to, missed.copied());
        for Parcel { shards, answer, .. } in batch {
            let Some(answer) = answer else { continue };
            let failed = failed.iter().filter(|(shard, _)| shards.contains(shard));
            // Who asked may have gone.
            let _ = answer.send(failed.map(|(shard, why)| (*shard, *why)).collect());
        }
    }
}

/// Has a node apply ops, in as many messages as it takes; the shards for which that failed.
async fn apply(
    courier: &Courier,
    wire: &dyn Wire,
    to: NodeId,
    ops: Vec<ShardOp>,
) -> BTreeMap<ShardId, Failed> {
    let mut failed = BTreeMap::new();
    let mut left = ops.into_iter().peekable();
    while left.peek().is_some() {
        let (mut some, mut size) = (Vec::new(), 0);
        while let Some(op) = left.next_if(|op| size == 0 || size + bytes(op) <= OPS_BYTES_MAX) {
            size += bytes(&op);
            // What follows a failure would only be a gap.
            if !failed.contains_key(&op.shard) {
                some.push(op);
            }
        }
        let shards: Vec<ShardId> = some.iter().map(|op| op.shard).collect();
        let told = match wire.target_of(to) {
            Ok(target) => send(courier, wire, &target, some).await,
            Err(failure) => Err(Error::new(Kind::Io, failure.to_string())),
        };
        match told {
            Ok(applied) => {
                for (shard, result) in applied {
                    match result {
                        Ok(_) => {}
                        Err(Refused::StaleEpoch(epoch)) => {
                            failed.insert(shard, ReplicationError::Deposed(epoch));
                        }
                        Err(Refused::NoSpace) => {
                            tracing::info!(%shard, node = %to, "a replica is full");
                            failed.insert(shard, ReplicationError::NoSpace);
                        }
                        Err(Refused::Other(why)) => {
                            tracing::info!(%shard, node = %to, why, "a replica takes no ops");
                            failed.insert(shard, ReplicationError::NotNow);
                        }
                    }
                }
            }
            Err(error) => {
                tracing::info!(node = %to, %error, "a replica does not answer");
                failed.extend(shards.into_iter().map(|shard| (shard, ReplicationError::NotNow)));
                // Nor will it answer the rest.
                failed.extend(left.map(|op| (op.shard, ReplicationError::NotNow)));
                return failed;
            }
        }
    }
    failed
}

async fn send(
    courier: &Courier,
    wire: &dyn Wire,
    target: &Target,
    ops: Vec<ShardOp>,
) -> Result<Vec<(ShardId, Result<OpNumber, Refused>)>, Error> {
    if ops.is_empty() {
        return Ok(Vec::new());
    }
    match ask(wire, target, &Ask::Apply { ops }, ANSWER_WITHIN).await? {
        Told::Applied { shards, room } => {
            courier.note_room(target.node, room);
            Ok(shards)
        }
        _ => Err(Error::new(Kind::Invalid, format!("{target}: an answer to another question"))),
    }
}
