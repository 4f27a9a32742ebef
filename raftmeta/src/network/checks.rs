//! What a received message must fulfil before openraft sees it, which trusts its peers.

use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;
use openraft::type_config::alias::{LogIdOf, VoteOf};

use super::RaftMessage;
use crate::group::Types;

/// Most voters and learners in one membership.
const MEMBERS_MAX: usize = 64;

/// Why a message from replica `from` to replica `me` cannot be right; `Ok` says nothing about whether it is still
/// wanted.
pub(crate) fn check(me: u64, from: u64, message: &RaftMessage) -> Result<(), String> {
    if from == me {
        return Err(format!("it comes from a replica with this one's id, {me}"));
    }
    let vote = match message {
        RaftMessage::Append(request) => &request.vote,
        RaftMessage::Vote(request) | RaftMessage::PreVote(request) => {
            return check_candidate(from, &request.vote, request.last_log_id);
        }
        RaftMessage::TransferLeader(request) => request.from_leader(),
        RaftMessage::CheckpointBegin { vote, .. }
        | RaftMessage::CheckpointPart { vote, .. }
        | RaftMessage::CheckpointEnd { vote, .. } => vote,
    };
    if vote.leader_id.node_id != from {
        return Err(format!("it comes from {from} in the name of {vote}"));
    }
    if !vote.committed {
        return Err(format!("{vote} has not been elected"));
    }
    match message {
        RaftMessage::Append(request) => check_append(request),
        RaftMessage::CheckpointBegin { meta, .. } => check_known(vote, meta.last_log_id),
        RaftMessage::TransferLeader(request) => check_known(vote, request.last_log_id().copied()),
        RaftMessage::Vote(_)
        | RaftMessage::PreVote(_)
        | RaftMessage::CheckpointPart { .. }
        | RaftMessage::CheckpointEnd { .. } => Ok(()),
    }
}

fn check_candidate(
    from: u64,
    vote: &VoteOf<Types>,
    last: Option<LogIdOf<Types>>,
) -> Result<(), String> {
    if vote.leader_id.node_id != from {
        return Err(format!("it comes from {from} and asks for votes for {vote}"));
    }
    if vote.committed {
        return Err(format!("{vote} has been elected and asks for votes"));
    }
    check_known(vote, last)
}

/// No log holds an entry of a leader that comes after this one.
fn check_known(vote: &VoteOf<Types>, id: Option<LogIdOf<Types>>) -> Result<(), String> {
    match id {
        Some(id) if *id.committed_leader_id() > vote.leader_id => {
            Err(format!("{vote} speaks of entry {id} of a later leader"))
        }
        _ => Ok(()),
    }
}

fn check_append(request: &AppendEntriesRequest<Types>) -> Result<(), String> {
    let vote = &request.vote;
    check_known(vote, request.prev_log_id)?;
    check_known(vote, request.leader_commit)?;
    let mut last = request.prev_log_id;
    for entry in &request.entries {
        let id = entry.log_id;
        let next = last.map_or(Some(0), |last| last.index.checked_add(1));
        if Some(id.index) != next || last.is_some_and(|last| last > id) {
            return Err(format!("entry {id} follows {last:?}"));
        }
        if let EntryPayload::Membership(membership) = &entry.payload {
            let (voters, nodes) = (membership.voter_ids().count(), membership.nodes().count());
            let known = membership.voter_ids().all(|id| membership.get_node(&id).is_some());
            if voters == 0 || nodes > MEMBERS_MAX || !known {
                return Err(format!("entry {id} holds an impossible membership"));
            }
        }
        last = Some(id);
    }
    check_known(vote, last)
}
