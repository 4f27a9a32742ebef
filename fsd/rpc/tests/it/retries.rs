//! Exactly once, whatever breaks: connections at every byte, and the node itself.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use fsd_rpc::client::CallError;
use fsd_rpc::frame::HEADER_LEN;
use fsd_rpc::message::Request;
use fsd_rpc::{Client, Endpoint};

use crate::node::{Node, change, counted, options, wait_for};
use crate::proxy::{Cut, Proxy, Way};

/// Three mutations, a call and a goodbye, through a proxy that cuts once after so many bytes. False when
/// there was nothing left to cut.
fn survives(cut: Cut) -> bool {
    let node = Node::start();
    let proxy = Proxy::start(&node.socket, cut);
    let client = Client::connect(Endpoint::Unix(proxy.socket.clone()), options()).unwrap();
    for number in 1..=3 {
        assert_eq!(client.mutate(false, change(number)).unwrap(), counted(number), "{cut:?}");
    }
    client.call(&Request::Sync, &[]).unwrap();
    assert_eq!(node.store.lock().applied, [1, 2, 3], "{cut:?}");
    assert_eq!(client.generation(), 1, "{cut:?}");
    proxy.has_cut()
}

fn at_every_point(way: Way) {
    let mut after = 0;
    while survives(Cut { way, after }) {
        after += 1;
    }
    assert!(after > 5 * HEADER_LEN, "only {after} bytes went {way:?}");
}

#[test]
fn requests_cut_anywhere_are_done_once() {
    at_every_point(Way::ToServer);
}

#[test]
fn replies_cut_anywhere_are_given_again() {
    at_every_point(Way::ToClient);
}

#[test]
fn a_node_that_stops_and_starts_is_not_noticed() {
    let mut node = Node::start();
    for endpoint in [node.unix(), node.tcp("client:a")] {
        node.store.lock().applied.clear();
        let client = Client::connect(endpoint, options()).unwrap();
        let session = client.session();
        for number in 0..10 {
            if number % 3 == 0 {
                node.restart();
            }
            assert_eq!(client.mutate(true, change(number)).unwrap(), counted(number));
        }
        assert_eq!(node.store.lock().applied, (0..10).collect::<Vec<_>>());
        assert_eq!(client.session(), session);
        assert_eq!(client.generation(), 1);
    }
}

#[test]
fn restarts_under_load_lose_and_repeat_nothing() {
    let mut node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let (threads, each) = (8, 150);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let client = client.clone();
                scope.spawn(move || {
                    for number in (0..each).map(|n| thread * each + n) {
                        assert_eq!(client.mutate(false, change(number)).unwrap(), counted(number));
                    }
                })
            })
            .collect();
        let done = &done;
        let node = &mut node;
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                let applied = node.store.lock().applied.len();
                node.restart();
                wait_for("progress", || {
                    node.store.lock().applied.len() > applied + 20 || done.load(Ordering::Acquire)
                });
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Release);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let mut applied = node.store.lock().applied.clone();
    applied.sort_unstable();
    assert_eq!(applied, (0..threads * each).collect::<Vec<_>>());
}

/// Who waits while another one greets has his own deadline still.
#[test]
fn a_node_that_does_not_greet_costs_time_and_no_call() {
    let mut node = Node::start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let Endpoint::Tcp { mut addrs, identity } = node.tcp("client:a") else { unreachable!() };
    addrs.push(silent.local_addr().unwrap());
    let client = Client::connect(Endpoint::Tcp { addrs, identity }, options()).unwrap();
    node.kill();
    std::thread::scope(|scope| {
        let call = || client.call(&Request::Ping, &[]);
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(call)).collect();
        let (stream, _) = silent.accept().unwrap();
        node.restart();
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
        drop(stream);
    });
}

#[test]
fn a_session_that_is_lost_in_between_leaves_what_was_under_way_in_doubt() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    client.mutate(false, change(1)).unwrap();
    node.store.lock().lose_next = true;
    // It was done, but the node that would know was replaced before it could say so.
    let answer = client.mutate(false, change(2));
    assert!(matches!(answer, Err(CallError::SessionLost)), "{answer:?}");
    assert_eq!(client.mutate(false, change(3)).unwrap(), counted(3));
    assert_eq!(client.generation(), 2);
    assert_eq!(node.store.lock().applied, [1, 2, 3]);
}
