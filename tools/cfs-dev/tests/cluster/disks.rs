//! A blank or wrong disk is never a source: a node that finds one instead of its own does not start.

use std::fs;

use cfs_dev::topology::Topology;

use crate::load::Load;
use crate::site::Site;
use crate::world::{World, mounts_in_namespaces};

#[test]
fn another_nodes_pool_and_a_blank_one_are_refused() {
    if !mounts_in_namespaces("disks::another_nodes_pool_and_a_blank_one_are_refused") {
        return;
    }
    let world = World::new();
    let site = Site::up(&world.state(), "disks", &Topology::of(3, 1));
    let load = Load::prepare(vec![site.mount(0)], 19, 24 << 10, (16, 256 << 10));
    load.during(|| ());
    let (two, three) = (site.node(2), site.node(3));
    let swap = || {
        let beside = world.path("beside");
        fs::rename(two.pool(), &beside).unwrap();
        fs::rename(three.pool(), two.pool()).unwrap();
        fs::rename(&beside, three.pool()).unwrap();
    };
    // Somebody put the disks back the other way round.
    two.stop().unwrap();
    three.stop().unwrap();
    swap();
    for node in [two, three] {
        node.start().unwrap_err();
        let told = fs::read_to_string(node.log()).unwrap();
        assert!(told.contains("it is the pool of another node"), "{told}");
    }
    swap();
    two.start().unwrap();
    // A new disk in the place of the old one.
    let (kept, len) = (world.path("kept"), fs::metadata(three.pool()).unwrap().len());
    fs::rename(three.pool(), &kept).unwrap();
    fs::File::create(three.pool()).unwrap().set_len(len).unwrap();
    three.start().unwrap_err();
    let told = fs::read_to_string(three.log()).unwrap();
    assert!(told.contains("pool of this node: "), "{told}");
    fs::rename(&kept, three.pool()).unwrap();
    three.start().unwrap();
    site.cluster.settled().unwrap();
    let findings = load.findings();
    assert!(findings.is_empty(), "{findings:#?}");
    let findings = site.fsck(1);
    assert!(findings.is_empty(), "{findings:#?}");
}
