//! `scrub`: has every node read all that it holds, now, and put right what is damaged (`jobs::scrub`).

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{NodeScrub, ScrubReport};
use fsd_rpc::message::{Failure, NodeRequest, Response, ScrubAsk, ScrubState};
use raftmeta::read;
use raftmeta_types::NodeId;
use raftmeta_types::cluster::NodeState;

use super::jobs::Entry;
use crate::node::Node;
use crate::service::storage;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A node that gave no answer so often in a row is given up.
const UNANSWERED_MAX: u32 = 12;

/// The scrub of one node as it is followed from here.
struct Followed {
    id: NodeId,
    report: NodeScrub,
    /// What it holds, and what of that is still to be read.
    total_bytes: u64,
    left_bytes: u64,
    pass: u64,
    unanswered: u32,
    ended: bool,
}

pub(super) async fn scrub(node: &Arc<Node>, entry: &Arc<Entry>) -> Result<ScrubReport, Failure> {
    let known = read::nodes(&node.group.view()).map_err(storage)?;
    let mut all = Vec::new();
    for info in known.into_iter().filter(|info| info.state != NodeState::Removed) {
        let report = NodeScrub { node: info.id.0, name: info.name, ..NodeScrub::default() };
        let id = info.id;
        let (total_bytes, left_bytes, pass, unanswered, ended) = (0, 0, 0, 0, false);
        let mut one = Followed { id, report, total_bytes, left_bytes, pass, unanswered, ended };
        match ask(node, id, ScrubAsk::Hurry).await {
            Ok(state) => {
                one.pass = state.pass;
                one.note(&state);
            }
            Err(failure) => {
                one.ended = true;
                one.report.failed = Some(failure.to_string());
            }
        }
        all.push(one);
    }
    let followed = follow(node, entry, &mut all).await;
    if followed.is_err() {
        for one in all.iter().filter(|one| !one.ended) {
            // It takes its time then, which does no harm.
            let _ = ask(node, one.id, ScrubAsk::Relax).await;
        }
    }
    followed?;
    Ok(ScrubReport { nodes: all.into_iter().map(|one| one.report).collect() })
}

/// Until each of them has ended in one way or another.
async fn follow(node: &Arc<Node>, entry: &Arc<Entry>, all: &mut [Followed]) -> Result<(), Failure> {
    while all.iter().any(|one| !one.ended) {
        let total: u64 = all.iter().map(|one| one.total_bytes).sum();
        // Who is given up is not waited for.
        let going = all.iter().filter(|one| !one.ended);
        let left: u64 = going.map(|one| one.left_bytes).sum();
        entry.progress("reading", total.saturating_sub(left), total, "bytes")?;
        tokio::time::sleep(LOOK_EVERY).await;
        for one in all.iter_mut().filter(|one| !one.ended) {
            match ask(node, one.id, ScrubAsk::Look).await {
                Ok(state) => one.note(&state),
                Err(failure) => {
                    one.unanswered += 1;
                    if one.unanswered == UNANSWERED_MAX {
                        one.ended = true;
                        one.report.failed = Some(failure.to_string());
                    }
                }
            }
        }
    }
    Ok(())
}

impl Followed {
    fn note(&mut self, state: &ScrubState) {
        self.unanswered = 0;
        if state.pass != self.pass {
            self.ended = true;
            let why = "the node was started again, or another scrub has begun";
            self.report.failed = Some(why.into());
            return;
        }
        self.ended = state.done;
        (self.total_bytes, self.left_bytes) = (state.total_bytes, state.left_bytes);
        let report = &mut self.report;
        (report.segments, report.bytes) = (state.segments, state.bytes);
        (report.damaged, report.repaired) = (state.damaged, state.mended);
    }
}

async fn ask(node: &Arc<Node>, id: NodeId, ask: ScrubAsk) -> Result<ScrubState, Failure> {
    if id == node.id {
        return Ok(node.upkeep.scrub.answer(ask, &node.chunks.shares()));
    }
    let target = node.target_of(id)?;
    let asked = node.peers.ask(&target, NodeRequest::Scrub(ask), &[], ANSWER_WITHIN);
    match asked.await?.0 {
        Response::Scrub(state) => Ok(state),
        _ => Err(Failure::Storage(format!("{target}: an answer to another question"))),
    }
}
