//! What a node has to do about shards: begin the epochs of those that it is the primary of, ask for new ones where
//! replicas fail, bring new replicas up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::message::{Failure, NodeRequest, Response};
use raftmeta::read;
use raftmeta_types::cluster::ShardInfo;
use raftmeta_types::{Epoch, MetaError, NodeId, ShardId};
use tokio::task::{AbortHandle, JoinSet};

use super::courier::Expected;
use super::director;
use super::host::{Host, Wire};
use super::remote::Remote;
use crate::chunks::{Error, Kind, LeadError, Peer};
use crate::clock;
use crate::service::storage;

/// How often the map and what failed is looked at, while there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// And while there is not, and nothing happens.
const REST: Duration = Duration::from_secs(1);
/// Epochs begun at once.
const BEGINNING_MAX: usize = 16;
/// Before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How a beginning ended: the shard and its epoch, and who failed and why.
type Begun = (ShardId, Epoch, Result<(), (Option<NodeId>, Error)>);

/// A new epoch that is needed.
#[derive(Clone, Copy)]
struct Wanted {
    /// Instead of this one.
    epoch: Epoch,
    /// Who does not answer, if that is known.
    without: Option<NodeId>,
    /// This one was worked under and cannot be begun again.
    used: bool,
}

#[derive(Default)]
struct Keeper {
    /// The least epochs that this node may begin. What it was before it was started does not count any more: it asks the
    /// leader for new ones first.
    least: Option<BTreeMap<ShardId, Epoch>>,
    /// Version of the map that was looked at last.
    seen: Option<u64>,
    mine: Vec<ShardInfo>,
    /// All of them are led under their epochs.
    led: bool,
    beginning: BTreeMap<ShardId, (Epoch, AbortHandle)>,
    tasks: JoinSet<Begun>,
    /// New epochs that are needed, instead of these, and without whom.
    wanted: BTreeMap<ShardId, Wanted>,
    asked: Option<Instant>,
    /// Not before.
    again: BTreeMap<ShardId, Instant>,
}

/// Until the node stops.
pub(crate) async fn keep<H: Host>(node: Arc<H>) {
    let mut stopping = node.stopping();
    let mut keeper = Keeper::default();
    loop {
        let applied = node.applied();
        let round = async {
            keeper.collect(&*node);
            keeper.reclaim(&node).await;
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
            () = clock::sleep(LOOK_EVERY) => {}
        }
        if !keeper.is_at_rest() {
            continue;
        }
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            () = node.courier().suspected() => {}
            () = node.applied_beyond(applied) => {}
            () = clock::sleep(REST) => {}
        }
    }
}

impl Keeper {
    /// Whether only news can make work.
    fn is_at_rest(&self) -> bool {
        self.least.is_some() && self.led && self.wanted.is_empty() && self.tasks.is_empty()
    }

    /// What has ended or failed since.
    fn collect(&mut self, node: &impl Host) {
        while let Some(ended) = self.tasks.try_join_next() {
            // One that was given up, or panicked, has no outcome.
            let Ok((shard, epoch, result)) = ended else { continue };
            self.beginning.retain(|id, (of, _)| *id != shard || *of != epoch);
            let Err((who, error)) = result else {
                tracing::debug!(%shard, %epoch, "an epoch is begun");
                self.wanted.remove(&shard);
                continue;
            };
            tracing::info!(%shard, %epoch, ?who, %error, "an epoch is not begun");
            self.again.insert(shard, clock::now() + PAUSE);
            match error.kind() {
                // The map tells which epoch there is.
                Kind::StaleEpoch => {}
                // Unreachable, or failing.
                Kind::Io | Kind::NoSpace | Kind::Poisoned | Kind::Damaged => {
                    if who.is_some() {
                        self.wanted.insert(shard, Wanted { epoch, without: who, used: false });
                    }
                }
                // The epoch was used before: by this node before a restart, or by a replica.
                _ => {
                    self.wanted.insert(shard, Wanted { epoch, without: None, used: true });
                }
            }
        }
        for ((shard, epoch), without) in node.courier().take_suspects() {
            self.wanted.insert(shard, Wanted { epoch, without, used: true });
        }
        self.beginning.retain(|_, (_, task)| !task.is_finished());
    }

    /// After a start: new epochs for all that this node is the primary of. Under the old ones it may have promised what
    /// it does not know any more, and its map may be old.
    async fn reclaim<H: Host>(&mut self, node: &Arc<H>) {
        if self.least.is_some() || self.asked.is_some_and(|at| clock::elapsed(at) < PAUSE) {
            return;
        }
        let known = read::nodes(&node.view()).unwrap_or_default();
        if !known.iter().any(|info| info.id == node.id()) {
            // It has not heard of itself yet.
            return;
        }
        self.asked = Some(clock::now());
        // Whoever does not lead may see the cluster as it was before it grew.
        let alone = node.leads() && known.len() == 1;
        let asked = match (alone, node.leads()) {
            (true, _) => Ok(Vec::new()),
            (false, true) => director::reclaim(node, node.id()).await,
            (false, false) => match node.leader() {
                Ok(leader) => {
                    let asked = node.ask(&leader, NodeRequest::Reclaim, ANSWER_WITHIN);
                    match asked.await {
                        Ok(Response::Epochs(epochs)) => Ok(epochs),
                        Ok(_) => Err(Failure::NotReady("an answer to another question".into())),
                        Err(failure) => Err(failure),
                    }
                }
                Err(failure) => Err(failure),
            },
        };
        match asked {
            Ok(epochs) => self.least = Some(epochs.into_iter().collect()),
            Err(failure) => tracing::debug!(%failure, "asking for new epochs"),
        }
    }

    /// Begins what the map says and this node does not do yet.
    fn look<H: Host>(&mut self, node: &Arc<H>) -> Result<(), Failure> {
        let view = node.view();
        let version = read::map_version(&view).map_err(storage)?;
        if self.seen != Some(version) {
            let mine = |shard: &ShardInfo| shard.primary == node.id();
            self.mine = read::shards(&view).map_err(storage)?.into_iter().filter(mine).collect();
            self.seen = Some(version);
        }
        let leads = |shard: &ShardInfo| node.chunks().leads(shard.id) == Some(shard.epoch);
        self.led = self.mine.iter().all(leads);
        let Some(least) = &self.least else { return Ok(()) };
        let now = clock::now();
        for shard in &self.mine {
            if let Some((_, task)) =
                self.beginning.get(&shard.id).filter(|(epoch, _)| *epoch != shard.epoch)
            {
                // The map has gone on.
                task.abort();
                self.beginning.remove(&shard.id);
            }
            if self.tasks.len() >= BEGINNING_MAX {
                break;
            }
            if leads(shard)
                || self.beginning.contains_key(&shard.id)
                || least.get(&shard.id).is_some_and(|least| shard.epoch < *least)
                || self.again.get(&shard.id).is_some_and(|at| now < *at)
                || self.wanted.get(&shard.id).is_some_and(|wanted| wanted.epoch == shard.epoch)
            {
                continue;
            }
            self.again.remove(&shard.id);
            // Deletions do not count as changes of the map.
            let fresh = read::shard(&view, shard.id).map_err(storage)?;
            if let Some(fresh) = fresh.filter(|fresh| fresh.epoch == shard.epoch) {
                let task = self.tasks.spawn(begin(Arc::clone(node), fresh));
                self.beginning.insert(shard.id, (shard.epoch, task));
            }
        }
        Ok(())
    }

    /// Asks the leader for the epochs that are needed.
    async fn ask(&mut self, node: &Arc<impl Host>) {
        let current: BTreeMap<ShardId, Epoch> =
            self.mine.iter().map(|shard| (shard.id, shard.epoch)).collect();
        self.wanted.retain(|shard, wanted| current.get(shard) == Some(&wanted.epoch));
        if self.wanted.is_empty() || self.asked.is_some_and(|at| clock::elapsed(at) < PAUSE / 5) {
            return;
        }
        self.asked = Some(clock::now());
        let all: Vec<(ShardId, Wanted)> = self.wanted.iter().map(|(id, w)| (*id, *w)).collect();
        for (shard, Wanted { epoch, without, used }) in all {
            match request(node, shard, epoch, without).await {
                Ok(()) | Err(Failure::Meta(MetaError::StaleEpoch(_))) => {}
                Err(failure) => {
                    tracing::info!(%shard, %epoch, ?without, %failure, "no new epoch");
                    // Too few would be left. An epoch that nobody has worked under is begun once more, in case the
                    // replica is back; another one needs a successor first.
                    match used {
                        true => self.wanted.insert(shard, Wanted { epoch, without: None, used }),
                        false => {
                            node.courier().note_alone(shard, epoch);
                            self.wanted.remove(&shard)
                        }
                    };
                    self.again.insert(shard, clock::now() + PAUSE);
                    self.asked = Some(clock::now() + PAUSE);
                }
            }
        }
    }
}

async fn request(
    node: &Arc<impl Host>,
    shard: ShardId,
    epoch: Epoch,
    without: Option<NodeId>,
) -> Result<(), Failure> {
    if node.leads() {
        return director::new_epoch(node, node.id(), shard, epoch, without).await;
    }
    let request = NodeRequest::NewEpoch { shard, epoch, without };
    node.ask(&node.leader()?, request, ANSWER_WITHIN).await.map(drop)
}

/// Makes the replicas equal and this node the one that takes puts.
async fn begin<H: Host>(node: Arc<H>, shard: ShardInfo) -> Begun {
    let ShardInfo { id, epoch, gc_epoch, .. } = shard;
    let others: Vec<NodeId> =
        shard.in_sync.iter().copied().filter(|other| *other != node.id()).collect();
    let remotes: Result<Vec<Remote>, _> =
        others.iter().map(|other| remote(&node, *other, false)).collect();
    let remotes = match remotes {
        Ok(remotes) => remotes,
        Err(failure) => {
            let error = Error::new(Kind::NotReplicated, failure.to_string());
            return (id, epoch, Err((None, error)));
        }
    };
    node.courier().begin(id, epoch, &others);
    let led = node.chunks().lead(id, epoch, gc_epoch, &remotes).await;
    let failed = |LeadError { peer, error }| (peer.map(|at| others[at]), error);
    (id, epoch, led.map_err(failed))
}

/// `aside`: see [`Remote`].
fn remote<H: Host>(node: &Arc<H>, other: NodeId, aside: bool) -> Result<Remote, Failure> {
    let wire = Arc::clone(node) as Arc<dyn Wire>;
    let courier = Arc::clone(node.courier());
    Ok(Remote { wire, courier, target: node.target_of(other)?, aside })
}

/// `NodeRequest::BringUp`: when this returns, the other node has everything that anybody was answered, and will have
/// all that follows. A primary that cannot begin its epoch, for too few of the others in sync answer, takes no puts, and
/// can still make the copies with which there are enough; unless it has been started since it was equal to the others.
pub(crate) async fn bring_up(
    node: &Arc<impl Host>,
    shard: ShardId,
    epoch: Epoch,
    other: NodeId,
) -> Result<(), Failure> {
    let led = node.chunks().leads(shard) == Some(epoch);
    if !led && !node.courier().is_alone(shard, epoch) {
        return Err(Failure::NotReady(format!("epoch {epoch} of shard {shard} is not led here")));
    }
    if !led && !node.chunks().is_whole(shard) {
        let why = "this node was started since, and may lack the end of it without knowing";
        return Err(Failure::NotReady(format!("shard {shard} waits for another replica: {why}")));
    }
    let not_ready = |error: Error| Failure::NotReady(error.to_string());
    let remote = remote(node, other, true)?;
    let Some(_turn) = node.courier().turn(shard, other) else {
        return Err(Failure::NotReady(format!("node {other} is being brought up already")));
    };
    let brought = async {
        let before = match led {
            true => None,
            false => Some(node.chunks().begun(shard, epoch).await?),
        };
        if node.courier().expect(shard, epoch, other)? == Expected::New {
            node.chunks().bring_up(shard, &remote).await.map_err(|error| error.error)?;
        }
        if let Some(before) = before
            && node.chunks().begun(shard, epoch).await? != before
        {
            let why = format!("another replica of shard {shard} is back and had more of it");
            return Err(Error::new(Kind::NotReplicated, why));
        }
        node.courier().include(shard, other, epoch).await?;
        // It may have dropped the shard in between, on the word of an earlier leader.
        remote.caught_up(shard, epoch).await
    };
    let done = brought.await;
    if done.is_err() {
        node.courier().dismiss(shard, other, epoch);
    }
    done.map_err(not_ready)
}

/// `NodeRequest::Forget`: drops what this node has of a shard that it holds no more. Its own map has to say so, too.
/// `StaleEpoch`: it was being brought up under the present epoch, and may be about to enter the map under it.
pub(crate) async fn forget(node: &impl Host, shard: ShardId, epoch: Epoch) -> Result<(), Failure> {
    let info = read::shard(&node.view(), shard).map_err(storage)?;
    let info = info.ok_or(Failure::Meta(MetaError::NotFound))?;
    if info.epoch < epoch || info.in_sync.contains(&node.id()) {
        return Err(Failure::NotReady(format!("shard {shard} is held here as far as is known")));
    }
    let failed = |error: Error| match error.kind() {
        Kind::StaleEpoch => MetaError::StaleEpoch(info.epoch).into(),
        _ => Failure::NotReady(error.to_string()),
    };
    let forgotten = node.chunks().forget(shard, info.epoch).await.map_err(failed);
    node.upkeep().strays.forget();
    forgotten
}
