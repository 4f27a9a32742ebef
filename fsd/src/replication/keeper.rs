//! What a node has to do about shards: begin the epochs of those that it is the primary of, ask for new ones where
//! replicas fail, bring new replicas up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest};
use raftmeta::read;
use raftmeta_types::cluster::ShardInfo;
use raftmeta_types::{Epoch, MetaError, NodeId, ShardId};
use tokio::task::JoinSet;

use super::director;
use super::remote::Remote;
use crate::chunks::{Error, Kind, LeadError, OpNumber, Role, Snapshot};
use crate::node::Node;
use crate::service::storage;

/// How often the map and what failed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Epochs begun at once.
const BEGINNING_MAX: usize = 16;
/// Before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How a beginning ended: the shard and its epoch, and who failed and why.
type Begun = (ShardId, Epoch, Result<(), (Option<NodeId>, Error)>);

#[derive(Default)]
struct Keeper {
    /// Version of the map that was looked at last.
    seen: Option<u64>,
    mine: Vec<ShardInfo>,
    beginning: BTreeMap<ShardId, Epoch>,
    tasks: JoinSet<Begun>,
    /// New epochs that are needed, instead of these, and without whom.
    wanted: BTreeMap<ShardId, (Epoch, Option<NodeId>)>,
    asked: Option<Instant>,
    /// Not before.
    again: BTreeMap<ShardId, Instant>,
}

/// Until the node stops.
pub(crate) async fn keep(node: Arc<Node>) {
    let mut stopping = node.stopping();
    let mut keeper = Keeper::default();
    loop {
        let round = async {
            keeper.collect(&node);
            if let Err(failure) = keeper.look(&node) {
                tracing::warn!(%failure, "looking after shards");
            }
            keeper.ask(&node).await;
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = round => {}
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Keeper {
    /// What has ended or failed since.
    fn collect(&mut self, node: &Arc<Node>) {
        while let Some(ended) = self.tasks.try_join_next() {
            let Ok((shard, epoch, result)) = ended else { continue };
            self.beginning.remove(&shard);
            let Err((who, error)) = result else {
                tracing::debug!(%shard, %epoch, "an epoch is begun");
                self.wanted.remove(&shard);
                continue;
            };
            tracing::info!(%shard, %epoch, ?who, %error, "an epoch is not begun");
            self.again.insert(shard, Instant::now() + PAUSE);
            match error.kind() {
                // The map tells which epoch there is.
                Kind::StaleEpoch => {}
                // Unreachable, or failing.
                Kind::Io | Kind::NoSpace | Kind::Poisoned | Kind::Damaged => {
                    if who.is_some() {
                        self.wanted.insert(shard, (epoch, who));
                    }
                }
                // The epoch was used before: by this node before a restart, or by a replica.
                _ => {
                    self.wanted.insert(shard, (epoch, None));
                }
            }
        }
        for ((shard, epoch), who) in node.courier.take_suspects() {
            self.wanted.insert(shard, (epoch, who));
        }
    }

    /// Begins what the map says and this node does not do yet.
    fn look(&mut self, node: &Arc<Node>) -> Result<(), Failure> {
        let view = node.group.view();
        let version = read::map_version(&view).map_err(storage)?;
        if self.seen != Some(version) {
            let mine = |shard: &ShardInfo| shard.primary == node.id;
            self.mine = read::shards(&view).map_err(storage)?.into_iter().filter(mine).collect();
            self.seen = Some(version);
        }
        let now = Instant::now();
        for shard in &self.mine {
            if self.tasks.len() >= BEGINNING_MAX {
                break;
            }
            if node.chunks.leads(shard.id) == Some(shard.epoch)
                || self.beginning.contains_key(&shard.id)
                || self.again.get(&shard.id).is_some_and(|at| now < *at)
                || self.wanted.get(&shard.id).is_some_and(|(epoch, _)| *epoch == shard.epoch)
            {
                continue;
            }
            self.again.remove(&shard.id);
            self.beginning.insert(shard.id, shard.epoch);
            // Deletions do not count as changes of the map.
            let fresh = read::shard(&view, shard.id).map_err(storage)?;
            if let Some(fresh) = fresh.filter(|fresh| fresh.epoch == shard.epoch) {
                self.tasks.spawn(begin(Arc::clone(node), fresh));
            }
        }
        Ok(())
    }

    /// Asks the leader for the epochs that are needed.
    async fn ask(&mut self, node: &Arc<Node>) {
        let current: BTreeMap<ShardId, Epoch> =
            self.mine.iter().map(|shard| (shard.id, shard.epoch)).collect();
        self.wanted.retain(|shard, (epoch, _)| current.get(shard) == Some(epoch));
        if self.wanted.is_empty() || self.asked.is_some_and(|at| at.elapsed() < PAUSE / 5) {
            return;
        }
        self.asked = Some(Instant::now());
        for (shard, (epoch, without)) in &mut self.wanted {
            let asked = request(node, *shard, *epoch, *without).await;
            match asked {
                Ok(()) | Err(Failure::Meta(MetaError::StaleEpoch(_))) => {}
                Err(failure) => {
                    tracing::info!(%shard, %epoch, ?without, %failure, "no new epoch");
                    // Too few would be left: perhaps the replica is back.
                    *without = None;
                    self.asked = Some(Instant::now() + PAUSE);
                }
            }
        }
    }
}

async fn request(
    node: &Arc<Node>,
    shard: ShardId,
    epoch: Epoch,
    without: Option<NodeId>,
) -> Result<(), Failure> {
    if node.leads() {
        return director::new_epoch(node, node.id, shard, epoch, without).await;
    }
    let request = NodeRequest::NewEpoch { shard, epoch, without };
    node.peers.ask(&node.leader()?, request, &[], ANSWER_WITHIN).await.map(drop)
}

/// Makes the replicas equal and this node the one that takes puts.
async fn begin(node: Arc<Node>, shard: ShardInfo) -> Begun {
    let ShardInfo { id, epoch, gc_epoch, .. } = shard;
    let others: Vec<NodeId> =
        shard.in_sync.iter().copied().filter(|other| *other != node.id).collect();
    let remotes: Result<Vec<Remote>, _> =
        others.iter().map(|other| remote(&node, *other)).collect();
    let remotes = match remotes {
        Ok(remotes) => remotes,
        Err(failure) => {
            let error = Error::new(Kind::NotReplicated, failure.to_string());
            return (id, epoch, Err((None, error)));
        }
    };
    node.courier.begin(id, epoch, &others);
    let led = node.chunks.lead(id, epoch, gc_epoch, &remotes).await;
    let failed = |LeadError { peer, error }| (peer.map(|at| others[at]), error);
    (id, epoch, led.map_err(failed))
}

fn remote(node: &Arc<Node>, other: NodeId) -> Result<Remote, Failure> {
    let (peers, courier) = (Arc::clone(&node.peers), Arc::clone(&node.courier));
    Ok(Remote { peers, courier, target: node.target_of(other)? })
}

/// `NodeRequest::BringUp`: when this returns, the other node has everything that anybody was answered, and will have
/// all that follows.
pub(crate) async fn bring_up(
    node: &Arc<Node>,
    shard: ShardId,
    epoch: Epoch,
    other: NodeId,
) -> Result<(), Failure> {
    if node.chunks.leads(shard) != Some(epoch) {
        return Err(Failure::NotReady(format!("epoch {epoch} of shard {shard} is not led here")));
    }
    let not_ready = |error: Error| Failure::NotReady(error.to_string());
    let remote = remote(node, other)?;
    node.courier.expect(shard, epoch, other).map_err(not_ready)?;
    let brought = async {
        node.chunks.bring_up(shard, &remote).await.map_err(|error| error.error)?;
        node.courier.include(shard, other, epoch).await
    };
    let done = brought.await;
    if done.is_err() {
        node.courier.dismiss(shard, other, epoch);
    }
    done.map_err(not_ready)
}

/// `NodeRequest::Forget`: drops what this node has of a shard that it holds no more. Its own map has to say so, too.
pub(crate) async fn forget(node: &Arc<Node>, shard: ShardId, epoch: Epoch) -> Result<(), Failure> {
    let info = read::shard(&node.group.view(), shard).map_err(storage)?;
    let info = info.ok_or(Failure::Meta(MetaError::NotFound))?;
    if info.epoch < epoch || info.in_sync.contains(&node.id) {
        return Err(Failure::NotReady(format!("shard {shard} is held here as far as is known")));
    }
    let failed = |error: Error| Failure::NotReady(error.to_string());
    node.chunks.set_role(shard, Role::None).map_err(failed)?;
    let nothing = Snapshot {
        epoch: info.epoch,
        gc_epoch: info.gc_epoch,
        next: OpNumber::FIRST,
        segments: Vec::new(),
    };
    node.chunks.compare(shard, &nothing).await.map_err(failed)?;
    node.chunks.set_role(shard, Role::None).map_err(failed)
}
