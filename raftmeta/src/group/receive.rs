//! Messages of other replicas.

use std::future::Future;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::SnapshotResponse;
use openraft::type_config::alias::VoteOf;

use super::{Group, Inner, Types};
use crate::network::checks::check;
use crate::network::{RaftAnswer, RaftMessage};

fn refused(why: impl ToString) -> RaftAnswer {
    RaftAnswer::Refused(why.to_string())
}

impl Group {
    /// Takes a message of replica `from`, whose identity the caller has proved, and returns the answer for it. May be
    /// called on any runtime; what was begun goes on if the caller gives up.
    pub async fn handle(&self, from: u64, message: RaftMessage) -> RaftAnswer {
        if let Err(why) = check(self.0.node_id, from, &message) {
            tracing::warn!(from, message = message.name(), why, "a message is refused");
            return refused(why);
        }
        if message.is_from_leader() {
            self.0.parting.note(from);
        }
        let inner = Arc::clone(&self.0);
        let work = async move { inner.answer(message).await };
        self.0.home.run(work).await.unwrap_or_else(refused)
    }
}

impl Inner {
    async fn answer(self: Arc<Inner>, message: RaftMessage) -> RaftAnswer {
        // Asking for a vote without a handover: the lease counts.
        let bound = match &message {
            RaftMessage::Vote(request) => !request.leadership_transfer,
            RaftMessage::PreVote(_) => true,
            _ => false,
        };
        if bound && self.leader.may_have_promised() && !self.log.is_sole_voter() {
            return refused("it was restarted a moment ago and may have promised its vote");
        }
        let raft = &self.raft;
        match message {
            RaftMessage::Append(request) => {
                answer(raft.append_entries(request), RaftAnswer::Append).await
            }
            RaftMessage::Vote(request) => answer(raft.vote(request), RaftAnswer::Vote).await,
            RaftMessage::PreVote(request) => answer(raft.pre_vote(request), RaftAnswer::Vote).await,
            RaftMessage::TransferLeader(request) => {
                answer(raft.handle_transfer_leader(request), RaftAnswer::TransferLeader).await
            }
            RaftMessage::CheckpointBegin { vote, meta, id } => match self.newer_vote(&vote) {
                Some(answer) => answer,
                None => self.inbox.begin(meta, id).await,
            },
            RaftMessage::CheckpointPart { vote, id, offset, crc, bytes } => {
                match self.newer_vote(&vote) {
                    Some(answer) => answer,
                    None => self.inbox.part(&id, offset, crc, bytes).await,
                }
            }
            RaftMessage::CheckpointEnd { vote, id } => match self.newer_vote(&vote) {
                Some(answer) => answer,
                None => {
                    let install = |whole| {
                        answer(raft.install_full_snapshot(vote, whole), RaftAnswer::Checkpoint)
                    };
                    self.inbox.end(&id, install).await
                }
            },
        }
    }

    /// The answer to a leader that has been replaced.
    fn newer_vote(&self, vote: &VoteOf<Types>) -> Option<RaftAnswer> {
        let mine = self.metrics.borrow_watched().vote;
        let newer = vote.partial_cmp(&mine).is_none_or(std::cmp::Ordering::is_lt);
        newer.then(|| RaftAnswer::Checkpoint(SnapshotResponse::new(mine)))
    }
}

async fn answer<T, E: std::fmt::Display>(
    asking: impl Future<Output = Result<T, E>>,
    wrap: impl FnOnce(T) -> RaftAnswer,
) -> RaftAnswer {
    match asking.await {
        Ok(answer) => wrap(answer),
        Err(error) => refused(format_args!("it has stopped: {error}")),
    }
}
