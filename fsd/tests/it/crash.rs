//! Stopped in order, killed, and started again: everything acknowledged is there.

use fsd_rpc::Client;
use raftmeta_types::{FileKind, Ino};
use rustix::process::Signal;

use crate::support::*;

/// Makes a file of each kind of content; its name tells the bytes.
fn fill(client: &Client, from: u64, count: u64) {
    for n in from..from + count {
        let ino = client.make(Ino::ROOT, &format!("f{n:04}"), FileKind::Regular).ino;
        if n % 2 == 0 {
            client.write_chunk(ino, 0, &noise(n, 50_000)).unwrap();
        } else {
            client.write_inline(ino, 0, &noise(n, 1000));
        }
    }
}

fn check(client: &Client, count: u64) {
    let names: Vec<String> = (0..count).map(|n| format!("f{n:04}")).collect();
    assert_eq!(client.names(Ino::ROOT), names);
    for (n, name) in (0..).zip(&names) {
        let ino = client.find(Ino::ROOT, name).unwrap().ino;
        let len = if n % 2 == 0 { 50_000 } else { 1000 };
        assert!(client.read(ino) == noise(n, len), "{name}");
    }
}

#[test]
fn what_was_written_is_there_after_a_stop_in_order() {
    let mut node = Node::start();
    let client = node.client();
    fill(&client, 0, 10);
    assert!(node.blockd_pid().is_some());
    node.stop();
    assert_eq!(node.blockd_pid(), None, "both daemons stop");
    assert!(!node.path("fsd.sock").exists() && !node.path("b.sock").exists());
    node.restart();
    // The same client goes on in the same session.
    check(&client, 10);
    let session = client.session();
    fill(&client, 10, 4);
    assert_eq!(client.session(), session);
    node.signal(Signal::INT);
    until("Ctrl-C ends it, too", || node.blockd_pid().is_none().then_some(()));
}

#[test]
fn what_was_written_is_there_after_kill_9_of_the_server() {
    let mut node = Node::start();
    let client = node.client();
    for round in 0..3 {
        fill(&client, round * 6, 6);
        node.kill();
        node.restart();
        check(&client, round * 6 + 6);
    }
}

#[test]
fn an_orphaned_block_daemon_is_replaced() {
    let mut node = Node::start();
    let client = node.client();
    fill(&client, 0, 4);
    node.kill();
    until("the block daemon notices", || node.blockd_pid().is_none().then_some(()));
    // One that does not.
    let mut orphan = node.stray_blockd();
    node.restart();
    assert_ne!(node.blockd_pid(), Some(orphan.id()));
    orphan.wait().unwrap();
    check(&client, 4);
}

#[test]
fn the_node_goes_on_after_kill_9_of_blockd() {
    let node = Node::start();
    let client = node.client();
    let mut pid = node.blockd_pid().unwrap();
    for round in 0..3 {
        fill(&client, round * 8, 4);
        send(pid, Signal::KILL);
        // These wait until it is back.
        fill(&client, round * 8 + 4, 4);
        let before = pid;
        pid = until("blockd is started again", || node.blockd_pid().filter(|pid| *pid != before));
        check(&client, round * 8 + 8);
    }
}

#[test]
fn a_first_start_that_was_killed_is_made_good() {
    for delay_ms in [0, 20, 40, 60, 80, 120, 200] {
        let mut node = Node::prepared(Shape::default());
        let mut command = node.command();
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        node.restart();
        let client = node.client();
        fill(&client, 0, 2);
        check(&client, 2);
    }
}

#[test]
fn a_file_that_a_client_holds_open_over_a_restart_stays() {
    let mut node = Node::start();
    let (one, two) = (node.client(), node.client());
    let held = one.make(Ino::ROOT, "held", FileKind::Regular).ino;
    let free = one.make(Ino::ROOT, "free", FileKind::Regular).ino;
    one.write_chunk(held, 0, b"held").unwrap();
    one.set_open_inodes(move || vec![held]);
    one.open(held).unwrap();
    node.kill();
    node.restart();
    // Before the first client comes back, the second removes both.
    two.remove(Ino::ROOT, "held").unwrap();
    two.remove(Ino::ROOT, "free").unwrap();
    assert_eq!(one.read(held), b"held");
    until("what it turned out not to hold is freed", || {
        one.call(&fsd_rpc::message::Request::GetAttr { ino: free }, &[]).err()
    });
    assert_eq!(one.read(held), b"held");
}
