//! A site of several nodes: they join with tokens, the leader dies, and clients go on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use fsd::config::Config;
use fsd_rpc::admin::{
    self, AdminReply, AdminRequest, FsckOptions, Job, JobReport, JobState, TokenPurpose,
};
use fsd_rpc::credentials::{self, Credentials};
use fsd_rpc::message::{Request, Response};
use fsd_rpc::token::Invitation;
use fsd_rpc::{CallError, Client, ConnectOptions};
use raftmeta_types::{FileKind, Ino};
use tempfile::TempDir;

use crate::support::*;

/// An address of this host's own that nobody else has: 127.0.0.0/8 is all ours.
pub fn loopback() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (pid, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}:9400", 100 + (pid >> 8) % 100, pid & 0xff, next)
}

/// Nodes of one cluster, each with its directory.
pub struct Site {
    pub nodes: Vec<Node>,
    pub addresses: Vec<String>,
    /// Copies of each chunk.
    replicas: u8,
    shape: Shape,
    /// Where its client keeps its certificate.
    identity: TempDir,
}

impl Site {
    /// As many nodes, all up, the metadata group complete and so many copies of everything.
    pub fn of(count: usize, replicas: u8) -> Site {
        Site::shaped(count, replicas, Shape::default())
    }

    pub fn shaped(count: usize, replicas: u8, shape: Shape) -> Site {
        let identity = tempfile::tempdir().unwrap();
        let (nodes, addresses) = (Vec::new(), Vec::new());
        let mut site = Site { nodes, addresses, replicas, shape, identity };
        for _ in 0..count {
            site.add();
        }
        site.settled();
        site
    }

    pub fn add(&mut self) {
        let (number, address) = (self.nodes.len() + 1, loopback());
        let mut node = Node::prepared(self.shape);
        let config = std::fs::read_to_string(node.path("node.toml")).unwrap();
        let config = config
            .replace("name = 'n'", &format!("name = 'n{number}'"))
            .replace("[cluster]", &format!("[cluster]\nprotection = 'replica:{}'", self.replicas))
            .replace("unix = 'fsd.sock'", &format!("unix = 'fsd.sock'\ntcp = '{address}'"));
        std::fs::write(node.path("node.toml"), config).unwrap();
        if number > 1 {
            let invitation = self.token(TokenPurpose::Node);
            let config = Config::load(&node.path("node.toml")).unwrap();
            let id = fsd::node::join(&config, &invitation, PATIENCE).unwrap();
            assert_eq!(id.0, number as u64);
        }
        node.restart();
        self.nodes.push(node);
        self.addresses.push(address);
    }

    pub fn ask(&self, node: usize, request: AdminRequest) -> AdminReply {
        self.try_ask(node, request).unwrap()
    }

    pub fn try_ask(&self, node: usize, request: AdminRequest) -> Result<AdminReply, CallError> {
        let options =
            ConnectOptions { admin: true, deadline: PATIENCE, ..ConnectOptions::default() };
        let client = Client::connect(self.nodes[node].endpoint(), options)?;
        match client.call(&Request::Admin(request), &[])?.0 {
            Response::Admin(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    /// From the second node, if there is one: it passes the question on.
    pub fn token(&self, purpose: TokenPurpose) -> Invitation {
        let request = AdminRequest::TokenCreate { ttl_secs: 600, uses: 1, purpose };
        let AdminReply::TokenCreated { token, .. } = self.ask(1 % self.nodes.len(), request) else {
            panic!("no token");
        };
        let mut invitation: Invitation = token.0.parse().unwrap();
        invitation.servers = self.addresses.clone();
        invitation
    }

    pub fn list(&self, asked: usize) -> Vec<admin::Node> {
        match self.ask(asked, AdminRequest::NodeList { with_shards: true }) {
            AdminReply::Nodes(nodes) => nodes,
            _ => panic!("no nodes"),
        }
    }

    /// Waits until all are up and as many vote as shall.
    pub fn settled(&self) {
        let count = self.nodes.len();
        let voters = match count {
            0..=2 => 1,
            3..=4 => 3,
            _ => 5,
        };
        let replicas = usize::from(self.replicas).min(count);
        until("all nodes are up, the voters chosen and every shard has its replicas", || {
            let nodes = self.list(0);
            let voting = nodes.iter().filter(|node| node.role != "learner").count();
            let up = nodes.iter().filter(|node| node.state == "up").count();
            let mut shards = nodes.iter().flat_map(|node| &node.shards);
            let whole = shards.all(|shard| shard.in_sync.len() == replicas);
            (up == count && voting == voters && whole).then_some(())
        });
    }

    /// Place of the node that leads, as this one knows it.
    pub fn leader(&self, asked: usize) -> usize {
        until("a leader", || self.list(asked).iter().position(|node| node.role == "leader"))
    }

    pub fn run(&self, asked: usize, job: Job) -> JobReport {
        let AdminReply::JobStarted { job } = self.ask(asked, AdminRequest::JobStart(job)) else {
            panic!("no job");
        };
        until("the job ends", || {
            match self.ask(asked, AdminRequest::JobPoll { job, wait_ms: 1000 }) {
                AdminReply::Job(state) => match *state {
                    JobState::Finished(report) => Some(report),
                    JobState::Running(_) => None,
                },
                _ => panic!("no state"),
            }
        })
    }

    /// What the scrub of all nodes found, by node.
    fn scrub(&self, asked: usize) -> Vec<admin::NodeScrub> {
        let JobReport::Scrub(report) = self.run(asked, Job::Scrub) else { panic!("no report") };
        assert_eq!(report.nodes.len(), self.nodes.len());
        report.nodes
    }

    /// Reads everything, wherever it lies: there is nothing to find.
    pub fn is_clean(&self, asked: usize) {
        let options = FsckOptions { repair: false, read_data: true };
        let JobReport::Fsck(report) = self.run(asked, Job::Fsck(options)) else {
            panic!("no report");
        };
        assert!(report.findings.is_empty(), "{report:?}");
        assert!(report.chunks_read > 0, "{report:?}");
    }

    pub fn client(&self) -> Client {
        let directory = self.identity.path();
        let credentials = match Credentials::load(directory) {
            Ok(credentials) => credentials,
            Err(_) => {
                let invitation = self.token(TokenPurpose::Client);
                let got = credentials::enrol(&invitation, "c", "test", PATIENCE).unwrap();
                got.save(directory).unwrap();
                got
            }
        };
        let options = ConnectOptions {
            client: "test:/mnt".into(),
            deadline: PATIENCE,
            ..ConnectOptions::default()
        };
        Client::connect(credentials.endpoint().unwrap(), options).unwrap()
    }
}

#[test]
fn three_nodes_go_on_when_the_leader_is_killed() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    let session = client.session();
    let mut made = 0;
    let mut make = |client: &Client, count: u64| {
        for _ in 0..count {
            let name = format!("f{made:03}");
            let ino = client.make(Ino::ROOT, &name, FileKind::Regular).ino;
            client.write_inline(ino, 0, name.as_bytes());
            made += 1;
        }
        made
    };
    make(&client, 20);
    // A connection through a node that does not lead.
    let local = site.nodes[2].client();
    local.make(Ino::ROOT, "through n3", FileKind::Regular);

    let leader = site.leader(0);
    site.nodes[leader].kill();
    let count = make(&client, 20);
    assert_eq!(client.session(), session, "the session lives on");
    let other = (leader + 1) % 3;
    until("the lost node is seen as down", || {
        (site.list(other)[leader].state == "down").then_some(())
    });
    site.nodes[leader].restart();
    site.settled();
    let mut names: Vec<String> = (0..count).map(|n| format!("f{n:03}")).collect();
    names.push("through n3".into());
    assert_eq!(client.names(Ino::ROOT), names);
    for name in names.iter().filter(|name| name.starts_with('f')) {
        let ino = client.find(Ino::ROOT, name).unwrap().ino;
        assert_eq!(client.read(ino), name.as_bytes());
    }
}

#[test]
fn a_leader_that_stops_hands_over_and_all_may_be_restarted() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    for round in 0..3 {
        client.make(Ino::ROOT, &format!("r{round}"), FileKind::Regular);
        let leader = site.leader(round % 3);
        site.nodes[leader].stop();
        client.make(Ino::ROOT, &format!("s{round}"), FileKind::Regular);
        site.nodes[leader].restart();
        site.settled();
    }
    // All at once, as after a power cut of the whole site.
    site.nodes.iter_mut().for_each(Node::kill);
    site.nodes.iter_mut().for_each(Node::restart);
    assert_eq!(client.names(Ino::ROOT), ["r0", "r1", "r2", "s0", "s1", "s2"]);
}

/// Writes files of chunks; their names tell the bytes.
pub fn fill(client: &Client, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let ino = client.make(Ino::ROOT, &format!("c{n:03}"), FileKind::Regular).ino;
        client.write_chunk(ino, 0, &noise(n, 100_000)).unwrap();
    }
}

pub fn check(client: &Client, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let ino = client.find(Ino::ROOT, &format!("c{n:03}")).unwrap().ino;
        assert!(client.read(ino) == noise(n, 100_000), "file {n}");
    }
}

#[test]
fn data_is_on_several_nodes_and_outlives_each_of_them() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..12);
    // Each in turn dies without a word; what it led goes on elsewhere, and it comes back.
    for lost in 0..3 {
        site.nodes[lost].kill();
        let from = 12 + lost as u64 * 6;
        fill(&client, from..from + 6);
        check(&client, 0..from + 6);
        site.nodes[lost].restart();
        site.settled();
    }
    check(&client, 0..30);
    site.is_clean(0);
    let total: u64 = site.list(0).iter().map(|node| u64::from(node.shards_primary)).sum();
    assert_eq!(total, 4);
}

/// Flips bytes in every record of a node's pool, as a bad disk would; how many.
fn damage(node: &Node) -> u64 {
    use std::os::unix::fs::FileExt;
    let path = node.path("pool");
    let pool = std::fs::read(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let starts = (0..pool.len()).step_by(16).filter(|at| pool[*at..].starts_with(b"CFRC"));
    let mut damaged = 0;
    for at in starts {
        let flipped: Vec<u8> = pool[at + 100..at + 108].iter().map(|byte| !byte).collect();
        file.write_all_at(&flipped, at as u64 + 100).unwrap();
        damaged += 1;
    }
    damaged
}

#[test]
fn what_a_bad_disk_did_is_found_and_repaired_from_another_node() {
    let site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..24);
    assert!(damage(&site.nodes[1]) > 2);
    let found = site.scrub(0);
    for (at, node) in found.iter().enumerate() {
        assert_eq!((node.failed.as_deref(), node.damaged > 0), (None, at == 1), "{found:?}");
        assert_eq!(node.repaired, node.damaged, "{found:?}");
    }
    assert!(site.scrub(2).iter().all(|node| node.damaged == 0));
    // Reads go on and repair what they find.
    let leader = site.leader(0);
    damage(&site.nodes[leader]);
    check(&client, 0..24);
    until("nothing is known to be damaged any more", || {
        let AdminReply::Status(status) = site.ask(0, AdminRequest::Status) else {
            panic!("no status");
        };
        (status.data.damaged_chunks == 0).then_some(())
    });
    // What was read is good again before anything else looks at it.
    let read_repairs = |node: &Node| {
        let text = node.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix("claudefs_read_repairs_total "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let repaired: Vec<u64> = site.nodes.iter().map(read_repairs).collect();
    for (at, count) in repaired.iter().enumerate() {
        assert_eq!(*count > 0, at == leader, "{repaired:?}");
    }
    let found = site.scrub(0);
    assert!(found.iter().all(|node| node.damaged == 0 && node.failed.is_none()), "{found:?}");
    site.is_clean(0);
}

#[test]
fn a_replica_that_was_started_again_is_compared_although_nothing_is_written() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..24);
    let leader = site.leader(0);
    let (hurt, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = hurt as u64 + 1;
    let epochs = |site: &Site| -> BTreeMap<u16, u64> {
        let shards = site.list(leader).into_iter().flat_map(|node| node.shards);
        let followed = shards.filter(|shard| shard.in_sync.contains(&id) && shard.primary != id);
        followed.map(|shard| (shard.id, shard.epoch)).collect()
    };
    let before = epochs(&site);
    assert!(!before.is_empty());
    // Of segments that are still written a start cannot tell a damaged record from the end.
    site.nodes[hurt].kill();
    assert!(damage(&site.nodes[hurt]) > 2);
    site.nodes[hurt].restart();
    until("the shards that it follows have new epochs", || {
        let now = epochs(&site);
        let newer = |(id, epoch): (&u16, &u64)| now.get(id).is_some_and(|now| now > epoch);
        before.iter().all(newer).then_some(())
    });
    // Which are begun when writes pass.
    fill(&client, 24..48);
    site.settled();
    site.nodes[other].kill();
    check(&client, 0..48);
}

#[test]
fn the_scrub_of_every_node_is_a_job_of_its_own() {
    let site = Site::of(3, 2);
    let scrubs = || {
        let AdminReply::Status(status) = site.ask(1, AdminRequest::Status) else { panic!() };
        let jobs = status.jobs.into_iter();
        jobs.filter(|job| job.node.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(scrubs(), [], "there is nothing to read");
    let client = site.client();
    fill(&client, 0..24);
    let jobs = until("the leader has heard of what each node holds", || {
        let jobs = scrubs();
        (jobs.len() == 3).then_some(jobs)
    });
    for (job, node) in jobs.iter().zip(["n1", "n2", "n3"]) {
        assert_eq!((job.name.as_str(), job.node.as_deref()), ("scrub", Some(node)));
        assert_eq!(job.progress.unit, "bytes");
        assert!(job.bytes_left > Some(100_000), "{job:?}");
        assert!(job.percent.is_some() && job.eta_ms > Some(0), "{job:?}");
    }
    // A pass by command reads all of that, and the next one by itself begins with everything.
    let found = site.scrub(0);
    for (node, job) in found.iter().zip(&jobs) {
        assert!(node.bytes > 100_000 && job.progress.total > 0, "{node:?}, {job:?}");
    }
}

pub fn status(site: &Site, asked: usize) -> admin::Status {
    match site.ask(asked, AdminRequest::Status) {
        AdminReply::Status(status) => *status,
        _ => panic!("no status"),
    }
}

#[test]
fn the_space_of_every_node_and_their_sum_are_told() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..24);
    let stored = 2 * 24 * 100_000;
    let told = until("the leader has heard what each node holds", || {
        let told = status(&site, 1);
        (told.data.live_bytes >= stored).then_some(told)
    });
    assert_eq!((told.data.nodes, told.data.chunks), (3, 48));
    let names: Vec<&str> = told.stores.iter().map(|store| store.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    let sum = |of: fn(&admin::DataStatus) -> u64| -> u64 {
        told.stores.iter().map(|store| of(&store.data)).sum()
    };
    assert_eq!(told.data.total_bytes, sum(|data| data.total_bytes));
    assert_eq!(told.data.live_bytes, sum(|data| data.live_bytes));
    assert!(told.stores.iter().all(|store| store.data.used_bytes > 0), "{told:?}");

    // Each chunk once, where its shard is led.
    let nodes = site.list(2);
    let shards = || nodes.iter().flat_map(|node| &node.shards);
    assert_eq!(shards().map(|shard| shard.chunks.unwrap()).sum::<u64>(), 24);
    let led = shards().map(|shard| shard.stored_bytes.unwrap()).sum::<u64>();
    assert_eq!(led * 2, told.data.live_bytes);
    assert!(nodes.iter().all(|node| node.data.as_ref().is_some_and(|data| data.used_bytes > 0)));
    let target = admin::Target::Ino(Ino::ROOT);
    let JobReport::Du(du) = site.run(1, Job::Du { target }) else { panic!("no report") };
    assert_eq!((du.pool_live_bytes, du.stored_bytes), (led, led));
    let JobReport::Gc(gc) = site.run(1, Job::Gc { dry_run: true }) else { panic!("no report") };
    assert_eq!((gc.before.nodes, gc.before.live_bytes), (3, told.data.live_bytes));

    // What is deleted goes from all of them.
    for n in 0..24 {
        client.remove(Ino::ROOT, &format!("c{n:03}")).unwrap();
    }
    until("no chunk is left on any node", || {
        let JobReport::Gc(gc) = site.run(1, Job::Gc { dry_run: false }) else { panic!() };
        (gc.after.live_bytes == 0 && gc.after.nodes == 3).then_some(())
    });

    let leader = site.leader(0);
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    site.nodes[lost].kill();
    until("it counts no more", || {
        let told = status(&site, other);
        (told.data.nodes == 2 && told.stores.len() == 2).then_some(())
    });
    assert_eq!(site.list(other)[lost].data, None);
}

#[test]
fn a_node_whose_block_daemon_does_not_start_is_named() {
    let site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..6);
    let node = &site.nodes[(site.leader(0) + 1) % 3];
    let name = site.list(0)[(site.leader(0) + 1) % 3].name.clone();
    // Something is in the place of its pool.
    let (pool, away) = (node.path("pool"), node.path("pool.away"));
    std::fs::rename(&pool, &away).unwrap();
    std::fs::create_dir(&pool).unwrap();
    send(node.blockd_pid().unwrap(), rustix::process::Signal::KILL);
    until("the status names the node", || {
        let checks = status(&site, 0).health.checks;
        let named = |check: &&admin::Check| check.detail.contains(&format!("of {name} is not"));
        checks.iter().find(|check| check.name == "BLOCKD_DOWN").filter(named).map(drop)
    });
    // The others go on.
    fill(&client, 6..8);
    std::fs::remove_dir(&pool).unwrap();
    std::fs::rename(&away, &pool).unwrap();
    until("all is well again", || (status(&site, 0).health.word == admin::Level::Ok).then_some(()));
    check(&client, 0..8);
}

#[test]
fn a_lost_node_is_made_up_for_without_a_command() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..12);
    // For good: two copies of everything are on the two that are left.
    site.nodes[1].kill();
    until("everything is there twice again", || {
        let nodes = site.list(0);
        let mut shards = nodes.iter().flat_map(|node| &node.shards);
        shards.all(|s| s.in_sync.len() == 2 && !s.in_sync.contains(&2)).then_some(())
    });
    check(&client, 0..12);
    // So one of the two may go as well. The metadata needs two of three: the lost one comes back.
    site.nodes[1].restart();
    site.settled();
    site.nodes[0].kill();
    check(&client, 0..12);
    fill(&client, 12..18);
    check(&client, 12..18);
    site.is_clean(2);
}

#[test]
fn a_node_is_drained_removed_and_a_new_one_takes_its_place() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..12);
    let drain = |site: &Site, node: &str, dry_run| {
        site.ask(0, AdminRequest::NodeDrain { node: node.into(), dry_run })
    };
    // What it holds of the twelve files, not how much room its segments have.
    until("the leader has heard what the node holds", || {
        let AdminReply::NodeMoved(moved) = drain(&site, "n3", true) else { panic!("no answer") };
        assert_eq!((moved.node, moved.state.as_str()), (3, "up"));
        (100_000..1_400_000).contains(&moved.bytes).then_some(())
    });
    drain(&site, "3", false);
    until("it is drained, and its shards are elsewhere", || {
        let nodes = site.list(0);
        let mut shards = nodes.iter().flat_map(|node| &node.shards);
        let moved = shards.all(|s| s.in_sync.len() == 2 && !s.in_sync.contains(&3));
        (nodes[2].state == "drained" && moved).then_some(())
    });
    check(&client, 0..12);
    // Another one would leave fewer nodes than copies.
    let request = AdminRequest::NodeDrain { node: "n1".into(), dry_run: false };
    let refused = site.try_ask(0, request).unwrap_err().to_string();
    assert!(refused.contains("copies"), "{refused}");
    site.nodes[2].kill();
    fill(&client, 12..18);
    site.ask(0, AdminRequest::NodeRemove { node: "n3".into() });
    // It is not let in again.
    site.nodes[2].restart();
    until("it is gone", || (site.list(0)[2].state == "removed").then_some(()));
    site.nodes[2].kill();
    site.add();
    until("the new node holds its share", || {
        let nodes = site.list(0);
        let held = nodes.iter().flat_map(|node| &node.shards).filter(|s| s.in_sync.contains(&4));
        (nodes[3].state == "up" && held.count() >= 2).then_some(())
    });
    check(&client, 0..18);
}

#[test]
fn a_node_that_is_stopped_is_suspected_then_down_and_returns() {
    use rustix::process::Signal;
    let site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..4);
    let leader = site.leader(0);
    let stopped = (leader + 1) % 3;
    until("all see each other", || {
        let sees = |asked| site.list(asked).iter().all(|n| n.seen == "alive" || n.seen == "self");
        sees(leader).then_some(())
    });
    site.nodes[stopped].signal(Signal::STOP);
    let seen = || {
        let node = &site.list(leader)[stopped];
        (node.seen.clone(), node.state.clone())
    };
    until("it is suspected", || (seen() == ("suspect".into(), "up".into())).then_some(()));
    until("it is down", || (seen() == ("down".into(), "down".into())).then_some(()));
    fill(&client, 4..8);
    site.nodes[stopped].signal(Signal::CONT);
    until("it is back", || (seen() == ("alive".into(), "up".into())).then_some(()));
    site.settled();
    check(&client, 0..8);
}

#[test]
fn foreign_datagrams_are_counted_and_change_nothing() {
    let site = Site::of(2, 1);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for address in &site.addresses {
        for datagram in
            [&b"hello"[..], &[0; 1400], b"CFSM\x02\0\0\0 a version to come, with a body"]
        {
            socket.send_to(datagram, address).unwrap();
        }
    }
    for node in &site.nodes {
        until("they are counted", || {
            node.metrics().contains("claudefs_refused_total{why=\"datagram\"} 3").then_some(())
        });
    }
    until("the nodes still see each other", || {
        let all = site.list(0).iter().all(|n| n.state == "up" && n.seen != "unknown");
        all.then_some(())
    });
}

#[test]
fn tokens_of_clients_and_strangers_make_no_node() {
    let site = Site::of(1, 1);
    let mut node = Node::prepared(Shape::default());
    let text = std::fs::read_to_string(node.path("node.toml")).unwrap();
    let join = |node: &Node, invitation: &Invitation| {
        let config = Config::load(&node.path("node.toml")).unwrap();
        fsd::node::join(&config, invitation, PATIENCE).unwrap_err().to_string()
    };
    // Without a network door nobody would reach it.
    let good = site.token(TokenPurpose::Node);
    assert!(join(&node, &good).contains("door.tcp"), "{}", join(&node, &good));
    let door = format!("unix = 'fsd.sock'\ntcp = '{}'", loopback());
    std::fs::write(node.path("node.toml"), text.replace("unix = 'fsd.sock'", &door)).unwrap();
    let client = site.token(TokenPurpose::Client);
    assert!(join(&node, &client).contains("for clients"), "{}", join(&node, &client));
    let mut stranger = good.clone();
    let ca = *good.token.ca();
    stranger.token = fsd_rpc::token::Token::new(fsd_rpc::token::Purpose::Node, [7; 16], ca);
    assert!(join(&node, &stranger).contains("unknown"), "{}", join(&node, &stranger));
    // The token is still good: nothing of the above has used it. The name is taken, though.
    let taken = std::fs::read_to_string(node.path("node.toml")).unwrap();
    std::fs::write(node.path("node.toml"), taken.replace("name = 'n'", "name = 'n1'")).unwrap();
    assert!(join(&node, &good).contains("n1"), "{}", join(&node, &good));
    std::fs::write(node.path("node.toml"), taken).unwrap();
    let config = Config::load(&node.path("node.toml")).unwrap();
    fsd::node::join(&config, &good, PATIENCE).unwrap();
    assert!(join(&node, &good).contains("already"), "{}", join(&node, &good));
    node.restart();
    node.stop();
}
