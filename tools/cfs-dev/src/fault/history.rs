//! What the workloads did, and what is not right about it.

use std::collections::BTreeMap;
use std::path::Path;

use parking_lot::{Mutex, MutexGuard};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::linear::{self, Entry, Model, Verdict};
use crate::error::{Doing, Result};

/// Configurations of one key that are looked at: a key has some hundred operations, few of them in doubt.
const CONFIGURATIONS_MAX: usize = 3_000_000;

/// A file that is written and read as a whole. Zero: empty or not there.
#[derive(Debug)]
pub struct Register;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RegisterOp {
    Write(u64),
    Read(u64),
}

impl Model for Register {
    type State = u64;
    type Op = RegisterOp;

    fn initial(&self) -> u64 {
        0
    }

    fn step(&self, state: &u64, op: &RegisterOp) -> Option<u64> {
        match op {
            RegisterOp::Write(value) => Some(*value),
            RegisterOp::Read(value) => (state == value).then_some(*state),
        }
    }
}

/// A directory of few names: a bit for each that is there.
#[derive(Debug)]
pub struct Names;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum NamesOp {
    /// `open` with O_CREAT and O_EXCL, or `mkdir`.
    Make(usize),
    /// `unlink` or `rmdir`.
    Remove(usize),
    /// `rename` with RENAME_NOREPLACE.
    Move(usize, usize),
    /// ENOENT for this name.
    Absent(usize),
    /// `readdir` from the first to the last.
    List(u8),
}

impl Model for Names {
    type State = u8;
    type Op = NamesOp;

    fn initial(&self) -> u8 {
        0
    }

    fn step(&self, state: &u8, op: &NamesOp) -> Option<u8> {
        let has = |name: &usize| state >> name & 1 == 1;
        match op {
            NamesOp::Make(name) => (!has(name)).then_some(state | 1 << name),
            NamesOp::Remove(name) => has(name).then_some(state & !(1 << name)),
            NamesOp::Move(from, to) => {
                (has(from) && !has(to)).then_some(state & !(1 << from) | 1 << to)
            }
            NamesOp::Absent(name) => (!has(name)).then_some(*state),
            NamesOp::List(mask) => (state == mask).then_some(*state),
        }
    }
}

/// An increment under a lock: what was read, what was written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Increment {
    pub process: usize,
    /// When the lock was asked for, when it was there, and when the new value was synced.
    pub times_us: [u64; 3],
    pub from: u64,
    /// Whether it was acknowledged.
    pub known: bool,
}

/// Records that one writer appended, in order: number, and whether it was acknowledged.
pub type Appends = Vec<(u64, bool)>;

/// See the module. Shared by all workers.
#[derive(Debug, Default)]
pub struct History {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Inner {
    registers: BTreeMap<String, Vec<Entry<RegisterOp>>>,
    names: BTreeMap<String, Vec<Entry<NamesOp>>>,
    appends: BTreeMap<String, Appends>,
    increments: BTreeMap<String, Vec<Increment>>,
    /// What a worker saw that must never be.
    wrong: Vec<String>,
    acknowledged: u64,
    in_doubt: u64,
    /// The errors of operations, by their text.
    errors: BTreeMap<String, u64>,
}

impl History {
    /// Of the clock that all processes of this machine share.
    pub fn now_us(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(&*self.inner()).expect("plain data always serialises");
        std::fs::write(path, text).doing(|| format!("cannot write {}", path.display()))
    }

    pub fn load(path: &Path) -> Result<History> {
        let doing = || format!("cannot read {}", path.display());
        let text = std::fs::read_to_string(path).doing(doing)?;
        Ok(History { inner: Mutex::new(serde_json::from_str(&text).doing(doing)?) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub fn register(&self, key: &str, entry: Entry<RegisterOp>) {
        let mut inner = self.inner();
        inner.count(entry.end_us.is_some());
        inner.registers.entry(key.to_owned()).or_default().push(entry);
    }

    pub fn names(&self, key: &str, entry: Entry<NamesOp>) {
        let mut inner = self.inner();
        inner.count(entry.end_us.is_some());
        inner.names.entry(key.to_owned()).or_default().push(entry);
    }

    pub fn append(&self, file: &str, number: u64, known: bool) {
        let mut inner = self.inner();
        inner.count(known);
        inner.appends.entry(file.to_owned()).or_default().push((number, known));
    }

    /// How many records of a file are acknowledged.
    pub fn appended(&self, file: &str) -> Vec<u64> {
        let inner = self.inner();
        let appends = inner.appends.get(file).map(Vec::as_slice).unwrap_or_default();
        appends.iter().filter(|(_, known)| *known).map(|(number, _)| *number).collect()
    }

    pub fn increment(&self, file: &str, increment: Increment) {
        let mut inner = self.inner();
        inner.count(increment.known);
        inner.increments.entry(file.to_owned()).or_default().push(increment);
    }

    pub fn error(&self, what: &str, error: &std::io::Error) {
        let code = error.raw_os_error().map_or(error.to_string(), |code| format!("errno {code}"));
        *self.inner().errors.entry(format!("{what}: {code}")).or_default() += 1;
    }

    /// Says at once what must never be, for the time is in the logs.
    pub fn wrong(&self, what: String) {
        tracing::error!("wrong at {} us: {what}", self.now_us());
        self.inner().wrong.push(what);
    }

    pub fn keys(&self) -> (Vec<String>, Vec<String>, Vec<String>, Vec<String>) {
        let inner = self.inner();
        (
            inner.registers.keys().cloned().collect(),
            inner.names.keys().cloned().collect(),
            inner.appends.keys().cloned().collect(),
            inner.increments.keys().cloned().collect(),
        )
    }

    /// Operations that were acknowledged, those in doubt, and errors by what failed.
    pub fn tally(&self) -> (u64, u64, BTreeMap<String, u64>) {
        let inner = self.inner();
        (inner.acknowledged, inner.in_doubt, inner.errors.clone())
    }

    /// Everything that is wrong, in words.
    pub fn findings(&self) -> Vec<String> {
        let inner = self.inner();
        let mut found = inner.wrong.clone();
        for (key, entries) in &inner.registers {
            found.extend(linearizable(&Register, key, entries));
        }
        for (key, entries) in &inner.names {
            found.extend(linearizable(&Names, key, entries));
        }
        found
    }

    /// What was written down of a file that was appended to, for [`append_findings`].
    pub fn appends(&self, file: &str) -> Appends {
        self.inner().appends.get(file).cloned().unwrap_or_default()
    }

    pub fn increments(&self, file: &str) -> Vec<Increment> {
        self.inner().increments.get(file).cloned().unwrap_or_default()
    }
}

impl Inner {
    fn count(&mut self, known: bool) {
        match known {
            true => self.acknowledged += 1,
            false => self.in_doubt += 1,
        }
    }
}

fn linearizable<M: Model>(model: &M, key: &str, entries: &[Entry<M::Op>]) -> Option<String> {
    match linear::check(model, entries, CONFIGURATIONS_MAX) {
        Verdict::Linearizable => None,
        Verdict::Undecided => Some(format!(
            "{key}: {} operations, of which nobody can tell in {CONFIGURATIONS_MAX} steps whether they are linearizable",
            entries.len()
        )),
        Verdict::Violation { longest, stuck } => {
            Some(format!("{key}: not linearizable\n{}", linear::explain(entries, &longest, stuck)))
        }
    }
}

/// What is wrong about the records found in a file: every acknowledged one is there, in order, each once; one in doubt
/// may be, in its place.
pub fn append_findings(written: &Appends, found: &[u64]) -> Option<String> {
    let mut place = written.iter();
    for number in found {
        // What is passed over was not there.
        loop {
            match place.next() {
                Some((next, _)) if next == number => break,
                Some((_, false)) => {}
                Some((next, true)) => {
                    return Some(format!(
                        "record {next} was acknowledged, {number} is in its place"
                    ));
                }
                None => return Some(format!("record {number} is there twice, or was not written")),
            }
        }
    }
    let lost = place.find(|(_, known)| *known)?;
    Some(format!("record {} was acknowledged and is not there", lost.0))
}

/// What is wrong about a counter that was only changed under a lock.
pub fn counter_findings(increments: &[Increment], last: u64) -> Option<String> {
    let mut from: BTreeMap<u64, &Increment> = BTreeMap::new();
    for increment in increments.iter().filter(|increment| increment.known) {
        if let Some(other) = from.insert(increment.from, increment) {
            return Some(format!(
                "both went on from {} under the lock:\n    {other:?}\n    {increment:?}",
                increment.from
            ));
        }
    }
    let known = from.len() as u64;
    let least = from.last_key_value().map_or(0, |(from, _)| from + 1).max(known);
    if last < least || last > increments.len() as u64 {
        let all = increments.len();
        return Some(format!("it is at {last} after {known} acknowledged increments of {all}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_records_are_there_once_and_in_order() {
        let written = vec![(1, true), (2, false), (3, true)];
        assert_eq!(append_findings(&written, &[1, 2, 3]), None);
        assert_eq!(append_findings(&written, &[1, 3]), None);
        for wrong in [&[1, 2][..], &[3, 1], &[1, 3, 2], &[1, 1, 3], &[1, 3, 4], &[]] {
            assert!(append_findings(&written, wrong).is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn a_counter_counts_each_increment() {
        let increment = |from, known| Increment { process: 1, times_us: [0; 3], from, known };
        let good = [increment(0, true), increment(1, false), increment(2, true)];
        assert_eq!(counter_findings(&good, 3), None);
        assert_eq!(counter_findings(&[increment(0, true), increment(0, false)], 1), None);
        assert!(counter_findings(&[increment(0, true), increment(0, true)], 2).is_some());
        assert!(counter_findings(&good, 1).is_some());
        assert!(counter_findings(&good, 4).is_some());
    }

    #[test]
    fn names_are_made_moved_and_removed() {
        let state = Names.step(&0, &NamesOp::Make(1)).unwrap();
        assert_eq!(Names.step(&state, &NamesOp::Make(1)), None);
        let state = Names.step(&state, &NamesOp::Move(1, 3)).unwrap();
        assert_eq!(Names.step(&state, &NamesOp::List(0b1000)), Some(state));
        assert_eq!(Names.step(&state, &NamesOp::Absent(3)), None);
        assert_eq!(Names.step(&state, &NamesOp::Move(3, 3)), None);
        assert_eq!(Names.step(&state, &NamesOp::Remove(3)), Some(0));
    }

    #[test]
    fn a_history_that_cannot_be_is_found() {
        let history = History::default();
        let entry = |start_us, op| Entry { process: 0, start_us, end_us: Some(start_us + 1), op };
        history.register("good", entry(1, RegisterOp::Write(5)));
        history.register("good", entry(3, RegisterOp::Read(5)));
        assert_eq!(history.findings(), [""; 0]);
        history.register("bad", entry(1, RegisterOp::Write(5)));
        history.register("bad", entry(3, RegisterOp::Read(0)));
        let findings = history.findings();
        assert!(
            findings.len() == 1 && findings[0].starts_with("bad: not linearizable"),
            "{findings:?}"
        );
    }
}
