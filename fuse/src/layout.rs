//! What is known of a file's extents: ranges that were asked for, and what the server said lies there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use raftmeta_types::{Extent, Version};

/// Ranges kept for one file. At the bound all are forgotten: they are only a cache.
const RANGES_MAX: usize = 4096;

#[derive(Default)]
pub(crate) struct Layout {
    /// Content version that all of it is of.
    version: Version,
    /// By start: the end, and the extents that meet the range.
    ranges: BTreeMap<u64, (u64, Arc<[Extent]>)>,
}

impl Layout {
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The content is of this version now: what is of another is forgotten.
    pub(crate) fn now(&mut self, version: Version) {
        if self.version != version {
            self.version = version;
            self.ranges.clear();
        }
    }

    /// Takes what the server said of a range as of `version`.
    pub(crate) fn learn(&mut self, range: Range<u64>, version: Version, extents: Arc<[Extent]>) {
        if version < self.version || range.is_empty() {
            return;
        }
        self.now(version);
        if self.ranges.len() >= RANGES_MAX {
            self.ranges.clear();
        }
        match self.ranges.get(&range.start) {
            Some((end, _)) if *end >= range.end => {}
            _ => _ = self.ranges.insert(range.start, (range.end, extents)),
        }
    }

    /// The extents that meet the range, ascending, in pieces; `None` if some part is not known. An
    /// extent may show up in two pieces.
    pub(crate) fn get(&self, range: &Range<u64>) -> Option<Vec<Arc<[Extent]>>> {
        let mut at = range.start;
        let mut found = Vec::new();
        while at < range.end {
            // The last start before the place is the likely one; earlier ones may reach further.
            let near = self.ranges.range(..=at).rev().take(4);
            let (end, extents) = near.map(|(_, range)| range).find(|(end, _)| *end > at)?;
            found.push(extents.clone());
            at = *end;
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_answer_together_and_gaps_do_not() {
        let mut layout = Layout::default();
        let nothing: Arc<[Extent]> = Arc::from([]);
        layout.learn(0..10, Version(1), nothing.clone());
        layout.learn(10..20, Version(1), nothing.clone());
        layout.learn(30..40, Version(1), nothing.clone());
        assert_eq!(layout.get(&(5..20)).unwrap().len(), 2);
        assert!(layout.get(&(5..21)).is_none());
        assert!(layout.get(&(25..35)).is_none());
        layout.learn(0..10, Version(2), nothing);
        assert!(layout.get(&(30..40)).is_none(), "of an older version");
    }
}
