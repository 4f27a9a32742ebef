//! Nodes that are lost for good, and what becomes of the shards that counted on them.

use std::collections::BTreeSet;

use raftmeta_types::cluster::{NodeInfo, NodeState, ShardChange, ShardInfo};

use super::*;

fn node(id: u64, state: NodeState) -> NodeInfo {
    let (name, address) = (format!("n{id}"), format!("n{id}:9400"));
    NodeInfo { id: NodeId(id), name, address, state, capacity_bytes: 1 << 30 }
}

/// Nodes 1 to 4, the first of them up and the others down; the shards 0 and 1 are in sync there, and their first
/// replicas lead.
fn site(shards: [&[u64]; 2]) -> Fs {
    let mut fs = Fs::new();
    fs.server(Command::SetNode(node(1, NodeState::Up))).unwrap();
    for id in 2..=4 {
        fs.server(Command::SetNode(node(id, NodeState::Down))).unwrap();
    }
    for (id, in_sync) in (0..).zip(shards) {
        // Only one that was in sync may lead.
        for (expected, primary, in_sync) in [
            (1, 1, [&[1][..], in_sync].concat().into_iter().collect::<BTreeSet<u64>>()),
            (2, in_sync[0], in_sync.iter().copied().collect()),
        ] {
            let in_sync = in_sync.into_iter().map(NodeId).collect();
            let (id, expected, primary) = (ShardId(id), Epoch(expected), NodeId(primary));
            fs.server(Command::SetShards(vec![ShardChange { id, expected, primary, in_sync }]))
                .unwrap();
        }
    }
    fs
}

fn lose(fs: &mut Fs, id: u64, heirs: &[(u16, u64)]) -> MetaResult<Reply> {
    let heirs = heirs.iter().map(|(shard, node)| (ShardId(*shard), NodeId(*node))).collect();
    fs.server(Command::RemoveLost { node: NodeId(id), heirs })
}

/// Epoch, primary and replicas of each shard.
fn map(fs: &Fs) -> Vec<(u64, u64, Vec<u64>)> {
    let shards = read::shards(&fs.kv).unwrap();
    let shown = |info: ShardInfo| {
        (info.epoch.0, info.primary.0, info.in_sync.iter().map(|id| id.0).collect())
    };
    shards.into_iter().map(shown).collect()
}

#[test]
fn shards_go_on_with_the_replicas_that_are_left() {
    let mut fs = site([&[2, 3, 1], &[3, 2]]);
    let version = read::map_version(&fs.kv).unwrap();
    lose(&mut fs, 2, &[]).unwrap();
    // Whoever is up leads; who led before and is left stays.
    assert_eq!(map(&fs), [(4, 1, vec![1, 3]), (4, 3, vec![3])]);
    assert_eq!(read::node(&fs.kv, NodeId(2)).unwrap().unwrap().state, NodeState::Removed);
    assert!(read::map_version(&fs.kv).unwrap() > version);
    // Said again nothing happens, and it does not come back in any way.
    lose(&mut fs, 2, &[]).unwrap();
    assert_eq!(map(&fs), [(4, 1, vec![1, 3]), (4, 3, vec![3])]);
    let (from, to) = (NodeState::Removed, NodeState::Up);
    let back = fs.server(Command::SetNodeState { node: NodeId(2), from, to });
    assert_eq!(back, Err(MetaError::NodeIs(NodeState::Removed)));
    let change = ShardChange {
        id: ShardId(0),
        expected: Epoch(4),
        primary: NodeId(1),
        in_sync: vec![NodeId(1), NodeId(2)],
    };
    assert!(matches!(fs.server(Command::SetShards(vec![change])), Err(MetaError::Invalid(_))));
}

#[test]
fn nobody_who_is_up_or_unknown_is_lost() {
    let mut fs = site([&[1, 2], &[1, 2]]);
    assert_eq!(lose(&mut fs, 1, &[]), Err(MetaError::NodeIs(NodeState::Up)));
    assert_eq!(lose(&mut fs, 9, &[]), Err(MetaError::NotFound));
    assert_eq!(map(&fs), [(3, 1, vec![1, 2]), (3, 1, vec![1, 2])]);
}

#[test]
fn a_shard_of_which_nothing_is_left_begins_anew_only_where_it_is_said() {
    let mut fs = site([&[2], &[2, 1]]);
    let (before, version) = (map(&fs), read::map_version(&fs.kv).unwrap());
    // Not at all, on a node that is down or itself lost, or unknown, or for another shard.
    for heirs in [&[][..], &[(0, 3)], &[(0, 2)], &[(0, 9)], &[(1, 1)]] {
        let refused = lose(&mut fs, 2, heirs);
        assert!(matches!(&refused, Err(MetaError::Invalid(why)) if why.contains("shard 0")));
        assert_eq!((map(&fs), read::map_version(&fs.kv).unwrap()), (before.clone(), version));
    }
    // An heir of a shard that has another replica is not asked.
    lose(&mut fs, 2, &[(0, 1), (1, 1)]).unwrap();
    assert_eq!(map(&fs), [(4, 1, vec![1]), (4, 1, vec![1])]);
    let gc_epochs: Vec<u64> =
        read::shards(&fs.kv).unwrap().iter().map(|shard| shard.gc_epoch.0).collect();
    assert_eq!(gc_epochs, [1, 0]);
}

/// A chunk of shard 0 of 2.
fn chunk(n: u8) -> ChunkHash {
    ChunkHash([n & 0x7f; 32])
}

#[test]
fn receipts_of_what_is_lost_are_good_no_more() {
    let mut fs = site([&[2], &[1]]);
    let ino = fs.file(Ino::ROOT, "f");
    let commit = |fs: &mut Fs, n: u8, receipt: u64| {
        let data = ExtentData::Chunk { hash: chunk(n), chunk_offset: 0 };
        let extents = vec![NewExtent { offset: 0, len: 9, data, receipt: Epoch(receipt) }];
        fs.run(Command::Write(Write { ino, extents, change: AttrChange::default() }))
    };
    let begin = |epoch, hashes| Command::BeginDelete { shard: ShardId(0), epoch, hashes };
    fs.server(begin(Epoch(1), vec![chunk(1)])).unwrap();
    fs.server(Command::EndDelete { shard: ShardId(0), epoch: Epoch(1) }).unwrap();
    // That deletion has spared it, so the older receipt counts.
    commit(&mut fs, 2, 0).unwrap();
    // One under way has lost its object.
    fs.server(begin(Epoch(2), vec![chunk(3)])).unwrap();
    lose(&mut fs, 2, &[(0, 1)]).unwrap();
    let ended = fs.server(Command::EndDelete { shard: ShardId(0), epoch: Epoch(2) });
    assert_eq!(ended, Err(MetaError::StaleEpoch(Epoch(3))));
    assert_eq!(read::pending_delete(&fs.kv, ShardId(0)).unwrap(), None);
    for receipt in 0..3 {
        assert!(matches!(commit(&mut fs, 4, receipt), Err(MetaError::RetryPut(_))), "{receipt}");
    }
    commit(&mut fs, 4, 3).unwrap();
    fs.server(begin(Epoch(4), vec![])).unwrap();
}

#[test]
fn what_the_node_could_show_is_revoked() {
    let mut fs = site([&[1], &[1]]);
    let certificate = |serial, subject: &str| CertificateInfo {
        serial,
        subject: subject.into(),
        expires: Time { secs: 1 << 40, nanos: 0 },
        revoked: false,
    };
    for (serial, subject) in [(5, "node:2"), (6, "node:22"), (7, "client:node:2"), (8, "node:2")] {
        let certificate = certificate(serial, subject);
        fs.server(Command::RecordCertificate { certificate }).unwrap();
    }
    lose(&mut fs, 2, &[]).unwrap();
    let revoked = |serial| read::certificate(&fs.kv, serial).unwrap().unwrap().revoked;
    assert_eq!([5, 6, 7, 8].map(revoked), [true, false, false, true]);
}
