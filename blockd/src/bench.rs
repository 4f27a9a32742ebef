//! How fast is a volume, or an engine on a device? Like SPDK's bdevperf: a depth of operations is kept in flight for a
//! time, and what each took is counted.
//!
//! ```text
//! plan ─► lane (a volume through shared memory, or an engine's queue) ─► completions ─► histogram ─► report
//! ```
//!
//! The thread that submits looks and sleeps as a reactor does ([`Patience`]), or never sleeps. Nothing that holds
//! data is written to unless its name is given once more.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use blockd_ipc::Patience;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::config::EngineKind;
use crate::engine::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::reactor::cpu_times;

mod histogram;
mod lane;

pub use histogram::{Histogram, Latency};
use lane::Lane;

/// Operations in flight.
pub const DEPTH_MAX: usize = 1024;
/// Bytes of one operation: what a buffer of shared memory has.
pub const OPERATION_BYTES_MAX: usize = hugepages::BUFFER_BYTES_MAX;
/// Memory of all operations in flight.
const MEMORY_BYTES_MAX: usize = 1 << 30;
const SECONDS_MAX: u64 = 86_400;
/// How long the thread looks for what has ended before it sleeps, at most.
const SPIN: Duration = Duration::from_micros(200);

/// What is done, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    Randread,
    Randwrite,
    Read,
    Write,
    /// Random, reads and writes by `read_percent`.
    Mix,
}

impl Pattern {
    fn is_random(self) -> bool {
        matches!(self, Pattern::Randread | Pattern::Randwrite | Pattern::Mix)
    }

    fn writes(self) -> bool {
        matches!(self, Pattern::Randwrite | Pattern::Write | Pattern::Mix)
    }
}

/// What is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Subject {
    /// A volume of a running blockd.
    Volume {
        socket: PathBuf,
        name: String,
        /// Process of the blockd, whose CPU time counts.
        pid: Option<u32>,
    },
    /// An engine by itself.
    Engine { engine: EngineKind, path: PathBuf, size: Option<u64> },
}

/// One measurement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub subject: Subject,
    pub rw: Pattern,
    /// Bytes of one operation.
    pub bs: usize,
    /// Operations in flight.
    pub qd: usize,
    pub seconds: u64,
    #[serde(default = "seventy")]
    pub read_percent: u64,
    /// Looks for what has ended without ever sleeping, as SPDK's bdevperf and fio's hipri do. Else as a reactor.
    #[serde(default)]
    pub polled: bool,
    /// Name of the volume, or path of the device, that may be written to although it holds data.
    pub confirm: Option<String>,
}

fn seventy() -> u64 {
    70
}

/// What came out. Times in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The volume, or the device.
    pub subject: String,
    pub engine: String,
    pub rw: Pattern,
    pub bs_bytes: u64,
    pub qd: usize,
    pub seconds: f64,
    pub operations: u64,
    pub iops: f64,
    pub bytes_per_second: f64,
    pub read: Option<Latency>,
    pub write: Option<Latency>,
    /// CPU time of the thread that measures, an operation; with an engine by itself this is the engine's as well.
    pub cpu_ns_per_operation: f64,
    /// CPU time of the blockd's reactors, an operation.
    pub blockd_cpu_ns_per_operation: Option<f64>,
}

impl Plan {
    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Invalid(message));
        let block = BLOCK_BYTES as usize;
        if !self.bs.is_multiple_of(block) || !(block..=OPERATION_BYTES_MAX).contains(&self.bs) {
            return wrong(format!("bs {}: a multiple of 4096 up to 2 MiB", self.bs));
        }
        if !(1..=DEPTH_MAX).contains(&self.qd) || self.qd * self.bs > MEMORY_BYTES_MAX {
            return wrong(format!(
                "qd {}: 1 to {DEPTH_MAX}, and at most 1 GiB in flight with bs {}",
                self.qd, self.bs
            ));
        }
        if !(1..=SECONDS_MAX).contains(&self.seconds) {
            return wrong(format!("time {} s: one second to one day", self.seconds));
        }
        if self.read_percent > 100 {
            return wrong(format!("{} percent reads: 0 to 100", self.read_percent));
        }
        Ok(())
    }
}

/// Measures.
pub fn run(plan: &Plan) -> Result<Report> {
    plan.check()?;
    let mut lane = lane::open(plan)?;
    if plan.rw.writes() && plan.confirm.as_deref() != Some(lane.name()) {
        lane.look_for_data()?;
    }
    let places = lane.bytes() / plan.bs as u64;
    if places == 0 {
        return Err(Error::Invalid(format!("{} is smaller than bs {}", lane.name(), plan.bs)));
    }
    let mut course = Course { plan, places, next: 0, random: 0x9e37_79b9_7f4a_7c15 };
    let pid = match &plan.subject {
        Subject::Volume { pid, .. } => *pid,
        Subject::Engine { .. } => None,
    };
    let reactors = || pid.map(|pid| cpu_times(pid).values().sum::<Duration>());
    let (blockd_before, cpu_before, started) = (reactors(), thread_cpu(), Instant::now());
    let counts = drive(lane.as_mut(), &mut course, started + Duration::from_secs(plan.seconds))?;
    let elapsed = started.elapsed();
    let (cpu, blockd) = (thread_cpu().saturating_sub(cpu_before), reactors());
    let operations = counts.read.count() + counts.write.count();
    let each = |time: Duration| time.as_nanos() as f64 / operations.max(1) as f64;
    let used = blockd.zip(blockd_before).map(|(after, before)| after.saturating_sub(before));
    let iops = operations as f64 / elapsed.as_secs_f64();
    Ok(Report {
        subject: lane.name().to_owned(),
        engine: lane.engine().to_owned(),
        rw: plan.rw,
        bs_bytes: plan.bs as u64,
        qd: plan.qd,
        seconds: elapsed.as_secs_f64(),
        operations,
        iops,
        bytes_per_second: iops * plan.bs as f64,
        read: counts.read.latency(),
        write: counts.write.latency(),
        cpu_ns_per_operation: each(cpu),
        blockd_cpu_ns_per_operation: used.map(each),
    })
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Where the next operation goes.
struct Course<'a> {
    plan: &'a Plan,
    places: u64,
    next: u64,
    random: u64,
}

impl Course<'_> {
    /// Whether it writes, and the offset.
    fn step(&mut self) -> (bool, u64) {
        // xorshift64*: its high bits are good, and a run repeats.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let random = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        let place = if self.plan.rw.is_random() { random } else { self.next };
        self.next += 1;
        let write = match self.plan.rw {
            Pattern::Randread | Pattern::Read => false,
            Pattern::Randwrite | Pattern::Write => true,
            Pattern::Mix => (self.random >> 32) % 100 >= self.plan.read_percent,
        };
        (write, place % self.places * self.plan.bs as u64)
    }
}

#[derive(Default)]
struct Counts {
    read: Histogram,
    write: Histogram,
}

/// Keeps `qd` operations in flight until `end`, and waits for the last.
fn drive(lane: &mut dyn Lane, course: &mut Course<'_>, end: Instant) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut flights: Vec<Option<(Instant, bool)>> = vec![None; lane.slots()];
    let mut in_flight = 0;
    let polled = course.plan.polled;
    let mut start = |lane: &mut dyn Lane, flights: &mut Vec<Option<(Instant, bool)>>, now| {
        let (write, offset) = course.step();
        let slot = lane.submit(write, offset)?;
        flights[slot] = Some((now, write));
        Ok::<(), Error>(())
    };
    for _ in 0..lane.depth() {
        start(lane, &mut flights, Instant::now())?;
        in_flight += 1;
    }
    let mut done = Vec::with_capacity(in_flight);
    let mut patience = Patience::new(SPIN);
    while in_flight > 0 {
        lane.poll(&mut done)?;
        if done.is_empty() {
            // No `pause` either: an emulator leaves its translated code at each, and takes the lock that its devices need.
            if !polled && !patience.look_again() {
                lane.sleep()?;
                patience.slept();
            }
            continue;
        }
        patience.found();
        let now = Instant::now();
        let ended = done.len();
        for slot in done.drain(..) {
            let (since, write) = flights[slot].take().expect("a completion has its flight");
            let histogram = if write { &mut counts.write } else { &mut counts.read };
            histogram.record(now.saturating_duration_since(since));
        }
        in_flight -= ended;
        // Only now: a new operation may get the slot of any that ended.
        if now < end {
            for _ in 0..ended {
                start(lane, &mut flights, now)?;
            }
            in_flight += ended;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests;
