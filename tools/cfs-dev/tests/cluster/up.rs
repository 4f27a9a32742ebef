//! A cluster from its first `up` to its end, with accidents on the way.

use std::fs;

use crate::world::*;

const THREE: &str = "\
sites:
  - name: site-a
    nodes: 3
    instance_type: i4i.large
    availability_zone: us-west-2a
clients:
  - instance_type: c7a.xlarge
    count: 2
";

#[test]
fn a_cluster_comes_up_grows_rests_and_goes() {
    if !in_namespaces("up::a_cluster_comes_up_grows_rests_and_goes") {
        return;
    }
    if !is_root() {
        eprintln!("SKIPPED a_cluster_comes_up_grows_rests_and_goes: mounting needs root");
        return;
    }
    let world = World::new();
    let topology = world.topology(THREE);
    let told = world.up(&["--topology", &topology]);
    assert!(told.contains("n3") && told.contains("clients/c2/mnt"), "{told}");
    let (one, two) = (world.state().join("clients/c1/mnt"), world.state().join("clients/c2/mnt"));
    fs::write(one.join("file"), "from one").unwrap();
    assert_eq!(fs::read_to_string(two.join("file")).unwrap(), "from one");

    // Again is fine, and starts nothing anew.
    let before = world.status();
    world.up(&["--topology", &topology]);
    assert_eq!(pids(&world.status()), pids(&before));
    assert_eq!((&before["phase"], &before["protection"]), (&2.into(), &"replica:2".into()));
    assert_eq!(before["health"]["word"], "HEALTH_OK");
    assert_eq!(namespaces().len(), 5);

    // A node that died is told, and started again.
    kill(pids(&before)[1].unwrap());
    let status = world.status();
    assert_eq!(pids(&status)[1], None);
    assert_eq!(world.run(&["status"]).status.code(), Some(3));
    world.up(&[]);
    assert!(pids(&world.status()).iter().all(Option::is_some));

    assert_eq!(
        world.ok(&["node", "add", "--instance-type", "i4i.2xlarge", "--timeout", "400"]),
        "n4\n"
    );
    let status = world.status();
    assert_eq!(status["nodes"][3]["state"], "up");
    assert!(status["nodes"][3]["capacity_bytes"].as_u64() > Some(1 << 30));
    // The first topology is still the cluster's.
    world.up(&["--topology", &topology]);
    let other = world.topology(&THREE.replace("count: 2", "count: 1"));
    world.fails(&["up", "--topology", &other], 6, &["with 2 clients"]);

    let detailed = world.ok(&["status", "--detailed"]);
    for word in ["BLOCKD", "/metrics", "nodes/n4/log", "mounted"] {
        assert!(detailed.contains(word), "{word}: {detailed}");
    }
    let nodes = world.ok(&["ssh", "n2", "--", "cfs", "admin", "node", "list", "-o", "name"]);
    assert_eq!(nodes.lines().count(), 4, "{nodes}");
    let addresses = world.ok(&["ssh", "n2", "--", "ip", "-o", "-4", "address"]);
    let own = status["nodes"][1]["address"].as_str().unwrap().split(':').next().unwrap();
    assert!(addresses.contains(own), "{addresses}");

    let all = world.ok(&["logs", "--no-follow"]);
    let some = world.ok(&["logs", "--no-follow", "--agent", "A2"]);
    assert!(some.lines().count() > 0 && some.lines().count() < all.lines().count());
    assert!(some.contains("raftmeta") && !some.contains("blockd::"), "{some}");
    let node = world.ok(&["logs", "--no-follow", "n3"]);
    assert!(node.lines().all(|line| line.starts_with("n3 | ")), "{node}");

    // An open file keeps its mount, and so the cluster.
    let open = fs::File::open(one.join("file")).unwrap();
    world.fails(&["down"], 6, &["busy", "c1/mnt"]);
    drop(open);
    world.ok(&["down"]);
    assert!(world.processes().is_empty() && namespaces().is_empty());
    assert_eq!(interfaces(), ["lo"]);
    world.fails(&["ssh"], 6, &["cfs-dev up"]);
    world.up(&[]);
    assert_eq!(fs::read_to_string(one.join("file")).unwrap(), "from one");

    // Whatever is going on, destroy ends it.
    let open = fs::File::open(one.join("file")).unwrap();
    kill(pids(&world.status())[0].unwrap());
    world.ok(&["destroy"]);
    drop(open);
    assert!(world.processes().is_empty() && namespaces().is_empty());
    assert_eq!(interfaces(), ["lo"]);
    assert!(!is_mounted(&one) && !world.state().exists());
    world.fails(&["status"], 5, &["there is no cluster", "cfs-dev up"]);
    world.ok(&["destroy"]);
}

#[test]
fn an_up_that_failed_halfway_is_taken_away_or_goes_on() {
    if !in_namespaces("up::an_up_that_failed_halfway_is_taken_away_or_goes_on") {
        return;
    }
    let world = World::new();
    let topology = world.topology(&THREE.replace("nodes: 3", "nodes: 2"));
    // The second node's directory cannot be made.
    fs::create_dir_all(world.state().join("nodes")).unwrap();
    fs::write(world.state().join("nodes/n2"), "in the way").unwrap();
    let up = ["up", "--phase", "1", "--name", "half", "--topology", &topology, "--timeout", "400"];
    world.fails(&up, 1, &["nodes/n2"]);
    let status = world.status();
    assert!(pids(&status)[0].is_some() && pids(&status)[1].is_none());
    world.ok(&["destroy"]);
    assert!(world.processes().is_empty() && !world.state().exists());

    fs::create_dir_all(world.state().join("nodes")).unwrap();
    fs::write(world.state().join("nodes/n2"), "in the way").unwrap();
    world.fails(&up, 1, &["nodes/n2"]);
    let before = pids(&world.status())[0];
    fs::remove_file(world.state().join("nodes/n2")).unwrap();
    world.ok(&up);
    let status = world.status();
    assert_eq!(pids(&status)[0], before);
    assert_eq!((&status["phase"], &status["nodes"][1]["state"]), (&1.into(), &"up".into()));
    // The clients are of phase 2.
    assert_eq!(status["clients"][0]["mounted"], false);
}

#[test]
fn one_node_without_a_word_of_how() {
    if !in_namespaces("up::one_node_without_a_word_of_how") {
        return;
    }
    let world = World::new();
    world.up(&["--phase", "1"]);
    let status = world.status();
    let provider = if is_root() { "namespaces" } else { "loopback" };
    assert_eq!(
        (&status["provider"], &status["protection"]),
        (&provider.into(), &"replica:1".into())
    );
    assert_eq!((&status["version"], &status["kind"]), (&1.into(), &"dev-status".into()));
    let output = world.ok(&["ssh", "--", "cfs", "admin", "status", "-o", "json"]);
    assert!(output.contains("HEALTH_OK"), "{output}");
    // What was started is found by its number and start time alone.
    assert_eq!(world.processes().len(), 2);
}
