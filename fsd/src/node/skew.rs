//! The clocks of the nodes, compared: at joining, and with every sign of life.
//!
//! The leader's clock stamps what is committed, so whoever may lead next should know the time. A few seconds are a
//! warning; a node that is off by minutes is an error, a new one is not taken in, and one that is in leads neither the
//! metadata nor a shard while another can. Its copies count as any other's: chunks carry no times.
//!
//! Right is the middle of all clocks, so that a leader finds out that it is its own which is wrong. Where no majority agrees,
//! as of two, nobody can say who is wrong, and all lead on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftmeta_types::NodeId;
use raftmeta_types::cluster::NodeInfo;

use super::Node;
use super::members::{Beat, Beats};

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

/// How far the clock of each node that answers is from the middle of all, this node's own included; in milliseconds.
pub(crate) fn from_middle(own: NodeId, beats: &Beats) -> BTreeMap<NodeId, i64> {
    let heard = |beat: &&Beat| beat.usage.is_some() && !beat.is_silent();
    let others = beats.iter().map(|(id, beat)| (*id, beat)).filter(|(_, beat)| heard(beat));
    let off = others.map(|(id, beat)| (id, beat.clock_off_ms)).chain([(own, 0)]).collect();
    centred(off)
}

/// Of an even number the middle is the one that is nearer to this node's.
fn centred(off: BTreeMap<NodeId, i64>) -> BTreeMap<NodeId, i64> {
    let mut sorted: Vec<i64> = off.values().copied().collect();
    sorted.sort_unstable();
    let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    let middle = if below.unsigned_abs() <= above.unsigned_abs() { below } else { above };
    off.into_iter().map(|(id, off)| (id, off.saturating_sub(middle))).collect()
}

/// Nodes whose clocks are so wrong that they should lead nothing.
pub(crate) fn wrong(own: NodeId, beats: &Beats) -> BTreeSet<NodeId> {
    outvoted(&from_middle(own, beats))
}

fn outvoted(off: &BTreeMap<NodeId, i64>) -> BTreeSet<NodeId> {
    let wrong: BTreeSet<NodeId> =
        off.iter().filter(|(_, off)| is_wrong(**off)).map(|(id, _)| *id).collect();
    if 2 * wrong.len() < off.len() { wrong } else { BTreeSet::new() }
}

pub(crate) fn is_wrong(off_ms: i64) -> bool {
    off_ms.unsigned_abs() > CLOCK_OFF_MAX.as_millis() as u64
}

impl Node {
    /// Nodes whose clocks are off, by name; in milliseconds.
    pub(super) fn clocks_off(&self, nodes: &[NodeInfo]) -> Vec<(String, i64)> {
        let off = from_middle(self.id, &self.beats.lock());
        let named = |node: &NodeInfo| Some((node.name.clone(), *off.get(&node.id)?));
        let all = nodes.iter().filter_map(named);
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
    fn the_middle_of_all_clocks_is_right() {
        const HOUR: i64 = 3_600_000;
        let found = |all: &[i64]| -> Vec<i64> {
            let off = (1..).map(NodeId).zip(all.iter().copied()).collect();
            centred(off).into_values().collect()
        };
        for (all, expected) in [
            (&[0][..], &[0][..]),
            // The other one is wrong.
            (&[0, HOUR], &[0, HOUR]),
            (&[0, -HOUR], &[0, -HOUR]),
            (&[0, 3, HOUR], &[-3, 0, HOUR - 3]),
            // This one is.
            (&[0, HOUR, HOUR], &[-HOUR, 0, 0]),
            (&[0, -HOUR, -HOUR + 5, -HOUR + 9], &[HOUR - 9, -9, -4, 0]),
            // Two against two.
            (&[0, 0, HOUR, HOUR], &[0, 0, HOUR, HOUR]),
            (&[0, i64::MAX, i64::MIN], &[0, i64::MAX, i64::MIN]),
        ] {
            assert_eq!(found(all), expected, "{all:?}");
        }
    }

    #[test]
    fn only_a_majority_finds_a_clock_wrong() {
        let limit = CLOCK_OFF_MAX.as_millis() as i64;
        for (all, expected) in [
            (&[0][..], &[][..]),
            (&[0, limit + 1], &[]),
            (&[0, limit, -limit], &[]),
            (&[0, 0, limit + 1], &[3]),
            (&[-limit - 1, 0, 0], &[1]),
            (&[0, 0, limit + 1, -limit - 1], &[]),
            (&[0, 0, 0, limit + 1, -limit - 1], &[4, 5]),
        ] {
            let off = (1..).map(NodeId).zip(all.iter().copied()).collect();
            let found: Vec<u64> = outvoted(&off).into_iter().map(|id| id.0).collect();
            assert_eq!(found, expected, "{all:?}");
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
