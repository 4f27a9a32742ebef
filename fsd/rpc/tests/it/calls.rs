//! Sessions, calls, data, locks, and the ends of a client.

use std::sync::Barrier;
use std::time::Duration;

use fsd_rpc::client::{CONNECTIONS_MAX, CallError};
use fsd_rpc::message::{Failure, Request, Response};
use fsd_rpc::{Client, ConnectOptions};
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{ChunkHash, Ino, SessionId};

use crate::node::{Node, change, counted, options, wait_for};

fn both_doors(test: impl Fn(&Node, Client)) {
    let node = Node::start();
    test(&node, Client::connect(node.unix(), options()).unwrap());
    let node = Node::start();
    test(&node, Client::connect(node.tcp("client:a"), options()).unwrap());
}

#[test]
fn a_session_opens_works_and_ends() {
    both_doors(|node, client| {
        assert_eq!(client.session(), SessionId(1));
        assert_eq!(client.generation(), 1);
        assert_eq!(client.welcome().cluster_name, "test");
        assert_eq!(client.limits().shard_count, 16);
        for number in 0..100 {
            assert_eq!(client.mutate(number % 2 == 0, change(number)).unwrap(), counted(number));
        }
        assert_eq!(node.store.lock().applied, (0..100).collect::<Vec<_>>());
        client.goodbye();
        assert!(node.store.lock().sessions.is_empty());
        assert!(matches!(client.mutate(false, change(1)), Err(CallError::Aborted)));
    });
}

#[test]
fn data_comes_back_as_it_was_sent() {
    both_doors(|_, client| {
        for len in [0, 1, 4095, 16 << 10, (16 << 10) + 1, 200_000, 8 << 20] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            let (head, tail) = data.split_at(len / 3);
            let put = Request::PutChunks { chunks: vec![] };
            let (answer, back) = client.call(&put, &[head, &[], tail]).unwrap();
            assert!(matches!(answer, Response::Receipts(_)));
            assert!(back == data, "{len} bytes");
        }
        let hashes = (1..=40).map(|n| ChunkHash([n; 32])).collect();
        let (_, back) = client.call(&Request::GetChunks { hashes }, &[]).unwrap();
        assert_eq!(back.len(), 4_000_000);
        assert!(back.chunks(100_000).zip(1..).all(|(part, n)| part.iter().all(|b| *b == n)));
    });
}

#[test]
fn many_threads_share_a_session() {
    both_doors(|node, client| {
        let threads = 3 * CONNECTIONS_MAX as u64;
        let start = Barrier::new(threads as usize);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (client, start) = (&client, &start);
                scope.spawn(move || {
                    start.wait();
                    for number in (0..20).map(|n| thread * 20 + n) {
                        assert_eq!(client.mutate(false, change(number)).unwrap(), counted(number));
                        client.call(&Request::Ping, &[]).unwrap();
                    }
                });
            }
        });
        let store = node.store.lock();
        let mut applied = store.applied.clone();
        applied.sort_unstable();
        assert_eq!(applied, (0..threads * 20).collect::<Vec<_>>());
        assert!(store.greetings <= CONNECTIONS_MAX as u64, "{} greetings", store.greetings);
        assert_eq!(store.sessions.len(), 1);
    });
}

fn lock(ino: u64) -> Lock {
    Lock {
        ino: Ino(ino),
        family: LockFamily::Posix,
        owner: LockOwner { session: SessionId(1), owner: 1 },
        kind: LockKind::Exclusive,
        start: 0,
        end: u64::MAX,
        pid: 1,
    }
}

#[test]
fn a_lock_is_waited_for() {
    both_doors(|node, client| {
        client.lock_wait(lock(1), 0).unwrap();
        let refused = client.lock_wait(lock(2), 20);
        assert!(matches!(refused, Err(CallError::Failure(Failure::Timeout))), "{refused:?}");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| client.lock_wait(lock(3), 120_000));
            // Others go on meanwhile.
            client.call(&Request::Ping, &[]).unwrap();
            node.store.lock().lock_held = false;
            waiter.join().unwrap().unwrap();
        });
        assert_eq!(node.store.lock().applied, [1, 3]);
    });
}

#[test]
fn an_abort_ends_what_waits() {
    both_doors(|_, client| {
        client.lock_wait(lock(1), 0).unwrap();
        std::thread::scope(|scope| {
            let client = &client;
            let waiters: Vec<_> = (2..6)
                .map(|ino| scope.spawn(move || client.lock_wait(lock(ino), 600_000)))
                .collect();
            client.call(&Request::Ping, &[]).unwrap();
            client.abort();
            for waiter in waiters {
                assert!(matches!(waiter.join().unwrap(), Err(CallError::Aborted)));
            }
        });
        assert!(matches!(client.call(&Request::Ping, &[]), Err(CallError::Aborted)));
    });
}

#[test]
fn what_makes_no_sense_ends_the_connection_and_not_the_session() {
    both_doors(|_, client| {
        let refused = client.call(&Request::StatFs, &[]);
        assert!(matches!(refused, Err(CallError::Failure(Failure::Protocol(_)))), "{refused:?}");
        let session = client.session();
        client.mutate(false, change(7)).unwrap();
        assert_eq!(client.session(), session);
    });
}

#[test]
fn a_node_that_is_not_ready_is_asked_again() {
    both_doors(|node, client| {
        node.store.lock().not_ready = 3;
        assert_eq!(client.mutate(true, change(5)).unwrap(), counted(5));
        node.store.lock().not_ready = 3;
        client.call(&Request::Sync, &[]).unwrap();
        assert_eq!(node.store.lock().applied, [5]);
    });
}

#[test]
fn an_idle_session_is_kept_by_pings_and_an_expired_one_replaced() {
    let node = Node::start_with(300);
    let client = Client::connect(node.unix(), options()).unwrap();
    node.store.lock().sessions.clear();
    // Nobody calls: a ping notices, and the next greets anew.
    wait_for("a new session", || client.generation() == 2);
    assert_eq!(client.session(), SessionId(2));
    client.mutate(false, change(1)).unwrap();
    // A mutation notices, too, and was not done in the old session.
    node.store.lock().sessions.clear();
    assert_eq!(client.mutate(false, change(2)).unwrap(), counted(2));
    assert_eq!(node.store.lock().applied, [1, 2]);
}

#[test]
fn an_administrator_has_no_session() {
    both_doors(|node, client| {
        let admin = ConnectOptions { admin: true, ..options() };
        let admin = Client::connect(node.unix(), admin).unwrap();
        admin.call(&Request::Sync, &[]).unwrap();
        assert_eq!(admin.session(), SessionId::SERVER);
        assert_eq!(node.store.lock().sessions.len(), 1);
        drop(client);
    });
}

#[test]
fn what_is_open_is_told_when_a_connection_greets() {
    let mut node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let open: Vec<Ino> = (0..200_000).map(|n| Ino(n << 20)).collect();
    let report = open.clone();
    client.set_open_inodes(move || report.clone());
    node.restart();
    client.mutate(false, change(1)).unwrap();
    assert!(node.store.lock().sessions[&client.session()].open == open);
}

#[test]
fn nobody_there_is_said_with_the_place_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let short = ConnectOptions { deadline: Duration::from_millis(50), ..options() };
    let error = Client::connect(fsd_rpc::Endpoint::Unix(path.clone()), short).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("No such file"), "{text}");
}
