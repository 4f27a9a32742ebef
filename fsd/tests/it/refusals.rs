//! What cannot be served is refused by name, and nothing is lost by it.

use std::process::Stdio;

use raftmeta_types::{FileKind, Ino};

use crate::support::*;

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let node = Node::start();
    let client = node.client();
    let said = node.refusal();
    assert!(said.contains("in use by another server"), "{said}");
    assert!(said.contains(&node.pid().to_string()), "{said}");
    client.make(Ino::ROOT, "f", FileKind::Regular);
}

#[test]
fn the_pool_of_another_cluster_is_refused_and_left_as_it_is() {
    let mut owner = Node::start();
    let client = owner.client();
    let ino = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    client.write_chunk(ino, 0, &noise(1, 30_000)).unwrap();
    owner.stop();

    let stranger = Node::prepared(Shape::default());
    std::fs::rename(owner.path("pool"), stranger.path("pool")).unwrap();
    let said = stranger.refusal();
    assert!(said.contains("belongs to cluster"), "{said}");
    // Twice, for the first refusal left an identity behind.
    assert!(stranger.refusal().contains("belongs to cluster"));
    assert_eq!(stranger.blockd_pid(), None, "its blockd is stopped");

    // A node that is made already does not take it for its own either.
    let mut made = Node::start();
    made.stop();
    std::fs::rename(made.path("pool"), made.path("own")).unwrap();
    std::fs::rename(stranger.path("pool"), made.path("pool")).unwrap();
    let said = made.refusal();
    assert!(said.contains("is of cluster"), "{said}");

    std::fs::rename(made.path("pool"), owner.path("pool")).unwrap();
    owner.restart();
    assert!(owner.client().read(ino) == noise(1, 30_000));
}

#[test]
fn a_pool_that_is_lost_is_not_replaced_by_a_new_one() {
    let mut node = Node::start();
    node.stop();
    std::fs::rename(node.path("pool"), node.path("elsewhere")).unwrap();
    let said = node.refusal();
    assert!(said.contains("pool") && said.contains("blockd"), "{said}");
    assert!(!node.path("pool").exists());
    std::fs::rename(node.path("elsewhere"), node.path("pool")).unwrap();
    node.restart();
}

#[test]
fn lost_keys_and_a_strange_directory_are_named() {
    let mut node = Node::start();
    node.stop();
    let key = node.path("data/master.key");
    let kept = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let said = node.refusal();
    assert!(said.contains("master.key"), "{said}");
    std::fs::write(&key, [7; 32]).unwrap();
    let said = node.refusal();
    assert!(said.contains("master.key"), "{said}");
    std::fs::write(&key, kept).unwrap();
    let identity = node.path("data/identity.toml");
    std::fs::rename(&identity, node.path("identity.toml")).unwrap();
    let said = node.refusal();
    assert!(said.contains("identity.toml"), "{said}");
}

#[test]
fn bad_configurations_are_refused_by_key() {
    let node = Node::prepared(Shape { pool_mib: 256, shards: 256 });
    let said = node.refusal();
    assert!(said.contains("shards") && said.contains("segments"), "{said}");
    let text = std::fs::read_to_string(node.path("node.toml")).unwrap();
    std::fs::write(node.path("node.toml"), text.replace("shard_count", "shard_cuont")).unwrap();
    let said = node.refusal();
    assert!(said.contains("shard_cuont"), "{said}");
    let checked = node.command().arg("--check-config").stdout(Stdio::null()).output().unwrap();
    assert_eq!(checked.status.code(), Some(1));
}
