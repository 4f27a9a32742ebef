//! `Status`: one screen about the cluster, as this node sees it.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::admin::{
    AdminReply, BlockdStatus, DataStatus, JobSummary, MetadataStatus, Progress, Status, Store,
};
use fsd_rpc::message::{Failure, NodeUsage, ScrubState};
use raftmeta::read;
use raftmeta_types::Time;
use raftmeta_types::cluster::{NodeInfo, NodeState};

use super::{jobs, protection};
use crate::node::{Node, now};
use crate::replication::{Cause, Work};
use crate::service::storage;
use crate::supervise::State;

pub(super) fn status(node: &Arc<Node>) -> Result<AdminReply, Failure> {
    let view = node.group.view();
    let group = node.group.status();
    let counters = read::counters(&view).map_err(storage)?;
    let protection = read::protection(&view).map_err(storage)?;
    let nodes = read::nodes(&view).map_err(storage)?;
    let members = nodes.iter().filter(|node| node.state != NodeState::Removed);
    let up = members.clone().filter(|node| node.state == NodeState::Up).count();
    let draining: Vec<String> = members
        .clone()
        .filter(|node| node.state == NodeState::Draining)
        .map(|node| node.name.clone())
        .collect();
    let stores: Vec<Store> = node.heard(&nodes).into_iter().map(store).collect();
    let mut jobs = moving(node, &draining);
    jobs.extend(node.admin.running());
    jobs.extend(scrubbing(node, members.clone()));
    Ok(AdminReply::Status(Box::new(Status {
        cluster_name: node.cluster.name.clone(),
        cluster_uuid: node.cluster.uuid,
        node: node.config.node.name.clone(),
        build: env!("CARGO_PKG_VERSION").into(),
        time: now().into(),
        uptime_ms: u64::try_from(node.uptime().as_millis()).unwrap_or(u64::MAX),
        health: node.health(),
        nodes_up: up as u32,
        nodes: members.count() as u32,
        protection: protection::told(protection),
        metadata: MetadataStatus {
            term: group.term,
            leader: group.leader,
            last_log: group.last_log,
            applied: group.applied,
            log_bytes: group.log_bytes,
            inodes: counters.inodes,
            logical_bytes: counters.logical_bytes,
        },
        data: sum(stores.iter().map(|store| &store.data)),
        stores,
        blockd: blockd(node),
        clients: node.sessions.lock().count() as u32,
        jobs,
    })))
}

/// What the leader moves from node to node, as jobs.
fn moving(node: &Node, draining: &[String]) -> Vec<JobSummary> {
    let director = node.director.lock();
    let summary = |(cause, work): (&Cause, &Work)| {
        let name = match cause {
            Cause::Copies => "re-replication".to_owned(),
            Cause::Drain => format!("drain {}", draining.join(", ")),
            Cause::Balance => "rebalance".to_owned(),
        };
        let (left, total, unit) = match work.is_in_bytes() {
            true => (work.left.bytes, work.total.bytes, "bytes"),
            false => (work.left.steps, work.total.steps, "shards"),
        };
        let (phase, done, unit) = ("copying".into(), total.saturating_sub(left), unit.into());
        let progress = Progress { phase, done, total, unit };
        jobs::summary(0, name, work.since.into(), progress, work.pace.eta())
    };
    director.works.iter().map(summary).collect()
}

/// How far each of the nodes is in reading all that it holds, as jobs of theirs.
fn scrubbing<'a>(node: &Node, nodes: impl Iterator<Item = &'a NodeInfo>) -> Vec<JobSummary> {
    let beats = node.beats.lock();
    let state = |info: &NodeInfo| match info.id == node.id {
        true => Some(node.scrub_state()),
        false => {
            let beat = beats.get(&info.id).filter(|beat| !beat.is_silent())?;
            beat.usage.as_ref().map(|usage| usage.scrub.clone())
        }
    };
    nodes.filter_map(|info| scrub_of(&info.name, &state(info)?)).collect()
}

/// Nothing for a node that holds nothing, or rests between two passes.
fn scrub_of(name: &str, state: &ScrubState) -> Option<JobSummary> {
    if state.done || state.total_bytes == 0 {
        return None;
    }
    let progress = Progress {
        phase: "reading".into(),
        done: state.total_bytes.saturating_sub(state.left_bytes),
        total: state.total_bytes,
        unit: "bytes".into(),
    };
    let nanos = (state.begun_ms.rem_euclid(1000) * 1_000_000) as u32;
    let begun = Time { secs: state.begun_ms.div_euclid(1000), nanos };
    let eta = state.eta_ms.map(Duration::from_millis);
    let summary = jobs::summary(0, "scrub".into(), begun.into(), progress, eta);
    Some(JobSummary { node: Some(name.to_owned()), ..summary })
}

fn store((info, usage): (&NodeInfo, NodeUsage)) -> Store {
    Store { node: info.id.0, name: info.name.clone(), data: data(&usage) }
}

/// The space of one chunk store.
pub(super) fn data(usage: &NodeUsage) -> DataStatus {
    DataStatus {
        nodes: 1,
        chunks: usage.chunks,
        total_bytes: usage.total_bytes,
        used_bytes: usage.used_bytes,
        live_bytes: usage.live_bytes,
        reserve_bytes: usage.reserve_bytes,
        free_bytes: usage.free_bytes,
        segments_free: usage.segments_free,
        segments_open: usage.segments_open,
        segments_closed: usage.segments_closed,
        damaged_chunks: usage.damaged_chunks,
    }
}

/// Of all of them together.
pub(super) fn sum<'a>(all: impl Iterator<Item = &'a DataStatus>) -> DataStatus {
    all.fold(DataStatus::default(), |sum, one| DataStatus {
        nodes: sum.nodes + one.nodes,
        chunks: sum.chunks + one.chunks,
        total_bytes: sum.total_bytes + one.total_bytes,
        used_bytes: sum.used_bytes + one.used_bytes,
        live_bytes: sum.live_bytes + one.live_bytes,
        reserve_bytes: sum.reserve_bytes + one.reserve_bytes,
        free_bytes: sum.free_bytes + one.free_bytes,
        segments_free: sum.segments_free + one.segments_free,
        segments_open: sum.segments_open + one.segments_open,
        segments_closed: sum.segments_closed + one.segments_closed,
        damaged_chunks: sum.damaged_chunks + one.damaged_chunks,
    })
}

fn blockd(node: &Node) -> BlockdStatus {
    let state = node.blockd.as_ref().map(|state| state.borrow().clone());
    let (state, pid, restarts) = match state {
        Some(State::Running { pid, restarts }) => ("running".into(), Some(pid), restarts),
        Some(State::Waiting { why }) => (format!("down: {why}"), None, 0),
        Some(State::Stopped) => ("stopped".into(), None, 0),
        None => ("run by something else".into(), None, 0),
    };
    let volume = node.chunks.volume();
    BlockdStatus { state, pid, restarts, memory: volume.pages().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_a_job_with_what_is_left_of_it() {
        let state = ScrubState {
            begun_ms: 1_800_000_000_250,
            total_bytes: 4000,
            left_bytes: 3000,
            eta_ms: Some(86_400_000),
            ..ScrubState::default()
        };
        let job = scrub_of("n2", &state).unwrap();
        assert_eq!((job.name.as_str(), job.node.as_deref()), ("scrub", Some("n2")));
        assert_eq!((job.percent, job.bytes_left), (Some(25), Some(3000)));
        assert_eq!(job.eta_ms, Some(86_400_000));
        assert_eq!(job.started.to_string(), "2027-01-15T08:00:00.250Z");
        assert_eq!(scrub_of("n2", &ScrubState { done: true, ..state }), None);
        assert_eq!(scrub_of("n2", &ScrubState::default()), None, "there is nothing to read");
    }
}
