//! Which versions of the protocol a program speaks, and which one two of them use.
//!
//! Both sides name a range when they greet, and the newest version that both speak is used, so that nodes and clients of
//! two releases in a row work together while a cluster is upgraded node by node. These two numbers and the name of the
//! build are the first of every greeting, in every version: whoever comes with another range is told so by name.

use serde::{Deserialize, Serialize};

/// What this program speaks.
pub const PROTOCOLS: Versions = Versions { min: 6, max: 6 };

/// A range, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub min: u32,
    pub max: u32,
}

/// Two programs have no version in common.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{who} {build} speaks protocol {theirs}, this node speaks {ours}: upgrade {older} first")]
pub struct NoCommonVersion {
    who: &'static str,
    build: String,
    theirs: Versions,
    ours: Versions,
    older: &'static str,
}

impl Versions {
    pub fn only(version: u32) -> Versions {
        Versions { min: version, max: version }
    }

    /// The newest version that both speak. `who` is at the other end, a client or a node, of this build.
    pub fn common(
        self,
        theirs: Versions,
        who: &'static str,
        build: &str,
    ) -> Result<u32, NoCommonVersion> {
        let newest = self.max.min(theirs.max);
        if newest >= self.min.max(theirs.min) && theirs.min <= theirs.max {
            return Ok(newest);
        }
        let older = if theirs.max < self.min { who } else { "this node" };
        // A build is shown in logs: nothing that moves the cursor.
        let build = build.chars().filter(|c| !c.is_control()).take(64).collect();
        Err(NoCommonVersion { who, build, theirs, ours: self, older })
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(min: u32, max: u32) -> Versions {
        Versions { min, max }
    }

    #[test]
    fn the_newest_common_version_is_taken() {
        for (ours, theirs, common) in [
            (range(3, 3), range(3, 3), 3),
            (range(3, 5), range(2, 4), 4),
            (range(2, 4), range(3, 5), 4),
            (range(2, 3), range(3, 9), 3),
            (range(1, 9), range(4, 6), 6),
        ] {
            assert_eq!(ours.common(theirs, "client", "1"), Ok(common), "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn without_one_the_older_side_is_named() {
        let why = |ours: Versions, theirs| {
            ours.common(theirs, "client", "0.9\n").unwrap_err().to_string()
        };
        let text = why(range(3, 5), range(1, 2));
        assert_eq!(
            text,
            "client 0.9 speaks protocol 1 to 2, this node speaks 3 to 5: upgrade client first"
        );
        assert!(why(range(3, 3), range(4, 6)).ends_with("upgrade this node first"));
        // A range that is none.
        assert!(range(3, 5).common(range(5, 3), "client", "").is_err());
    }
}
