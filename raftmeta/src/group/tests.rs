mod cluster;
mod crash;
mod damage;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use raftmeta_types::cluster::{ClusterInfo, SessionInfo};
use raftmeta_types::command::{AttrChange, Create, NewExtent, SetAttr, Write};
use raftmeta_types::{Command, Epoch, ExtentData, FileKind, Ino, MetaError, SessionId};

use super::*;
use crate::fs::File;
use crate::{check, read};

const SESSION: SessionId = SessionId(7);

fn config(dir: &Path) -> GroupConfig {
    let dir = dir.to_path_buf();
    GroupConfig {
        dir,
        node_id: 1,
        bootstrap: true,
        checkpoint_entries: 100_000,
        address: String::new(),
        transport: None,
    }
}

/// The group, as soon as an earlier one has let go of the directory.
async fn open(dir: &Path) -> Result<Group, GroupError> {
    for _ in 0..6000 {
        match Group::open(config(dir)).await {
            Err(GroupError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other,
        }
    }
    panic!("the directory stays in use");
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}

fn server(command: Command) -> Envelope {
    Envelope { session: SessionId::SERVER, slot: 0, seq: 0, time: Time::default(), command }
}

async fn setup(dir: &Path) -> Group {
    let group = open(dir).await.unwrap();
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
    group
}

fn create(name: &str) -> Command {
    Command::Create(Create {
        parent: Ino::ROOT,
        name: Bytes::copy_from_slice(name.as_bytes()),
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
        open: false,
    })
}

async fn make(group: &Group, name: &str, durable: bool) -> Ino {
    match group.propose(server(create(name)), durable).await.unwrap().unwrap() {
        Reply::Created { inode, .. } => inode.ino,
        other => panic!("{other:?}"),
    }
}

fn write(ino: Ino, len: usize) -> Command {
    let data = ExtentData::Inline(vec![5; len].into());
    let extents = vec![NewExtent { offset: 0, len: len as u32, data, receipt: Epoch(0) }];
    Command::Write(Write { ino, extents, change: AttrChange::default() })
}

fn names(group: &Group) -> Vec<String> {
    let entries = read::readdir(&group.view(), Ino::ROOT, b"", usize::MAX).unwrap();
    entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

fn is_clean(group: &Group) {
    assert_eq!(check::check(&group.view()).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_survive_a_restart_and_a_second_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    for (name, durable) in [("a", false), ("b", true), ("c", false)] {
        make(&group, name, durable).await;
    }
    let applied = group.status().applied;
    assert!(matches!(Group::open(config(dir.path())).await, Err(GroupError::InUse { .. })));
    group.shutdown().await.unwrap();
    drop(group);
    let again = open(dir.path()).await.unwrap();
    assert!(again.status().applied >= applied);
    assert_eq!(names(&again), ["a", "b", "c"]);
    is_clean(&again);
}

#[tokio::test]
async fn it_also_runs_on_a_runtime_of_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    make(&group, "a", true).await;
    group.shutdown().await.unwrap();
    drop(group);
    assert_eq!(names(&open(dir.path()).await.unwrap()), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_sticks_until_the_group_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    make(&group, "kept", true).await;
    group.0.log.fail_next_sync();
    assert!(group.propose(server(create("lost")), true).await.is_err());
    assert!(group.propose(server(create("x")), true).await.is_err());
    assert!(group.propose(server(create("y")), false).await.is_err());
    let error = group.sync().await.unwrap_err().to_string();
    assert!(error.contains("injected") && error.contains("log"), "{error}");
    let _told_already = group.shutdown().await;
    drop(group);
    let again = open(dir.path()).await.unwrap();
    let found = names(&again);
    assert!(found.contains(&"kept".to_owned()) && !found.contains(&"y".to_owned()), "{found:?}");
    make(&again, "more", true).await;
    is_clean(&again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_frees_the_log_and_proposals_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    let ino = make(&group, "f", false).await;
    for _ in 0..40 {
        group.propose(server(write(ino, 100_000)), false).await.unwrap().unwrap();
    }
    let segments = || std::fs::read_dir(dir.path().join("log")).unwrap().count();
    let many = segments();
    assert!(many > 1);
    // openraft keeps a thousand entries before a checkpoint.
    for n in 0..1100 {
        make(&group, &format!("n{n}"), false).await;
    }
    group.checkpoint().await.unwrap();
    make(&group, "meanwhile", true).await;
    let first = dir.path().join("log/0000000000000001.log");
    until("the first segment goes", || !first.exists()).await;
    assert!(group.0.store.checkpointed() > Some(1000));
    group.shutdown().await.unwrap();
    drop(group);
    let again = open(dir.path()).await.unwrap();
    assert_eq!(names(&again).len(), 1102);
    is_clean(&again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_the_log_cannot_hold_is_refused_and_nothing_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    let huge = Command::RemoveXattr { ino: Ino::ROOT, name: vec![1; 9 << 20].into() };
    let refused = group.propose(server(huge), true).await;
    assert!(matches!(refused, Err(GroupError::TooLarge { .. })), "{refused:?}");
    let large = Command::RemoveXattr { ino: Ino::ROOT, name: vec![1; 7 << 20].into() };
    let answer = group.propose(server(large), true).await.unwrap();
    assert_eq!(answer, Err(MetaError::NameTooLong));
    make(&group, "a", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_truncate_is_done_in_steps_that_nobody_sees() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    let ino = make(&group, "f", false).await;
    let extents = (0..3000u64).map(|at| NewExtent {
        offset: at * 8,
        len: 4,
        data: ExtentData::Zero,
        receipt: Epoch(0),
    });
    let change = AttrChange::default();
    let write = Write { ino, extents: extents.collect(), change: change.clone() };
    group.propose(server(Command::Write(write)), false).await.unwrap().unwrap();
    let before = group.0.store.applied();
    let cut = Command::SetAttr(SetAttr { ino, change, size: Some(6) });
    let mut envelope = server(cut);
    (envelope.session, envelope.seq) = (SESSION, 1);
    let reply = group.propose(envelope.clone(), true).await.unwrap().unwrap();
    let Reply::Content { inode, .. } = &reply else { panic!("{reply:?}") };
    assert_eq!((inode.size, inode.allocated), (6, 4));
    assert!(group.0.store.applied() >= before.map(|index| index + 3), "in one step");
    // The retry finds the reply of the last step.
    assert_eq!(group.propose(envelope, true).await.unwrap().unwrap(), reply);
    is_clean(&group);
}
