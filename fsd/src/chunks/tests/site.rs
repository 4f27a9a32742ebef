//! Three stores, wires that lose messages, and a leader that changes the map: what a commit references is
//! on every in-sync replica, whatever is cut, lost, deleted, cleaned and promoted.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::Mutex as AsyncMutex;

use super::*;

const NODES: usize = 3;
const SHARDS: u16 = 2;
const SLOTS: u64 = 48;

/// The map's line for a shard, as one node or the leader knows it.
#[derive(Clone, Debug, Default)]
struct Line {
    epoch: u64,
    gc_epoch: u64,
    primary: usize,
    in_sync: BTreeSet<usize>,
}

/// A replica that catches up: ops wait until it knows what to fetch.
#[derive(Default)]
struct Joiner {
    held: Option<Vec<ShardOp>>,
    broken: bool,
}

type Joiners = BTreeMap<(u16, usize), Arc<AsyncMutex<Joiner>>>;

/// What all nodes and wires share.
pub(super) struct Site {
    stores: Mutex<Vec<ChunkStore<SimVolume>>>,
    views: Mutex<Vec<Vec<Line>>>,
    joiners: Mutex<Joiners>,
    /// Nodes that nobody reaches.
    away: Mutex<BTreeSet<usize>>,
    /// One of so many messages is lost; 0 is none.
    loss: Mutex<u64>,
    dice: Mutex<Dice>,
}

/// What a wire does with a message.
#[derive(PartialEq)]
enum Fate {
    Arrives,
    Lost,
    /// It arrives and the answer is lost.
    Deaf,
    Twice,
}

impl Site {
    fn fate(&self, from: usize, to: usize) -> Fate {
        let away = self.away.lock();
        if away.contains(&from) || away.contains(&to) {
            return Fate::Lost;
        }
        let loss = *self.loss.lock();
        let mut dice = self.dice.lock();
        if loss == 0 || dice.below(loss) > 0 {
            return if dice.below(8) == 0 { Fate::Twice } else { Fate::Arrives };
        }
        if dice.below(2) == 0 { Fate::Lost } else { Fate::Deaf }
    }

    fn store(&self, node: usize) -> ChunkStore<SimVolume> {
        self.stores.lock()[node].clone()
    }
}

fn unreachable() -> Error {
    Error::new(Kind::Io, "nobody answers")
}

/// A node's replicator.
struct Wires {
    site: Arc<Site>,
    node: usize,
}

impl Wires {
    async fn send(site: &Site, from: usize, to: usize, ops: Vec<ShardOp>) -> Option<Vec<Applied>> {
        let fate = site.fate(from, to);
        if fate == Fate::Lost {
            return None;
        }
        let turns = site.dice.lock().below(3);
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let store = site.store(to);
        let mut applied = store.apply(ops.clone()).await;
        if fate == Fate::Twice {
            applied = store.apply(ops).await;
        }
        (fate != Fate::Deaf).then_some(applied)
    }

    async fn tell(
        site: Arc<Site>,
        node: usize,
        ops: Vec<ShardOp>,
    ) -> Vec<(ShardId, ReplicationError)> {
        let mut failed = BTreeMap::new();
        for peer in (0..NODES).filter(|&peer| peer != node) {
            let lines = site.views.lock()[node].clone();
            let of = |shard: ShardId| &lines[usize::from(shard.0)];
            let in_sync = |op: &&ShardOp| of(op.shard).in_sync.contains(&peer);
            let own: Vec<ShardOp> = ops.iter().filter(in_sync).cloned().collect();
            if !own.is_empty() {
                let shards: BTreeSet<ShardId> = own.iter().map(|op| op.shard).collect();
                match Wires::send(&site, node, peer, own).await {
                    None => {
                        for shard in shards {
                            failed.entry(shard).or_insert(ReplicationError::NotNow);
                        }
                    }
                    Some(applied) => {
                        for Applied { shard, result } in applied {
                            let why = match result {
                                Ok(_) => continue,
                                Err(ApplyError::StaleEpoch(epoch)) => {
                                    ReplicationError::Deposed(epoch)
                                }
                                Err(ApplyError::Gap(_)) => panic!("a gap in sync"),
                                Err(ApplyError::Invalid(why)) => panic!("{why}"),
                                Err(_) => ReplicationError::NotNow,
                            };
                            failed.insert(shard, why);
                        }
                    }
                }
            }
            for shard in (0..SHARDS).map(ShardId) {
                let joiner = site.joiners.lock().get(&(shard.0, peer)).cloned();
                let Some(joiner) = joiner else { continue };
                let own: Vec<ShardOp> =
                    ops.iter().filter(|op| op.shard == shard).cloned().collect();
                let mut joiner = joiner.lock().await;
                if let Some(held) = &mut joiner.held {
                    held.extend(own);
                } else if !own.is_empty() && !joiner.broken {
                    let applied = Wires::send(&site, node, peer, own).await;
                    joiner.broken =
                        applied.is_none_or(|all| all.iter().any(|one| one.result.is_err()));
                }
            }
        }
        failed.into_iter().collect()
    }
}

impl Replicator for Wires {
    fn has_audience(&self, _: ShardId) -> bool {
        true
    }

    fn has_room(&self, _: ShardId) -> bool {
        true
    }

    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated {
        Box::pin(Wires::tell(Arc::clone(&self.site), self.node, ops))
    }
}

/// A replica as its primary reaches it.
struct Link {
    site: Arc<Site>,
    from: usize,
    to: usize,
}

impl Link {
    async fn call<T, F>(&self, call: impl Fn(ChunkStore<SimVolume>) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let fate = self.site.fate(self.from, self.to);
        if fate == Fate::Lost {
            return Err(unreachable());
        }
        let mut answer = call(self.site.store(self.to)).await;
        if fate == Fate::Twice && answer.is_ok() {
            answer = call(self.site.store(self.to)).await;
        }
        if fate == Fate::Deaf { Err(unreachable()) } else { answer }
    }
}

impl Peer for Link {
    async fn settle(
        &self,
        shard: ShardId,
        epoch: Epoch,
        theirs: Vec<SegmentInfo>,
    ) -> Result<Settled, Error> {
        let theirs = &theirs;
        self.call(|store| async move { store.settle(shard, epoch, theirs).await }).await
    }

    async fn follow(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    ) -> Result<(), Error> {
        self.call(|store| async move { store.follow(shard, epoch, gc_epoch, live).await }).await
    }

    async fn compare(&self, shard: ShardId, theirs: Snapshot) -> Result<Plan, Error> {
        let joiner = self.site.joiners.lock().get(&(shard.0, self.to)).cloned();
        let Some(joiner) = joiner else { return Err(unreachable()) };
        let mut joiner = joiner.lock().await;
        let at = &theirs;
        let plan = self.call(|store| async move { store.compare(shard, at).await }).await?;
        let mut held = joiner.held.take().unwrap_or_default();
        held.retain(|op| op.epoch == theirs.epoch && op.number >= theirs.next);
        if !held.is_empty() {
            let applied = self.site.store(self.to).apply(held).await;
            joiner.broken = applied.iter().any(|one| one.result.is_err());
        }
        Ok(plan)
    }

    async fn caught_up(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        self.call(|store| async move { store.caught_up(shard, epoch).await }).await
    }

    async fn copy_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    ) -> Result<SegmentCopy, Error> {
        self.call(|store| async move { store.copy_segment(shard, number, have).await }).await
    }

    async fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    ) -> Result<(), Error> {
        let copy = &copy;
        self.call(
            |store| async move { store.install_segment(shard, epoch, number, copy.clone()).await },
        )
        .await
    }
}

/// The metadata leader, the clients, and the nemesis.
pub(super) struct Leader {
    pub site: Arc<Site>,
    pub volumes: Vec<SimVolume>,
    map: Vec<Line>,
    pub dice: Dice,
    seed: u64,
    /// Contents that were ever put.
    ever: BTreeMap<ChunkHash, Bytes>,
    /// Acknowledged and not committed yet, with the receipt.
    receipts: Vec<(ChunkHash, Epoch)>,
    referenced: BTreeSet<ChunkHash>,
    pub log: Vec<String>,
    acknowledged: u64,
    promotions: u64,
    joined: u64,
    damages: u64,
}

async fn member(site: &Arc<Site>, node: usize, volume: SimVolume) -> ChunkStore<SimVolume> {
    let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs: vec![] };
    let wires = Wires { site: Arc::clone(site), node };
    ChunkStore::open_member(volume, params, Arc::new(wires)).await.unwrap()
}

impl Leader {
    pub async fn new(seed: u64) -> Leader {
        let site = Arc::new(Site {
            stores: Mutex::default(),
            views: Mutex::new(vec![vec![Line::default(); usize::from(SHARDS)]; NODES]),
            joiners: Mutex::default(),
            away: Mutex::default(),
            loss: Mutex::new(0),
            dice: Mutex::new(Dice(seed ^ 0x51_7e)),
        });
        let mut volumes = Vec::new();
        for node in 0..NODES {
            let volume = SimVolume::new(4096, 16 + SLOTS * 16);
            let params =
                FormatParams { cluster_uuid: CLUSTER, shard_count: 2, segment_bytes: 64 << 10 };
            ChunkStore::format(&volume, params).await.unwrap();
            let store = member(&site, node, volume.clone()).await;
            site.stores.lock().push(store);
            volumes.push(volume);
        }
        let line = |shard: u16| Line {
            primary: usize::from(shard) % NODES,
            in_sync: (0..NODES).collect(),
            ..Line::default()
        };
        let mut leader = Leader {
            site,
            volumes,
            map: (0..SHARDS).map(line).collect(),
            dice: Dice(seed),
            seed,
            ever: BTreeMap::new(),
            receipts: Vec::new(),
            referenced: BTreeSet::new(),
            log: Vec::new(),
            acknowledged: 0,
            promotions: 0,
            joined: 0,
            damages: 0,
        };
        for shard in 0..SHARDS {
            leader.begin(shard).await;
        }
        leader
    }

    fn line(&mut self, shard: u16) -> &mut Line {
        &mut self.map[usize::from(shard)]
    }

    fn is_away(&self, node: usize) -> bool {
        self.site.away.lock().contains(&node)
    }

    /// A new epoch with the primary and the in-sync replicas of the line; those who fail are taken out.
    async fn begin(&mut self, shard: u16) -> bool {
        for _ in 0..12 {
            self.site.joiners.lock().retain(|(of, _), _| *of != shard);
            let line = self.line(shard);
            line.epoch += 1;
            let line = line.clone();
            let epoch = Epoch(line.epoch);
            for node in (0..NODES).filter(|&node| !self.is_away(node)) {
                self.site.views.lock()[node][usize::from(shard)] = line.clone();
                if node != line.primary {
                    let role = Role::Replica { epoch };
                    self.site.store(node).set_role(ShardId(shard), role).unwrap();
                }
            }
            let peers: Vec<usize> =
                line.in_sync.iter().copied().filter(|&node| node != line.primary).collect();
            let link = |&to: &usize| Link { site: Arc::clone(&self.site), from: line.primary, to };
            let links: Vec<Link> = peers.iter().map(link).collect();
            if self.is_away(line.primary) {
                let Some(&next) = peers.iter().find(|&&node| !self.is_away(node)) else {
                    return false;
                };
                let line = self.line(shard);
                line.in_sync.remove(&line.primary);
                line.primary = next;
                self.promotions += 1;
                continue;
            }
            let store = self.site.store(line.primary);
            let led = store.lead(ShardId(shard), epoch, Epoch(line.gc_epoch), &links).await;
            match led {
                Ok(()) => return true,
                Err(LeadError { peer: Some(peer), error }) => {
                    self.log.push(format!("{shard}: without {}: {error}", peers[peer]));
                    self.line(shard).in_sync.remove(&peers[peer]);
                }
                Err(LeadError { peer: None, error }) => {
                    self.log.push(format!("{shard}: cannot lead: {error}"));
                }
            }
        }
        false
    }

    fn some_chunk(&mut self) -> (ChunkHash, Bytes) {
        let old = self.ever.len() as u64;
        if old > 0 && self.dice.below(3) == 0 {
            let at = self.dice.below(old) as usize;
            let (hash, bytes) = self.ever.iter().nth(at).unwrap();
            return (*hash, bytes.clone());
        }
        let len = self.dice.below(7_000) as usize;
        let chunk = self.dice.chunk(len);
        self.ever.insert(chunk.0, chunk.1.clone());
        chunk
    }

    /// Puts of several clients at once, each to whom it takes for the primary.
    async fn puts(&mut self, count: u64) {
        let mut puts = tokio::task::JoinSet::new();
        for _ in 0..count {
            let chunk = self.some_chunk();
            let shard = chunk.0.shard(u32::from(SHARDS)).0;
            // A client may have an old map, and the node an old role.
            let node = match self.dice.below(6) {
                0 => self.dice.below(NODES as u64) as usize,
                _ => self.map[usize::from(shard)].primary,
            };
            let store = self.site.store(node);
            puts.spawn(async move { (chunk.0, store.put(vec![chunk]).await) });
        }
        while let Some(put) = puts.join_next().await {
            match put.unwrap() {
                (hash, Ok(receipts)) => {
                    self.acknowledged += 1;
                    self.receipts.push((hash, receipts[0]));
                }
                (_, Err(error)) => {
                    let kind = error.kind();
                    let known = [Kind::NotPrimary, Kind::NotReplicated, Kind::NoSpace, Kind::Io];
                    assert!(known.contains(&kind), "{error}");
                }
            }
        }
    }

    /// What the state machine does with receipts.
    fn commit(&mut self) {
        for (hash, receipt) in std::mem::take(&mut self.receipts) {
            if self.dice.below(3) == 0 {
                self.receipts.push((hash, receipt));
                continue;
            }
            let shard = hash.shard(u32::from(SHARDS)).0;
            if receipt.0 >= self.line(shard).gc_epoch || self.referenced.contains(&hash) {
                self.referenced.insert(hash);
            }
        }
    }

    async fn delete(&mut self) {
        let shard = self.dice.below(u64::from(SHARDS)) as u16;
        for hash in self.referenced.clone() {
            if self.dice.below(4) == 0 {
                self.referenced.remove(&hash);
            }
        }
        let garbage = |hash: &&ChunkHash| {
            hash.shard(u32::from(SHARDS)).0 == shard && !self.referenced.contains(*hash)
        };
        let gone: Vec<ChunkHash> = self.ever.keys().filter(garbage).copied().collect();
        let line = self.line(shard);
        line.gc_epoch += 1;
        let (gc_epoch, primary) = (Epoch(line.gc_epoch), line.primary);
        let deleted = self.site.store(primary).delete(ShardId(shard), gc_epoch, &gone).await;
        if let Err(error) = deleted {
            let known = [Kind::NotPrimary, Kind::NotReplicated, Kind::Io];
            assert!(known.contains(&error.kind()), "{error}");
        }
    }

    /// A node loses its power and starts again, without knowing what it was.
    async fn cut(&mut self, node: usize) {
        let at = self.dice.next();
        let volume = self.volumes[node].power_cut(at);
        self.volumes[node] = volume.clone();
        let store = member(&self.site, node, volume).await;
        self.site.stores.lock()[node] = store;
        self.suspect(node).await;
    }

    /// The power of all nodes fails, and nobody is taken out for it.
    async fn blackout(&mut self) {
        self.site.away.lock().clear();
        for node in 0..NODES {
            let at = self.dice.next();
            let volume = self.volumes[node].power_cut(at);
            self.volumes[node] = volume.clone();
            let store = member(&self.site, node, volume).await;
            self.site.stores.lock()[node] = store;
        }
        for shard in 0..SHARDS {
            let line = self.line(shard);
            let next = line.in_sync.iter().copied().find(|&node| node != line.primary);
            line.primary = next.unwrap_or(line.primary);
            self.begin(shard).await;
        }
    }

    /// The leader does without a node wherever somebody else is in sync.
    async fn suspect(&mut self, node: usize) {
        for shard in 0..SHARDS {
            self.site.joiners.lock().remove(&(shard, node));
            let line = self.line(shard);
            if line.in_sync.len() > 1 {
                line.in_sync.remove(&node);
            }
            if line.primary == node && !line.in_sync.contains(&node) {
                let others: Vec<usize> = line.in_sync.iter().copied().collect();
                let next = self.dice.below(others.len() as u64) as usize;
                self.line(shard).primary = others[next];
                self.promotions += 1;
            }
            if !self.begin(shard).await {
                let line = self.line(shard).clone();
                self.log.push(format!("{shard}: nobody leads: {line:?}"));
            }
        }
    }

    /// Replicas that are not in sync catch up while clients put.
    async fn bring_up(&mut self, shard: u16) {
        let line = self.line(shard).clone();
        for node in (0..NODES).filter(|node| !line.in_sync.contains(node)) {
            if self.is_away(node) || self.is_away(line.primary) {
                continue;
            }
            let joiner = Joiner { held: Some(Vec::new()), broken: false };
            let joiner = Arc::new(AsyncMutex::new(joiner));
            self.site.joiners.lock().insert((shard, node), Arc::clone(&joiner));
            let link = Link { site: Arc::clone(&self.site), from: line.primary, to: node };
            let store = self.site.store(line.primary);
            let up = tokio::spawn(async move { store.bring_up(ShardId(shard), &link).await });
            let count = 1 + self.dice.below(6);
            self.puts(count).await;
            let up = up.await.unwrap();
            let broken = joiner.lock().await.broken;
            if up.is_err() || broken {
                self.log
                    .push(format!("{shard}: {node} is not brought up: {up:?}, broken: {broken}"));
                self.site.joiners.lock().remove(&(shard, node));
                continue;
            }
            self.joined += 1;
            self.line(shard).in_sync.insert(node);
            self.begin(shard).await;
        }
    }

    /// Every in-sync replica has what is referenced.
    async fn check(&mut self) {
        for shard in 0..SHARDS {
            let line = self.line(shard).clone();
            for &node in &line.in_sync {
                let store = self.site.store(node);
                for hash in &self.referenced {
                    if hash.shard(u32::from(SHARDS)).0 != shard {
                        continue;
                    }
                    let got = store.get(hash).await;
                    assert_eq!(
                        got.as_ref().ok(),
                        self.ever.get(hash),
                        "seed {}: node {node} of {line:?}: {got:?} after {:?}",
                        self.seed,
                        self.log
                    );
                }
            }
        }
    }

    async fn step(&mut self) {
        let node = self.dice.below(NODES as u64) as usize;
        match self.dice.below(24) {
            0 | 1 => {
                self.log.push("delete".into());
                self.delete().await;
            }
            2 => {
                let cleaned = self.site.store(node).clean(u64::MAX).await;
                self.log.push(format!("clean {node}: {cleaned:?}"));
            }
            3 => {
                self.log.push(format!("cut {node}"));
                self.cut(node).await;
            }
            4 => {
                self.log.push(format!("partition {node}"));
                self.site.away.lock().insert(node);
                // Clients of both sides go on before anybody notices.
                self.puts(3).await;
                self.suspect(node).await;
            }
            5 | 6 => {
                self.log.push("heal".into());
                self.site.away.lock().clear();
            }
            7 => {
                let loss = [0, 0, 9, 30][self.dice.below(4) as usize];
                self.log.push(format!("loss {loss}"));
                *self.site.loss.lock() = loss;
            }
            8 | 9 => {
                let shard = self.dice.below(u64::from(SHARDS)) as u16;
                self.log.push(format!("bring up {shard}"));
                self.bring_up(shard).await;
            }
            10 => {
                let shard = self.dice.below(u64::from(SHARDS)) as u16;
                self.log.push(format!("begin {shard}"));
                self.begin(shard).await;
            }
            11 => self.check().await,
            12 => {
                self.log.push("blackout".into());
                self.blackout().await;
            }
            13 => self.damage(node).await,
            _ => {
                let count = 1 + self.dice.below(4);
                self.puts(count).await;
                self.commit();
            }
        }
        self.site.stores.lock().iter().for_each(tally::check);
    }

    /// Bytes on a node's device change while everybody is well, perhaps while it is down; everything is scrubbed
    /// before anything else goes wrong.
    async fn damage(&mut self, node: usize) {
        self.site.away.lock().clear();
        *self.site.loss.lock() = 0;
        for shard in 0..SHARDS {
            self.begin(shard).await;
            let others = self.line(shard).in_sync.iter().any(|&other| other != node);
            if !others {
                return;
            }
        }
        let restarts = self.dice.below(4) > 0;
        let one_in = [2, 6, 40][self.dice.below(3) as usize];
        self.log.push(format!("damage {node}, one block in {one_in}, restarts: {restarts}"));
        if restarts {
            let at = self.dice.next();
            self.volumes[node] = self.volumes[node].power_cut(at);
        }
        let volume = self.volumes[node].clone();
        for lba in (format::SLOTS_START / 4096..16 + SLOTS * 16).filter(|&lba| volume.is_used(lba))
        {
            if self.dice.below(one_in) == 0 {
                volume.corrupt(lba, self.dice.below(4096) as usize, 1 << self.dice.below(8));
            }
        }
        if restarts {
            let store = member(&self.site, node, volume).await;
            self.site.stores.lock()[node] = store;
            match self.dice.below(3) {
                0 => self.suspect(node).await,
                leads => {
                    for shard in 0..SHARDS {
                        let line = self.line(shard);
                        if leads == 1 && line.in_sync.contains(&node) {
                            line.primary = node;
                        }
                        self.begin(shard).await;
                    }
                }
            }
        }
        self.puts(3).await;
        self.commit();
        if self.dice.below(2) == 0 {
            self.delete().await;
        }
        let _ = self.site.store(node).clean(u64::MAX).await;
        for shard in 0..SHARDS {
            self.bring_up(shard).await;
            self.scrub(shard).await;
        }
        self.damages += 1;
        self.check().await;
    }

    /// What `replication/mender.rs` does, on all replicas.
    async fn scrub(&mut self, shard: u16) {
        let line = self.line(shard).clone();
        let (shard, epoch) = (ShardId(shard), Epoch(line.epoch));
        for &node in &line.in_sync {
            let store = self.site.store(node);
            for number in store.segment_numbers(shard) {
                let Ok(found) = store.verify_segment(shard, number).await else { continue };
                if found.whole {
                    continue;
                }
                for &other in line.in_sync.iter().filter(|&&other| other != node) {
                    let other = self.site.store(other);
                    if let Ok(copy) = other.copy_segment(shard, number, 0).await
                        && !copy.damaged
                        && copy.sealed >= found.info.sealed
                        && (copy.sealed || copy.content.len() >= found.info.len as usize)
                    {
                        let _ = store.install_segment(shard, epoch, number, copy).await;
                    }
                    for hash in &found.bad {
                        if let Ok(record) = other.read_record(hash).await {
                            let _ = store.repair(hash, epoch, &record).await;
                        }
                        if node == line.primary
                            && store.get(hash).await.is_err()
                            && let Ok(plain) = other.get(hash).await
                        {
                            let _ = store.put(vec![(*hash, plain)]).await;
                        }
                    }
                }
            }
        }
    }

    /// Everybody comes back; in the end all have the same.
    async fn finish(&mut self) {
        self.site.away.lock().clear();
        *self.site.loss.lock() = 0;
        for shard in 0..SHARDS {
            assert!(self.begin(shard).await, "seed {}: {:?}", self.seed, self.log);
            for _ in 0..20 {
                if self.line(shard).in_sync.len() == NODES {
                    break;
                }
                self.bring_up(shard).await;
                // Garbage may be in the way of what is to be installed.
                self.delete().await;
                for node in 0..NODES {
                    let _ = self.site.store(node).clean(u64::MAX).await;
                }
            }
            let line = self.line(shard).clone();
            assert_eq!(line.in_sync.len(), NODES, "seed {}: {:?}", self.seed, self.log);
        }
        self.check().await;
        for shard in 0..SHARDS {
            // No op is under way behind this.
            let primary = self.line(shard).primary;
            self.site.store(primary).snapshot(ShardId(shard)).await.unwrap();
            self.same_segments(shard).await;
        }
    }

    /// The bytes of all segments of all replicas.
    pub async fn same_segments(&mut self, shard: u16) {
        let shard = ShardId(shard);
        let line = self.line(shard.0).clone();
        let first = self.site.store(line.primary);
        let infos = first.segments(shard).await.unwrap();
        for &node in &line.in_sync {
            let store = self.site.store(node);
            let seed = self.seed;
            assert_eq!(store.segments(shard).await.unwrap(), infos, "seed {seed}: node {node}");
            for info in &infos {
                let read = async |store: &ChunkStore<SimVolume>| {
                    store.read_segment(shard, info.number, 0, 64 << 10).await.unwrap()
                };
                let copy = store.copy_segment(shard, info.number, 0).await;
                let whole = copy.as_ref().is_ok_and(|copy| !copy.damaged);
                // What nobody was told of may be damaged everywhere.
                assert!(whole || self.damages > 0, "seed {seed}: node {node}: {copy:?}");
                let same = !whole || read(&store).await == read(&first).await;
                assert!(same || self.damages > 0, "seed {seed}: {info:?}");
            }
            for hash in first.iter_hashes(Some(shard)) {
                assert!(store.contains(&hash), "seed {seed}: node {node} lacks {hash}");
            }
        }
    }
}

#[tokio::test]
async fn nothing_that_a_commit_references_is_lost_by_any_in_sync_replica() {
    let (mut acknowledged, mut promotions, mut joined, mut damages) = (0, 0, 0, 0);
    for seed in 0..rounds("CLAUDEFS_CHUNK_SITE_SEEDS", 100) {
        let mut leader = Leader::new(seed).await;
        for _ in 0..rounds("CLAUDEFS_CHUNK_SITE_STEPS", 150) {
            leader.step().await;
        }
        leader.finish().await;
        acknowledged += leader.acknowledged;
        promotions += leader.promotions;
        joined += leader.joined;
        damages += leader.damages;
    }
    let enough = acknowledged > 500 && promotions > 10 && joined > 20 && damages > 10;
    assert!(
        enough,
        "{acknowledged} puts, {promotions} promotions, {joined} caught up, {damages} damaged"
    );
}
