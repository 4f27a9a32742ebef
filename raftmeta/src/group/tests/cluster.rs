//! Groups of several replicas in one process, with a network that does what networks do.

mod basic;
mod checkpoints;
mod members;
mod net;
mod storm;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use net::Net;
use tokio::time::Instant;

use super::*;
use crate::kv::KvRead;

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(120);

/// A client asks again after this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Replicas on directories of their own; those that run are in `net`.
struct Cluster {
    net: Arc<Net>,
    dirs: BTreeMap<u64, tempfile::TempDir>,
    checkpoint_entries: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.net.clear();
    }
}

async fn until_some<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(found) = find() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        Cluster { net: Net::new(seed), dirs: BTreeMap::new(), checkpoint_entries: 100_000 }
    }

    /// Voters 1 to `voters`, with a cluster and a session in their state.
    async fn of(voters: u64, seed: u64) -> Cluster {
        let mut cluster = Cluster::new(seed);
        let first = cluster.start(1).await;
        initialize(&first).await;
        cluster.grow(voters).await;
        cluster
    }

    /// Adds voters up to this id.
    async fn grow(&mut self, voters: u64) {
        for id in 1..=voters {
            if !self.dirs.contains_key(&id) {
                self.start(id).await;
                self.lead(|leader| async move { leader.add_learner(id, &address(id)).await }).await;
            }
        }
        self.set_voters(1..=voters).await;
    }

    async fn set_voters(&self, voters: impl IntoIterator<Item = u64>) {
        let voters: BTreeSet<u64> = voters.into_iter().collect();
        self.lead(|leader| {
            let voters = voters.clone();
            async move { leader.set_voters(voters).await }
        })
        .await;
    }

    /// Opens a replica, on what it left behind if it ran before.
    async fn start(&mut self, id: u64) -> Group {
        let dir = self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let config = GroupConfig {
            dir: dir.path().to_path_buf(),
            node_id: id,
            bootstrap: id == 1,
            checkpoint_entries: self.checkpoint_entries,
            address: address(id),
            transport: Some(self.net.transport(id)),
        };
        let start = Instant::now();
        loop {
            match Group::open(config.clone()).await {
                Err(GroupError::InUse { .. }) if start.elapsed() < LIMIT => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => {
                    let group = opened.unwrap();
                    self.net.join(id, &group);
                    return group;
                }
            }
        }
    }

    /// The death of a machine: nothing is told to anybody, nothing is synced.
    fn kill(&self, id: u64) {
        assert!(self.net.leave(id).is_some(), "replica {id} does not run");
    }

    /// The death of a process: its connections end.
    fn kill_process(&self, id: u64) {
        self.kill(id);
        self.net.part(id);
    }

    fn group(&self, id: u64) -> Group {
        self.net.get(id).unwrap()
    }

    async fn leader(&self) -> (u64, Group) {
        until_some("a leader", || leading(&self.net)).await
    }

    async fn lead<T, F>(&self, what: impl Fn(Group) -> F) -> T
    where
        F: Future<Output = Result<T, GroupError>>,
    {
        lead(&self.net, what).await
    }

    async fn command(&self, slot: u16, seq: u64, command: Command) -> MetaResult<Reply> {
        run(&self.net, slot, seq, command).await
    }

    /// Waits until all that run stand at the same entry, and compares what they hold.
    async fn agree(&self) {
        let running = self.net.running();
        let same = || {
            let mut statuses = running.iter().map(|(_, group)| group.status());
            let first = statuses.next()?;
            let done = first.applied == first.last_log
                && statuses.all(|status| {
                    (status.applied, status.last_log) == (first.applied, first.last_log)
                });
            done.then_some(())
        };
        until_some("all replicas at the same entry", same).await;
        let (first, reference) = (running[0].0, contents(&running[0].1));
        for (id, group) in &running[1..] {
            assert!(contents(group) == reference, "replicas {first} and {id} differ");
        }
        is_clean(&running[0].1);
    }
}

/// Who leads and may answer.
fn leading(net: &Net) -> Option<(u64, Group)> {
    net.running().into_iter().find(|(_, group)| {
        matches!(*group.leadership().borrow(), Leadership::Leading { .. }) && group.lease_valid()
    })
}

/// Asks leaders for `what` until one of them does it. `what` has to bear being done twice, and being given up.
async fn lead<T, F>(net: &Net, what: impl Fn(Group) -> F) -> T
where
    F: Future<Output = Result<T, GroupError>>,
{
    let start = Instant::now();
    loop {
        let (_, leader) = until_some("a leader", || leading(net)).await;
        match tokio::time::timeout(PATIENCE, what(leader)).await {
            Ok(Ok(done)) => return done,
            other if start.elapsed() > LIMIT => panic!("{:?}", other.err()),
            // A replica that is killed in the middle says so.
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A command as a client runs it: the same number until somebody answers.
async fn run(net: &Net, slot: u16, seq: u64, command: Command) -> MetaResult<Reply> {
    let envelope = Envelope { session: SESSION, slot, seq, time: Time::default(), command };
    let propose = |leader: Group| {
        let envelope = envelope.clone();
        async move { leader.propose(envelope, false).await }
    };
    lead(net, propose).await
}

fn address(id: u64) -> String {
    format!("replica-{id}")
}

fn contents(group: &Group) -> Vec<(Vec<u8>, Vec<u8>)> {
    group.view().scan(&[1], &[0xff; 64], usize::MAX, false).unwrap()
}

/// What `setup` does, on a group that is there.
async fn initialize(group: &Group) {
    let cluster = ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "t".into(),
        site: 1,
        shard_count: 4,
        created: Time::default(),
    };
    let init = Command::InitCluster { cluster, sealed_ca: Bytes::new() };
    group.propose(server(init), true).await.unwrap().unwrap();
    let info = SessionInfo {
        session: SESSION,
        client: "c".into(),
        identity: "uid=0".into(),
        opened: Time::default(),
        secret: [0; 16],
    };
    group.propose(server(Command::OpenSession(info)), true).await.unwrap().unwrap();
}
