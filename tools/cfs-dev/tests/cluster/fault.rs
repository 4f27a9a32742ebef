//! The fault controller, asked as an operator asks it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::site::LIMIT;
use crate::world::*;

const THREE: &str = "\
sites:
  - name: site-a
    nodes: 3
    instance_type: i4i.large
clients:
  - instance_type: c7a.xlarge
    count: 1
jepsen_controller:
  instance_type: c7a.xlarge
";

fn status(world: &World) -> Value {
    serde_json::from_str(&world.ok(&["fault", "status", "-o", "json"])).unwrap()
}

/// Waits until what is under way is of this sort.
fn until_now(world: &World, word: &str) {
    let since = Instant::now();
    loop {
        let status = status(world);
        let now = status["controller"]["job"]["now"].as_str().unwrap_or_default();
        if now.contains(word) {
            return;
        }
        assert!(since.elapsed() < LIMIT, "`{word}` never came: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn kill_controller(world: &World) {
    kill(world.status()["controller"]["pid"].as_u64().unwrap());
}

/// Who is cut off from whom, as the firewall of a member says.
fn firewall(world: &World, member: &str) -> String {
    world.ok(&["ssh", member, "--", "nft", "list", "ruleset"])
}

#[test]
fn accidents_happen_and_are_undone() {
    if lacks_prometheus("fault::accidents_happen_and_are_undone")
        || !mounts_in_namespaces("fault::accidents_happen_and_are_undone")
    {
        return;
    }
    let world = World::new();
    world.fails(&["fault", "status"], 5, &["there is no cluster"]);
    // The topology asks for phase 3.
    world.up(&["--topology", &world.topology(THREE)]);
    assert_eq!(world.status()["phase"], 3);
    assert!(world.ok(&["status"]).contains("fault controller  running  idle"));
    assert_eq!(status(&world)["controller"]["job"], Value::Null);

    // What is not possible is refused, and why.
    world.fails(
        &["fault", "inject", "full-disk", "n1"],
        6,
        &["full-disk", "share this machine's disk"],
    );
    world.fails(&["fault", "inject", "kill", "n9"], 5, &["`n9`", "n1, n2, n3, c1"]);
    world.fails(&["fault", "inject", "one-way", "n1"], 2, &["takes two names"]);
    world.fails(&["fault", "run", "--kinds", "full-disk"], 6, &["full-disk is not possible"]);
    world.fails(&["fault", "run", "--time", "soon"], 2, &["is no time"]);

    // A plan is one of the seed, and does nothing.
    let plan = |seed| world.ok(&["fault", "run", "--dry-run", "--time", "10m", "--seed", seed]);
    assert_eq!(plan("7"), plan("7"));
    assert_ne!(plan("7"), plan("8"));
    assert!(plan("7").lines().count() > 20);

    // One accident: whom it hits is another process afterwards, the others are not.
    let before = pids(&world.status());
    world.ok(&["fault", "inject", "kill", "n2", "--for", "200ms", "--timeout", "400"]);
    let after = pids(&world.status());
    let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a.is_some() && a == b).collect();
    assert_eq!(same, [true, false, true]);
    assert!(after[1].is_some());

    // A run, with its verdict.
    let run = ["fault", "run", "--time", "15s", "--seed", "5", "-o", "json", "--timeout", "400"];
    let report: Value = serde_json::from_str(&world.ok(&run)).unwrap();
    assert_eq!((&report["seed"], &report["stopped"]), (&5.into(), &false.into()));
    assert!(!report["accidents"].as_array().unwrap().is_empty(), "{report}");
    assert!(report["acknowledged"].as_u64() > Some(100), "{report}");
    // Neither a disk of their own nor, with two copies, anything else is missing.
    assert_eq!(report["left_out"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(status(&world)["last_run"]["seed"], 5);
    let left = std::fs::read_dir(world.state().join("clients/c1/mnt")).unwrap().count();
    assert_eq!(left, 0, "the work of a run that went well is removed");

    // While it works nobody else does, and nobody else changes the cluster.
    world.ok(&[
        "fault",
        "run",
        "--detach",
        "--time",
        "10m",
        "--kinds",
        "pause",
        "--timeout",
        "400",
    ]);
    until_now(&world, "pause");
    world.fails(&["fault", "inject", "kill"], 6, &["at work", "fault heal"]);
    world.fails(&["node", "add", "--instance-type", "i4i.large"], 6, &["fault status"]);
    assert!(world.run(&["status"]).stdout.windows(6).any(|word| word == b"run of"));
    world.ok(&["fault", "heal", "--timeout", "400"]);
    let last = status(&world);
    assert_eq!(last["controller"]["job"], Value::Null);
    assert_eq!(
        (&last["last_run"]["stopped"], &last["last_run"]["failed"]),
        (&true.into(), &Value::Null)
    );
    assert_eq!(last["last_run"]["findings"].as_array().unwrap().len(), 0, "{last}");
    let log = world.ok(&["logs", "--no-follow", "controller"]);
    assert!(log.contains("pause: n") && log.contains("asked to end"), "{log}");
}

#[test]
fn what_is_left_is_undone_by_the_next() {
    if lacks_prometheus("fault::what_is_left_is_undone_by_the_next")
        || !mounts_in_namespaces("fault::what_is_left_is_undone_by_the_next")
    {
        return;
    }
    let world = World::new();
    world.up(&["--topology", &world.topology(THREE)]);
    let inject = |arguments: &[&str]| {
        let all = [&["fault", "inject"], arguments, &["--for", "1h", "--timeout", "400"]].concat();
        let mut command = world.command(&all);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };

    // It dies at work, and leaves a cut.
    let mut asker = inject(&["halves", "n1"]);
    until_now(&world, "halves: n1 | ");
    while !firewall(&world, "n1").contains("cfs_faults") {
        std::thread::sleep(Duration::from_millis(50));
    }
    kill_controller(&world);
    assert!(!asker.wait().unwrap().success(), "nobody told that it is undone");
    let told = world.run(&["status"]);
    assert!(!told.status.success());
    assert!(String::from_utf8_lossy(&told.stdout).contains("fault controller  stopped"));
    assert!(firewall(&world, "n1").contains("cfs_faults"));
    world.fails(&["fault", "heal"], 6, &["cfs-dev up --phase 3"]);
    // As much of it as there was.
    world.up(&[]);
    assert!(!firewall(&world, "n1").contains("cfs_faults"));
    assert_eq!(world.status()["health"]["word"], "HEALTH_OK");

    // Or it leaves a node that stands still.
    let mut asker = inject(&["pause", "n3"]);
    until_now(&world, "pause: n3");
    kill_controller(&world);
    assert!(!asker.wait().unwrap().success());
    world.up(&[]);
    assert_eq!(world.status()["health"]["word"], "HEALTH_OK");

    // One who asked and went away takes the accident along.
    let mut asker = inject(&["one-way", "c1", "n1"]);
    until_now(&world, "one-way: c1 -> n1");
    asker.kill().unwrap();
    asker.wait().unwrap();
    let since = Instant::now();
    while status(&world)["controller"]["job"] != Value::Null {
        assert!(since.elapsed() < LIMIT, "{}", status(&world));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!firewall(&world, "n1").contains("cfs_faults"));

    // What makes no sense is refused, and no more.
    let socket = world.state().join("controller/sock");
    for line in ["", "\n", "{}\n", "{\"run\":{\"order\":1}}\n", "\u{1}\u{2}\n", "\"heal\"\n"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert!(told.contains("refused"), "{line:?}: {told}");
    }
    let long = vec![b'['; 1 << 20];
    let mut stream = UnixStream::connect(&socket).unwrap();
    // It is let go in the middle.
    let _ = stream.write_all(&long);
    assert_eq!(status(&world)["controller"]["job"], Value::Null);

    // `down` waits for no accident.
    let mut asker = inject(&["kill", "n2"]);
    until_now(&world, "kill: n2");
    world.ok(&["down", "--timeout", "400"]);
    assert!(!asker.wait().unwrap().success());
    assert!(world.processes().is_empty() && namespaces().is_empty());
    world.up(&[]);
    assert_eq!(world.status()["health"]["word"], "HEALTH_OK");
    let mut asker = inject(&["kill-all"]);
    until_now(&world, "kill-all");
    world.ok(&["destroy"]);
    assert!(!asker.wait().unwrap().success());
    assert!(!world.state().exists());
}
