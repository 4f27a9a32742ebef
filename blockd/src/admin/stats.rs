//! `stats`: counters of each reactor since the start.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::reactor;

pub fn stats(daemon: &Daemon) -> Value {
    let cpu = reactor::cpu_times(std::process::id());
    let cores = daemon.stats().iter().enumerate().map(|(core, s)| {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "reads": get(&s.reads),
            "read_bytes": get(&s.read_bytes),
            "writes": get(&s.writes),
            "write_bytes": get(&s.write_bytes),
            "flushes": get(&s.flushes),
            "deallocates": get(&s.deallocates),
            "errors": get(&s.errors),
            "sleeps": get(&s.sleeps),
            "clients": get(&s.clients),
            "cpu_ns": cpu.get(&core).map(|time| time.as_nanos() as u64),
        })
    });
    json!({ "cores": cores.collect::<Vec<_>>() })
}
