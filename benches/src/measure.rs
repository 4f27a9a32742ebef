//! Figures, as they are collected.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How a figure is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations a second: more is better.
    PerSecond,
    /// Megabytes (10^6) a second: more is better.
    MegabytesPerSecond,
    Seconds,
    Microseconds,
    /// Percent of one core.
    PercentOfCore,
    Mebibytes,
}

impl Unit {
    pub fn more_is_better(self) -> bool {
        match self {
            Unit::PerSecond | Unit::MegabytesPerSecond => true,
            Unit::Seconds | Unit::Microseconds | Unit::PercentOfCore | Unit::Mebibytes => false,
        }
    }
}

/// What was measured: in what order steps came first, and every figure of each (step, subject).
#[derive(Debug, Default)]
pub struct Results {
    pub steps: Vec<(String, Unit)>,
    figures: BTreeMap<(String, String), Vec<f64>>,
}

impl Results {
    pub fn add(&mut self, step: &str, subject: &str, unit: Unit, figure: f64) {
        eprintln!("benches:   {step:<32} {subject:<10} {figure:>12.2}");
        if !self.steps.iter().any(|(known, _)| known == step) {
            self.steps.push((step.to_owned(), unit));
        }
        self.figures.entry((step.to_owned(), subject.to_owned())).or_default().push(figure);
    }

    /// The median over the rounds.
    pub fn median(&self, step: &str, subject: &str) -> Option<f64> {
        let mut sorted = self.figures.get(&(step.to_owned(), subject.to_owned()))?.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        Some(if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        })
    }

    /// How many times as good as `rival` a subject is.
    pub fn ratio(&self, step: &str, subject: &str, rival: &str) -> Option<f64> {
        let (_, unit) = self.steps.iter().find(|(known, _)| known == step)?;
        let (own, other) = (self.median(step, subject)?, self.median(step, rival)?);
        Some(if unit.more_is_better() { own / other } else { other / own })
    }
}

/// How long `work` takes.
pub fn time(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// `count` in `elapsed`, a second.
pub fn rate(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// Numbers that repeat (splitmix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Bytes that neither compress nor deduplicate.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let mut results = Results::default();
        for figure in [3.0, 1.0, 100.0] {
            results.add("speed", "own", Unit::PerSecond, figure);
        }
        for figure in [6.0, 12.0] {
            results.add("speed", "rival", Unit::PerSecond, figure);
        }
        assert_eq!(results.median("speed", "own"), Some(3.0));
        assert_eq!(results.median("speed", "rival"), Some(9.0));
        assert_eq!(results.ratio("speed", "own", "rival"), Some(3.0 / 9.0));
        assert_eq!(results.median("speed", "nobody"), None);
        results.add("wait", "own", Unit::Seconds, 2.0);
        results.add("wait", "rival", Unit::Seconds, 6.0);
        assert_eq!(results.ratio("wait", "own", "rival"), Some(3.0), "less is better");
    }

    #[test]
    fn a_shuffle_loses_nothing() {
        let mut items: Vec<u32> = (0..100).collect();
        Random(7).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
