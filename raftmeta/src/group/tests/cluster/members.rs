//! Replicas come and go, and the leadership is handed over.

use super::*;
use crate::network::RaftMessage;

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_to_five_and_shrinks_to_one() {
    let mut cluster = Cluster::of(1, 11).await;
    assert!(cluster.group(1).0.log.is_sole_voter() && !cluster.group(1).0.home.is_driven());
    let mut seq = 0;
    let mut work = async |cluster: &Cluster| {
        for _ in 0..20 {
            seq += 1;
            cluster.command(0, seq, create(&format!("n{seq}"))).await.unwrap();
        }
    };
    work(&cluster).await;
    for voters in [3, 5] {
        cluster.grow(voters).await;
        assert!(!cluster.group(1).0.log.is_sole_voter() && cluster.group(1).0.home.is_driven());
        work(&cluster).await;
    }
    let (leader, members) = {
        let (leader, group) = cluster.leader().await;
        (leader, group.members())
    };
    assert_eq!(members.len(), 5);
    for member in members {
        assert!(member.voter && member.address == address(member.id), "{member:?}");
        assert!(member.matched.is_some() || member.id == leader, "{member:?}");
    }
    // Two die and the rest goes on.
    for id in (1..=5).filter(|id| *id != leader).take(2) {
        cluster.kill(id);
    }
    work(&cluster).await;
    for id in (1..=5).filter(|id| cluster.net.get(*id).is_none()).collect::<Vec<_>>() {
        cluster.start(id).await;
    }
    work(&cluster).await;
    cluster.agree().await;
    // All go but the first, the leader among them.
    for id in 2..=5 {
        cluster.lead(|leader| async move { leader.remove(id).await }).await;
        work(&cluster).await;
    }
    let (last, group) = cluster.leader().await;
    assert_eq!((last, group.members().len()), (1, 1));
    assert!(group.0.log.is_sole_voter() && group.lease_valid());
    until_some("the runtime is lent again", || (!group.0.home.is_driven()).then_some(())).await;
    work(&cluster).await;
    for id in 2..=5 {
        cluster.kill(id);
    }
    cluster.kill(1);
    drop(group);
    let again = cluster.start(1).await;
    assert!(again.lease_valid());
    work(&cluster).await;
    assert_eq!(names(&again).len(), seq as usize);
    is_clean(&again);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_to_members_is_refused() {
    let mut cluster = Cluster::of(3, 12).await;
    let learner = cluster.start(4).await;
    let (id, leader) = cluster.leader().await;
    let refused = |result: Result<(), GroupError>, what: &str| match result {
        Err(GroupError::Membership { reason }) => assert!(reason.contains(what), "{reason}"),
        other => panic!("{other:?}"),
    };
    refused(leader.set_voters(BTreeSet::new()).await, "0 voters");
    refused(leader.set_voters((1..=6).collect()).await, "6 voters");
    refused(leader.set_voters([1, 2, 4].into()).await, "not in the group");
    refused(leader.transfer_leadership(Some(4)).await, "not in the group");
    refused(leader.transfer_leadership(Some(id)).await, "cannot lead");
    refused(leader.update_address(9, "x").await, "not in the group");
    refused(leader.add_learner(2, "elsewhere").await, "already");
    leader.add_learner(2, &address(2)).await.unwrap();
    leader.remove(9).await.unwrap();
    // A learner is not asked, and cannot be a voter before it has everything.
    cluster.net.isolate(4);
    for n in 0..1100 {
        cluster.command(0, n + 1, create(&format!("n{n}"))).await.unwrap();
    }
    leader.add_learner(4, &address(4)).await.unwrap();
    refused(leader.set_voters([1, 2, 3, 4].into()).await, "caught up");
    refused(leader.transfer_leadership(Some(4)).await, "cannot lead");
    let follower = cluster.group(if id == 1 { 2 } else { 1 });
    for result in [follower.remove(4).await, follower.transfer_leadership(None).await] {
        let Err(GroupError::NotLeader { leader: Some(hint) }) = result else {
            panic!("{result:?}")
        };
        assert_eq!(hint, (id, address(id)));
    }
    cluster.net.heal();
    learner.wait_until_caught_up(LIMIT).await.unwrap();
    cluster.agree().await;
    let member = leader.members().into_iter().find(|member| member.id == 4).unwrap();
    assert!(!member.voter);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_is_handed_over_while_commands_run() {
    let cluster = Cluster::of(3, 13).await;
    let net = Arc::clone(&cluster.net);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        let mut seq = 0;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            seq += 1;
            run(&net, 0, seq, create(&format!("n{seq}"))).await.unwrap();
        }
        seq
    });
    let mut leaders = BTreeSet::new();
    for to in [None, Some(1), Some(2), Some(3), Some(1)] {
        let (old, group) = cluster.leader().await;
        leaders.insert(old);
        if to == Some(old) {
            continue;
        }
        group.transfer_leadership(to).await.unwrap();
        assert!(!group.lease_valid());
        let (new, _) = cluster.leader().await;
        assert!(new != old && to.is_none_or(|to| to == new), "{old} to {to:?}: {new}");
        leaders.insert(new);
    }
    assert!(leaders.len() > 1);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let made = writer.await.unwrap();
    cluster.agree().await;
    assert_eq!(names(&cluster.group(1)).len() as u64, made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_no_vote_any_more_hands_over() {
    let cluster = Cluster::of(3, 16).await;
    let (old, group) = cluster.leader().await;
    // As it ends when a leader dies in the middle of a change and one that is to go finishes it.
    let others: BTreeSet<u64> = (1..=3).filter(|id| *id != old).collect();
    let (raft, voters) = (group.0.raft.clone(), others.clone());
    let changing = async move {
        let change = openraft::ChangeMembers::ReplaceAllVoters(voters);
        raft.change_membership(change, true).await.map(drop)
    };
    // The answer may be that it leads no more.
    let _changed_all_the_same = home::drive(&group.0.home, changing).await.unwrap();
    let (new, leader) = cluster.leader().await;
    assert!(others.contains(&new), "{new}");
    until_some("the change is done", || {
        let members = leader.members();
        let votes = |id: u64| members.iter().any(|member| member.id == id && member.voter);
        (!votes(old) && others.iter().all(|id| votes(*id))).then_some(())
    })
    .await;
    cluster.command(0, 1, create("after")).await.unwrap();
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_moves_and_is_found_again() {
    let cluster = Cluster::of(3, 14).await;
    let (_, leader) = cluster.leader().await;
    // The network knows one address of each: the wrong one is refused there.
    cluster.net.expect(3, "moved");
    leader.update_address(3, "moved").await.unwrap();
    for n in 0..5 {
        cluster.command(0, n + 1, create(&format!("n{n}"))).await.unwrap();
    }
    cluster.agree().await;
    let member = leader.members().into_iter().find(|member| member.id == 3).unwrap();
    assert_eq!(member.address, "moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_just_started_votes_for_nobody() {
    let mut cluster = Cluster::of(3, 15).await;
    let (leader, group) = cluster.leader().await;
    let other = if leader == 1 { 2 } else { 1 };
    let term = group.status().term;
    drop(group);
    cluster.net.isolate(other);
    cluster.kill(other);
    let opened = Instant::now();
    let again = cluster.start(other).await;
    let vote = openraft::Vote::new(term + 5, 3);
    let request = openraft::raft::VoteRequest::new(vote, None);
    for message in [RaftMessage::Vote(request.clone()), RaftMessage::PreVote(request)] {
        let answer = again.handle(3, message).await;
        // On a machine that stood still meanwhile the time may be over.
        if opened.elapsed() < leadership::LEASE {
            let crate::network::RaftAnswer::Refused(why) = answer else { panic!("{answer:?}") };
            assert!(why.contains("promised"), "{why}");
        }
    }
    assert!(again.status().term <= term);
}
