//! The health word and its named checks, from facts that others gather. A pure function: the same facts
//! give the same word on every node.
//!
//! The word is the worst level of any check. It is never `HEALTH_OK` while anything is less redundant
//! than configured; what is configured without redundancy is said as a note.

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Flash used, in percent, from which writers should worry, and from which they are about to be refused.
const NEARFULL_PERCENT: u64 = 80;
const FULL_PERCENT: u64 = 95;

/// Worse is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    #[serde(rename = "HEALTH_OK")]
    Ok,
    #[serde(rename = "HEALTH_WARN")]
    Warn,
    #[serde(rename = "HEALTH_ERR")]
    Err,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Ok => "HEALTH_OK",
            Level::Warn => "HEALTH_WARN",
            Level::Err => "HEALTH_ERR",
        })
    }
}

/// A check that has something to say. With `Level::Ok` it is a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub level: Level,
    pub detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub word: Level,
    pub checks: Vec<Check>,
}

/// What health is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub replicas_wanted: u32,
    /// Fewest in-sync copies that any shard has.
    pub replicas_least: u32,
    /// Why the block daemon is not running, if so.
    pub blockd_down: Option<String>,
    /// Why the metadata group cannot take commands, if so.
    pub metadata_down: Option<String>,
    pub used_bytes: u64,
    pub total_bytes: u64,
    /// Chunks found damaged since the start.
    pub damaged_chunks: u64,
}

/// Judges the facts.
pub fn judge(facts: &Facts) -> Health {
    let mut checks = Vec::new();
    let mut say = |name: &str, level, detail| {
        checks.push(Check { name: name.to_owned(), level, detail });
    };
    if let Some(why) = &facts.metadata_down {
        say("METADATA_DOWN", Level::Err, format!("the metadata group takes no commands: {why}"));
    }
    if let Some(why) = &facts.blockd_down {
        say("BLOCKD_DOWN", Level::Err, format!("the block daemon is not running: {why}"));
    }
    let (wanted, least) = (facts.replicas_wanted, facts.replicas_least);
    if least == 0 {
        say("REDUNDANCY", Level::Err, format!("some data has no copy in sync of {wanted} wanted"));
    } else if least < wanted {
        say("REDUNDANCY", Level::Warn, format!("some data has {least} of {wanted} copies"));
    } else if wanted == 1 {
        let detail = "data is kept once, as configured (replica:1): losing the device loses it";
        say("REDUNDANCY", Level::Ok, detail.into());
    }
    if facts.damaged_chunks > 0 {
        let detail = format!("{} chunks could not be read as written", facts.damaged_chunks);
        say("DAMAGED", Level::Err, detail);
    }
    if let Some(percent) = used_percent(facts) {
        if percent >= FULL_PERCENT {
            say("FLASH_FULL", Level::Err, format!("{percent} % of the flash is used"));
        } else if percent >= NEARFULL_PERCENT {
            say("FLASH_NEARFULL", Level::Warn, format!("{percent} % of the flash is used"));
        }
    }
    let word = checks.iter().map(|check| check.level).max().unwrap_or(Level::Ok);
    Health { word, checks }
}

/// Rounded down; nothing while the size is unknown (0).
fn used_percent(facts: &Facts) -> Option<u64> {
    let percent =
        (u128::from(facts.used_bytes) * 100).checked_div(u128::from(facts.total_bytes))?;
    Some(u64::try_from(percent).unwrap_or(u64::MAX))
}
