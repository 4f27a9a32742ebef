//! `cfs admin block stats [--watch[=2s]]`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Context;
use super::rpc::Door;
use crate::failed::Exit;
use crate::output::{self, Format, Shown};
use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "\
Without --watch: the sums since blockd started. With it: what happens in a second; with -o json one document a line.")]
pub struct Stats {
    /// Again and again
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "2s", value_parser = units::parse_duration)]
    watch: Option<Duration>,
    /// With --watch: stop after this many
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Sums {
    cores: Vec<Core>,
}

/// Sums of one reactor since the start, or, as rates, what it did in a second. `clients` is how many there are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Core {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    flushes: u64,
    deallocates: u64,
    errors: u64,
    sleeps: u64,
    clients: u64,
    /// As a rate: nanoseconds of CPU time a second.
    cpu_ns: Option<u64>,
}

#[derive(Serialize)]
struct View {
    /// Seconds that the rates are the mean of; none of sums.
    interval_seconds: Option<f64>,
    cores: Vec<Core>,
}

impl Stats {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        let ask = || door.call::<Sums>("cannot ask for the counters", "stats", Value::Null);
        let Some(every) = self.watch else {
            let view = View { interval_seconds: None, cores: ask()?.cores };
            output::print(context.format, &view)?;
            return Ok(Exit::Ok);
        };
        let (mut before, mut since) = (ask()?, Instant::now());
        let mut shown = 0;
        while self.count.is_none_or(|count| shown < count) {
            std::thread::sleep(every);
            let (now, at) = (ask()?, Instant::now());
            let seconds = at.saturating_duration_since(since).as_secs_f64();
            let cores = before.cores.iter().zip(&now.cores);
            let cores = cores.map(|(before, now)| rate(before, now, seconds)).collect();
            let view = View { interval_seconds: Some(seconds), cores };
            let clear = context.format == Format::Table && std::io::stdout().is_terminal();
            let home = if clear { "\x1b[H\x1b[2J" } else { "" };
            output::write_out(&format!("{home}{}", output::render(context.format, true, &view)?))?;
            (before, since) = (now, at);
            shown += 1;
        }
        Ok(Exit::Ok)
    }
}

/// A restart in between has smaller sums: then they are all that is known.
fn rate(before: &Core, now: &Core, seconds: f64) -> Core {
    let per_second = |before: u64, now: u64| {
        let change = now.checked_sub(before).unwrap_or(now);
        (change as f64 / seconds).round() as u64
    };
    Core {
        reads: per_second(before.reads, now.reads),
        read_bytes: per_second(before.read_bytes, now.read_bytes),
        writes: per_second(before.writes, now.writes),
        write_bytes: per_second(before.write_bytes, now.write_bytes),
        flushes: per_second(before.flushes, now.flushes),
        deallocates: per_second(before.deallocates, now.deallocates),
        errors: per_second(before.errors, now.errors),
        sleeps: per_second(before.sleeps, now.sleeps),
        clients: now.clients,
        cpu_ns: before.cpu_ns.zip(now.cpu_ns).map(|(before, now)| per_second(before, now)),
    }
}

impl Shown for View {
    const KIND: &'static str = "block-stats";

    fn table(&self, wide: bool) -> String {
        let row = |(at, core): (usize, &Core)| {
            let cpu = match (core.cpu_ns, self.interval_seconds) {
                (None, _) => "-".to_owned(),
                (Some(ns), Some(_)) => format!("{} %", units::percent(ns, 1_000_000_000)),
                (Some(ns), None) => units::duration(Duration::from_nanos(ns)),
            };
            let mut row = vec![
                at.to_string(),
                core.clients.to_string(),
                units::count(core.reads),
                units::bytes(core.read_bytes),
                units::count(core.writes),
                units::bytes(core.write_bytes),
                units::count(core.flushes),
                units::count(core.errors),
                cpu,
            ];
            if wide {
                row.extend([units::count(core.deallocates), units::count(core.sleeps)]);
            }
            row
        };
        let mut head = if self.interval_seconds.is_some() {
            vec![
                "CORE",
                "CLIENTS",
                "READS/S",
                "READ/S",
                "WRITES/S",
                "WRITTEN/S",
                "FLUSHES/S",
                "ERRORS/S",
                "CPU",
            ]
        } else {
            vec![
                "CORE", "CLIENTS", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "ERRORS", "CPU",
            ]
        };
        if wide {
            head.extend(["DEALLOCATES", "SLEEPS"]);
        }
        let right: Vec<usize> = (0..head.len()).collect();
        output::columns(&head, &right, self.cores.iter().enumerate().map(row).collect())
    }

    fn names(&self) -> Vec<String> {
        (0..self.cores.len()).map(|core| core.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_by_time() {
        let core = |n: u64| Core {
            reads: n,
            read_bytes: n * 4096,
            writes: 0,
            write_bytes: 0,
            flushes: 0,
            deallocates: 0,
            errors: 0,
            sleeps: n,
            clients: 3,
            cpu_ns: Some(n * 1_000_000),
        };
        let per_second = rate(&core(100), &core(300), 2.0);
        assert_eq!((per_second.reads, per_second.read_bytes), (100, 409_600));
        assert_eq!((per_second.clients, per_second.cpu_ns), (3, Some(100_000_000)));
        assert_eq!(rate(&core(300), &core(100), 2.0).reads, 50, "after a restart");
        let view = View { interval_seconds: Some(2.0), cores: vec![per_second] };
        assert!(view.table(false).contains("10 %"), "{}", view.table(false));
    }
}
