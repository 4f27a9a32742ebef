//! What cannot be served is refused by name, and nothing is lost by it.

use std::os::unix::fs::FileExt;
use std::process::Stdio;

use fsd_rpc::admin::AdminRequest;
use fsd_rpc::message::Request;
use fsd_rpc::{Client, ConnectOptions};
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

/// A place in a file, what stands there now, and what a version to come would have written.
struct Piece {
    name: String,
    at: u64,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Piece {
    /// So many bytes of a file, changed.
    fn of(node: &Node, name: &str, at: u64, len: usize, change: impl Fn(&mut Vec<u8>)) -> Piece {
        let mut old = vec![0; len];
        let file = std::fs::File::open(node.path(name)).unwrap();
        file.read_exact_at(&mut old, at).unwrap();
        let mut new = old.clone();
        change(&mut new);
        assert!(new != old && new.len() == old.len(), "{name}");
        Piece { name: name.into(), at, old, new }
    }

    fn whole(node: &Node, name: &str, change: impl Fn(&mut Vec<u8>)) -> Piece {
        let len = std::fs::metadata(node.path(name)).unwrap().len();
        Piece::of(node, name, 0, len as usize, change)
    }

    fn write(&self, node: &Node, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(node.path(&self.name)).unwrap();
        file.write_all_at(bytes, self.at).unwrap();
    }

    fn is_new(&self, node: &Node) -> bool {
        let mut now = vec![0; self.new.len()];
        let file = std::fs::File::open(node.path(&self.name)).unwrap();
        file.read_exact_at(&mut now, self.at).unwrap();
        now == self.new
    }
}

/// Of chunks and segments: version, then a checksum of all the rest that counts.
fn next_header(bytes: &mut [u8]) {
    bytes[8] += 1;
    let rest = [&bytes[..12], &bytes[16..]].concat();
    bytes[12..16].copy_from_slice(&crc_fast::crc32_iscsi(&rest).to_le_bytes());
}

fn next_superblock(bytes: &mut [u8]) {
    bytes[8] += 1;
    let (rest, crc) = bytes.split_at_mut(4092);
    crc.copy_from_slice(&crc_fast::crc32_iscsi(rest).to_le_bytes());
}

/// Where these bytes begin a block of the pool.
fn blocks_of(node: &Node, magic: &[u8]) -> Vec<u64> {
    let pool = std::fs::read(node.path("pool")).unwrap();
    let blocks = pool.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(magic));
    blocks.map(|(at, _)| at as u64 * 4096).collect()
}

#[test]
fn what_a_newer_version_has_written_is_refused_by_name_and_left_alone() {
    let mut node = Node::start();
    let client = node.client();
    let ino = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    client.write_chunk(ino, 0, &noise(1, 30_000)).unwrap();
    let options = ConnectOptions { admin: true, deadline: PATIENCE, ..ConnectOptions::default() };
    let admin = Client::connect(node.endpoint(), options).unwrap();
    admin.call(&Request::Admin(AdminRequest::Checkpoint), &[]).unwrap();
    client.goodbye();
    node.stop();

    let text = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let text = String::from_utf8(std::mem::take(bytes)).unwrap();
            *bytes = text.replace(from, to).into_bytes();
        }
    };
    let next = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] += 1;
    let mut logs: Vec<String> = std::fs::read_dir(node.path("data/meta/log"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    logs.sort();
    let log = format!("data/meta/log/{}", logs.last().unwrap());
    let next_log = |bytes: &mut Vec<u8>| {
        bytes[7] += 1;
        let crc = crc_fast::crc32_iscsi(&bytes[..60]).to_le_bytes();
        bytes[60..64].copy_from_slice(&crc);
    };
    let pool = |places: Vec<u64>, len, change: fn(&mut [u8])| -> Vec<Piece> {
        assert!(!places.is_empty());
        let piece = |at: &u64| Piece::of(&node, "pool", *at, len, |bytes| change(bytes));
        places.iter().map(piece).collect()
    };
    let cases = [
        (
            vec![Piece::whole(&node, "data/identity.toml", text("format = 2", "format = 3"))],
            ["identity.toml", "format 3 is newer than 2"],
        ),
        (
            vec![Piece::whole(&node, "data/cluster.key", next(7))],
            ["cluster.key", "format 2 is newer than 1"],
        ),
        (
            vec![Piece::whole(&node, "data/meta/kv/version", next(3))],
            ["kv/version", "format 4 is newer than 3"],
        ),
        (
            vec![Piece::whole(&node, "data/meta/checkpoints/current", next(7))],
            ["checkpoints/current", "format 3 is newer than 2"],
        ),
        (vec![Piece::of(&node, &log, 0, 64, next_log)], ["log/", "format 2 is newer than 1"]),
        (pool(vec![0, 4096], 4096, next_superblock), ["pool", "format 2, this blockd reads 1"]),
        (
            pool(blocks_of(&node, b"CFSCHUNK"), 512, next_header),
            ["chunk volume", "format 3 is newer than 2"],
        ),
        (
            pool(blocks_of(&node, b"CFSSEGMT"), 64, next_header),
            ["segment in slot", "format 3 is newer than 2"],
        ),
    ];
    for (pieces, words) in cases {
        pieces.iter().for_each(|piece| piece.write(&node, &piece.new));
        let said = node.refusal();
        for word in words {
            assert!(said.contains(word), "{word} is not in: {said}");
        }
        assert!(pieces.iter().all(|piece| piece.is_new(&node)), "{words:?}: it was changed");
        pieces.iter().for_each(|piece| piece.write(&node, &piece.old));
    }
    // Nothing is lost by it.
    node.restart();
    assert!(node.client().read(ino) == noise(1, 30_000));
}
