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
