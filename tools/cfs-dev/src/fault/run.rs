//! A run: accidents for so long, work on every mount meanwhile, then all is healed and checked.
//!
//! ```text
//!   workers on every mount ══════════════════════════▶ end ─▶ read all ─▶ scrub ─▶ fsck ─▶ histories
//!     peace ─▶ accident ─▶ peace ─▶ accident … ─▶ heal ┘
//! ```
//! What an operation that was acknowledged did has to be seen (`workload.rs` says by whom and how it is checked), and
//! nothing else. At the end every shard has all its copies without a command, every copy is as it was written, and the
//! check of everything, all data read, finds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::history::History;
use super::inflict::Faults;
use super::workload::{self, Job};
use super::{Kind, Shape, Step, Stop, plan};
use crate::cluster::{Client, Cluster};
use crate::error::{self, Doing, Error, Result};

/// Grows when a field of the report goes or changes its meaning.
const VERSION: u32 = 1;
const REPORT: &str = "report.json";
/// Fewer operations than that in a whole run say nothing.
const OPERATIONS_MIN: u64 = 100;
const POLL: Duration = Duration::from_millis(50);

/// What a run is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub seed: u64,
    /// Time of accidents, in seconds.
    pub seconds: u64,
    /// Nothing for all that are possible.
    pub kinds: Option<Vec<Kind>>,
    /// Whether clients work meanwhile and everything is checked.
    pub check: bool,
}

impl Order {
    /// The kinds it consists of, and why others are left out. One that is asked for has to be possible.
    pub fn kinds(&self, shape: &Shape) -> Result<(Vec<Kind>, Vec<String>)> {
        let (mut kinds, mut left_out) = (Vec::new(), Vec::new());
        for kind in self.kinds.as_deref().unwrap_or(&Kind::ALL) {
            match kind.impossible(shape) {
                Some(why) if self.kinds.is_some() => {
                    let what = format!("{kind} is not possible: {why}");
                    return Err(Error::new(error::Kind::Precondition, what));
                }
                Some(why) => left_out.push(format!("{kind}: {why}")),
                // What is named twice is not likelier for that.
                None if kinds.contains(kind) => {}
                None => kinds.push(*kind),
            }
        }
        Ok((kinds, left_out))
    }

    /// What would happen, as far as the seed says: more steps than fit in the time.
    pub fn steps(&self, shape: &Shape, kinds: &[Kind]) -> Vec<Step> {
        // A step takes half a second at the least, most take ten.
        let count = usize::try_from(self.seconds).unwrap_or(usize::MAX).clamp(1, 100_000);
        plan::steps(self.seed, shape, kinds, count + kinds.len())
    }
}

/// An accident that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    /// Since the start of the run.
    pub at_ms: u64,
    pub kind: Kind,
    /// Whom it met.
    pub whom: String,
}

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub kind: String,
    pub seed: u64,
    pub started_unix_secs: u64,
    /// All of it, with healing and checks.
    pub took_secs: u64,
    pub kinds: Vec<Kind>,
    /// Kinds that were not possible, and why.
    pub left_out: Vec<String>,
    pub accidents: Vec<Happened>,
    /// Whether clients worked meanwhile and everything was checked.
    pub checked: bool,
    pub acknowledged: u64,
    /// Operations that failed, and may have taken effect.
    pub in_doubt: u64,
    /// The errors of operations, by what failed.
    pub errors: BTreeMap<String, u64>,
    /// What is wrong. Nothing of it may be.
    pub findings: Vec<String>,
    /// Whether it was asked to end before its time.
    pub stopped: bool,
    /// Why it could not be done to its end.
    pub failed: Option<String>,
    /// Where the report and the history are.
    pub directory: PathBuf,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.failed.is_none()
    }

    /// In one line.
    pub fn verdict(&self) -> String {
        let mut text = match (&self.failed, self.findings.len()) {
            (Some(why), _) => format!("failed: {why}"),
            (None, 0) if self.checked => "nothing is wrong".to_owned(),
            (None, 0) => "not checked".to_owned(),
            (None, count) => format!("{count} finding(s)"),
        };
        if self.stopped {
            text += ", ended early";
        }
        text
    }

    fn save(&self) -> Result<()> {
        let path = self.directory.join(REPORT);
        let text = serde_json::to_string_pretty(self).expect("plain data always serialises");
        fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))
    }

    /// The report of the last run of those in this directory.
    pub fn last(runs: &Path) -> Option<Report> {
        let report = |directory: PathBuf| {
            serde_json::from_str::<Report>(&fs::read_to_string(directory.join(REPORT)).ok()?).ok()
        };
        let entries = fs::read_dir(runs).ok()?.flatten();
        entries.filter_map(|entry| report(entry.path())).max_by_key(|r| r.started_unix_secs)
    }
}

/// Does it; `doing` says what is under way.
pub fn run(
    cluster: &Cluster,
    order: &Order,
    runs: &Path,
    stop: &Stop,
    doing: &Mutex<String>,
) -> Result<Report> {
    let faults = Faults::new(cluster, stop)?;
    let (kinds, left_out) = order.kinds(faults.shape())?;
    if order.check && faults.shape().clients.is_empty() {
        let what = "no client is mounted that could work meanwhile, so nothing would be checked";
        return Err(Error::new(error::Kind::Precondition, what)
            .next("cfs-dev up with a client in the topology, or cfs-dev fault run --no-check"));
    }
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("fault-{started}-{}", order.seed);
    let directory = runs.join(&name);
    fs::create_dir_all(&directory).doing(|| format!("cannot make {}", directory.display()))?;
    for why in &left_out {
        tracing::info!("left out: {why}");
    }
    let mut run = Run {
        faults,
        doing,
        since: Instant::now(),
        report: Report {
            version: VERSION,
            kind: "fault-report".into(),
            seed: order.seed,
            started_unix_secs: started,
            took_secs: 0,
            kinds,
            left_out,
            accidents: Vec::new(),
            checked: order.check,
            acknowledged: 0,
            in_doubt: 0,
            errors: BTreeMap::new(),
            findings: Vec::new(),
            stopped: false,
            failed: None,
            directory,
        },
    };
    let done = match order.check {
        true => run.checked(cluster, order, stop, &name),
        false => run.unchecked(order, stop),
    };
    let mut report = run.report;
    report.failed = done.err().map(|error| error.to_string());
    report.stopped = stop.is_set();
    report.took_secs = run.since.elapsed().as_secs();
    report.save()?;
    for finding in &report.findings {
        tracing::error!("{finding}");
    }
    tracing::info!("seed {}: {}", report.seed, report.verdict());
    Ok(report)
}

struct Run<'a> {
    faults: Faults<'a>,
    doing: &'a Mutex<String>,
    since: Instant,
    report: Report,
}

impl Run<'_> {
    fn doing(&self, what: &str) {
        tracing::info!("{what}");
        what.clone_into(&mut self.doing.lock());
    }

    fn unchecked(&mut self, order: &Order, stop: &Stop) -> Result<()> {
        let done = self.accidents(order, stop);
        self.doing("healing");
        done.and(self.faults.heal())
    }

    fn checked(&mut self, cluster: &Cluster, order: &Order, stop: &Stop, name: &str) -> Result<()> {
        let clients = cluster.clients();
        let clients = clients.iter().filter(|client| client.process().is_some());
        let directories: Vec<_> = clients.map(Client::mountpoint).map(|at| at.join(name)).collect();
        let history = self.report.directory.join("history.json");
        let job = Job { directories, seed: order.seed, history };
        let workers = job.start()?;
        let done = self.accidents(order, stop);
        self.doing("healing");
        let done = done.and(self.faults.heal());
        let worked = end(workers, cluster.limit());
        done?;
        worked?;
        // What they did last may have moved shards again.
        self.faults.heal()?;
        self.doing("reading everything again");
        let history = History::load(&job.history)?;
        for (client, directory) in job.directories.iter().enumerate() {
            self.report.findings.extend(workload::read_all(&history, 100 + client, directory));
        }
        // One copy of each is read by that: here all are, and none may have suffered.
        self.doing("verifying every copy");
        let findings = self.faults.scrub()?;
        self.report.findings.extend(findings);
        self.doing("checking the cluster");
        let findings = self.faults.fsck()?;
        self.report.findings.extend(findings);
        self.doing("checking the histories");
        self.report.findings.extend(history.findings());
        let (acknowledged, in_doubt, errors) = history.tally();
        tracing::info!("{acknowledged} operations acknowledged, {in_doubt} in doubt {errors:?}");
        if acknowledged < OPERATIONS_MIN && !stop.is_set() {
            self.report.findings.push(format!("only {acknowledged} operations were acknowledged"));
        }
        (self.report.acknowledged, self.report.in_doubt) = (acknowledged, in_doubt);
        self.report.errors = errors;
        if self.report.findings.is_empty()
            && let Err(error) = fs::remove_dir_all(&job.directories[0])
        {
            let what = format!("{} cannot be removed: {error}", job.directories[0].display());
            self.report.findings.push(what);
        }
        Ok(())
    }

    fn accidents(&mut self, order: &Order, stop: &Stop) -> Result<()> {
        let lasts = Duration::from_secs(order.seconds);
        for step in order.steps(self.faults.shape(), &self.report.kinds) {
            *self.doing.lock() = "peace".into();
            stop.sleep(step.peace.min(lasts.saturating_sub(self.since.elapsed())));
            if stop.is_set() || self.since.elapsed() >= lasts {
                break;
            }
            let at_ms = self.since.elapsed().as_millis() as u64;
            self.doing(&step.to_string());
            let happened = Happened { at_ms, kind: step.kind, whom: step.accident.to_string() };
            self.report.accidents.push(happened);
            for finding in self.faults.suffer(&step)? {
                self.report.findings.push(format!("{} at {at_ms} ms: {finding}", step.kind));
            }
        }
        Ok(())
    }
}

/// Lets the workers end, and makes them if they do not.
fn end(mut workers: Child, within: Duration) -> Result<()> {
    drop(workers.stdin.take());
    let since = Instant::now();
    let doing = || "cannot wait for the workers".into();
    let status = loop {
        match workers.try_wait().doing(doing)? {
            Some(status) => break status,
            None if since.elapsed() < within => std::thread::sleep(POLL),
            None => {
                workers.kill().doing(doing)?;
                let within = within.as_secs();
                let what = format!(
                    "a worker's operation has not ended within {within} s after all was healed"
                );
                return Err(Error::new(error::Kind::Timeout, what));
            }
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(Error::new(error::Kind::Failed, format!("the workers ended with {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            nodes: vec!["n1".into()],
            clients: Vec::new(),
            replicas: 1,
            namespaces: true,
            own_disks: false,
        }
    }

    #[test]
    fn what_is_asked_for_has_to_be_possible() {
        let order = |kinds| Order { seed: 1, seconds: 10, kinds, check: false };
        let (kinds, left_out) = order(None).kinds(&shape()).unwrap();
        assert_eq!(kinds, [Kind::Kill, Kind::KillAll, Kind::Restart, Kind::Pause]);
        assert_eq!(left_out.len(), Kind::ALL.len() - kinds.len());
        let twice = order(Some(vec![Kind::Pause, Kind::Pause])).kinds(&shape()).unwrap();
        assert_eq!(twice, (vec![Kind::Pause], Vec::new()));
        let told = order(Some(vec![Kind::Halves])).kinds(&shape()).unwrap_err();
        assert_eq!(told.kind, error::Kind::Precondition);
    }

    #[test]
    fn the_last_report_is_found() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Report::last(directory.path()).is_none());
        let mut report = Report {
            version: VERSION,
            kind: "fault-report".into(),
            seed: 1,
            started_unix_secs: 5,
            took_secs: 1,
            kinds: vec![Kind::Kill],
            left_out: Vec::new(),
            accidents: vec![Happened { at_ms: 1, kind: Kind::Kill, whom: "n1".into() }],
            checked: true,
            acknowledged: 100,
            in_doubt: 0,
            errors: BTreeMap::new(),
            findings: Vec::new(),
            stopped: false,
            failed: None,
            directory: directory.path().join("a"),
        };
        let save = |report: &Report| {
            fs::create_dir(&report.directory).unwrap();
            report.save().unwrap();
        };
        save(&report);
        (report.seed, report.started_unix_secs) = (2, 7);
        report.directory = directory.path().join("b");
        report.findings.push("lost".into());
        save(&report);
        fs::create_dir(directory.path().join("of a run that did not end")).unwrap();
        let last = Report::last(directory.path()).unwrap();
        assert_eq!((last.seed, last.is_clean()), (2, false));
        assert_eq!(last.verdict(), "1 finding(s)");
    }
}
