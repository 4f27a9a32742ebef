//! Monitoring, by what a browser and a scraper get from it: the library's phase 3 without what else is of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cfs_dev::cluster::{METRICS_PORT, MONITOR_PORT, Monitor};
use cfs_dev::error::Kind;
use cfs_dev::process::with_argument_in;
use cfs_dev::topology::Topology;
use serde_json::Value;

use crate::site::{LIMIT, Site};
use crate::world::{World, in_namespaces, is_root, lacks_prometheus};

const NODES: usize = 3;
const PAGES: [&str; 5] = ["index", "overview", "latency", "replication", "reduction"];
/// Names of the runbook to which `promtool` objects for the units in them, and the histogram of the same.
const EXCUSED: [&str; 3] =
    ["claudefs_inode_count", "claudefs_operation_duration_ms", "claudefs_operation_latency_ms"];
/// A file that is deduplicated and compressed, when a second one is like it.
const FILE_BYTES: usize = 2 << 20;

/// Status and body of what is there.
fn get(address: Ipv4Addr, port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((address, port)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn page(monitor: &Monitor<'_>, name: &str) -> String {
    let (status, body) = get(monitor.address(), MONITOR_PORT, &format!("/consoles/{name}.html"));
    // What fails in a template is said in its stead.
    assert_eq!(status, 200, "{name}: {body}");
    assert!(body.trim_end().ends_with("</html>"), "{name}: {body}");
    body
}

/// `data` of an answer of the API.
fn api(monitor: &Monitor<'_>, what: &str) -> Value {
    let (status, body) = get(monitor.address(), MONITOR_PORT, &format!("/api/v1/{what}"));
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["status"]), (200, &"success".into()), "{what}: {body}");
    answer["data"].clone()
}

/// Everything but letters and digits by its number.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    text.bytes().map(|b| if plain(b) { (b as char).into() } else { format!("%{b:02X}") }).collect()
}

/// Value of the only series, if there is one.
fn query(monitor: &Monitor<'_>, expression: &str) -> Option<f64> {
    let data = api(monitor, &format!("query?query={}", escape(expression)));
    data["result"][0]["value"][1].as_str()?.parse().ok()
}

/// Health of each target by the name of its node.
fn targets(monitor: &Monitor<'_>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let data = api(monitor, "targets?state=active");
    let active = data["activeTargets"].as_array().unwrap();
    active.iter().map(|one| (text(&one["labels"]["node"]), text(&one["health"]))).collect()
}

/// State of an alert about a node.
fn alert(monitor: &Monitor<'_>, name: &str, node: &str) -> Option<String> {
    let data = api(monitor, "alerts");
    let mut alerts = data["alerts"].as_array().unwrap().iter();
    let found = alerts.find(|a| a["labels"]["alertname"] == name && a["labels"]["node"] == node)?;
    Some(found["state"].as_str().unwrap().to_owned())
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn all_up(monitor: &Monitor<'_>, nodes: usize) {
    let wanted: BTreeMap<_, _> = (1..=nodes).map(|n| (format!("n{n}"), "up".to_owned())).collect();
    until("every node is a target, and up", || targets(monitor) == wanted);
}

/// All pages are there, and name these nodes; the graphs ask what Prometheus understands.
fn pages_name(monitor: &Monitor<'_>, nodes: usize) {
    for name in PAGES {
        let body = page(monitor, name);
        for node in 1..=nodes {
            assert!(body.contains(&format!("<td>n{node}</td>")), "{name} lacks n{node}: {body}");
        }
        for part in body.split("data-expr='").skip(1) {
            let expression = part.split('\'').next().unwrap();
            let expression = expression.replace("&gt;", ">");
            api(monitor, &format!("query?query={}", escape(&expression)));
        }
    }
}

fn metrics_are_well_formed(site: &Site) {
    let mut objected = BTreeSet::new();
    for node in site.cluster.nodes() {
        let (status, text) = get(node.address(), METRICS_PORT, "/metrics");
        assert_eq!(status, 200);
        let mut check = Command::new("promtool");
        check.args(["check", "metrics"]).stdin(Stdio::piped());
        let mut check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        for line in said.lines() {
            let name = line.split(' ').next().unwrap_or_default();
            assert!(EXCUSED.contains(&name), "{}: {line}\n{text}", node.name());
            objected.insert(name.to_owned());
        }
    }
    assert_eq!(objected.len(), EXCUSED.len(), "what is excused is there: {objected:?}");
}

/// Two files that are alike, of words.
fn write_twice(site: &Site) {
    let text = "all work and no play ".repeat(FILE_BYTES / 21);
    for name in ["one", "two"] {
        let path = site.mount(0).join(name);
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn every_node_is_watched_and_one_that_dies_is_told_of() {
    let name = "every_node_is_watched_and_one_that_dies_is_told_of";
    if lacks_prometheus(name) || !in_namespaces(&format!("monitor::{name}")) {
        return;
    }
    let mounts = is_root() && std::path::Path::new("/dev/fuse").exists();
    let world = World::new();
    let topology =
        Topology { replicas: 2, shard_count: 16, ..Topology::of(NODES, usize::from(mounts)) };
    let site = Site::up(&world.state(), "monitor", &topology);
    let monitor = site.cluster.monitor();
    site.cluster.up(3).unwrap();
    let process = monitor.process().expect("it runs");
    site.cluster.up(3).unwrap();
    assert_eq!(monitor.process(), Some(process), "what runs is left running");
    all_up(&monitor, NODES);
    until("one node leads", || query(&monitor, "sum(claudefs_raft_leader)") == Some(1.0));
    for (expression, value) in [
        ("max(claudefs_cluster_nodes{state=\"up\"})", NODES as f64),
        ("max(claudefs_cluster_shards)", 16.0),
        ("max(claudefs_cluster_shards_short)", 0.0),
        ("sum(claudefs_shards_in_sync)", 32.0),
        ("sum(claudefs_shards_primary)", 16.0),
        ("max(claudefs_health)", 0.0),
        ("sum(claudefs_job_left_bytes{kind!=\"scrub\"})", 0.0),
    ] {
        until(&format!("{expression} is {value}"), || query(&monitor, expression) == Some(value));
    }
    if mounts {
        write_twice(&site);
        let least = FILE_BYTES as f64 / 2.0;
        for saved in
            ["bytes_total) - sum(claudefs_put_new", "new_bytes_total) - sum(claudefs_put_packed"]
        {
            let expression = format!("sum(claudefs_put_{saved}_bytes_total)");
            until(&expression, || query(&monitor, &expression).is_some_and(|bytes| bytes > least));
        }
    }
    metrics_are_well_formed(&site);
    pages_name(&monitor, NODES);
    let (_, root) = get(monitor.address(), MONITOR_PORT, "/classic/graph");
    assert!(root.contains("location.replace(\"/consoles/index.html\")"), "{root}");

    // The worst that can be told of is the node that leads.
    let victim = site.leader().expect("there is a leader");
    let silent = |state: &str| {
        let named = format!("n{victim}");
        until(&format!("the alert about {named} is {state}"), || {
            alert(&monitor, "ClaudefsNodeSilent", &named).unwrap_or("gone".into()) == state
        });
    };
    site.node(victim).kill9().unwrap();
    silent("firing");
    assert_eq!(targets(&monitor)[&format!("n{victim}")], "down");
    pages_name(&monitor, NODES);
    site.node(victim).start().unwrap();
    silent("gone");

    let added = site.cluster.add_node("i4i.large").unwrap();
    monitor.refresh().unwrap();
    assert_eq!(added, format!("n{}", NODES + 1));
    all_up(&monitor, NODES + 1);
    pages_name(&monitor, NODES + 1);

    // `down` and `up` keep the samples.
    let before = query(&monitor, "timestamp(up{node=\"n1\"})").unwrap();
    site.cluster.down().unwrap();
    assert_eq!(monitor.process(), None);
    assert!(with_argument_in(&["prometheus"], &world.state()).is_empty());
    site.cluster.up(3).unwrap();
    all_up(&monitor, NODES + 1);
    let then = api(&monitor, &format!("query?query=up&time={before}"));
    assert_eq!(then["result"][0]["metric"]["job"], "claudefs", "{then}");

    // Who was removed is not missed.
    let drained = site.admin(1, &["node", "drain", &added, "--wait"]);
    assert_eq!(drained["state"], "drained", "{drained}");
    let removed = site.admin(1, &["node", "remove", &added]);
    assert_eq!(removed["state"], "removed", "{removed}");
    site.node(NODES + 1).stop().unwrap();
    monitor.refresh().unwrap();
    all_up(&monitor, NODES);

    site.cluster.destroy().unwrap();
    assert!(with_argument_in(&["prometheus"], &world.state()).is_empty());
    assert!(!world.state().exists());
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let name = "what_keeps_it_from_starting_is_said";
    if lacks_prometheus(name) || !in_namespaces(&format!("monitor::{name}")) {
        return;
    }
    let world = World::new();
    let site = Site::up(&world.state(), "unmonitored", &Topology::of(1, 0));
    let monitor = site.cluster.monitor();
    let taken = TcpListener::bind((monitor.address(), MONITOR_PORT)).unwrap();
    let error = site.cluster.up(3).unwrap_err();
    assert_eq!(error.kind, Kind::Precondition, "{error}");
    assert!(error.what.contains(":3000") && error.what.contains("in use"), "{error}");
    drop(taken);

    let log = monitor.directory().join("data/wal");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    fs::write(&log, "no directory").unwrap();
    let error = site.cluster.up(3).unwrap_err();
    assert!(error.what.contains("prometheus has ended") && error.what.contains("wal"), "{error}");
    assert!(monitor.process().is_none());
    fs::remove_file(&log).unwrap();
    site.cluster.up(3).unwrap();
    all_up(&monitor, 1);
    // It was started and not recorded, as when the machine dies in between: it is taken away all the same.
    assert_eq!(with_argument_in(&["prometheus"], &world.state()).len(), 1);
    monitor.end().unwrap();
    assert!(with_argument_in(&["prometheus"], &world.state()).is_empty());
}
