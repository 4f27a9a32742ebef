//! A node of the simulation: one life of it, from its start to its end. The chunk store, the courier, the keeper, the
//! director and the jobs are the product's; what is here instead of `Node` is the way from one to the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockd_ipc::SimVolume;
use bytes::Bytes;
use fsd_rpc::message::{Failure, NodeRequest, NodeUsage, Response};
use fsd_rpc::nodes::Target;
use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::cluster::{NodeInfo, NodeState};
use raftmeta_types::{ChunkHash, Command, Epoch, NodeId, Reply, ShardId};
use tokio::sync::watch;

use super::history::Moment;
use super::log::Reach;
use super::world::World;
use super::{CLUSTER, SHARDS};
use crate::chunks::{ChunkStore, Error, Keys, Kind, OpenParams, Replicated, Replicator, ShardOp};
use crate::clock::{self, simulated::since_start};
use crate::jobs::{self, Upkeep};
use crate::node::Liveness;
use crate::node::members::{self, Beats};
use crate::replication::{self, Courier, Director, Host, Telling, Wire, target_in};
use crate::service::storage;

/// What a commit takes.
const COMMIT_MIN: Duration = Duration::from_micros(400);
const COMMIT_MAX: Duration = Duration::from_millis(4);
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A node looks whether it leads.
const FOLLOW_EVERY: Duration = Duration::from_millis(20);
const MEMBERS_EVERY: Duration = Duration::from_millis(500);
/// A shard deletes so often.
const DELETE_EVERY: Duration = Duration::from_secs(2);
const JOBS_EVERY: Duration = Duration::from_secs(1);
/// Bytes that are cleaned in one round.
const CLEAN_BYTES: u64 = 1 << 20;

/// An answer on its way.
type Serving = Pin<Box<dyn Future<Output = Result<Response, Failure>> + Send>>;

pub(super) struct Life {
    pub world: Arc<World>,
    pub id: NodeId,
    /// No other life has it.
    pub number: u64,
    pub chunks: ChunkStore<SimVolume>,
    courier: Arc<Courier>,
    director: Mutex<Director>,
    beats: Mutex<Beats>,
    upkeep: Upkeep,
    /// The term in which it leads, from when it has taken the leadership up.
    led: watch::Sender<Option<u64>>,
    stopping: watch::Sender<bool>,
}

impl Life {
    /// Starts a node on this volume.
    pub async fn begin(
        world: &Arc<World>,
        id: NodeId,
        volume: SimVolume,
    ) -> Result<Arc<Life>, Error> {
        let view = world.log(|log, _, _| log.view(id, since_start()));
        let shards = read::shards(&view).expect("memory does not fail");
        let epochs = shards.iter().map(|shard| (shard.id, shard.gc_epoch)).collect();
        let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs };
        let courier = Courier::new();
        let replicator: Arc<dyn Replicator> = match world.careless {
            true => Arc::new(Careless(Arc::clone(&courier))),
            false => Arc::clone(&courier) as _,
        };
        let chunks = ChunkStore::open_member(volume, params, replicator).await?;
        let life = Arc::new(Life {
            world: Arc::clone(world),
            id,
            number: world.next_life(),
            chunks,
            courier,
            director: Mutex::default(),
            beats: Mutex::default(),
            upkeep: Upkeep::new(u32::from(SHARDS), Path::new("")),
            led: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
        });
        life.courier.attach(Arc::downgrade(&life) as _);
        tokio::spawn(replication::keep(Arc::clone(&life)));
        tokio::spawn(until_over(Arc::clone(&life), FOLLOW_EVERY, async |life| life.follow().await));
        tokio::spawn(until_over(Arc::clone(&life), MEMBERS_EVERY, async |life| {
            life.look_after().await
        }));
        tokio::spawn(work(Arc::clone(&life)));
        Ok(life)
    }

    /// Nothing that it still does reaches anybody.
    pub fn end(&self) {
        self.stopping.send_replace(true);
    }

    pub fn is_over(&self) -> bool {
        *self.stopping.borrow()
    }

    pub async fn over(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender is here.
        let _ = stopping.wait_for(|stop| *stop).await;
    }

    /// Its disk failed, so it can only be started again.
    pub fn is_sick(&self) -> bool {
        self.chunks.is_poisoned()
    }

    pub fn may_answer(&self) -> Result<(), Failure> {
        let lease = || self.world.log(|log, _, _| log.lease_valid(self.id, since_start()));
        match self.leads() && lease() {
            true => Ok(()),
            false => Err(Failure::NotReady("another node leads the cluster".into())),
        }
    }

    /// Takes the leadership up, or steps back.
    async fn follow(self: &Arc<Life>) {
        let term = self.world.log(|log, _, _| log.leads(self.id));
        if *self.led.borrow() == term {
            return;
        }
        if let Some(term) = term {
            let taken = self.end_interrupted_deletions().await;
            self.world.note(format_args!("{} leads in term {term}: {taken:?}", self.id));
            if taken.is_err() {
                return;
            }
        }
        self.led.send_replace(term);
    }

    /// As `node::lead` does.
    async fn end_interrupted_deletions(&self) -> Result<(), Failure> {
        for (shard, pending) in read::pending_deletes(&self.view()).map_err(storage)? {
            self.command(Command::EndDelete { shard, epoch: pending.epoch }, false).await?;
        }
        Ok(())
    }

    /// As `node::members` does, as far as it is not about the group's own members.
    async fn look_after(self: &Arc<Life>) {
        if !self.leads() {
            self.beats.lock().clear();
            return;
        }
        let nodes = read::nodes(&self.view()).expect("memory does not fail");
        if let Err(why) = members::rise(&**self, &nodes).await {
            self.world.note(format_args!("{} does not rise: {why}", self.id));
        }
        let stays = |other: &&NodeInfo| other.state != NodeState::Removed;
        let others: Vec<_> =
            nodes.iter().filter(|other| other.id != self.id).filter(stays).collect();
        members::listen(self, &others);
        for other in others {
            let beat = self.beats.lock().get(&other.id).cloned();
            if let Some(to) = members::next_state(other.state, beat, true) {
                self.set_state(other.id, other.state, to).await;
            }
        }
        for info in nodes.iter().filter(|info| info.state == NodeState::Draining) {
            let shards = read::shards(&self.view()).expect("memory does not fail");
            if !shards.iter().any(|shard| shard.in_sync.contains(&info.id)) {
                self.set_state(info.id, NodeState::Draining, NodeState::Drained).await;
            }
        }
        if let Err(failure) = replication::direct(self).await {
            self.world.note(format_args!("{} directs: {failure}", self.id));
        }
    }

    pub async fn set_state(&self, node: NodeId, from: NodeState, to: NodeState) {
        let set = self.command(Command::SetNodeState { node, from, to }, true).await;
        self.world.note(format_args!("{} says that {node} is {to}: {set:?}", self.id));
    }

    /// `admin::lost`.
    pub async fn remove_lost(&self, node: NodeId, heirs: Vec<(ShardId, NodeId)>) {
        let done = self.command(Command::RemoveLost { node, heirs }, true).await;
        self.world.note(format_args!("{} removes {node}, which is lost: {done:?}", self.id));
        self.world.tally.lock().removed += u64::from(done.is_ok());
    }

    /// `service::nodes`: what other nodes ask. In a box, because it asks other nodes in its turn.
    fn serve(self: Arc<Life>, from: NodeId, request: NodeRequest) -> Serving {
        Box::pin(async move { self.serve_now(from, request).await })
    }

    async fn serve_now(
        self: &Arc<Life>,
        from: NodeId,
        request: NodeRequest,
    ) -> Result<Response, Failure> {
        let node = self;
        match request {
            NodeRequest::DeleteChunks { shard, epoch, hashes } => {
                let bytes = self.delete_here(shard, epoch, &hashes).await?;
                return Ok(Response::Deleted { bytes });
            }
            NodeRequest::NewEpoch { shard, epoch, without } => {
                self.may_answer()?;
                replication::new_epoch(node, from, shard, epoch, without).await?;
            }
            NodeRequest::Reclaim => {
                self.may_answer()?;
                return replication::reclaim(node, from).await.map(Response::Epochs);
            }
            NodeRequest::BringUp { shard, epoch, node: other } => {
                replication::bring_up(node, shard, epoch, other).await?;
            }
            NodeRequest::Forget { shard, epoch } => {
                replication::forget(&**node, shard, epoch).await?;
            }
            NodeRequest::Unreferenced { shard, hashes } => {
                self.may_answer()?;
                jobs::delete_unreferenced(&**node, shard, hashes).await?;
            }
            NodeRequest::Usage { with_shards } => {
                return Ok(Response::Usage(self.usage(with_shards)));
            }
            NodeRequest::Announce { .. }
            | NodeRequest::PutChunks { .. }
            | NodeRequest::GetChunks { .. }
            | NodeRequest::Sizes { .. }
            | NodeRequest::Scrub(_)
            | NodeRequest::Clean => panic!("the simulation asks for that in another way"),
        }
        Ok(Response::Done)
    }

    fn usage(&self, with_shards: bool) -> NodeUsage {
        let usage = self.chunks.usage();
        NodeUsage {
            total_bytes: usage.total,
            used_bytes: usage.used,
            available_bytes: usage.free,
            reserve_bytes: usage.reserve,
            chunks: usage.chunks,
            strays: self.upkeep.strays.of(self),
            clock_ms: self.clock_ms(),
            shards: if with_shards { replication::led(self) } else { Vec::new() },
            ..NodeUsage::default()
        }
    }

    /// What becomes of an error of the store.
    pub fn failure(&self, error: &Error) -> Failure {
        match error.kind() {
            Kind::NoSpace => Failure::NoSpace,
            Kind::NotPrimary | Kind::NotReplicated | Kind::StaleEpoch => {
                Failure::NotReady(error.to_string())
            }
            _ => Failure::Storage(error.to_string()),
        }
    }

    async fn delete_here(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<u64, Failure> {
        let lens = hashes.iter().filter_map(|hash| self.chunks.stored_len(hash));
        let bytes = lens.map(u64::from).sum();
        let deleted = self.chunks.delete(shard, epoch, hashes).await;
        deleted.map_err(|error| self.failure(&error))?;
        Ok(bytes)
    }

    /// `Node::lift`: tells the primaries of these chunks the gc epochs that they have not heard of.
    pub async fn lift(&self, hashes: &[ChunkHash]) {
        self.upkeep.hold_deletions(hashes, u32::from(SHARDS));
        let shards: BTreeSet<ShardId> =
            hashes.iter().map(|hash| hash.shard(u32::from(SHARDS))).collect();
        for shard in shards {
            let info = read::shard(&self.view(), shard).expect("memory does not fail");
            let epoch = info.expect("shards are never removed").gc_epoch;
            let told = self.delete_chunks(shard, epoch, &[]).await;
            self.world.note(format_args!("{} lifts {shard} to {epoch}: {told:?}", self.id));
        }
    }

    /// `Node::put_chunks`, of those that belong to one node: at the primary, wherever that is.
    pub async fn put_at(
        &self,
        primary: NodeId,
        chunks: Vec<(ChunkHash, Bytes)>,
    ) -> Result<Vec<Epoch>, Failure> {
        let put = move |life: Arc<Life>| async move {
            let put = life.chunks.put(chunks).await;
            life.upkeep.note_put();
            put.map_err(|error| life.failure(&error))
        };
        if primary == self.id {
            return match self.world.life(primary) {
                Some(own) if !self.is_over() => put(own).await,
                Some(_) | None => std::future::pending().await,
            };
        }
        let put = self.world.call(self, primary, "put", ANSWER_WITHIN, put);
        put.await.map_err(Failure::NotReady)?
    }
}

/// A mistake, to see that it is found: it answers before the replicas have what was put.
struct Careless(Arc<Courier>);

impl Replicator for Careless {
    fn has_audience(&self, shard: ShardId) -> bool {
        self.0.has_audience(shard)
    }

    fn has_room(&self, shard: ShardId) -> bool {
        self.0.has_room(shard)
    }

    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated {
        tokio::spawn(self.0.replicate(ops));
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Does something again and again until the node stops.
async fn until_over(life: Arc<Life>, every: Duration, what: impl AsyncFn(&Arc<Life>)) {
    loop {
        tokio::select! {
            biased;
            () = life.over() => return,
            () = async {
                what(&life).await;
                clock::sleep(every).await;
            } => {}
        }
    }
}

/// `jobs::work`, as far as it is about chunks.
async fn work(life: Arc<Life>) {
    let mut sweep = jobs::Sweep::default();
    let mut led = None;
    loop {
        let round = async {
            let now = *life.led.borrow();
            if now != led {
                // What another leader did meanwhile is not known.
                (led, sweep) = (now, jobs::Sweep::default());
            }
            if led.is_some() {
                let collected = jobs::collect_in_turn(&*life, DELETE_EVERY).await;
                life.world.note(format_args!("{} collects {collected:?}", life.id));
                life.world.tally.lock().deleted +=
                    collected.map_or(0, |collected| collected.chunks);
            }
            let swept = sweep.step(&*life).await;
            life.world.note(format_args!("{} sweeps {swept:?}", life.id));
            sweep.hurry();
            if let Err(error) = life.chunks.clean(CLEAN_BYTES).await {
                life.world.note(format_args!("{} cleans: {:?}", life.id, error.kind()));
            }
            clock::sleep(JOBS_EVERY).await;
        };
        tokio::select! {
            biased;
            () = life.over() => return,
            () = round => {}
        }
    }
}

impl Wire for Life {
    fn target_of(&self, id: NodeId) -> Result<Target, Failure> {
        target_in(&self.view(), id)
    }

    fn tell(&self, target: &Target, message: Bytes, within: Duration) -> Telling {
        let (world, id, to) = (Arc::clone(&self.world), self.id, target.node);
        let own = world.life(id).filter(|life| !life.is_over() && std::ptr::eq(&**life, self));
        Box::pin(async move {
            // A node that is gone asks nobody.
            let Some(own) = own else { return std::future::pending().await };
            let serve = move |life: Arc<Life>| async move {
                replication::answer(&life.chunks, id, &message).await
            };
            let answer = world.call(&own, to, "ops", within, serve).await;
            let unreached = |why: String| Error::new(Kind::Io, format!("node {to}: {why}"));
            answer.map_err(unreached)?.map_err(|failure| unreached(failure.to_string()))
        })
    }
}

impl Host for Life {
    type View = Moment;
    type Volume = SimVolume;

    fn id(&self) -> NodeId {
        self.id
    }

    fn chunks(&self) -> &ChunkStore<SimVolume> {
        &self.chunks
    }

    fn courier(&self) -> &Arc<Courier> {
        &self.courier
    }

    fn director(&self) -> &Mutex<Director> {
        &self.director
    }

    fn beats(&self) -> &Mutex<Beats> {
        &self.beats
    }

    fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    fn view(&self) -> Moment {
        self.world.log(|log, _, _| log.view(self.id, since_start()))
    }

    fn applied(&self) -> Option<u64> {
        Some(self.world.log(|log, _, _| log.applied(self.id, since_start())))
    }

    async fn applied_beyond(&self, known: Option<u64>) {
        while self.applied() == known {
            clock::sleep(FOLLOW_EVERY).await;
        }
    }

    fn leads(&self) -> bool {
        self.led.borrow().is_some()
    }

    fn leader(&self) -> Result<Target, Failure> {
        match self.world.log(|log, _, _| log.follows(self.id)) {
            Some(id) if id != self.id => self.target_of(id),
            Some(_) | None => Err(Failure::NotReady("no leader is known".into())),
        }
    }

    fn clock_ms(&self) -> i64 {
        since_start().as_millis() as i64 + self.world.clock_off_ms(self.id)
    }

    /// Of one that is not reached the others say what they like.
    fn liveness(&self, id: NodeId) -> Liveness {
        self.world.log(|_, dice, net| {
            let reached = net.runs(id) && net.reaches(self.id, id) && net.reaches(id, self.id);
            let said = [Liveness::Alive, Liveness::Suspect, Liveness::Down, Liveness::Unknown];
            if reached { Liveness::Alive } else { said[dice.below(4) as usize] }
        })
    }

    async fn command(&self, command: Command, _durable: bool) -> Result<Reply, Failure> {
        let (world, id) = (&self.world, self.id);
        let Some(term) = world.log(|log, _, _| log.leads(id)) else {
            return Err(Failure::NotReady("this replica does not lead".into()));
        };
        loop {
            clock::sleep(world.roll(|dice| dice.between(COMMIT_MIN, COMMIT_MAX))).await;
            let now = since_start();
            let answer = world.log(|log, dice, net| {
                if self.is_over() || log.leader() != Some(id) || log.term() != term {
                    if log.leader().is_none() && log.term() == term && dice.one_in(2) {
                        log.commit_late(command.clone(), now);
                    }
                    return Some(None);
                }
                let may = log.may_commit(id, term, net);
                may.then(|| Some(log.commit(command.clone(), now, dice, net)))
            });
            match answer {
                Some(Some(answer)) => {
                    world.note(format_args!("{id} commits {}", named(&command, answer.is_ok())));
                    return answer.map_err(Failure::Meta);
                }
                // Whoever waits has gone as well.
                Some(None) if self.is_over() => std::future::pending().await,
                Some(None) => {
                    return Err(Failure::NotReady("the leadership changed meanwhile".into()));
                }
                None => {}
            }
        }
    }

    async fn ask(
        &self,
        target: &Target,
        request: NodeRequest,
        within: Duration,
    ) -> Result<Response, Failure> {
        let (from, what) = (self.id, asked(&request));
        let serve = move |life: Arc<Life>| life.serve(from, request);
        let answer = self.world.call(self, target.node, what, within, serve).await;
        answer.map_err(|why| Failure::NotReady(format!("{target}: {why}")))?
    }

    async fn delete_chunks(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<u64, Failure> {
        let info = read::shard(&self.view(), shard).map_err(storage)?;
        let primary = info.expect("shards are never removed").primary;
        if primary == self.id {
            return self.delete_here(shard, epoch, hashes).await;
        }
        let request = NodeRequest::DeleteChunks { shard, epoch, hashes: hashes.to_vec() };
        match self.ask(&self.target_of(primary)?, request, ANSWER_WITHIN).await? {
            Response::Deleted { bytes } => Ok(bytes),
            other => panic!("an answer to another question: {other:?}"),
        }
    }
}

fn asked(request: &NodeRequest) -> &'static str {
    match request {
        NodeRequest::Announce { .. } => "announce",
        NodeRequest::PutChunks { .. } => "put",
        NodeRequest::GetChunks { .. } => "get",
        NodeRequest::Sizes { .. } => "sizes",
        NodeRequest::DeleteChunks { .. } => "delete",
        NodeRequest::Usage { .. } => "usage",
        NodeRequest::NewEpoch { .. } => "new epoch",
        NodeRequest::Reclaim => "reclaim",
        NodeRequest::BringUp { .. } => "bring up",
        NodeRequest::Forget { .. } => "forget",
        NodeRequest::Unreferenced { .. } => "unreferenced",
        NodeRequest::Scrub(_) => "scrub",
        NodeRequest::Clean => "clean",
    }
}

/// A command in the trace.
fn named(command: &Command, done: bool) -> String {
    let what = match command {
        Command::SetShards(changes) => {
            let change = |change: &raftmeta_types::cluster::ShardChange| {
                let in_sync: Vec<u64> = change.in_sync.iter().map(|id| id.0).collect();
                let (id, primary) = (change.id, change.primary);
                format!(" {id}: epoch {} of {primary} in {in_sync:?}", change.expected.0 + 1)
            };
            format!("shards{}", changes.iter().map(change).collect::<String>())
        }
        Command::BeginDelete { shard, epoch, hashes } => {
            let hashes: std::collections::BTreeSet<_> = hashes.iter().collect();
            format!("deletion {epoch} of {shard}: {hashes:?}")
        }
        Command::EndDelete { shard, epoch } => format!("the end of deletion {epoch} of {shard}"),
        Command::SetNodeState { node, from, to } => format!("node {node}: {from} to {to}"),
        Command::RemoveLost { node, .. } => format!("the loss of node {node}"),
        Command::Write(write) => {
            let extents = write.extents.iter().map(|new| match &new.data {
                raftmeta_types::ExtentData::Chunk { hash, .. } => {
                    format!(" {hash:?} of {}", new.receipt)
                }
                raftmeta_types::ExtentData::Inline(_) | raftmeta_types::ExtentData::Zero => {
                    " other".to_owned()
                }
            });
            format!("a write to {}:{}", write.ino, extents.collect::<String>())
        }
        Command::SetAttr(set) => format!("a cut of {}", set.ino),
        other => format!("{other:?}"),
    };
    format!("{what}{}", if done { "" } else { ", refused" })
}
