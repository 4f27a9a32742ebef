//! The doors themselves: garbage, connections by the dozen, and the metrics of the runbook.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use fsd_rpc::message::Request;
use raftmeta_types::{FileKind, Ino};

use crate::support::*;

#[test]
fn garbage_on_the_socket_ends_that_connection_alone() {
    let node = Node::start();
    let client = node.client();
    for seed in 0..20 {
        let mut stream = UnixStream::connect(node.path("fsd.sock")).unwrap();
        let mut bytes = noise(seed, 3000);
        if seed % 2 == 0 {
            // A true magic, and nonsense behind it.
            bytes[..4].copy_from_slice(&fsd_rpc::frame::MAGIC.to_le_bytes());
        }
        // The other end may hang up before all of it is written.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
    client.make(Ino::ROOT, "f", FileKind::Regular);
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let node = Node::start();
    let client = node.client();
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..30 {
                    let name = format!("w{worker:02}-{n:02}");
                    let ino = client.make(Ino::ROOT, &name, FileKind::Regular).ino;
                    client.write_inline(ino, 0, name.as_bytes());
                    assert_eq!(client.read(ino), name.as_bytes());
                }
            });
        }
    });
    assert_eq!(client.names(Ino::ROOT).len(), 480);
    client.call(&Request::Sync, &[]).unwrap();
}

#[test]
fn the_metrics_of_the_runbook_are_there() {
    let node = Node::start();
    let client = node.client();
    let ino = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    client.write_chunk(ino, 0, &noise(1, 100_000)).unwrap();
    let text = node.metrics();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("claudefs_inode_count"), 2.0);
    assert!(value("claudefs_used_bytes") >= 100_000.0);
    assert!(value("claudefs_raft_term") >= 1.0);
    for quantile in ["0.5", "0.95", "0.99"] {
        let line = format!(
            "claudefs_operation_latency_ms{{operation=\"create\",quantile=\"{quantile}\"}}"
        );
        assert!(text.contains(&line), "no {line} in:\n{text}");
    }
    assert!(text.contains("claudefs_operation_duration_ms_bucket{operation=\"create\""), "{text}");
}
