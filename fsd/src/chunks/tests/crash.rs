//! Power cuts at every operation of seeded workloads, against a model.

use std::collections::{BTreeMap, HashMap};

use super::*;

/// What a correct store may and must say.
#[derive(Default)]
struct Model {
    /// Every content that anybody ever tried to put.
    ever: HashMap<ChunkHash, Bytes>,
    /// Acknowledged and not deleted: must be read back.
    kept: BTreeMap<ChunkHash, Bytes>,
    /// What the extents of six files name; the rest of `kept` is garbage and may be deleted.
    files: [Option<ChunkHash>; 6],
    epoch: u64,
}

impl Model {
    async fn check(&self, store: &ChunkStore<SimVolume>, when: &str) {
        tally::check(store);
        for (hash, bytes) in &self.kept {
            let got = store.get(hash).await;
            assert_eq!(got.as_ref().ok(), Some(bytes), "{when}: {hash}: {got:?}");
        }
        for hash in store.iter_hashes(None) {
            let got = store.get(&hash).await;
            assert_eq!(got.as_ref().ok(), self.ever.get(&hash), "{when}: {hash}: {got:?}");
        }
    }
}

/// A run of the workload until an operation fails. The volume may be halted at any of them.
struct Run {
    volume: SimVolume,
    store: ChunkStore<SimVolume>,
    dice: Dice,
    model: Model,
}

impl Run {
    async fn start(seed: u64) -> Run {
        let (volume, store) = fresh_of([4096, 512][seed as usize % 2], 24).await;
        Run { volume, store, dice: Dice(seed), model: Model::default() }
    }

    /// Mostly new chunks, sometimes ones that are or were there.
    fn some_chunk(&mut self) -> (ChunkHash, Bytes) {
        let old = self.model.ever.len() as u64;
        if old > 0 && self.dice.below(3) == 0 {
            let mut names: Vec<_> = self.model.ever.keys().copied().collect();
            names.sort_unstable();
            let hash = names[self.dice.below(old) as usize];
            return (hash, self.model.ever[&hash].clone());
        }
        let len = self.dice.below(9_000) as usize;
        let chunk = self.dice.chunk(len);
        self.model.ever.insert(chunk.0, chunk.1.clone());
        chunk
    }

    /// A put and the commit of what it brought, which overwrites a file.
    async fn put(&mut self) -> Result<(), Error> {
        let count = 1 + self.dice.below(3);
        let chunks: Vec<_> = (0..count).map(|_| self.some_chunk()).collect();
        self.store.put(chunks.clone()).await?;
        for chunk in chunks {
            let file = self.dice.below(6) as usize;
            self.model.files[file] = Some(chunk.0);
            self.model.kept.insert(chunk.0, chunk.1);
        }
        Ok(())
    }

    /// Puts of the same and of different chunks with a cleaning among them.
    async fn storm(&mut self) -> Result<(), Error> {
        let chunks: Vec<_> = (0..3).map(|_| self.some_chunk()).collect();
        let mut puts = tokio::task::JoinSet::new();
        for at in 0..5 {
            let (store, chunk) = (self.store.clone(), chunks[at % 3].clone());
            puts.spawn(async move { store.put(vec![chunk.clone()]).await.map(|_| chunk) });
        }
        let store = self.store.clone();
        let clean = tokio::spawn(async move { store.clean(30_000).await.map(|_| ()) });
        let mut result = clean.await.unwrap();
        while let Some(put) = puts.join_next().await {
            match put.unwrap() {
                Ok(chunk) => drop(self.model.kept.insert(chunk.0, chunk.1)),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    async fn delete(&mut self) -> Result<(), Error> {
        let shard = ShardId(self.dice.below(2) as u16);
        let garbage =
            |hash: &&ChunkHash| hash.shard(2) == shard && !self.model.files.contains(&Some(**hash));
        let gone: Vec<_> = self.model.kept.keys().filter(garbage).copied().collect();
        gone.iter().for_each(|hash| drop(self.model.kept.remove(hash)));
        self.model.epoch += 1;
        self.store.delete(shard, Epoch(self.model.epoch), &gone).await?;
        for hash in gone {
            assert_eq!(self.store.get(&hash).await.unwrap_err().kind(), Kind::NotFound);
        }
        Ok(())
    }

    /// Kills and starts the daemon; the device keeps its power and its volatile cache.
    async fn reopen(&mut self) -> Result<(), Error> {
        let keys = Keys::new(1, &[9; 32]);
        let epochs = [0, 1].map(|shard| (ShardId(shard), Epoch(self.model.epoch))).to_vec();
        let params = OpenParams { cluster_uuid: CLUSTER, keys, epochs };
        self.store = ChunkStore::open(self.volume.clone(), params).await?;
        Ok(())
    }

    async fn work(&mut self, steps: u64) -> Result<(), Error> {
        for _ in 0..steps {
            let done = match self.dice.below(12) {
                0 | 1 => self.delete().await,
                2 => self.store.clean(u64::MAX).await.map(|_| ()),
                3 => self.reopen().await,
                4 => self.storm().await,
                _ => self.put().await,
            };
            match done {
                Err(error) if error.kind() != Kind::NoSpace => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Cuts at operation `cut`, recovers, cuts again while recovering, and goes on working.
async fn cut_at(seed: u64, cut: u64) {
    let when = format!("seed {seed}, cut at operation {cut}");
    let mut run = Run::start(seed).await;
    run.volume.halt_after(cut);
    let _halted_somewhere = run.work(STEPS).await;
    for again in 0..2 {
        let volume = run.volume.power_cut(seed * 7919 + cut * 2 + again);
        if again == 0 {
            volume.halt_after(run.dice.below(20));
            run.volume = volume.clone();
            run.model.epoch = 0;
            if run.reopen().await.is_ok() {
                let _halted_somewhere = run.work(2).await;
            }
            continue;
        }
        run.volume = volume;
    }
    run.model.epoch += 1;
    run.reopen().await.unwrap_or_else(|error| panic!("{when}: {error}"));
    run.model.check(&run.store, &when).await;
    run.work(3).await.unwrap_or_else(|error| panic!("{when}: {error}"));
    run.model.check(&run.store, &when).await;
}

const STEPS: u64 = 24;

#[tokio::test]
async fn no_power_cut_at_any_operation_loses_what_was_acknowledged() {
    for seed in 0..rounds("CLAUDEFS_CHUNK_CRASH_SEEDS", 4) {
        let mut whole = Run::start(seed).await;
        let before = whole.volume.ops();
        whole.work(STEPS).await.unwrap();
        whole.model.check(&whole.store, &format!("seed {seed}")).await;
        let ops = whole.volume.ops() - before;
        assert!(ops > 40, "seed {seed}: {ops} operations are no workload");
        for cut in 0..ops {
            cut_at(seed, cut).await;
        }
    }
}
