use raftmeta_types::{Command, SessionId};

use super::*;

fn config(dir: &std::path::Path) -> GroupConfig {
    let dir = dir.to_path_buf();
    GroupConfig { dir, node_id: 1, bootstrap: true, checkpoint_entries: 1000 }
}

fn envelope() -> Envelope {
    let command = Command::Settle(Vec::new());
    Envelope { session: SessionId(0), slot: 0, seq: 0, time: Time::default(), command }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_survive_a_restart_and_a_second_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::open(config(dir.path())).await.unwrap();
    for durable in [false, true, false] {
        group.propose(envelope(), durable).await.unwrap().unwrap();
    }
    let applied = group.status().applied;
    assert!(matches!(Group::open(config(dir.path())).await, Err(GroupError::InUse { .. })));
    group.shutdown().await.unwrap();
    drop(group);
    let mut again = Group::open(config(dir.path())).await;
    while matches!(again, Err(GroupError::InUse { .. })) {
        tokio::task::yield_now().await;
        again = Group::open(config(dir.path())).await;
    }
    assert!(again.unwrap().status().applied >= applied);
}
