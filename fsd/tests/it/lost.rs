//! Nodes whose disks are gone for good: what counted on them goes on when an administrator says so, and not before.

use fsd_rpc::admin::{
    self, AdminReply, AdminRequest, FsckOptions, Job, JobReport, Level, NodeLost,
};
use fsd_rpc::{Client, ConnectOptions};
use raftmeta_types::{FileKind, Ino};

use crate::site::{Site, check, fill, status};
use crate::support::*;

fn ask_lost(
    site: &Site,
    asked: usize,
    lost: usize,
    said: (bool, bool),
) -> Result<NodeLost, String> {
    let (confirm, accept_data_loss) = said;
    let node = format!("n{}", lost + 1);
    let request = AdminRequest::NodeRemoveLost { node, confirm, accept_data_loss };
    match site.try_ask(asked, request) {
        Ok(AdminReply::NodeLost(told)) => Ok(told),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

const ASK: (bool, bool) = (false, false);
const CONFIRM: (bool, bool) = (true, false);
const ACCEPT: (bool, bool) = (true, true);

/// Kills a node, and its disk with it.
fn burn(site: &mut Site, at: usize) {
    site.nodes[at].kill();
    std::fs::remove_file(site.nodes[at].path("pool")).unwrap();
}

fn is_down(site: &Site, asked: usize, at: usize) -> bool {
    site.list(asked)[at].state == "down"
}

fn shards(site: &Site, asked: usize) -> Vec<admin::Shard> {
    site.list(asked).into_iter().flat_map(|node| node.shards).collect()
}

/// Waits until the status says of these shards, at this level, that.
fn is_told(site: &Site, asked: usize, level: Level, what: &str, shards: &[u16]) {
    let numbers: Vec<String> = shards.iter().map(u16::to_string).collect();
    let named = match numbers.split_last().unwrap() {
        (only, []) => format!("shard {only}"),
        (last, others) => format!("shards {} and {last}", others.join(", ")),
    };
    until(&format!("{level}: {what}: {named}"), || {
        let health = status(site, asked).health;
        assert!(health.checks.iter().all(|check| check.level <= health.word), "{health:?}");
        let is_meant = |check: &admin::Check| {
            let said = check.detail.contains(what) && check.detail.contains(&named);
            (check.name.as_str(), check.level) == ("REDUNDANCY", level) && said
        };
        health.checks.iter().any(is_meant).then_some(())
    });
}

/// Waits until the status has nothing to say against how redundant data is.
fn is_redundant(site: &Site, asked: usize) {
    until("everything is there as often as it should be", || {
        let checks = status(site, asked).health.checks;
        let lacks = |check: &admin::Check| check.name == "REDUNDANCY" && check.level > Level::Ok;
        (!checks.iter().any(lacks)).then_some(())
    });
}

/// Whether the cost is told as what the map says, once that does not change any more.
fn costs(site: &Site, asked: usize, lost: usize) -> bool {
    let id = lost as u64 + 1;
    let holds = |shard: &&admin::Shard| shard.in_sync.contains(&id);
    let before = shards(site, asked).iter().filter(holds).count();
    let Ok(told) = ask_lost(site, asked, lost, ASK) else { return false };
    assert!(!told.done && told.lost_shards.is_empty(), "{told:?}");
    told.left.iter().map(|left| left.shards as usize).sum::<usize>() == before
}

#[test]
fn two_disks_lost_at_once_are_made_up_for_and_their_nodes_taken_out() {
    let mut site = Site::of(4, 3);
    let client = site.client();
    fill(&client, 0..12);
    // One that votes and one that does not, so that the metadata goes on.
    let roles: Vec<String> = site.list(0).into_iter().map(|node| node.role).collect();
    let of = |role| roles.iter().position(|is| is == role).unwrap();
    let (leader, voter, learner) = (of("leader"), of("voter"), of("learner"));
    let refused = ask_lost(&site, leader, voter, ACCEPT).unwrap_err();
    assert!(refused.contains("up"), "{refused}");
    let refused = ask_lost(&site, leader, leader, ACCEPT).unwrap_err();
    assert!(refused.contains("leads"), "{refused}");
    site.nodes[voter].kill();
    std::fs::rename(site.nodes[voter].path("pool"), site.nodes[voter].path("away")).unwrap();
    burn(&mut site, learner);
    until("both are down", || {
        (is_down(&site, leader, voter) && is_down(&site, leader, learner)).then_some(())
    });
    let gone = [voter as u64 + 1, learner as u64 + 1];
    // Some shards go on with two of three replicas; those that have one left are copied from it before they do.
    until("every shard is on the two nodes that are left", || {
        let whole = |shard: &admin::Shard| {
            shard.in_sync.len() == 2 && shard.in_sync.iter().all(|id| !gone.contains(id))
        };
        shards(&site, leader).iter().all(whole).then_some(())
    });
    fill(&client, 12..15);
    check(&client, 0..15);
    until("what it costs is told, and nothing is done", || {
        [voter, learner].iter().all(|lost| costs(&site, leader, *lost)).then_some(())
    });
    assert!(is_down(&site, leader, voter) && is_down(&site, leader, learner));
    for lost in [voter, learner] {
        let told = ask_lost(&site, leader, lost, CONFIRM).unwrap();
        assert!(told.done, "{told:?}");
        let again = ask_lost(&site, leader, lost, CONFIRM).unwrap_err();
        assert!(again.contains("no such node"), "{again}");
    }
    until("the metadata is theirs alone", || {
        let nodes = site.list(leader);
        let out = |at: &usize| nodes[*at].role.is_empty() && nodes[*at].state == "removed";
        [voter, learner].iter().all(out).then_some(())
    });
    fill(&client, 15..18);
    check(&client, 0..18);
    site.is_clean(leader);
    // The administrator was wrong, and the disk comes back: it is not let in any more.
    std::fs::rename(site.nodes[voter].path("away"), site.nodes[voter].path("pool")).unwrap();
    site.nodes[voter].restart();
    until("it is refused", || {
        let told = site.nodes[leader].metrics();
        let refused = |line: &str| line.contains("why=\"stranger\"") && !line.ends_with(" 0");
        told.lines().any(refused).then_some(())
    });
    check(&client, 0..18);
    assert_eq!(site.list(leader)[voter].state, "removed");
}

#[test]
fn whoever_was_started_meanwhile_makes_no_copies_alone() {
    let mut site = Site::of(4, 3);
    let client = site.client();
    fill(&client, 0..12);
    let leader = site.leader(0);
    let others: Vec<usize> = (0..4).filter(|at| *at != leader).collect();
    // The one shard that the leader does not hold, once each node has its share of them.
    let waiting = until("each node holds three of the four", || {
        let shards = shards(&site, leader);
        let copies = |id: u64| shards.iter().filter(|s| s.in_sync.contains(&id)).count();
        let foreign = shards.iter().filter(|s| !s.in_sync.contains(&(leader as u64 + 1)));
        (1..=4).all(|id| copies(id) == 3).then(|| foreign.map(|s| s.id).collect::<Vec<u16>>())
    });
    let learner = site.list(leader).iter().position(|node| node.role == "learner").unwrap();
    let voters: Vec<usize> = others.into_iter().filter(|at| *at != learner).collect();
    let (back, away) = (voters[0], voters[1]);
    for at in [back, away, learner] {
        site.nodes[at].kill();
    }
    site.nodes[back].restart();
    let copied = |shard: &admin::Shard| match waiting.contains(&shard.id) {
        true => !shard.in_sync.contains(&(leader as u64 + 1)),
        false => shard.in_sync.len() == 2,
    };
    until("two are down, and what the leader has is on the two that are left", || {
        let down = is_down(&site, leader, away) && is_down(&site, leader, learner);
        (down && shards(&site, leader).iter().all(copied)).then_some(())
    });
    is_told(&site, leader, Level::Err, "no writes to data with 1 of 3 copies", &waiting);
    let others: Vec<u16> = (0..4).filter(|id| !waiting.contains(id)).collect();
    is_told(&site, leader, Level::Warn, "some data has 2 of 3 copies", &others);
    // As it is for a while: it may lack the end of what the others have.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(shards(&site, leader).iter().all(copied));
    site.nodes[away].restart();
    site.nodes[learner].restart();
    site.settled();
    is_redundant(&site, leader);
    fill(&client, 12..24);
    check(&client, 0..24);
    site.is_clean(leader);
}

#[test]
fn a_shard_that_takes_no_writes_is_told() {
    let mut site = Site::of(3, 3);
    let client = site.client();
    fill(&client, 0..6);
    is_redundant(&site, 0);
    let protect = |site: &Site, asked: usize, least| {
        let request = AdminRequest::Protection { replicas: None, in_sync_min: Some(least) };
        site.ask(asked, request);
    };
    protect(&site, 0, 3);
    let leader = site.leader(0);
    let lost = (leader + 1) % 3;
    site.nodes[lost].kill();
    let all = [0, 1, 2, 3];
    is_told(&site, leader, Level::Err, "no writes to data with 2 of 3 copies", &all);
    let options = ConnectOptions {
        client: "test:/impatient".into(),
        deadline: std::time::Duration::from_secs(3),
        ..ConnectOptions::default()
    };
    let impatient = Client::connect(site.nodes[leader].endpoint(), options).unwrap();
    assert!(impatient.put(&noise(7, 10_000)).is_err());
    check(&client, 0..6);
    // Two are enough, says the administrator.
    protect(&site, leader, 2);
    is_told(&site, leader, Level::Warn, "some data has 2 of 3 copies", &all);
    fill(&client, 6..9);
    site.nodes[lost].restart();
    is_redundant(&site, leader);
    check(&client, 0..9);
}

#[test]
fn a_shard_without_a_copy_is_given_up_only_by_name() {
    let mut site = Site::of(3, 1);
    let client = site.client();
    fill(&client, 0..24);
    let leader = site.leader(0);
    let lost = (leader + 1) % 3;
    burn(&mut site, lost);
    until("it is down", || is_down(&site, leader, lost).then_some(()));
    let of_it: Vec<u16> = shards(&site, leader)
        .into_iter()
        .filter(|shard| shard.in_sync == [lost as u64 + 1])
        .map(|shard| shard.id)
        .collect();
    assert!(!of_it.is_empty());
    is_told(&site, leader, Level::Err, "no copy is there of", &of_it);
    let told = until("it can be asked for", || ask_lost(&site, leader, lost, ASK).ok());
    assert_eq!(told.lost_shards, of_it);
    let refused = ask_lost(&site, leader, lost, CONFIRM).unwrap_err();
    assert!(refused.contains("no copy") && refused.contains(&of_it[0].to_string()), "{refused}");
    assert!(is_down(&site, leader, lost), "nothing was done");
    assert!(ask_lost(&site, leader, lost, ACCEPT).unwrap().done);
    // New files go everywhere, and what is missing is told.
    until("every shard takes writes", || {
        let left = shards(&site, leader);
        left.iter().all(|shard| shard.in_sync != [lost as u64 + 1]).then_some(())
    });
    is_redundant(&site, leader);
    let from = client.names(Ino::ROOT).len() as u64;
    fill(&client, from..from + 24);
    check(&client, from..from + 24);
    let options = FsckOptions { repair: false, read_data: false };
    let JobReport::Fsck(report) = site.run(leader, Job::Fsck(options)) else { panic!() };
    assert!(report.found > 0, "{report:?}");
    assert!(report.findings.iter().all(|finding| finding.code == "CHUNK_MISSING"), "{report:?}");
    client.make(Ino::ROOT, "and names", FileKind::Regular);
}
