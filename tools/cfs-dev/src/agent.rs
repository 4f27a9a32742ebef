//! Whose log lines are wanted. An agent is a part of the system, and its lines are those of its Rust modules.

use clap::ValueEnum;

/// Parts of the system, by the names that the runbook has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Agent {
    /// blockd: devices, volumes, NVMe/TCP
    A1,
    /// raftmeta and placement: metadata group, nodes, who holds which shard
    A2,
    /// The chunk store: segments, cleaning, garbage
    A3,
    /// RPC: doors, sessions, TLS
    A4,
    /// FUSE clients
    A5,
    /// Replication between the nodes
    A6,
    /// Administration: operators' commands, health, metrics, the start and end of a node, the fault controller
    A8,
}

impl Agent {
    /// Modules, and what is below them.
    fn targets(self) -> &'static [&'static str] {
        match self {
            Agent::A1 => &[
                "blockd",
                "blockd_ipc",
                "fsd::supervise",
                "fsd::node::blocks",
                "fsd::node::devices",
            ],
            Agent::A2 => &[
                "raftmeta",
                "openraft",
                "fsd::placement",
                "fsd::node::join",
                "fsd::node::lead",
                "fsd::node::members",
                "fsd::node::open",
                "fsd::node::swim",
            ],
            Agent::A3 => &["fsd::chunks", "fsd::jobs", "fsd::node::data", "fsd::node::space"],
            Agent::A4 => &[
                "fsd_rpc",
                "fsd::service",
                "fsd::sessions",
                "fsd::authority",
                "fsd::refusals",
                "fsd::node::trust",
            ],
            Agent::A5 => &["fuse", "fsd_cli::mount"],
            Agent::A6 => &["fsd::replication", "fsd::node::peers"],
            Agent::A8 => &["fsd", "fsd_cli", "cfs_dev"],
        }
    }

    /// Whether a line of this module is of the agent.
    pub fn says(self, target: &str) -> bool {
        Agent::of(target) == Some(self)
    }

    /// Whose the module is: of the agents that have it or one above it the one that is nearest.
    fn of(target: &str) -> Option<Agent> {
        let within = |own: &&&str| {
            target.strip_prefix(**own).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let nearest = |agent: &Agent| {
            agent.targets().iter().filter(within).map(|own| (own.len(), *agent)).max_by_key(|m| m.0)
        };
        let agents = Agent::value_variants().iter().filter_map(nearest);
        agents.max_by_key(|(len, _)| *len).map(|(_, agent)| agent)
    }
}

/// A line of a log: when, and of which module, if it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub target: &'a str,
}

impl Line<'_> {
    /// `2026-01-02T03:04:05.678901Z  INFO fsd::node::join: joined; …`. Nothing for what is no such line.
    pub fn parse(text: &str) -> Option<Line<'_>> {
        let (time, rest) = text.split_once(' ')?;
        if !time.ends_with('Z') || time.as_bytes().get(10) != Some(&b'T') {
            return None;
        }
        let (level, rest) = rest.trim_start().split_once(' ')?;
        if !["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level) {
            return None;
        }
        // Spans, if there are any, stand before the module and hold no space after their colon.
        let target = rest.split_whitespace().find_map(|word| {
            let word = word.strip_suffix(':')?;
            let path = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
            word.bytes().all(path).then_some(word)
        })?;
        Some(Line { time, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = "2026-11-29T03:10:00.123456Z  INFO fsd::node::join: joined: yes node=n2";
        let line = Line::parse(text).unwrap();
        assert_eq!(line, Line { time: "2026-11-29T03:10:00.123456Z", target: "fsd::node::join" });
        let text = "2026-11-29T03:10:00.1Z ERROR core{id=1}: openraft::raft: lost";
        assert_eq!(Line::parse(text).unwrap().target, "openraft::raft");
        for text in
            ["", "thread 'main' panicked at x.rs:1", "node n1 of cluster dev is ready: unix"]
        {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_module_has_an_agent() {
        for (target, agent) in [
            ("blockd", Agent::A1),
            ("blockd::pool", Agent::A1),
            ("raftmeta::group", Agent::A2),
            ("fsd::node::swim::protocol", Agent::A2),
            ("fsd::chunks::lead", Agent::A3),
            ("fsd_rpc::server", Agent::A4),
            ("fsd::refusals", Agent::A4),
            ("fuse::ops", Agent::A5),
            ("fsd_cli::mount::serve", Agent::A5),
            ("fsd::replication::keeper", Agent::A6),
            ("fsd::admin::fsck", Agent::A8),
            ("fsd::node", Agent::A8),
            ("fsd::node::run", Agent::A8),
            ("cfs_dev::fault::run", Agent::A8),
        ] {
            assert_eq!(Agent::of(target), Some(agent), "{target}");
        }
        // A name that only starts alike is another module.
        assert_eq!(Agent::of("blockd_other::x"), None);
    }
}
