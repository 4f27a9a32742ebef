//! What is refused, and how it is said: before anything is started or made.

use std::fs;

use crate::world::World;

#[test]
fn a_phase_that_there_is_not_is_refused() {
    let world = World::new();
    world.fails(&["up", "--phase", "4"], 2, &["1..=3"]);
    assert!(!world.state().exists());
}

#[test]
fn a_topology_that_cannot_be_is_refused_by_name_and_line() {
    let world = World::new();
    let good = "sites:\n  - name: a\n    nodes: 2\n    instance_type: i4i.large\n";
    for (text, words) in [
        (good.to_owned() + "colour: red\n", ["colour", "line 5"]),
        (good.to_owned() + "protection: replica:3\n", ["line 5", "3 copies need 3 nodes"]),
        (good.to_owned() + "protection: ec:4+2\n", ["line 5", "erasure coding"]),
        (good.replace("nodes", "machines"), ["machines", "line 3"]),
        (good.replace("i4i.large", "huge"), ["line 4", "huge"]),
        (
            good.to_owned() + &good.replace("sites:\n", "").replace("name: a", "name: b"),
            ["`b`", "second site"],
        ),
    ] {
        let path = world.topology(&text);
        world.fails(&["up", "--topology", &path], 2, &words);
    }
    world.fails(&["up", "--topology", "/no/such/file"], 1, &["/no/such/file"]);
    assert!(!world.state().exists());
}

#[test]
fn what_is_not_there_is_not_found() {
    let world = World::new();
    for arguments in [
        &["status"][..],
        &["logs", "--no-follow"],
        &["ssh", "n1"],
        &["node", "add", "--instance-type", "i4i.large"],
        &["down"],
    ] {
        world.fails(arguments, 5, &["there is no cluster in", "cfs-dev up"]);
    }
    assert!(!world.state().exists());
    world.fails(&["logs", "--agent", "A7"], 2, &["A1", "A8"]);
    world.fails(&["up", "--name", "No!"], 2, &["No!"]);
    let deep = world.path(&"deep".repeat(25)).display().to_string();
    world.fails(&["up", "--state-dir", &deep], 2, &["too long"]);
}

#[test]
fn destroy_deletes_nothing_that_is_not_a_clusters() {
    let world = World::new();
    fs::create_dir_all(world.state().join("nodes")).unwrap();
    fs::write(world.state().join("nodes/precious"), "mine").unwrap();
    world.ok(&["destroy"]);
    assert_eq!(fs::read_to_string(world.state().join("nodes/precious")).unwrap(), "mine");
}

#[test]
fn help_lists_the_agents() {
    let world = World::new();
    let help = world.ok(&["logs", "--help"]);
    for line in ["A1:", "A2:", "A3:", "A4:", "A5:", "A6:", "A8:", "raftmeta and placement"] {
        assert!(help.contains(line), "{line}: {help}");
    }
}
