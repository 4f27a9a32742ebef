//! A clock that becomes wrong by hours while its node works, and right again.
//!
//! The clock is moved for one process, by a library that stands before the C library: it adds the seconds that a file
//! says, whenever it is asked. It needs a C compiler.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fsd_rpc::admin::{self, Level};
use tempfile::TempDir;

use crate::site::{Site, check, fill, status};
use crate::strangers::{counts, said};
use crate::support::*;

const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (syscall(SYS_clock_gettime, clock, now) != 0) return -1;
    const char *path = clock == CLOCK_REALTIME ? getenv("CLOCK_OFF_FILE") : NULL;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        char text[32] = {0};
        if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
        close(file);
    }
    return 0;
}
"#;

/// A file for each node that says by how many seconds its clock is off.
struct Clocks(TempDir);

impl Clocks {
    /// `None`: there is no C compiler.
    fn new() -> Option<Clocks> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("shift.c"), SHIFT).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o", "shift.so", "shift.c"]).current_dir(dir.path());
        let made = compiler.stdin(Stdio::null()).status().ok()?;
        assert!(made.success(), "the library does not compile");
        Some(Clocks(dir))
    }

    fn file(&self, node: usize) -> PathBuf {
        self.0.path().join(format!("off-{node}"))
    }

    fn environment(&self, node: usize) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.display().to_string();
        let library = text(&self.0.path().join("shift.so"));
        vec![("LD_PRELOAD", library), ("CLOCK_OFF_FILE", text(&self.file(node)))]
    }

    fn set(&self, node: usize, off_secs: i64) {
        let new = self.0.path().join("new");
        std::fs::write(&new, off_secs.to_string()).unwrap();
        std::fs::rename(&new, self.file(node)).unwrap();
    }
}

const HOUR: i64 = 3600;
/// So many that nobody's share is all of them but one: the others give back what is too much for them.
const SHARDS: usize = 16;

/// Shards of which a node has a copy in sync, and those that it leads.
fn shards_of(nodes: &[admin::Node], node: usize) -> (BTreeSet<u16>, usize) {
    let id = node as u64 + 1;
    let shards = || nodes.iter().flat_map(|node| &node.shards);
    let held = shards().filter(|shard| shard.in_sync.contains(&id)).map(|shard| shard.id);
    (held.collect(), shards().filter(|shard| shard.primary == id).count())
}

/// The node is named, leads nothing, and has the copies that it had.
fn stands_back(site: &Site, asked: usize, wrong: usize, held: &BTreeSet<u16>, words: &str) {
    let name = format!("n{}", wrong + 1);
    until("the node with the wrong clock is named", || {
        let checks = status(site, asked).health.checks;
        let mut named = checks.iter().filter(|check| check.name == "CLOCK_SKEW");
        let found = named.find(|check| check.detail.contains(&format!("of {name} is {words}")))?;
        (found.level == Level::Err).then_some(())
    });
    until("it leads nothing and has its copies", || {
        let nodes = site.list(asked);
        let leads = nodes[wrong].role == "leader";
        let now = shards_of(&nodes, wrong);
        (!leads && nodes[wrong].state == "up" && now == (held.clone(), 0)).then_some(())
    });
}

/// All is well, and it leads shards again.
fn is_back(site: &Site, asked: usize, node: usize, held: &BTreeSet<u16>) {
    until("the clock is right again, and the node leads as it did", || {
        let well = status(site, asked).health.word == Level::Ok;
        let (now, led) = shards_of(&site.list(asked), node);
        (well && now == *held && led > 0).then_some(())
    });
}

#[test]
fn a_member_whose_clock_becomes_wrong_leads_nothing_until_it_is_right() {
    let Some(clocks) = Clocks::new() else {
        eprintln!(
            "SKIPPED a_member_whose_clock_becomes_wrong_leads_nothing_until_it_is_right: no `cc`"
        );
        return;
    };
    let mut site = Site::shaped(3, 2, Shape { shards: SHARDS as u32, ..Shape::default() });
    for (at, node) in site.nodes.iter_mut().enumerate() {
        node.stop();
        clocks.set(at, 0);
        node.environment = clocks.environment(at);
    }
    site.nodes.iter_mut().for_each(Node::restart);
    site.settled();
    let client = site.client();
    fill(&client, 0..12);
    let nodes = until("each has its share, and leads its share", || {
        let nodes = site.list(0);
        let is_even = |at| {
            let (held, led) = shards_of(&nodes, at);
            held.len() <= (2 * SHARDS).div_ceil(3) && (1..=SHARDS.div_ceil(3)).contains(&led)
        };
        (0..3).all(is_even).then_some(nodes)
    });

    // The one that leads the metadata, while it works.
    let first = site.leader(0);
    let other = (first + 1) % 3;
    let (held, _) = shards_of(&nodes, first);
    clocks.set(first, 3 * HOUR);
    stands_back(&site, other, first, &held, "3 h ahead of");
    let leader = site.leader(other);
    until("it is counted there", || (counts(&site.nodes[leader])["clock"] > 3).then_some(()));
    // Its copies are written as before.
    fill(&client, 12..24);
    check(&client, 0..24);
    clocks.set(first, 0);
    is_back(&site, other, first, &held);

    // One that follows, which is started again meanwhile.
    let leader = site.leader(0);
    let second = (leader + 1) % 3;
    let (held, _) = shards_of(&site.list(leader), second);
    clocks.set(second, -3 * HOUR);
    stands_back(&site, leader, second, &held, "3 h behind");
    site.nodes[second].stop();
    site.nodes[second].restart();
    site.settled();
    stands_back(&site, leader, second, &held, "3 h behind");
    fill(&client, 24..30);
    clocks.set(second, 0);
    is_back(&site, leader, second, &held);
    site.settled();
    check(&client, 0..30);
    site.is_clean(0);

    // However often it was seen, it was said once by each node that led.
    client.goodbye();
    for node in &mut site.nodes {
        node.stop();
        let log = node.log();
        for (key, lines) in said(&log).iter().filter(|(key, _)| key.1 == "clock") {
            assert_eq!(lines.len(), 1, "{key:?}: {lines:#?}");
        }
    }
}
