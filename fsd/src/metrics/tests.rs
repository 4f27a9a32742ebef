use super::*;

/// All different.
fn gauges() -> Gauges {
    Gauges {
        inodes: 42,
        logical_bytes: 2048,
        capacity_bytes: 65536,
        available_bytes: 32768,
        used_bytes: 4096,
        live_bytes: 1024,
        chunks: 12,
        damaged_chunks: 2,
        taken: Taken { put: 500, new: 400, packed: 300, sealed: 310, stored: 320 },
        moved: Moved { bytes: 7, in_vain: 6 },
        raft_term: 3,
        is_leader: true,
        shards_in_sync: 11,
        shards_primary: 5,
        cluster_shards: 16,
        cluster_shards_short: 4,
        cluster_nodes: [20, 21, 22, 23, 24],
        job_left_bytes: [30, 31, 32, 33],
        health: Level::Warn,
    }
}

async fn ask(request: &[u8]) -> String {
    let metrics = Metrics::new().unwrap();
    metrics.set(gauges());
    metrics.operation(Operation::Lookup, Duration::from_millis(2));
    metrics.read_repaired();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(metrics.serve(listener, || {}));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // A refused request may end in a reset after the answer: what arrived counts.
    let _ = stream.read_to_end(&mut answer).await;
    server.abort();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn metrics_are_served_over_http() {
    let answer = ask(b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in [
        "claudefs_inode_count 42",
        "claudefs_used_bytes 4096",
        "claudefs_live_bytes 1024",
        "claudefs_segments_moved_bytes_total 7",
        "claudefs_segments_moved_in_vain_bytes_total 6",
        "claudefs_raft_term 3",
        "claudefs_read_repairs_total 1",
        "claudefs_logical_bytes 2048",
        "claudefs_put_bytes_total 500",
        "claudefs_put_new_bytes_total 400",
        "claudefs_put_packed_bytes_total 300",
        "claudefs_put_sealed_bytes_total 310",
        "claudefs_put_stored_bytes_total 320",
        "claudefs_capacity_bytes 65536",
        "claudefs_available_bytes 32768",
        "claudefs_chunks 12",
        "claudefs_damaged_chunks 2",
        "claudefs_raft_leader 1",
        "claudefs_shards_in_sync 11",
        "claudefs_shards_primary 5",
        "claudefs_cluster_shards 16",
        "claudefs_cluster_shards_short 4",
        "claudefs_cluster_nodes{state=\"joining\"} 20",
        "claudefs_cluster_nodes{state=\"down\"} 24",
        "claudefs_job_left_bytes{kind=\"re-replication\"} 30",
        "claudefs_job_left_bytes{kind=\"scrub\"} 33",
        "claudefs_health 1",
        "claudefs_operation_latency_ms{operation=\"lookup\",quantile=\"0.99\"}",
        "claudefs_operation_duration_ms_bucket{operation=\"lookup\",le=\"2.5\"} 1",
    ] {
        assert!(answer.contains(line), "no `{line}` in:\n{answer}");
    }
}

#[tokio::test]
async fn other_requests_are_refused() {
    let long =
        [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; HEAD_BYTES_MAX + 1024]].concat();
    for (request, status) in [
        (b"GET /secrets HTTP/1.1\r\n\r\n".as_slice(), "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"\xff\xfe\r\n\r\n", "400"),
        (&long, "431"),
    ] {
        let answer = ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
}

#[test]
fn nothing_is_shown_that_was_not_measured() {
    let metrics = Metrics::new().unwrap();
    let text = metrics.render();
    assert!(!text.contains("claudefs_inode_count "), "{text}");
    assert!(!text.contains("replication_lag"), "{text}");
    // And what is shown is described.
    metrics.set(gauges());
    metrics.operation(Operation::Extents, Duration::from_millis(2));
    metrics.refused("token");
    let text = metrics.render();
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let helps: Vec<&str> = helps.filter_map(|line| line.split(' ').next()).collect();
    for shown in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = shown.split(' ').next().unwrap();
        assert!(helps.contains(&name), "{name} has no help:\n{text}");
    }
}
