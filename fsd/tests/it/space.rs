//! A full pool: writers are refused, deleting works, and makes room again.

use fsd_rpc::CallError;
use fsd_rpc::admin::{AdminRequest, Job};
use fsd_rpc::message::{Failure, Request};
use raftmeta_types::{FileKind, Ino};

use crate::site::Site;
use crate::support::*;

/// Bytes of one file, in one chunk as the client cuts them: below the 256 KiB that it may have at most.
const FILE: usize = 250_000;

#[test]
fn a_full_pool_refuses_writers_and_recovers_by_deleting() {
    let mut node = Node::shaped(Shape { pool_mib: 256, shards: 1 });
    let client = node.client();
    let mut count = 0;
    let refused = loop {
        let name = format!("f{count}");
        let ino = client.make(Ino::ROOT, &name, FileKind::Regular).ino;
        match client.write_chunk(ino, 0, &noise(count, FILE)) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 1100, "a pool of 256 MiB holds no more than that");
    };
    assert!(matches!(refused, CallError::Failure(Failure::NoSpace)), "{refused:?}");
    assert!(count > 700, "only {count} files of 250 kB fitted in 256 MiB");
    // Names and small writes still work, and so does removing.
    let small = client.make(Ino::ROOT, "small", FileKind::Regular).ino;
    client.write_inline(small, 0, b"small");
    node.kill();
    node.restart();
    for n in (0..count).filter(|n| n % 2 == 0) {
        client.remove(Ino::ROOT, &format!("f{n}")).unwrap();
    }
    // The next writer gets the room that it needs.
    let ino = client.make(Ino::ROOT, "new", FileKind::Regular).ino;
    let bytes = noise(1 << 40, FILE);
    until("there is room again", || client.write_chunk(ino, 0, &bytes).ok());
    for n in 0..(count / 4) {
        client.write_chunk(ino, (n + 1) << 20, &noise((1 << 41) + n, FILE)).unwrap();
    }
    for n in (0..count).filter(|n| n % 2 == 1) {
        let ino = client.find(Ino::ROOT, &format!("f{n}")).unwrap().ino;
        assert!(client.read(ino) == noise(n, FILE), "f{n}");
    }
    assert_eq!(client.read(small), b"small");
}

#[test]
fn a_write_makes_progress_while_its_chunks_are_deleted_again_and_again() {
    let node = Node::shaped(Shape { pool_mib: 256, shards: 1 });
    let client = node.client();
    let bytes = noise(3, 10_000);
    for round in 0..20 {
        let name = format!("f{round}");
        let ino = client.make(Ino::ROOT, &name, FileKind::Regular).ino;
        client.write_chunk(ino, 0, &bytes).unwrap();
        assert_eq!(client.read(ino), bytes);
        client.remove(Ino::ROOT, &name).unwrap();
    }
    until("garbage is deleted", || {
        client.call(&Request::GetChunks { hashes: vec![hash(&bytes)] }, &[]).err()
    });
}

#[test]
fn what_the_other_nodes_have_no_room_for_is_refused_with_numbers() {
    let site = Site::of(2, 1);
    let client = site.client();
    let drain = || AdminRequest::NodeDrain { node: "n2".into(), dry_run: true };
    let twice = || AdminRequest::Protection { replicas: Some(2), in_sync_min: None };
    let refused = |request| match site.try_ask(0, request) {
        Ok(_) => None,
        Err(CallError::Failure(Failure::Admin { code, why, .. })) => Some((code, why)),
        Err(other) => panic!("{other:?}"),
    };
    let mut count = 0;
    let (code, why) = loop {
        for _ in 0..50 {
            let ino = client.make(Ino::ROOT, &format!("f{count}"), FileKind::Regular).ino;
            client.write_chunk(ino, 0, &noise(count, FILE)).unwrap();
            count += 1;
        }
        if let Some(refused) = refused(drain()) {
            break refused;
        }
    };
    // One of two nodes would have to hold what both do, so it is refused when they are half full.
    assert!((500..1100).contains(&count), "{count} files of 250 kB on two pools of 256 MiB");
    assert_eq!(code, "NO_SPACE");
    assert!(why.starts_with("n1 would have to hold ") && why.contains("room for"), "{why}");
    let (code, why) = refused(twice()).unwrap();
    assert_eq!(code, "NO_SPACE");
    assert!(why.contains("n1 would have to hold ") || why.contains("n2 would"), "{why}");
    let request = AdminRequest::NodeDrain { node: "n2".into(), dry_run: false };
    assert_eq!(refused(request).unwrap().0, "NO_SPACE");
    assert_eq!(site.list(0)[1].state, "up", "nothing was begun");
    // With less to move it is allowed, and the room is there.
    for n in (0..count).filter(|n| n % 2 == 0) {
        client.remove(Ino::ROOT, &format!("f{n}")).unwrap();
    }
    until("there is room", || {
        site.run(0, Job::Gc { dry_run: false });
        refused(drain()).is_none().then_some(())
    });
    assert_eq!(refused(AdminRequest::NodeDrain { node: "n2".into(), dry_run: false }), None);
    until("it is drained", || (site.list(0)[1].state == "drained").then_some(()));
    for n in (0..count).filter(|n| n % 2 == 1) {
        let ino = client.find(Ino::ROOT, &format!("f{n}")).unwrap().ino;
        assert!(client.read(ino) == noise(n, FILE), "f{n}");
    }
}
