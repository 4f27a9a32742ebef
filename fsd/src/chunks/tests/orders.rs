//! Every order of put, dedup hit, commit, overwrite, deletion, cleaning and crash, with the real
//! state machine and the real store: no referenced chunk is ever lost.
//!
//! Two clients put the same chunk; a second chunk shares its segment, so that cleaning has something
//! to win and the chunk moves.

use raftmeta::apply::apply;
use raftmeta::kv::MemKv;
use raftmeta::read;
use raftmeta_types::cluster::ClusterInfo;
use raftmeta_types::command::*;
use raftmeta_types::{ExtentData, FileKind, Ino, Reply, SessionId, Time, Version};

use super::*;

#[derive(Clone)]
struct World {
    kv: MemKv,
    store: ChunkStore<SimVolume>,
    index: u64,
    ino: Ino,
    chunk: (ChunkHash, Bytes),
    /// Epochs that the clients were given and did not commit yet.
    receipts: [Option<Epoch>; 2],
    log: Vec<&'static str>,
}

/// The store in the same state on a volume of its own.
async fn fork(store: &ChunkStore<SimVolume>) -> ChunkStore<SimVolume> {
    let inner = &store.inner;
    let appender = inner.appender.lock().await.clone();
    let volume = inner.device.volume.fork();
    let device = Device { volume, header: inner.device.header };
    let (keys, index) = (Arc::clone(&inner.keys), inner.index.lock().clone());
    let forked = Inner::new(Arc::new(device), keys, index, Arc::new(Alone));
    *forked.appender.lock().await = appender;
    ChunkStore { inner: Arc::new(forked) }
}

impl World {
    async fn new() -> World {
        let (_, store) = fresh(16).await;
        let chunk = (0..).map(|seed| Dice(seed).chunk(900)).find(|c| c.0.shard(2) == ShardId(0));
        let chunk = chunk.unwrap();
        let mut world = World {
            kv: MemKv::new(),
            store,
            index: 0,
            ino: Ino::ROOT,
            chunk,
            receipts: [None; 2],
            log: Vec::new(),
        };
        let cluster = ClusterInfo {
            uuid: CLUSTER,
            name: "t".into(),
            site: 1,
            shard_count: 2,
            created: Time::default(),
        };
        world.apply(Command::InitCluster { cluster, sealed_ca: Bytes::new() });
        let create = Create {
            parent: Ino::ROOT,
            name: "f".into(),
            kind: FileKind::Regular,
            mode: 0o600,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            open: false,
        };
        match world.apply(Command::Create(create)) {
            Some(Reply::Created { inode, .. }) => world.ino = inode.ino,
            other => panic!("{other:?}"),
        }
        world
    }

    /// The reply; `None` is a refusal, which is always allowed.
    fn apply(&mut self, command: Command) -> Option<Reply> {
        self.index += 1;
        let (session, time) = (SessionId::SERVER, Time::default());
        let envelope = Envelope { session, slot: 0, seq: 0, time, command };
        apply(&mut self.kv, Version(self.index), &envelope).unwrap().ok()
    }

    fn referenced(&self) -> bool {
        read::references(&self.kv, &self.chunk.0).unwrap() > 0
    }

    async fn check(&self) {
        if self.referenced() {
            let got = self.store.get(&self.chunk.0).await;
            assert_eq!(got.as_ref().ok(), Some(&self.chunk.1), "lost by {:?}: {got:?}", self.log);
        }
    }

    /// Does the step; `false` if it would change nothing.
    async fn step(&mut self, step: usize) -> bool {
        let shard = ShardId(0);
        let pending = read::pending_delete(&self.kv, shard).unwrap();
        match step {
            0 | 1 => {
                let had = (self.store.contains(&self.chunk.0), self.receipts[step]);
                let receipt = self.store.put(vec![self.chunk.clone()]).await.unwrap()[0];
                self.receipts[step] = Some(receipt);
                had != (true, Some(receipt))
            }
            2 | 3 => {
                let Some(receipt) = self.receipts[step - 2].take() else { return false };
                let data = ExtentData::Chunk { hash: self.chunk.0, chunk_offset: 0 };
                let extent = NewExtent { offset: 0, len: 900, data, receipt };
                let change = AttrChange::default();
                let ino = self.ino;
                self.apply(Command::Write(Write { ino, extents: vec![extent], change }));
                true
            }
            4 => {
                let change = AttrChange::default();
                let ino = self.ino;
                let had = self.referenced();
                self.apply(Command::SetAttr(SetAttr { ino, change, size: Some(0) }));
                had
            }
            5 => {
                let epoch = read::shard(&self.kv, shard).unwrap().unwrap().gc_epoch.0 + 1;
                let hashes = vec![self.chunk.0];
                let begin = Command::BeginDelete { shard, epoch: Epoch(epoch), hashes };
                pending.is_none() && self.apply(begin).is_some()
            }
            6 => {
                let Some(pending) = pending else { return false };
                let before = self.store.shard_epoch(shard);
                self.store.delete(shard, pending.epoch, &pending.hashes).await.unwrap();
                assert_eq!(self.store.shard_epoch(shard), pending.epoch);
                before < pending.epoch
            }
            7 => match pending {
                Some(pending) if pending.epoch == self.store.shard_epoch(shard) => {
                    self.apply(Command::EndDelete { shard, epoch: pending.epoch }).is_some()
                }
                _ => false,
            },
            8 => {
                let inner = &self.store.inner;
                inner.abandon(&mut *inner.appender.lock().await);
                self.store.clean(u64::MAX).await.unwrap().segments > 0
            }
            // The power fails, or the daemon is killed.
            9 => self.start(self.store.inner.device.volume.power_cut(self.index)).await,
            _ => self.start(self.store.inner.device.volume.clone()).await,
        }
    }

    async fn start(&mut self, volume: SimVolume) -> bool {
        let epoch = |shard| {
            let info = read::shard(&self.kv, ShardId(shard)).unwrap().unwrap();
            (ShardId(shard), info.gc_epoch)
        };
        let epochs = vec![epoch(0), epoch(1)];
        let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs };
        self.store = ChunkStore::open(volume, params).await.unwrap();
        true
    }
}

const NAMES: [&str; 11] = [
    "put 1", "put 2", "commit 1", "commit 2", "truncate", "begin", "delete", "end", "clean", "cut",
    "kill",
];

/// The worlds after `depth` steps; each is checked.
async fn explore(world: &World, depth: u64, seen: &mut u64) {
    world.check().await;
    *seen += 1;
    if depth == 0 {
        return;
    }
    for (step, name) in NAMES.iter().enumerate() {
        let same = |last: &&str| ["clean", "cut", "kill"].contains(last) && last == name;
        // Nothing new comes of it, or of the same with the clients swapped.
        let swapped = step == 1 && world.receipts[0].is_none();
        if world.log.last().is_some_and(same) || swapped {
            continue;
        }
        let mut next = world.clone();
        next.store = fork(&world.store).await;
        next.log.push(name);
        if next.step(step).await {
            Box::pin(explore(&next, depth - 1, seen)).await;
        } else {
            next.check().await;
        }
    }
}

#[tokio::test]
async fn no_order_of_steps_loses_a_referenced_chunk() {
    let depth = rounds("CLAUDEFS_CHUNK_ORDER_DEPTH", 6);
    let mut seen = 0;
    explore(&World::new().await, depth, &mut seen).await;
    assert!(seen > 1000, "{seen} worlds are not every order");
}
