//! Everything in a simulation that is not one node: the machines and the network between them, the metadata group,
//! what happened, and what has ever been written.
//!
//! ```text
//!   call ─ refused? cut? ─ delay ─▶ served by whoever runs there, to its end ─ delay ─ cut? ─▶ answer
//!             └─ nobody answers: in vain for some time             └─ a lost connection: done, and not answered
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::future::Future;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blockd_ipc::SimVolume;
use bytes::Bytes;
use parking_lot::Mutex;
use raftmeta_types::{ChunkHash, Ino, NodeId};
use tokio::sync::watch;

use super::dice::Dice;
use super::log::{Log, Reach};
use super::node::Life;
use crate::clock::{self, simulated::since_start};

/// What a message takes, mostly.
const DELAY_MIN: Duration = Duration::from_micros(100);
const DELAY_MAX: Duration = Duration::from_millis(2);
/// And now and then.
const DELAY_MAX_RARELY: Duration = Duration::from_millis(300);
/// In bad weather, longer than anybody waits.
const DELAY_MAX_BADLY: Duration = Duration::from_secs(7);

/// A connection through which nothing comes any more ends so late.
const UNHEARD: Duration = Duration::from_secs(10);

/// A machine, whether a node runs on it or not.
#[derive(Default)]
pub(super) struct Machine {
    /// None: its disk is lost for good.
    pub volume: Option<SimVolume>,
    pub life: Option<Arc<Life>>,
    /// It was switched off, so nobody refuses connections.
    pub silent: bool,
    /// It is to be started again then.
    pub starts: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Net {
    pub machines: BTreeMap<NodeId, Machine>,
    /// Nothing goes from the first to the second.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// One of so many connections is lost, and one of so many messages very late; 0 is none.
    pub bad: u64,
}

impl Reach for Net {
    fn runs(&self, id: NodeId) -> bool {
        self.machines.get(&id).is_some_and(|machine| machine.life.is_some())
    }

    fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.contains(&(from, to))
    }
}

/// What happened, in order.
struct Trace {
    line: String,
    digest: DefaultHasher,
    lines: u64,
    /// To be seen.
    print: bool,
}

pub(super) struct World {
    /// The clock of this one is hours ahead all the time.
    ahead: Option<NodeId>,
    /// Primaries make a mistake, see [`super::node`].
    pub careless: bool,
    dice: Mutex<Dice>,
    pub net: Mutex<Net>,
    log: Mutex<Log>,
    trace: Mutex<Trace>,
    /// Contents that anybody ever tried to put.
    pub ever: Mutex<BTreeMap<ChunkHash, Bytes>>,
    pub files: Mutex<Vec<Ino>>,
    pub tally: Mutex<Tally>,
    /// Nothing goes wrong any more, and nobody writes.
    pub calm: watch::Sender<bool>,
    /// Numbers what nodes ask each other.
    questions: AtomicU64,
    lives: AtomicU64,
}

/// How much happened: a simulation in which nothing does shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub runs: u64,
    /// Nodes that an administrator took out because their disks were lost.
    pub removed: u64,
    pub committed: u64,
    pub refused: u64,
    pub read: u64,
    pub deleted: u64,
    pub faults: u64,
    pub epochs: u64,
    pub terms: u64,
    /// Of the trace.
    pub digest: u64,
    pub lines: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.removed += other.removed;
        self.committed += other.committed;
        self.refused += other.refused;
        self.read += other.read;
        self.deleted += other.deleted;
        self.faults += other.faults;
        self.epochs += other.epochs;
        self.terms += other.terms;
        self.digest ^= other.digest;
        self.lines += other.lines;
    }
}

impl World {
    pub fn new(seed: u64, nodes: &[NodeId], print: bool, careless: bool) -> World {
        let trace = Trace { line: String::new(), digest: DefaultHasher::new(), lines: 0, print };
        World {
            ahead: nodes.get(1).copied().filter(|_| seed % 5 == 3),
            careless,
            dice: Mutex::new(Dice::new(seed)),
            net: Mutex::default(),
            log: Mutex::new(Log::new(nodes)),
            trace: Mutex::new(trace),
            ever: Mutex::default(),
            files: Mutex::default(),
            tally: Mutex::default(),
            calm: watch::Sender::new(false),
            questions: AtomicU64::new(1),
            lives: AtomicU64::new(0),
        }
    }

    /// How far the clock of a node is from the others', in milliseconds.
    pub fn clock_off_ms(&self, id: NodeId) -> i64 {
        if self.ahead == Some(id) { 3 * 3_600_000 } else { 0 }
    }

    pub fn roll<T>(&self, roll: impl FnOnce(&mut Dice) -> T) -> T {
        roll(&mut self.dice.lock())
    }

    /// Looks at, or changes, the metadata group.
    pub fn log<T>(&self, act: impl FnOnce(&mut Log, &mut Dice, &Net) -> T) -> T {
        let net = self.net.lock();
        act(&mut self.log.lock(), &mut self.dice.lock(), &net)
    }

    /// Notes what happened.
    pub fn note(&self, what: std::fmt::Arguments<'_>) {
        let mut trace = self.trace.lock();
        let Trace { line, digest, lines, print } = &mut *trace;
        line.clear();
        let micros = since_start().as_micros();
        write!(line, "{micros:>10} {what}").expect("memory does not fail");
        digest.write(line.as_bytes());
        *lines += 1;
        if *print {
            println!("{line}");
        }
    }

    /// Of all that was noted: alike for runs that are alike.
    pub fn digest(&self) -> (u64, u64) {
        let trace = self.trace.lock();
        (trace.digest.finish(), trace.lines)
    }

    /// A number for a life.
    pub fn next_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed)
    }

    /// Machines that are to be started by now.
    pub fn due(&self, now: Duration) -> Vec<NodeId> {
        let net = self.net.lock();
        let due = |machine: &Machine| machine.starts.is_some_and(|at| at <= now);
        net.machines.iter().filter(|(_, machine)| due(machine)).map(|(id, _)| *id).collect()
    }

    /// Who runs on a machine.
    pub fn life(&self, id: NodeId) -> Option<Arc<Life>> {
        self.net.lock().machines.get(&id).and_then(|machine| machine.life.clone())
    }

    pub fn lives(&self) -> Vec<Arc<Life>> {
        let net = self.net.lock();
        net.machines.values().filter_map(|machine| machine.life.clone()).collect()
    }

    fn delay(&self) -> Duration {
        let bad = self.net.lock().bad;
        self.roll(|dice| {
            let most = match (dice.below(60), bad) {
                (0, _) => DELAY_MAX_RARELY,
                (1, bad) if bad > 0 && dice.one_in(4) => DELAY_MAX_BADLY,
                _ => DELAY_MAX,
            };
            dice.between(DELAY_MIN, most)
        })
    }

    /// Whether the connection is lost now.
    fn is_lost(&self) -> bool {
        let bad = self.net.lock().bad;
        bad > 0 && self.roll(|dice| dice.one_in(bad))
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        from != to && !self.net.lock().reaches(from, to)
    }

    /// Has the node on another machine do something. An error says why nothing is known of the outcome, or that it
    /// was not reached. It may be done long after whoever asked has given up.
    pub async fn call<T, F>(
        self: &Arc<World>,
        from: &Life,
        to: NodeId,
        what: &'static str,
        within: Duration,
        serve: impl FnOnce(Arc<Life>) -> F,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let id = from.id;
        tokio::select! {
            biased;
            () = from.over() => std::future::pending().await,
            answer = self.carry(id, to, what, serve) => {
                let said = if answer.is_ok() { "answered" } else { "not answered" };
                self.note(format_args!("{id}>{to} {what} {said}"));
                answer
            }
            () = clock::sleep(within) => {
                self.note(format_args!("{id}>{to} {what} in vain"));
                Err(format!("no answer within {within:?}"))
            }
        }
    }

    async fn carry<T, F>(
        self: &Arc<World>,
        from: NodeId,
        to: NodeId,
        what: &'static str,
        serve: impl FnOnce(Arc<Life>) -> F,
    ) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let lost = || Err("the connection was lost".to_owned());
        let question = self.questions.fetch_add(1, Ordering::Relaxed);
        clock::sleep(self.delay()).await;
        if self.is_cut(from, to) {
            clock::sleep(UNHEARD).await;
            return lost();
        }
        if self.is_lost() {
            return lost();
        }
        let Some(life) = self.life(to) else {
            if self.net.lock().machines[&to].silent {
                clock::sleep(UNHEARD).await;
                return lost();
            }
            return Err("connection refused".to_owned());
        };
        self.note(format_args!("{from}>{to} {what}"));
        // To its end, whether anybody waits or not.
        let served = tokio::spawn(serve(Arc::clone(&life)));
        let answer = tokio::select! {
            biased;
            () = life.over() => {
                // All who wait are woken at this moment, in no order: now in that of their questions.
                clock::sleep(Duration::from_nanos(question)).await;
                if self.net.lock().machines[&to].silent {
                    clock::sleep(UNHEARD).await;
                }
                return lost();
            }
            answer = served => answer.map_err(|error| error.to_string())?,
        };
        clock::sleep(self.delay()).await;
        if self.is_cut(to, from) {
            clock::sleep(UNHEARD).await;
            return lost();
        }
        if self.is_lost() || life.is_over() { lost() } else { Ok(answer) }
    }
}
