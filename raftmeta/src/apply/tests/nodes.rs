//! Nodes that join, change their state, and hold shards.

use raftmeta_types::cluster::{NodeInfo, NodeState, Protection, ShardChange};

use super::*;

fn node(id: u64, name: &str) -> NodeInfo {
    let address = format!("{name}:9400");
    let (id, name, state) = (NodeId(id), name.to_owned(), NodeState::Joining);
    NodeInfo { id, name, address, state, capacity_bytes: 1 << 30 }
}

/// A node that joins with the token, which has 3 uses.
fn join(fs: &mut Fs, node: NodeInfo) -> MetaResult<Reply> {
    let certificate = CertificateInfo {
        serial: node.id.0 + 100,
        subject: format!("node:{}", node.id),
        expires: Time::default(),
        revoked: false,
    };
    fs.server(Command::JoinNode { token_hash: [9; 32], certificate, node })
}

/// Nodes 1 (up, holding everything), 2 and 3 (joining).
fn site() -> Fs {
    let mut fs = Fs::new();
    fs.server(Command::SetNode(NodeInfo { state: NodeState::Up, ..node(1, "a") })).unwrap();
    let expires = Time { secs: 1 << 40, nanos: 0 };
    let token = TokenInfo { hash: [9; 32], created: Time::default(), expires, uses_left: 3 };
    fs.server(Command::CreateNodeToken(token)).unwrap();
    join(&mut fs, node(2, "b")).unwrap();
    join(&mut fs, node(3, "c")).unwrap();
    fs
}

fn change(id: u16, expected: u64, primary: u64, in_sync: &[u64]) -> ShardChange {
    let in_sync = in_sync.iter().map(|id| NodeId(*id)).collect();
    ShardChange { id: ShardId(id), expected: Epoch(expected), primary: NodeId(primary), in_sync }
}

#[test]
fn nodes_join_once_each_with_a_token_of_nodes() {
    let mut fs = site();
    let states: Vec<NodeState> =
        read::nodes(&fs.kv).unwrap().into_iter().map(|node| node.state).collect();
    assert_eq!(states, [NodeState::Up, NodeState::Joining, NodeState::Joining]);
    assert_eq!(join(&mut fs, node(3, "d")), Err(MetaError::Superseded));
    assert_eq!(join(&mut fs, node(4, "c")), Err(MetaError::NameTaken("c".into())));
    join(&mut fs, node(4, "d")).unwrap();
    assert_eq!(join(&mut fs, node(5, "e")), Err(MetaError::Token(TokenRefusal::Used)));
    assert_eq!(read::nodes(&fs.kv).unwrap().len(), 4);

    // A client's token is none for nodes.
    let expires = Time { secs: 1 << 40, nanos: 0 };
    let token = TokenInfo { hash: [8; 32], created: Time::default(), expires, uses_left: 1 };
    fs.server(Command::CreateToken(token)).unwrap();
    let certificate = CertificateInfo {
        serial: 7,
        subject: "node:5".into(),
        expires: Time::default(),
        revoked: false,
    };
    let node = node(5, "e");
    let refused = fs.server(Command::JoinNode { token_hash: [8; 32], certificate, node });
    assert_eq!(refused, Err(MetaError::Token(TokenRefusal::Unknown)));
}

#[test]
fn a_node_changes_its_state_only_from_the_one_it_is_in() {
    use NodeState::*;
    let mut fs = site();
    let mut set =
        |id: u64, from, to| fs.server(Command::SetNodeState { node: NodeId(id), from, to });
    assert_eq!(set(2, Up, Down), Err(MetaError::NodeIs(Joining)));
    set(2, Joining, Up).unwrap();
    set(2, Joining, Up).unwrap();
    set(2, Up, Draining).unwrap();
    assert_eq!(set(2, Draining, Removed), Err(MetaError::NodeIs(Draining)));
    set(2, Draining, Drained).unwrap();
    set(2, Drained, Removed).unwrap();
    assert_eq!(set(2, Removed, Up), Err(MetaError::NodeIs(Removed)));
    assert_eq!(set(9, Up, Down), Err(MetaError::NotFound));
    // The only copy of everything is there.
    set(1, Up, Draining).unwrap();
    assert!(matches!(set(1, Draining, Drained), Err(MetaError::Invalid(_))));
}

#[test]
fn shards_go_only_to_those_who_were_in_sync() {
    let mut fs = site();
    let mut set = |changes: &[ShardChange]| fs.server(Command::SetShards(changes.to_vec()));
    // Never to a replica that may lack something.
    assert!(matches!(set(&[change(0, 1, 2, &[1, 2])]), Err(MetaError::Invalid(_))));
    set(&[change(0, 1, 1, &[1, 2])]).unwrap();
    assert_eq!(set(&[change(0, 1, 2, &[2])]), Err(MetaError::StaleEpoch(Epoch(2))));
    for bad in [&[1, 1][..], &[2], &[1, 9]] {
        assert!(matches!(set(&[change(1, 1, 1, bad)]), Err(MetaError::Invalid(_))), "{bad:?}");
    }
    // All or none.
    let both = [change(1, 1, 1, &[1, 3]), change(0, 9, 1, &[1])];
    assert_eq!(set(&both), Err(MetaError::StaleEpoch(Epoch(2))));
    set(&[change(0, 2, 2, &[2])]).unwrap();
    let shards = read::shards(&fs.kv).unwrap();
    let found: Vec<_> = shards.iter().map(|s| (s.epoch.0, s.primary.0, s.in_sync.len())).collect();
    assert_eq!(found, [(3, 2, 1), (1, 1, 1)]);
}

#[test]
fn protection_is_one_copy_until_it_is_said() {
    let mut fs = site();
    assert_eq!(read::protection(&fs.kv).unwrap(), Protection::SINGLE);
    for (replicas, in_sync_min) in [(0, 0), (8, 1), (2, 3), (3, 0)] {
        let bad = Protection { replicas, in_sync_min };
        assert!(fs.server(Command::SetProtection(bad)).is_err(), "{bad:?}");
    }
    let wanted = Protection { replicas: 3, in_sync_min: 2 };
    fs.server(Command::SetProtection(wanted)).unwrap();
    assert_eq!(read::protection(&fs.kv).unwrap(), wanted);
}
