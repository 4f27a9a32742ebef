//! The clocks of the nodes, compared: at joining, and with every sign of life.
//!
//! The leader's clock stamps what is committed, so whoever may lead next should know the time. A few seconds are a
//! warning; a node that is off by minutes is an error, and a new one is not taken in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftmeta_types::cluster::NodeInfo;

use super::Node;

/// From this on the status warns.
pub(crate) const CLOCK_OFF_WARN: Duration = Duration::from_secs(5);
/// From this on a node is not taken in, and is an error of the cluster.
pub(crate) const CLOCK_OFF_MAX: Duration = Duration::from_secs(300);

/// The wall clock in milliseconds since 1970.
pub(crate) fn clock_now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How far another clock is from this one, in milliseconds: it read `theirs` while this one went from `asked` to
/// `answered`. What may be due to the way counts as none.
pub(crate) fn off_ms(asked: i64, theirs: i64, answered: i64) -> i64 {
    if theirs < asked {
        theirs.saturating_sub(asked)
    } else {
        theirs.saturating_sub(answered).max(0)
    }
}

/// A difference in words.
pub(crate) struct Off(pub i64);

impl std::fmt::Display for Off {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = if self.0 < 0 { "behind" } else { "ahead of" };
        let secs = self.0.unsigned_abs().div_ceil(1000);
        match secs {
            0..120 => write!(f, "{secs} s {side}"),
            120..7200 => write!(f, "{} min {side}", secs / 60),
            _ => write!(f, "{} h {side}", secs / 3600),
        }
    }
}

impl Node {
    /// Nodes whose clocks are off, by name; in milliseconds.
    pub(super) fn clocks_off(&self, nodes: &[NodeInfo]) -> Vec<(String, i64)> {
        let beats = self.beats.lock();
        let off = |node: &NodeInfo| beats.get(&node.id).map_or(0, |beat| beat.clock_off_ms);
        let all = nodes.iter().map(|node| (node.name.clone(), off(node)));
        all.filter(|(_, off)| off.unsigned_abs() >= CLOCK_OFF_WARN.as_millis() as u64).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_way_may_have_taken_is_not_held_against_a_clock() {
        for (asked, theirs, answered, off) in [
            (1000, 1000, 1000, 0),
            (1000, 1500, 2000, 0),
            (1000, 2500, 2000, 500),
            (1000, 400, 2000, -600),
            (0, i64::MAX, 10, i64::MAX - 10),
            (10, i64::MIN, 20, i64::MIN),
        ] {
            assert_eq!(off_ms(asked, theirs, answered), off, "{asked} {theirs} {answered}");
        }
    }

    #[test]
    fn a_difference_is_told_in_words() {
        for (ms, text) in [
            (-1500, "2 s behind"),
            (5000, "5 s ahead of"),
            (-600_000, "10 min behind"),
            (3 * 3_600_000, "3 h ahead of"),
        ] {
            assert_eq!(Off(ms).to_string(), text);
        }
    }
}
