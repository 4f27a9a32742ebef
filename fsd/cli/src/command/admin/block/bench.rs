//! `cfs admin block bench`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rpc::{self, Door};
use super::{Context, volume};
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};
use crate::units;

/// How long the user before may take to be gone.
const HANG_UP_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfsctl block bench scratch --rw randread --bs 4k --qd 32 --time 10
  cfsctl block bench --engine uring --path /dev/nvme1n1 --rw mix -o json
  cfsctl block bench --engine mem --qd 1               what the path itself costs

A volume is reached through blockd's shared memory, as a node does; its reactors' CPU time counts beside the client's. With
--engine the device is driven from this command and must not be blockd's. What holds data is written to only with
--confirm; what was written stays.")]
pub struct Bench {
    /// Name of the volume
    #[arg(required_unless_present = "engine", conflicts_with = "engine")]
    name: Option<String>,
    /// Engine that is measured by itself: mem, uring, …
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// With --engine: file or device
    #[arg(long, value_name = "PATH", requires = "engine")]
    path: Option<PathBuf>,
    /// With --engine mem: its size [default: 1G]
    #[arg(long, value_name = "SIZE", requires = "engine", value_parser = units::parse_bytes)]
    size: Option<u64>,
    /// What is done
    #[arg(long, value_enum, default_value_t)]
    rw: Pattern,
    /// Bytes of one operation
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = units::parse_bytes)]
    bs: u64,
    /// Operations in flight
    #[arg(long, value_name = "N", default_value_t = 32)]
    qd: u64,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    time: Duration,
    /// Never sleep while waiting, as bdevperf and fio's hipri do; without it looks and sleeps as a reactor does
    #[arg(long)]
    polled: bool,
    /// With --rw mix: how much of it reads
    #[arg(long, value_name = "PERCENT", default_value_t = 70,
          value_parser = clap::value_parser!(u64).range(0..=100))]
    read_percent: u64,
    /// Name of the volume, or PATH, that may be written to although it holds data
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Pattern {
    #[default]
    Randread,
    Randwrite,
    /// Sequential
    Read,
    /// Sequential
    Write,
    /// Random reads and writes
    Mix,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Pattern::Randread => "randread",
            Pattern::Randwrite => "randwrite",
            Pattern::Read => "read",
            Pattern::Write => "write",
            Pattern::Mix => "mix",
        }
    }

    fn writes(self) -> bool {
        matches!(self, Pattern::Randwrite | Pattern::Write | Pattern::Mix)
    }
}

#[derive(Deserialize)]
struct Info {
    ipc_socket: PathBuf,
    pid: u32,
}

impl Bench {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        let doing = "cannot measure";
        let subject = match (&self.name, &self.engine) {
            (Some(name), _) => self.volume(doing, name, door)?,
            (None, engine) => {
                let path = match (&self.path, engine.as_deref()) {
                    (Some(path), _) => path.clone(),
                    (None, Some("mem")) => "memory".into(),
                    (None, _) => {
                        let what =
                            "--engine needs the --path of a file or device; only mem does not";
                        return Err(Failed::new(Exit::Usage, "PATH", what).into());
                    }
                };
                json!({ "engine": { "engine": engine, "path": path, "size": self.size } })
            }
        };
        let seconds = self.time.as_secs().max(1);
        let params = json!({
            "subject": subject,
            "rw": self.rw.name(),
            "bs": self.bs,
            "qd": self.qd,
            "seconds": seconds,
            "read_percent": self.read_percent,
            "polled": self.polled,
            "confirm": self.confirm,
        });
        eprintln!("measuring for {}", units::duration(Duration::from_secs(seconds)));
        let report: Result<Report, Failed> = rpc::act(doing, "bench", &params);
        let report = report.map_err(|failed| match failed.code.as_str() {
            "NOT_BLANK" => failed.next("the same with --confirm NAME, if that may be lost"),
            _ => failed,
        })?;
        output::print(context.format, &report)?;
        Ok(Exit::Ok)
    }

    fn volume(&self, doing: &str, name: &str, door: &Door) -> Result<Value, Failed> {
        let mut found = volume::find(door, doing, name)?;
        // A program that has just ended hangs up a moment later.
        let since = Instant::now();
        while self.rw.writes() && found.users > 0 && since.elapsed() < HANG_UP_WITHIN {
            std::thread::sleep(Duration::from_millis(50));
            found = volume::find(door, doing, name)?;
        }
        if self.rw.writes() && found.users > 0 {
            let what = format!("{doing}: volume {name:?} is in use, and would be written to");
            return Err(Failed::new(Exit::Precondition, "BUSY", what)
                .next("measure another one: `cfsctl block volume create scratch --size 1G`"));
        }
        let info: Info = door.call(doing, "info", Value::Null)?;
        Ok(json!({
            "volume": { "socket": info.ipc_socket, "name": name, "pid": info.pid }
        }))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Report {
    subject: String,
    engine: String,
    rw: String,
    bs_bytes: u64,
    qd: u64,
    seconds: f64,
    operations: u64,
    iops: f64,
    bytes_per_second: f64,
    read: Option<Latency>,
    write: Option<Latency>,
    cpu_ns_per_operation: f64,
    blockd_cpu_ns_per_operation: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Latency {
    operations: u64,
    mean_ns: f64,
    p50_ns: u64,
    p90_ns: u64,
    p99_ns: u64,
    #[serde(rename = "p99.9_ns")]
    p99_9_ns: u64,
    #[serde(rename = "p99.99_ns")]
    p99_99_ns: u64,
    max_ns: u64,
}

impl Shown for Report {
    const KIND: &'static str = "block-bench";

    fn table(&self, _wide: bool) -> String {
        let us = |ns: f64| format!("{:.1}", ns / 1000.0);
        let row = |name: &str, latency: &Option<Latency>| {
            let l = latency.as_ref()?;
            let times = [l.p50_ns, l.p90_ns, l.p99_ns, l.p99_9_ns, l.p99_99_ns, l.max_ns];
            let mut row = vec![name.to_owned(), units::count(l.operations), us(l.mean_ns)];
            row.extend(times.map(|ns| us(ns as f64)));
            Some(row)
        };
        let rows = [row("read", &self.read), row("write", &self.write)];
        let head = ["µs", "COUNT", "MEAN", "p50", "p90", "p99", "p99.9", "p99.99", "MAX"];
        let mut text = format!(
            "{} {} of {}, {} in flight, engine {}, {:.1} s\n{} IOPS, {}/s\n",
            self.subject,
            self.rw,
            units::bytes(self.bs_bytes),
            self.qd,
            self.engine,
            self.seconds,
            units::count(self.iops as u64),
            units::bytes(self.bytes_per_second as u64),
        );
        text += &format!("CPU {} µs each", us(self.cpu_ns_per_operation));
        if let Some(ns) = self.blockd_cpu_ns_per_operation {
            text += &format!(" here, {} µs of blockd", us(ns));
        }
        text += "\n";
        text += &output::columns(
            &head,
            &[1, 2, 3, 4, 5, 6, 7, 8],
            rows.into_iter().flatten().collect(),
        );
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.subject.clone()]
    }
}
