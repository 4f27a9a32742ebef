//! The health word and its named checks, from facts that others gather. A pure function: the same facts
//! give the same word on every node.
//!
//! The word is the worst level of any check. It is never `HEALTH_OK` while anything is less redundant
//! than configured (`redundancy`); what is configured without redundancy is said as a note.

pub use fsd_rpc::admin::{Check, Health, Level};
use fsd_rpc::message::Device;
use raftmeta_types::cluster::RotationStage;

use crate::node::skew::{Off, is_wrong};

mod redundancy;
#[cfg(test)]
mod tests;

pub(crate) use redundancy::list;
pub use redundancy::{Lacking, Redundancy};

/// Flash used, in percent, from which writers should worry, and from which they are about to be refused.
const NEARFULL_PERCENT: u64 = 80;
const FULL_PERCENT: u64 = 95;

/// The flash of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flash {
    pub node: String,
    pub used_bytes: u64,
    pub total_bytes: u64,
}

/// What health is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Of which shards there are too few copies.
    pub redundancy: Redundancy,
    /// Names of nodes that are down.
    pub nodes_down: Vec<String>,
    /// Names of nodes that answer, and whose datagrams do not arrive.
    pub nodes_without_datagrams: Vec<String>,
    /// Nodes whose clocks are far from the others', in milliseconds.
    pub clocks_off: Vec<(String, i64)>,
    /// The certificate authority is being replaced.
    pub rotation: Option<RotationStage>,
    /// Nodes whose block daemon is not running, and why.
    pub blockd_down: Vec<(String, String)>,
    /// Devices of block daemons that are not well, with the names of their nodes.
    pub devices: Vec<(String, Device)>,
    /// Why the metadata group cannot take commands, if so.
    pub metadata_down: Option<String>,
    /// Why the metadata log or store failed, if so: nothing is written until the node is started again.
    pub log_failed: Option<String>,
    /// Of each node that is there.
    pub flash: Vec<Flash>,
    /// Chunks that are known to be damaged somewhere; not any more when they are repaired.
    pub damaged_chunks: u64,
}

/// Judges the facts.
pub fn judge(facts: &Facts) -> Health {
    let mut checks = Vec::new();
    let mut say = |name: &str, level, detail: String, next: &str| {
        checks.push(Check { name: name.to_owned(), level, detail, next: next.to_owned() });
    };
    if let Some(why) = &facts.log_failed {
        let detail = format!("the metadata log failed: {why}");
        say(
            "LOG_FAILED",
            Level::Err,
            detail,
            "look after the disk of data_dir, start the node again",
        );
    } else if let Some(why) = &facts.metadata_down {
        let detail = format!("the metadata group takes no commands: {why}");
        say("METADATA_DOWN", Level::Err, detail, "see the log of the node");
    }
    if !facts.nodes_down.is_empty() {
        let detail = format!("no sign of life from {}", facts.nodes_down.join(", "));
        say("NODE_DOWN", Level::Warn, detail, "look after the node, start it again");
    }
    if !facts.nodes_without_datagrams.is_empty() {
        let names = facts.nodes_without_datagrams.join(", ");
        let detail = format!("no datagrams (UDP) from {names}, who answer over TCP");
        let next = "let UDP pass between the nodes, to the port of door.tcp (9400)";
        say("DATAGRAMS", Level::Warn, detail, next);
    }
    for (name, off_ms) in &facts.clocks_off {
        let (level, so) = match is_wrong(*off_ms) {
            true => (Level::Err, "; while most agree, this one leads nothing"),
            false => (Level::Warn, ""),
        };
        let detail = format!("the clock of {name} is {} the others'", Off(*off_ms));
        say("CLOCK_SKEW", level, detail, &format!("let NTP set the clocks of all nodes{so}"));
    }
    if facts.rotation.is_some() {
        let detail = "the certificate authority is being replaced";
        say("CA_ROTATION", Level::Ok, detail.into(), "cfs admin ca status");
    }
    for (node, why) in &facts.blockd_down {
        let detail = format!("the block daemon of {node} is not running: {why}");
        say("BLOCKD_DOWN", Level::Err, detail, "see the log of blockd");
    }
    for (node, Device { path, why, has_failed }) in &facts.devices {
        let detail = format!("{path} of {node}: {why}");
        if *has_failed {
            let next = "see the log of blockd; replace the device, or start blockd again";
            say("DEVICE_FAILED", Level::Err, detail, next);
        } else {
            say("DEVICE_DEGRADED", Level::Warn, detail, "see `cfsctl block device list`");
        }
    }
    for Check { name, level, detail, next } in facts.redundancy.checks() {
        say(&name, level, detail, &next);
    }
    if facts.damaged_chunks > 0 {
        let detail = format!("{} chunks could not be read as written", facts.damaged_chunks);
        let next = "repaired from another copy where there is one; what is left: `cfs admin scrub`";
        say("DAMAGED", Level::Err, detail, next);
    }
    let next = "delete something, then `cfs admin gc`; or add nodes";
    for (name, level, from, below) in [
        ("FLASH_FULL", Level::Err, FULL_PERCENT, u64::MAX),
        ("FLASH_NEARFULL", Level::Warn, NEARFULL_PERCENT, FULL_PERCENT),
    ] {
        let is_meant = |percent: &u64| (from..below).contains(percent);
        let told = |flash: &Flash| {
            let percent = used_percent(flash).filter(is_meant)?;
            Some(format!("{percent} % on {}", flash.node))
        };
        let full: Vec<String> = facts.flash.iter().filter_map(told).collect();
        if !full.is_empty() {
            say(name, level, format!("flash used: {}", full.join(", ")), next);
        }
    }
    let word = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
    Health { word, checks }
}

/// Rounded down; nothing while the size is unknown (0).
fn used_percent(flash: &Flash) -> Option<u64> {
    let percent =
        (u128::from(flash.used_bytes) * 100).checked_div(u128::from(flash.total_bytes))?;
    Some(u64::try_from(percent).unwrap_or(u64::MAX))
}
