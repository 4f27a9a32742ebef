//! Replicas that are behind: by log where it is there, else by checkpoint.

use super::super::crash::copy;
use super::net::Weather;
use super::*;

/// Makes a state of some MiB on a group of one.
async fn fill(group: &Group, files: u64) {
    for n in 0..files {
        let ino = make(group, &format!("f{n:05}"), false).await;
        group.propose(server(write(ino, 4096)), false).await.unwrap().unwrap();
    }
}

/// Writes a checkpoint and forgets the log before it.
async fn forget(group: &Group) {
    let applied = group.0.store.applied();
    group.checkpoint().await.unwrap();
    until_some("a checkpoint", || (group.0.store.checkpointed() >= applied).then_some(())).await;
    let upto = applied.unwrap();
    let start = Instant::now();
    while group.0.log.purged() < Some(upto) {
        assert!(start.elapsed() < LIMIT, "the log never goes");
        // openraft hears of the checkpoint a little later, and keeps what it is sending.
        let raft = group.0.raft.clone();
        let purge = async move { raft.trigger().purge_log(upto).await };
        home::drive(&group.0.home, purge).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_absence_costs_no_checkpoint() {
    let mut cluster = Cluster::of(3, 21).await;
    let (leader, group) = cluster.leader().await;
    let other = if leader == 3 { 2 } else { 3 };
    cluster.kill(other);
    for n in 0..300 {
        cluster.command(0, n + 1, create(&format!("n{n}"))).await.unwrap();
    }
    let applied = group.0.store.applied();
    group.checkpoint().await.unwrap();
    until_some("a checkpoint", || (group.0.store.checkpointed() >= applied).then_some(())).await;
    cluster.start(other).await.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    assert_eq!(cluster.net.count("checkpoint-begin"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_gets_a_checkpoint_through_bad_weather_and_its_own_death() {
    let mut cluster = Cluster::of(1, 22).await;
    let first = cluster.group(1);
    fill(&first, 1500).await;
    forget(&first).await;
    // Three ways a transfer can end early: the receiver dies, the sender does, and the newest checkpoint changes.
    cluster.net.set_weather(Weather { lost: 15, repeated: 15, delay_max_ms: 20 });
    let learner = cluster.start(2).await;
    first.add_learner(2, &address(2)).await.unwrap();
    let parts = |net: &Net, at_least: u64| (net.count("checkpoint-part") >= at_least).then_some(());
    until_some("some parts", || parts(&cluster.net, 2)).await;
    drop(learner);
    cluster.kill(2);
    let left = cluster.dirs[&2].path().join("checkpoints/incoming.part");
    cluster.start(2).await;
    until_some("more parts", || parts(&cluster.net, 4)).await;
    drop(first);
    cluster.kill(1);
    let first = cluster.start(1).await;
    fill_more(&first).await;
    forget(&first).await;
    cluster.group(2).wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    until_some("nothing is left", || (!left.exists()).then_some(())).await;
    // It is a replica like others now, and remembers it.
    cluster.net.set_weather(Weather::default());
    cluster.set_voters([1, 2]).await;
    cluster.kill(2);
    cluster.start(2).await.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.command(0, 1, create("last")).await.unwrap();
    cluster.agree().await;
}

async fn fill_more(group: &Group) {
    for n in 0..50 {
        make(group, &format!("more{n}"), false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_was_away_for_long_comes_back_by_checkpoint() {
    let mut cluster = Cluster::of(3, 23).await;
    let (leader, group) = cluster.leader().await;
    let other = if leader == 3 { 2 } else { 3 };
    cluster.kill(other);
    for n in 0..100 {
        cluster.command(0, n + 1, create(&format!("n{n}"))).await.unwrap();
    }
    forget(&group).await;
    let again = cluster.start(other).await;
    again.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    assert!(cluster.net.count("checkpoint-end") > 0);
    assert_eq!(names(&again).len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_anywhere_in_a_transfer_leaves_a_replica_that_opens() {
    let mut cluster = Cluster::of(1, 24).await;
    let first = cluster.group(1);
    fill(&first, 600).await;
    let old = names(&first);
    // The learner holds an old state, and then misses a lot.
    let learner = cluster.start(2).await;
    first.add_learner(2, &address(2)).await.unwrap();
    learner.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    cluster.net.isolate(2);
    fill_more(&first).await;
    forget(&first).await;
    let new = names(&first);
    cluster.net.heal();
    let mut images = Vec::new();
    let start = Instant::now();
    while names_or_none(&learner) != Some(new.clone()) && start.elapsed() < LIMIT {
        let image = tempfile::tempdir().unwrap();
        copy(cluster.dirs[&2].path(), image.path());
        images.push(image);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.agree().await;
    // At most so many are looked at, evenly.
    let step = images.len() / 8 + 1;
    for image in images.iter().step_by(step) {
        let mut config = config(image.path());
        (config.node_id, config.bootstrap) = (2, false);
        config.transport = Some(Net::new(1).transport(2));
        let group = Group::open(config).await.unwrap();
        let found = names(&group);
        assert!(found == old || found == new, "{} names", found.len());
        is_clean(&group);
    }
}

/// `None` while the state is being replaced: what is there then is none.
fn names_or_none(group: &Group) -> Option<Vec<String>> {
    let entries = read::readdir(&group.view(), Ino::ROOT, b"", usize::MAX).ok()?;
    entries.into_iter().map(|entry| String::from_utf8(entry.name).ok()).collect()
}
