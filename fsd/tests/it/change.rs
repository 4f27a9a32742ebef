//! What administrators want of nodes and of copies, and what they are refused.

use fsd_rpc::CallError;
use fsd_rpc::admin::{self, AdminReply, AdminRequest, NodeMoved};
use fsd_rpc::message::Failure;

use crate::site::{Site, check, fill, status};
use crate::support::*;

/// What a verb about a node leads to, or the code and the reason with which it is refused.
fn ask(site: &Site, asked: usize, request: AdminRequest) -> Result<NodeMoved, (String, String)> {
    match site.try_ask(asked, request) {
        Ok(AdminReply::NodeMoved(moved)) => Ok(moved),
        Err(CallError::Failure(Failure::Admin { code, why, next, .. })) => {
            assert!(!next.is_empty() || code == "INVALID", "{code}: {why}");
            Err((code, why))
        }
        other => panic!("{other:?}"),
    }
}

fn drain(site: &Site, asked: usize, at: usize) -> Result<NodeMoved, (String, String)> {
    ask(site, asked, AdminRequest::NodeDrain { node: format!("n{}", at + 1), dry_run: false })
}

fn undrain(site: &Site, asked: usize, at: usize) -> Result<NodeMoved, (String, String)> {
    ask(site, asked, AdminRequest::NodeUndrain { node: format!("n{}", at + 1) })
}

fn recover(site: &Site, asked: usize, at: usize) -> Result<NodeMoved, (String, String)> {
    ask(site, asked, AdminRequest::NodeRecover { node: format!("n{}", at + 1) })
}

fn remove(site: &Site, asked: usize, at: usize) -> Result<NodeMoved, (String, String)> {
    ask(site, asked, AdminRequest::NodeRemove { node: format!("n{}", at + 1) })
}

/// The copies that are wanted then, or the code and the reason with which it is refused.
fn protect(
    site: &Site,
    asked: usize,
    replicas: u8,
    least: Option<u8>,
) -> Result<u8, (String, String)> {
    let request = AdminRequest::Protection { replicas: Some(replicas), in_sync_min: least };
    match site.try_ask(asked, request) {
        Ok(AdminReply::Protection(protection)) => Ok(protection.replicas),
        Err(CallError::Failure(Failure::Admin { code, why, .. })) => Err((code, why)),
        other => panic!("{other:?}"),
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, (String, String)>) -> String {
    answer.unwrap_err().0
}

fn shards(site: &Site, asked: usize) -> Vec<admin::Shard> {
    site.list(asked).into_iter().flat_map(|node| node.shards).collect()
}

fn is(site: &Site, asked: usize, at: usize, state: &str) {
    until(state, || (site.list(asked)[at].state == state).then_some(()));
}

/// Waits until every shard has so many copies.
fn are_kept(site: &Site, asked: usize, copies: usize) {
    until("every shard has so many copies", || {
        shards(site, asked).iter().all(|shard| shard.in_sync.len() == copies).then_some(())
    });
}

#[test]
fn a_lost_node_is_not_removed_before_it_is_made_up_for() {
    let mut site = Site::of(3, 3);
    let client = site.client();
    fill(&client, 0..6);
    let leader = site.leader(0);
    let lost = (leader + 1) % 3;
    site.nodes[lost].kill();
    is(&site, leader, lost, "down");
    // It is in no shard any more, and everything lacks a copy.
    are_kept(&site, leader, 2);
    let (code, why) = remove(&site, leader, lost).unwrap_err();
    assert_eq!(code, "REDUNDANCY");
    assert!(why.contains("4 shards"), "{why}");
    assert_eq!(site.list(leader)[lost].state, "down");
    // Two copies are enough, says the administrator.
    assert_eq!(protect(&site, leader, 2, None), Ok(2));
    assert_eq!(remove(&site, leader, lost).unwrap().state, "removed");
    check(&client, 0..6);
}

#[test]
fn a_drain_is_taken_back_and_a_lost_node_is_recovered() {
    let mut site = Site::shaped(3, 2, Shape { pool_mib: 1024, shards: 64 });
    let client = site.client();
    fill(&client, 0..24);
    let leader = site.leader(0);
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = one as u64 + 1;
    let held = |site: &Site| {
        let holds = |shard: &&admin::Shard| shard.in_sync.contains(&id);
        shards(site, leader).iter().filter(holds).count()
    };
    let nobody = AdminRequest::NodeUndrain { node: "n9".into() };
    assert_eq!(code(ask(&site, other, nobody)), "NOT_FOUND");
    assert_eq!(undrain(&site, other, one).unwrap().state, "up", "it does not drain");
    assert_eq!(code(recover(&site, other, one)), "NOT_DOWN");
    assert_eq!(code(remove(&site, other, one)), "NOT_DRAINED");
    let before = held(&site);
    assert!(before > 30, "its share of 64 shards, twice, on three nodes: {before}");

    assert_eq!(drain(&site, other, one).unwrap().state, "draining");
    is(&site, leader, one, "drained");
    assert_eq!(held(&site), 0);
    assert_eq!(undrain(&site, other, one).unwrap().state, "up");
    until("its share comes back", || {
        let whole = shards(&site, leader).iter().all(|shard| shard.in_sync.len() == 2);
        (whole && held(&site) + 1 >= before).then_some(())
    });
    // Half a drain is taken back as well.
    drain(&site, other, one).unwrap();
    undrain(&site, other, one).unwrap();
    until("its share comes back", || (held(&site) + 1 >= before).then_some(()));
    check(&client, 0..24);

    site.nodes[one].kill();
    is(&site, leader, one, "down");
    assert_eq!(code(undrain(&site, leader, one)), "NOT_DRAINED");
    assert_eq!(code(drain(&site, leader, one)), "NOT_UP");
    let mut most = (0, 0);
    until("nothing is left to be made up for", || {
        let NodeMoved { shards, bytes, .. } = recover(&site, other, one).unwrap();
        most = (most.0.max(shards), most.1.max(bytes));
        (shards == 0).then(|| assert_eq!(bytes, 0))
    });
    assert!(most.0 > 0 && most.0 as usize <= 64 && most.1 > 0, "{most:?}");
    assert_eq!(held(&site), 0);
    are_kept(&site, leader, 2);
    assert_eq!(remove(&site, other, one).unwrap().state, "removed");
    check(&client, 0..24);
}

#[test]
fn copies_are_made_and_dropped_as_the_protection_is_set() {
    let mut site = Site::of(3, 2);
    let client = site.client();
    fill(&client, 0..12);
    // What is impossible changes nothing.
    for (replicas, least, expected) in [
        (4, None, "REDUNDANCY"),
        (200, None, "REDUNDANCY"),
        (0, None, "INVALID"),
        (2, Some(0), "INVALID"),
        (2, Some(3), "INVALID"),
        (3, Some(4), "INVALID"),
    ] {
        assert_eq!(code(protect(&site, 1, replicas, least)), expected, "{replicas}, {least:?}");
    }
    let shown = status(&site, 0).protection;
    assert_eq!((shown.replicas, shown.in_sync_min), (2, 1));
    let are_stored = |copies: u64| {
        until("so much is stored", || {
            (status(&site, 0).data.live_bytes / (12 * 100_000) == copies).then_some(())
        });
    };
    are_stored(2);
    assert_eq!(protect(&site, 1, 3, None), Ok(3));
    are_kept(&site, 0, 3);
    are_stored(3);
    let shown = status(&site, 0).protection;
    assert_eq!((shown.replicas, shown.in_sync_min), (3, 2));
    assert_eq!(code(drain(&site, 1, 2)), "REDUNDANCY");
    check(&client, 0..12);
    // One fewer is dropped everywhere, and its space given back.
    assert_eq!(protect(&site, 1, 2, None), Ok(2));
    are_kept(&site, 0, 2);
    are_stored(2);
    fill(&client, 12..18);
    check(&client, 0..18);
    site.is_clean(0);
    // The shards that are left without one of their two copies by a node that is lost.
    let leader = site.leader(0);
    let lost = (leader + 1) % 3;
    protect(&site, leader, 3, None).unwrap();
    are_kept(&site, leader, 3);
    site.nodes[lost].kill();
    is(&site, leader, lost, "down");
    let (code, why) = recover(&site, leader, lost).unwrap_err();
    assert_eq!(code, "REDUNDANCY");
    assert!(why.contains("2 nodes are up for 3 copies"), "{why}");
}

#[test]
fn a_drain_is_a_job_with_what_is_left_of_it() {
    let site = Site::shaped(3, 2, Shape { pool_mib: 1024, shards: 64 });
    let client = site.client();
    fill(&client, 0..48);
    let leader = site.leader(0);
    let drained = (leader + 1) % 3;
    let name = format!("drain n{}", drained + 1);
    let jobs = || status(&site, leader).jobs.into_iter().filter(|job| job.node.is_none());
    let used = until("the leader has heard what each node holds, and nothing moves", || {
        let data = status(&site, leader).data;
        let is_all = data.live_bytes >= 2 * 48 * 100_000;
        (is_all && jobs().count() == 0).then_some(data.used_bytes)
    });
    drain(&site, leader, drained).unwrap();
    // It takes several rounds of the leader, of half a second each: at most four shards go to one node at once.
    let mut told: Vec<admin::JobSummary> = Vec::new();
    until("it is drained", || {
        told.extend(jobs());
        (site.list(leader)[drained].state == "drained").then_some(())
    });
    until("the job is over", || (jobs().count() == 0).then_some(()));
    assert!(told.iter().any(|job| job.name == name), "{told:?}");
    for job in &told {
        let progress = &job.progress;
        assert_eq!(progress.phase, "copying", "{job:?}");
        assert!(progress.total > 0 && progress.done <= progress.total, "{job:?}");
        let percent = progress.done * 100 / progress.total;
        assert_eq!(job.percent.map(u64::from), Some(percent), "{job:?}");
        let in_bytes = progress.unit == "bytes";
        assert!(in_bytes || progress.unit == "shards", "{job:?}");
        let left = progress.total - progress.done;
        assert_eq!(job.bytes_left, in_bytes.then_some(left), "{job:?}");
        assert!(!in_bytes || progress.total <= used, "{job:?}, {used}");
        assert!(job.eta_ms.is_none_or(|eta| eta < 24 * 3_600_000), "{job:?}");
    }
    // In bytes it is told as soon as the nodes have said how large their shards are.
    let left: Vec<u64> =
        told.iter().filter(|job| job.name == name).filter_map(|job| job.bytes_left).collect();
    assert!(left.iter().any(|left| *left > 0), "{told:?}");
    assert!(left.iter().max() > left.last(), "{left:?}");
}
