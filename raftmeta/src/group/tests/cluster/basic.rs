//! A group grows, loses its leader and gets it back.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_outlive_their_leader_and_end_up_alike() {
    let mut cluster = Cluster::of(3, 1).await;
    for n in 0..50 {
        cluster.command(0, n + 1, create(&format!("a{n}"))).await.unwrap();
    }
    cluster.agree().await;
    let (old, leader) = cluster.leader().await;
    drop(leader);
    cluster.kill(old);
    let (new, _) = cluster.leader().await;
    assert_ne!(new, old);
    for n in 50..100 {
        cluster.command(0, n + 1, create(&format!("a{n}"))).await.unwrap();
    }
    let again = cluster.start(old).await;
    again.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    assert_eq!(names(&again).len(), 100);
}

/// No replica asks for votes because time has passed.
fn forbid_timeouts(cluster: &Cluster) {
    for (_, group) in cluster.net.running() {
        group.0.raft.runtime_config().elect(false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_connections_end_is_replaced_without_an_election_timeout() {
    for seed in 0..3 {
        let mut cluster = Cluster::of(3, seed).await;
        forbid_timeouts(&cluster);
        let (old, leader) = cluster.leader().await;
        drop(leader);
        cluster.kill_process(old);
        let (new, _) = cluster.leader().await;
        assert_ne!(new, old);
        cluster.command(0, 1, create("after")).await.unwrap();
        let again = cluster.start(old).await;
        again.wait_until_caught_up(LIMIT).await.unwrap();
        cluster.agree().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_heard_again_stays() {
    let cluster = Cluster::of(3, 1).await;
    let (old, leader) = cluster.leader().await;
    let term = leader.status().term;
    let votes = cluster.net.count("vote");
    let until = Instant::now() + 3 * leadership::LEASE;
    while Instant::now() < until {
        cluster.net.part(old);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // On a machine that stands still for as long as a lease there may be an election, and that is right.
    let (now, leader) = cluster.leader().await;
    if cluster.net.count("vote") == votes {
        assert_eq!((now, leader.status().term), (old, term));
    }
    cluster.command(0, 1, create("after")).await.unwrap();
    cluster.agree().await;
}
