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
    /// Administration: jobs of operators, health, metrics
    A8,
}

impl Agent {
    /// Modules, and what is below them.
    fn targets(self) -> &'static [&'static str] {
        match self {
            Agent::A1 => &["blockd", "blockd_ipc", "fsd::supervise", "fsd::node::blocks"],
            Agent::A2 => {
                &["raftmeta", "openraft", "fsd::placement", "fsd::node::lead", "fsd::node::members"]
            }
            Agent::A3 => &["fsd::chunks", "fsd::jobs", "fsd::node::data"],
            Agent::A4 => &["fsd_rpc", "fsd::service", "fsd::sessions", "fsd::authority"],
            Agent::A5 => &["fuse", "fsd_cli::mount"],
            Agent::A6 => &["fsd::replication", "fsd::node::peers"],
            Agent::A8 => &["fsd::admin", "fsd::health", "fsd::metrics"],
        }
    }

    /// Whether a line of this module is of the agent.
    pub fn says(self, target: &str) -> bool {
        self.targets().iter().any(|own| {
            target.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
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
    fn every_module_has_at_most_one_agent() {
        for target in [
            "blockd::pool",
            "raftmeta::group",
            "fsd::chunks::lead",
            "fsd_rpc::server",
            "fuse::ops",
            "fsd::replication::keeper",
            "fsd::admin::fsck",
        ] {
            let agents = Agent::value_variants().iter().filter(|agent| agent.says(target));
            assert_eq!(agents.count(), 1, "{target}");
        }
        // A name that only starts alike is another module.
        assert!(!Agent::A1.says("blockd_other::x"));
        assert!(Agent::A1.says("blockd"));
    }
}
