//! How redundant data is: of each shard, the copies that are there.
//!
//! The cluster map alone does not say it. Where too few replicas are left to go on without those that are lost, these stay
//! in sync in the map, for they may come back with what nobody else has (`replication::director`): a shard of which nothing
//! is left looks whole there. So a copy counts if it is in sync on a node that is not down.
//!
//! ```text
//!   no copy                                     unreachable   HEALTH_ERR
//!   fewer than in_sync_min, and one is away     no writes     HEALTH_ERR
//!   fewer than configured                                     HEALTH_WARN
//! ```

use std::collections::{BTreeMap, BTreeSet};

use raftmeta_types::cluster::{Protection, ShardInfo};
use raftmeta_types::{NodeId, ShardId};

use super::{Check, Level};

const NAME: &str = "REDUNDANCY";
/// Shards, and nodes, that a check names.
const NAMED_MAX: usize = 12;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redundancy {
    pub protection: Protection,
    /// How many there are in all.
    pub shards: usize,
    /// Those that lack copies, in their order.
    pub lacking: Vec<Lacking>,
}

/// A shard with fewer copies than there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    pub shard: ShardId,
    /// In sync, on nodes that are not down.
    pub copies: u32,
    /// Names of the nodes that are down and in sync by the map.
    pub away: Vec<String>,
}

impl Redundancy {
    /// `down`: the nodes that are not there, with their names.
    pub fn of(
        shards: &[ShardInfo],
        protection: Protection,
        down: &BTreeMap<NodeId, String>,
    ) -> Redundancy {
        let lacking = |shard: &ShardInfo| {
            let away: Vec<String> =
                shard.in_sync.iter().filter_map(|id| down.get(id).cloned()).collect();
            let copies = (shard.in_sync.len() - away.len()) as u32;
            let lacks = copies < u32::from(protection.replicas);
            lacks.then_some(Lacking { shard: shard.id, copies, away })
        };
        let lacking = shards.iter().filter_map(lacking).collect();
        Redundancy { protection, shards: shards.len(), lacking }
    }

    /// What health says of it, the worst first.
    pub(super) fn checks(&self) -> Vec<Check> {
        let Protection { replicas: wanted, in_sync_min } = self.protection;
        let check = |level, detail: String, next: String| {
            let name = NAME.to_owned();
            Check { name, level, detail, next }
        };
        if self.shards == 0 {
            let detail = "it is not known where data is: the cluster map has no shards".to_owned();
            return vec![check(Level::Err, detail, "see the log of the node".into())];
        }
        let (gone, rest): (Vec<&Lacking>, Vec<_>) =
            self.lacking.iter().partition(|lacking| lacking.copies == 0);
        let (waiting, fewer): (Vec<&Lacking>, Vec<_>) =
            rest.into_iter().partition(|lacking| lacking.waits(in_sync_min));
        let mut checks = Vec::new();
        if !gone.is_empty() {
            let detail = format!("no copy is there of {}: unreachable", shards(&gone));
            let next = format!(
                "{}; if disks are gone for good: `cfs admin node remove --lost`",
                start(&gone)
            );
            checks.push(check(Level::Err, detail, next));
        }
        if !waiting.is_empty() {
            let least = least(&waiting);
            let detail = format!(
                "no writes to data with {least} of {wanted} copies, which needs {in_sync_min}: {}",
                shards(&waiting)
            );
            let next = format!("{}, or wait for copies on other nodes", start(&waiting));
            checks.push(check(Level::Err, detail, next));
        }
        if !fewer.is_empty() {
            let least = least(&fewer);
            let detail = format!("some data has {least} of {wanted} copies: {}", shards(&fewer));
            checks.push(check(Level::Warn, detail, "add or start storage nodes".into()));
        }
        if self.lacking.is_empty() && wanted == 1 {
            let detail = "data is kept once, as configured (replica:1): losing the device loses it";
            checks.push(check(Level::Ok, detail.into(), String::new()));
        }
        checks
    }
}

impl Lacking {
    /// Whether it takes no writes. One that has lost nobody goes on with what there is.
    fn waits(&self, in_sync_min: u8) -> bool {
        self.copies < u32::from(in_sync_min) && !self.away.is_empty()
    }
}

fn least(lacking: &[&Lacking]) -> u32 {
    lacking.iter().map(|lacking| lacking.copies).min().unwrap_or(0)
}

fn shards(lacking: &[&Lacking]) -> String {
    let ids: Vec<ShardId> = lacking.iter().map(|lacking| lacking.shard).collect();
    list(&ids, NAMED_MAX)
}

/// `start n4 or n5`: the nodes that have what is missing.
fn start(lacking: &[&Lacking]) -> String {
    let away: BTreeSet<&str> =
        lacking.iter().flat_map(|lacking| &lacking.away).map(String::as_str).collect();
    match away.len() {
        0 => "add or start storage nodes".to_owned(),
        1..=NAMED_MAX => format!("start {}", away.into_iter().collect::<Vec<_>>().join(" or ")),
        _ => "start the nodes that are down".to_owned(),
    }
}

/// `shard 3`, `shards 3, 7 and 9`; not all of them where there are more than `named_max`.
pub(crate) fn list(shards: &[ShardId], named_max: usize) -> String {
    let mut numbers: Vec<String> =
        shards.iter().take(named_max).map(|shard| shard.to_string()).collect();
    if shards.len() > named_max {
        numbers.push(format!("{} more", shards.len() - named_max));
    }
    match numbers.split_last() {
        Some((only, [])) => format!("shard {only}"),
        Some((last, others)) => format!("shards {} and {last}", others.join(", ")),
        None => "no shard".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftmeta_types::Epoch;

    /// Shards with these nodes in sync, judged while those nodes are down: level, detail and next step.
    fn judged(
        protection: (u8, u8),
        in_sync: &[&[u64]],
        down: &[u64],
    ) -> Vec<(Level, String, String)> {
        let shard = |(id, in_sync): (u16, &&[u64])| {
            let in_sync: Vec<NodeId> = in_sync.iter().map(|id| NodeId(*id)).collect();
            let (epoch, gc_epoch, primary) = (Epoch(1), Epoch(0), in_sync[0]);
            ShardInfo { id: ShardId(id), epoch, gc_epoch, primary, in_sync }
        };
        let shards: Vec<ShardInfo> = (0..).zip(in_sync).map(shard).collect();
        let down = down.iter().map(|id| (NodeId(*id), format!("n{id}"))).collect();
        let protection = Protection { replicas: protection.0, in_sync_min: protection.1 };
        let checks = Redundancy::of(&shards, protection, &down).checks().into_iter();
        checks
            .map(|check| {
                assert_eq!(check.name, "REDUNDANCY");
                (check.level, check.detail, check.next)
            })
            .collect()
    }

    fn levels(protection: (u8, u8), in_sync: &[&[u64]], down: &[u64]) -> Vec<Level> {
        judged(protection, in_sync, down).into_iter().map(|(level, ..)| level).collect()
    }

    #[test]
    fn copies_count_on_nodes_that_are_there() {
        use Level::{Err, Warn};
        for (protection, in_sync, down, expected) in [
            ((2, 1), &[1, 2][..], &[][..], vec![]),
            ((2, 1), &[1, 2], &[3], vec![]),
            // The map says two, and one of them is not there.
            ((2, 1), &[1, 2], &[2], vec![Warn]),
            ((2, 1), &[1], &[], vec![Warn]),
            ((2, 1), &[1, 2], &[1, 2], vec![Err]),
            ((2, 1), &[1], &[1], vec![Err]),
            ((3, 2), &[1, 2, 3], &[3], vec![Warn]),
            // It waits for those that may have more than it has itself.
            ((3, 2), &[1, 2, 3], &[2, 3], vec![Err]),
            ((3, 3), &[1, 2, 3], &[3], vec![Err]),
            // It has never had more, and takes writes.
            ((3, 2), &[1], &[2, 3], vec![Warn]),
            // More than wanted: some are about to be dropped.
            ((2, 1), &[1, 2, 3], &[3], vec![]),
        ] {
            let found = levels(protection, &[in_sync], down);
            assert_eq!(found, expected, "{protection:?}, {in_sync:?}, down {down:?}");
        }
    }

    #[test]
    fn never_ok_while_less_redundant_than_configured() {
        for wanted in 1..=7 {
            for least in 1..=wanted {
                for (there, away) in (0..=7).flat_map(|there| [(there, 0), (there, 1), (there, 7)])
                {
                    let in_sync: Vec<u64> = (1..=there + away).collect();
                    let down: Vec<u64> = (there + 1..=there + away).collect();
                    if in_sync.is_empty() {
                        continue;
                    }
                    let levels = levels((wanted, least), &[&in_sync], &down);
                    let ok = levels.iter().all(|level| *level == Level::Ok);
                    assert_eq!(ok, there >= u64::from(wanted), "{there} of {wanted}, {away} away");
                }
            }
        }
    }

    #[test]
    fn each_level_names_its_shards_and_who_has_them() {
        let shards: &[&[u64]] =
            &[&[1, 2, 3], &[1, 4, 5], &[3, 4, 5], &[4, 5, 6], &[1, 2, 4], &[2, 4, 6]];
        let found = judged((3, 2), shards, &[4, 5, 6]);
        let expected = [
            (
                Level::Err,
                "no copy is there of shard 3: unreachable",
                "start n4 or n5 or n6; if disks are gone for good: `cfs admin node remove --lost`",
            ),
            (
                Level::Err,
                "no writes to data with 1 of 3 copies, which needs 2: shards 1, 2 and 5",
                "start n4 or n5 or n6, or wait for copies on other nodes",
            ),
            (Level::Warn, "some data has 2 of 3 copies: shard 4", "add or start storage nodes"),
        ];
        let found: Vec<(Level, &str, &str)> = found
            .iter()
            .map(|(level, detail, next)| (*level, detail.as_str(), next.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn many_shards_are_not_all_named() {
        let shards: Vec<&[u64]> = vec![&[1]; 256];
        let found = judged((1, 1), &shards, &[1]);
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains("shards 0, 1, ") && found[0].1.contains(" and 244 more"));
        let ids: Vec<ShardId> = [3, 5].map(ShardId).into();
        assert_eq!(
            (list(&ids, 2), list(&ids[..1], 2)),
            ("shards 3 and 5".into(), "shard 3".into())
        );
        assert_eq!(list(&ids, 1), "shards 3 and 1 more");
    }

    #[test]
    fn a_map_without_shards_is_not_well() {
        assert_eq!(levels((1, 1), &[], &[]), [Level::Err]);
    }

    #[test]
    fn one_copy_as_configured_is_ok_and_says_what_it_means() {
        let found = judged((1, 1), &[&[1]], &[]);
        assert_eq!((found.len(), found[0].0), (1, Level::Ok));
        assert!(found[0].1.contains("loses"));
        assert_eq!(levels((1, 1), &[&[1], &[2]], &[2]), [Level::Err]);
    }
}
