//! What the daemons of a mounted, idle node cost.

use std::time::Duration;

use anyhow::Result;

use crate::Arguments;
use crate::measure::{Results, Unit};
use crate::process;
use crate::subject::Subject;

/// Jobs after the last write end within this.
const SETTLE: Duration = Duration::from_secs(20);

pub fn run(arguments: &Arguments, subject: &Subject, results: &mut Results) -> Result<()> {
    if arguments.idle == 0 || !arguments.wants_step("idle") {
        return Ok(());
    }
    eprintln!("benches: idle for {} s", arguments.idle);
    std::thread::sleep(SETTLE);
    let daemons = subject.daemons();
    let before = daemons.iter().map(|(pid, _)| process::cpu_ticks(*pid));
    let before = before.collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(arguments.idle));
    let mut total = 0.0;
    for ((pid, name), before) in daemons.iter().zip(before) {
        let ticks = process::cpu_ticks(*pid)? - before;
        // A tick is a hundredth of a second, so ticks per second are percent.
        let percent = ticks as f64 / arguments.idle as f64;
        results.add(&format!("idle, {name}"), "claudefs", Unit::PercentOfCore, percent);
        total += percent;
    }
    results.add("idle, all daemons", "claudefs", Unit::PercentOfCore, total);
    Ok(())
}
