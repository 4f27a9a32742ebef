//! Every node is stopped in order and started again, one after the other, as for an upgrade, while clients work.

use cfs_dev::topology::Topology;

use crate::load::Load;
use crate::site::Site;
use crate::world::{World, mounts_in_namespaces};

const NODES: usize = 3;
const FIRST: (u64, usize) = (16, 256 << 10);
const FILE_BYTES: usize = 24 << 10;

#[test]
fn every_node_is_restarted_under_load_and_no_client_notices() {
    if !mounts_in_namespaces("restart::every_node_is_restarted_under_load_and_no_client_notices") {
        return;
    }
    let world = World::new();
    let site = Site::up(&world.state(), "restart", &Topology::of(NODES, 2));
    let load = Load::prepare(vec![site.mount(0), site.mount(1)], 17, FILE_BYTES, FIRST);
    load.during(|| {
        for number in 1..=NODES {
            // The leader every time, whoever it is by then.
            let leader = site.leader().unwrap_or(number);
            for number in [number, leader] {
                let node = site.node(number);
                let before = node.process().unwrap();
                node.stop().unwrap();
                node.start().unwrap();
                assert_ne!(node.process().unwrap(), before);
                // As an operator would wait before the next one: all is well, and everybody works again.
                site.cluster.settled().unwrap();
                load.turns_pass();
            }
        }
    });
    let findings = load.findings();
    assert!(findings.is_empty(), "{findings:#?}");
    let findings = site.fsck(1);
    assert!(findings.is_empty(), "{findings:#?}");
}
