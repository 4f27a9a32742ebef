//! Subscriptions: order, overflow after a gap, the end of the node, the end of the client.

use std::sync::mpsc;

use fsd_rpc::Client;
use fsd_rpc::message::Event;
use raftmeta_types::Ino;

use crate::node::{LONG, Node, options, wait_for};

fn follow(client: &Client) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    client.subscribe(move |event| sender.send(event).unwrap_or_default()).unwrap();
    events
}

fn say(node: &Node, ino: u64) {
    wait_for("a subscriber", || {
        let mut store = node.store.lock();
        store.subscribers.retain(|subscriber| !subscriber.is_closed());
        store.subscribers.iter().any(|subscriber| {
            subscriber.try_send(Event::Inode { ino: Ino(ino), data: true }).is_ok()
        })
    });
}

fn heard(events: &mpsc::Receiver<Event>) -> Event {
    events.recv_timeout(LONG).unwrap()
}

#[test]
fn events_come_in_order_and_a_gap_is_an_overflow() {
    let mut node = Node::start();
    for endpoint in [node.unix(), node.tcp("client:a")] {
        let client = Client::connect(endpoint, options()).unwrap();
        let events = follow(&client);
        for ino in 1..=100 {
            say(&node, ino);
        }
        for ino in 1..=100 {
            assert!(matches!(heard(&events), Event::Inode { ino: Ino(n), .. } if n == ino));
        }
        // In order: the subscriber hears of it first.
        node.stop();
        node.restart();
        assert!(matches!(heard(&events), Event::Stopping));
        assert!(matches!(heard(&events), Event::Overflow));
        say(&node, 7);
        assert!(matches!(heard(&events), Event::Inode { ino: Ino(7), .. }));
        // In the middle: the connection is gone without a word.
        node.restart();
        loop {
            match heard(&events) {
                Event::Overflow => break,
                Event::Stopping => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_handler_that_drops_a_slow_subscriber_makes_it_start_again() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let events = follow(&client);
    say(&node, 1);
    assert!(matches!(heard(&events), Event::Inode { .. }));
    node.store.lock().subscribers.clear();
    assert!(matches!(heard(&events), Event::Overflow));
    say(&node, 2);
    assert!(matches!(heard(&events), Event::Inode { ino: Ino(2), .. }));
}

#[test]
fn a_client_that_ends_unsubscribes() {
    let node = Node::start();
    for end in [|client: Client| client.abort(), |client: Client| client.goodbye(), drop] {
        let client = Client::connect(node.unix(), options()).unwrap();
        let events = follow(&client);
        say(&node, 1);
        heard(&events);
        end(client);
        // The thread that follows is gone, and with it the sender.
        assert!(matches!(events.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected)));
        let gone = || node.store.lock().subscribers.iter().all(|s| s.is_closed());
        wait_for("the end of the subscription", gone);
    }
}
