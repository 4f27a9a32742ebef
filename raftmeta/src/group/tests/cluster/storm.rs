//! Clients write, readers read, and a nemesis kills and cuts by seed. `CFS_STORM_ROUNDS` makes it longer,
//! `CFS_STORM_SEED` chooses another one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::net::Weather;
use super::*;

const CLIENTS: u16 = 4;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn name(client: u16, seq: u64) -> String {
    format!("c{client}-{seq:06}")
}

/// What the clients know to be done.
#[derive(Default)]
struct Acknowledged {
    last: [AtomicU64; CLIENTS as usize],
    reads: AtomicU64,
    stop: AtomicBool,
}

/// Creates one name after the other. None is made twice: the second time it would be refused.
async fn client(net: Arc<Net>, acknowledged: Arc<Acknowledged>, client: u16) {
    let mut seq = 0;
    while !acknowledged.stop.load(Ordering::SeqCst) {
        seq += 1;
        let answer = run(&net, client, seq, create(&name(client, seq))).await;
        assert!(matches!(answer, Ok(Reply::Created { .. })), "{}: {answer:?}", name(client, seq));
        acknowledged.last[client as usize].store(seq, Ordering::SeqCst);
    }
}

/// Any replica that says it may answer finds what was acknowledged before it was asked.
async fn reader(net: Arc<Net>, acknowledged: Arc<Acknowledged>) {
    while !acknowledged.stop.load(Ordering::SeqCst) {
        let client = net.roll(u64::from(CLIENTS)) as u16;
        for (id, group) in net.running() {
            let known = acknowledged.last[client as usize].load(Ordering::SeqCst);
            if known == 0 || !group.lease_valid() {
                continue;
            }
            let name = name(client, known);
            let found = read::lookup(&group.view(), Ino::ROOT, name.as_bytes()).unwrap();
            assert!(found.is_some(), "replica {id} answers without {name}");
            acknowledged.reads.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Connections end for no reason.
async fn parter(net: Arc<Net>, acknowledged: Arc<Acknowledged>) {
    while !acknowledged.stop.load(Ordering::SeqCst) {
        net.part(1 + net.roll(5));
        tokio::time::sleep(Duration::from_millis(net.roll(100))).await;
    }
}

/// One thing that goes wrong, and what has to be put right afterwards: replicas to start again.
async fn strike(cluster: &Cluster, voters: u64) -> Vec<u64> {
    let (leader, _) = cluster.leader().await;
    let others: Vec<u64> = (1..=voters).filter(|id| *id != leader).collect();
    let other = others[cluster.net.roll(others.len() as u64) as usize];
    match cluster.net.roll(8) {
        0 => {
            cluster.kill(leader);
            vec![leader]
        }
        6 => {
            cluster.kill_process(leader);
            vec![leader]
        }
        1 => {
            cluster.kill(other);
            vec![other]
        }
        2 => {
            cluster.net.isolate(leader);
            vec![]
        }
        3 => {
            // It speaks and hears nothing.
            others.iter().for_each(|id| cluster.net.cut(*id, leader));
            vec![]
        }
        4 => {
            // It hears and cannot speak.
            others.iter().for_each(|id| cluster.net.cut(leader, *id));
            vec![]
        }
        5 => {
            // The others reach each other through one only.
            for a in others.iter().filter(|id| **id != other) {
                cluster.net.cut(*a, leader);
                cluster.net.cut(leader, *a);
            }
            vec![]
        }
        _ => {
            // As many die at once as the group can do without.
            let some: Vec<u64> = others.into_iter().take(voters as usize / 2).collect();
            some.iter().for_each(|id| cluster.kill(*id));
            some
        }
    }
}

async fn storm(voters: u64, rounds: u64, seed: u64) {
    println!("seed {seed}");
    let mut cluster = Cluster::of(voters, seed).await;
    cluster.checkpoint_entries = 400;
    cluster.net.set_weather(Weather { lost: 2, repeated: 5, delay_max_ms: 6 });
    let acknowledged = Arc::new(Acknowledged::default());
    let mut tasks = Vec::new();
    for id in 0..CLIENTS {
        tasks.push(tokio::spawn(client(Arc::clone(&cluster.net), Arc::clone(&acknowledged), id)));
    }
    tasks.push(tokio::spawn(reader(Arc::clone(&cluster.net), Arc::clone(&acknowledged))));
    tasks.push(tokio::spawn(parter(Arc::clone(&cluster.net), Arc::clone(&acknowledged))));
    let sum = || acknowledged.last.iter().map(|last| last.load(Ordering::SeqCst)).sum::<u64>();
    for _ in 0..rounds {
        let before = sum();
        let dead = strike(&cluster, voters).await;
        let failed =
            |tasks: &[tokio::task::JoinHandle<()>]| tasks.iter().any(|task| task.is_finished());
        // Whatever happened, it goes on, while it lasts.
        until_some("commands are done", || {
            (failed(&tasks) || sum() > before + 20 * u64::from(CLIENTS)).then_some(())
        })
        .await;
        cluster.net.heal();
        for id in dead {
            cluster.start(id).await;
        }
    }
    acknowledged.stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    cluster.net.set_weather(Weather::default());
    cluster.agree().await;
    let (_, leader) = cluster.leader().await;
    let mut expected: Vec<String> = (0..CLIENTS)
        .flat_map(|client| {
            let last = acknowledged.last[client as usize].load(Ordering::SeqCst);
            (1..=last).map(move |seq| name(client, seq))
        })
        .collect();
    expected.sort();
    assert_eq!(names(&leader), expected);
    assert!(acknowledged.reads.load(Ordering::SeqCst) > 0, "nobody ever had a lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_in_a_storm_lose_nothing_and_do_nothing_twice() {
    storm(3, from_env("CFS_STORM_ROUNDS", 3), from_env("CFS_STORM_SEED", 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_replicas_in_a_storm_lose_nothing_and_do_nothing_twice() {
    storm(5, from_env("CFS_STORM_ROUNDS", 2), from_env("CFS_STORM_SEED", 5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_stops_answering_before_another_one_writes() {
    let cluster = Cluster::of(3, 7).await;
    let acknowledged = Arc::new(Acknowledged::default());
    let net = || Arc::clone(&cluster.net);
    let reading = tokio::spawn(reader(net(), Arc::clone(&acknowledged)));
    let writing = tokio::spawn(client(net(), Arc::clone(&acknowledged), 0));
    for round in 0..4 {
        let (old, group) = cluster.leader().await;
        cluster.net.isolate(old);
        if round % 2 == 1 {
            // The others hear that its connections have ended, and it lives.
            cluster.net.part(old);
        }
        let mut leadership = group.leadership();
        let next =
            until_some("the next leader", || leading(&cluster.net).filter(|(id, _)| *id != old));
        let (new, _) = next.await;
        assert!(new != old && !group.lease_valid());
        assert!(matches!(group.read_view(), Err(GroupError::NotLeader { .. })));
        // It finds out by itself.
        let follows = |now: &Leadership| matches!(now, Leadership::Following { .. });
        tokio::time::timeout(LIMIT, leadership.wait_for(follows)).await.unwrap().unwrap();
        let late = group.propose(server(create("late")), false).await;
        assert!(matches!(late, Err(GroupError::NotLeader { leader: None })), "{late:?}");
        cluster.net.heal();
        let (wanted, address) = (new, address(new));
        until_some("it follows", || {
            (*group.leadership().borrow()
                == Leadership::Following { leader: Some((wanted, address.clone())) })
            .then_some(())
        })
        .await;
    }
    acknowledged.stop.store(true, Ordering::SeqCst);
    reading.await.unwrap();
    writing.await.unwrap();
    cluster.agree().await;
}
