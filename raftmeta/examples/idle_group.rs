//! What does a group of three voters cost while nobody asks it anything, and how long does a command take that
//! waits for a quorum?
//!
//! `cargo run --release -p raftmeta --example idle_group [DIRECTORY] [SECONDS]`
//!
//! The replicas live in one process and call each other; what sockets and TLS would cost is not in the figures.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftmeta::{Answering, Group, GroupConfig, Peer, RaftMessage, Transport};
use raftmeta_types::cluster::ClusterInfo;
use raftmeta_types::{Command, Envelope, SessionId, Time};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
type Replicas = Arc<Mutex<BTreeMap<u64, Group>>>;

#[derive(Debug)]
struct Direct {
    me: u64,
    replicas: Replicas,
}

impl Transport for Direct {
    fn call(&self, target: Peer, message: RaftMessage, _timeout: Duration) -> Answering {
        let group = self.replicas.lock().ok().and_then(|all| all.get(&target.id).cloned());
        let me = self.me;
        Box::pin(async move {
            match group {
                Some(group) => Ok(group.handle(me, message).await),
                None => Err(std::io::ErrorKind::NotConnected.into()),
            }
        })
    }
}

fn envelope(command: Command) -> Envelope {
    Envelope { session: SessionId::SERVER, slot: 0, seq: 0, time: Time::default(), command }
}

async fn setup(dir: &Path) -> Outcome<(Replicas, Group)> {
    let replicas = Replicas::default();
    for id in 1..=3 {
        let config = GroupConfig {
            dir: dir.join(id.to_string()),
            node_id: id,
            bootstrap: id == 1,
            checkpoint_entries: 100_000,
            address: id.to_string(),
            transport: Some(Arc::new(Direct { me: id, replicas: Arc::clone(&replicas) })),
        };
        let group = Group::open(config).await?;
        replicas.lock().map_err(|_| "poisoned")?.insert(id, group);
    }
    let first = replicas.lock().map_err(|_| "poisoned")?[&1].clone();
    let cluster = ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "idle".into(),
        site: 1,
        shard_count: 16,
        created: Time::default(),
    };
    first
        .propose(envelope(Command::InitCluster { cluster, sealed_ca: Bytes::new() }), true)
        .await??;
    for id in 2..=3 {
        first.add_learner(id, &id.to_string()).await?;
        let learner = replicas.lock().map_err(|_| "poisoned")?[&id].clone();
        learner.wait_until_caught_up(Duration::from_secs(60)).await?;
    }
    first.set_voters(BTreeSet::from([1, 2, 3])).await?;
    Ok((replicas, first))
}

/// Seconds of CPU time that this process has used.
fn cpu() -> Outcome<f64> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').ok_or("an unknown format")?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    let (user, system) = (ticks.next().ok_or("cut")??, ticks.next().ok_or("cut")??);
    // Ticks are hundredths on every Linux that Rust runs on.
    Ok((user + system) / 100.0)
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let base = args.next().unwrap_or_else(|| ".".to_owned());
    let seconds = args.next().map_or(Ok(20.0), |text| text.parse::<f64>())?;
    let dir = tempfile::tempdir_in(base)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (replicas, first) = runtime.block_on(setup(dir.path()))?;
    std::thread::sleep(Duration::from_secs(3));
    let before = cpu()?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let share = (cpu()? - before) / seconds * 100.0;
    println!("three idle replicas: {share:.2} % of a core, {:.2} % each", share / 3.0);
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < 3.0 {
        let nothing = Command::OpenSession(raftmeta_types::cluster::SessionInfo {
            session: SessionId(1),
            client: "idle".into(),
            identity: "uid=0".into(),
            opened: Time::default(),
            secret: [0; 16],
        });
        runtime.block_on(first.propose(envelope(nothing), true))??;
        count += 1;
    }
    println!("a command, one after the other: {:.0} us", 3e6 / f64::from(count));
    for (_, group) in std::mem::take(&mut *replicas.lock().map_err(|_| "poisoned")?) {
        runtime.block_on(group.shutdown())?;
    }
    Ok(())
}
