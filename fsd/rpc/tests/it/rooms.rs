//! Floods and slow peers: bounded, and the others are served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fsd_rpc::Client;
use fsd_rpc::client::CallError;
use fsd_rpc::frame::{self, Kind};
use fsd_rpc::message::{Failure, Hello, PROTOCOLS, Request, Response, Role};
use fsd_rpc::server::{SESSION_CONNECTIONS_MAX, STRANGERS_MAX};
use raftmeta_types::Ino;
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};

use crate::node::{LONG, Node, change, options, wait_for};

#[test]
fn strangers_fill_their_room_and_no_other() {
    let node = Node::start();
    let known = Client::connect(node.tcp("client:a"), options()).unwrap();
    // They connect and say nothing.
    let connect = || TcpStream::connect(node.address).unwrap();
    let mut strangers: Vec<_> = (0..STRANGERS_MAX).map(|_| connect()).collect();
    // A further one is closed at once, when the others have been accepted. One that is not stays:
    // on a slow machine the first ones' time to greet may be over by now.
    wait_for("a full room", || {
        let mut late = connect();
        late.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let closed = matches!(late.read(&mut [0]), Ok(0));
        strangers.push(late);
        closed
    });
    known.mutate(false, change(1)).unwrap();
    Client::connect(node.unix(), options()).unwrap().mutate(false, change(2)).unwrap();
    drop(strangers);
    // As soon as they are gone there is room.
    Client::connect(node.tcp("client:b"), options()).unwrap();
}

fn ask(stream: &mut UnixStream, request: &Request) -> Response {
    frame::write(stream, Kind::Request, request, &[]).unwrap();
    frame::read(stream).unwrap().message(Kind::Reply).unwrap()
}

#[test]
fn a_session_has_so_many_connections_and_no_more() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let welcome = client.welcome();
    let join = || {
        let mut stream = UnixStream::connect(&node.socket).unwrap();
        let role = Role::Session {
            session: welcome.session,
            secret: welcome.secret,
            client: String::new(),
            open: vec![],
        };
        let build = "test".into();
        let hello = Request::Hello(Hello { protocols: PROTOCOLS, build, role });
        let answer = ask(&mut stream, &hello);
        (stream, answer)
    };
    // One is the client's.
    let mut joined: Vec<_> = (1..SESSION_CONNECTIONS_MAX).map(|_| join()).collect();
    assert!(joined.iter().all(|(_, answer)| matches!(answer, Response::Welcome(_))));
    let (_, refused) = join();
    assert!(matches!(refused, Response::Failed(Failure::Refused(_))), "{refused:?}");
    client.mutate(false, change(1)).unwrap();
    joined.pop();
    wait_for("room", || matches!(join().1, Response::Welcome(_)));
}

#[test]
fn a_slow_peer_holds_up_nobody() {
    let node = Node::start();
    let hello =
        Request::Hello(Hello { protocols: PROTOCOLS, build: "test".into(), role: Role::Admin });
    let mut slow = UnixStream::connect(&node.socket).unwrap();
    assert!(matches!(ask(&mut slow, &hello), Response::Welcome(_)));
    // 20 MB are asked for and not read; the node may not wait for it, nor lose its place.
    let hashes = vec![raftmeta_types::ChunkHash([9; 32]); 200];
    frame::write(
        &mut slow,
        Kind::Request,
        &Request::GetChunks { hashes: hashes[..80].to_vec() },
        &[],
    )
    .unwrap();
    // Another sends a byte now and then.
    let mut dripping = UnixStream::connect(&node.socket).unwrap();
    let mut bytes = Vec::new();
    frame::write(&mut bytes, Kind::Request, &hello, &[]).unwrap();
    dripping.write_all(&bytes[..5]).unwrap();

    let client = Client::connect(node.unix(), options()).unwrap();
    for number in 0..50 {
        client.mutate(false, change(number)).unwrap();
        if let Some(byte) = bytes.get(5 + number as usize) {
            dripping.write_all(&[*byte]).unwrap();
        }
    }
    dripping.write_all(&bytes[bytes.len().min(55)..]).unwrap();
    let answer: Response = frame::read(&mut dripping).unwrap().message(Kind::Reply).unwrap();
    assert!(matches!(answer, Response::Welcome(_)), "{answer:?}");
    slow.set_read_timeout(Some(LONG)).unwrap();
    let answer = frame::read(&mut slow).unwrap();
    assert_eq!(answer.data.len(), 8_000_000);
    assert!(answer.data.iter().all(|byte| *byte == 9));
}

#[test]
fn more_than_fits_in_a_frame_is_an_error_of_that_request() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let hashes = vec![raftmeta_types::ChunkHash([9; 32]); 100];
    let error = client.call(&Request::GetChunks { hashes }, &[]).unwrap_err();
    assert!(error.to_string().contains("data of 10000000 bytes"), "{error}");
    client.mutate(false, change(1)).unwrap();
}

fn waiting_lock(client: &Client, ino: u64) -> Result<raftmeta_types::Reply, CallError> {
    let owner = LockOwner { session: client.session(), owner: 1 };
    let kind = LockKind::Exclusive;
    let family = LockFamily::Flock;
    let lock = Lock { ino: Ino(ino), family, owner, kind, start: 0, end: u64::MAX, pid: 1 };
    client.lock_wait(lock, 600_000)
}

#[test]
fn a_node_that_stops_answers_what_is_under_way() {
    for tcp in [false, true] {
        let mut node = Node::start();
        let endpoint = if tcp { node.tcp("client:a") } else { node.unix() };
        let client = Client::connect(endpoint, options()).unwrap();
        waiting_lock(&client, 1).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waiting_lock(&client, 2));
            wait_for("the request", || node.store.lock().waiting == 1);
            let (store, socket) = (node.store.clone(), node.socket.clone());
            scope.spawn(move || {
                // The socket goes when the node stops, before it waits for the requests.
                wait_for("the stop", || !socket.exists());
                store.lock().lock_held = false;
            });
            node.stop();
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(node.store.lock().applied, [1, 2]);
        assert_eq!(node.store.lock().waiting, 0);
    }
}

#[test]
fn a_node_that_stops_does_not_wait_for_ever() {
    for tcp in [false, true] {
        let mut node = Node::start();
        let endpoint = if tcp { node.tcp("client:a") } else { node.unix() };
        let client = Client::connect(endpoint, options()).unwrap();
        waiting_lock(&client, 1).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waiting_lock(&client, 2));
            wait_for("the request", || node.store.lock().waiting == 1);
            node.stop();
            // The handler's future was dropped, wherever it waited.
            wait_for("its end", || node.store.lock().waiting == 0);
            client.abort();
            assert!(matches!(waiting.join().unwrap(), Err(CallError::Aborted)));
        });
        wait_for("the last word", || {
            let store = node.store.lock();
            store.disconnected == store.greetings
        });
    }
}
