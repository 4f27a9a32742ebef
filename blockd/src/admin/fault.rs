//! `fault.…`: what tests do to a device.

use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Failure};
use crate::daemon::Daemon;
use crate::engine::FaultSettings;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeded {
    seed: u64,
}

fn none() -> Failure {
    Failure::new("NOT_FOUND", "no device has engine \"fault\"")
}

pub fn set(settings: &FaultSettings, daemon: &Daemon) -> Answer {
    let mut any = false;
    for pool in daemon.pools() {
        if let Some(fault) = pool.device().fault() {
            fault.set(settings.clone());
            any = true;
        }
    }
    if any { Ok(Value::Null) } else { Err(none()) }
}

pub fn power_cut(Seeded { seed }: &Seeded, daemon: &Daemon) -> Answer {
    let faults: Vec<_> = daemon.pools().iter().filter_map(|p| p.device().fault()).collect();
    if faults.is_empty() {
        return Err(none());
    }
    for fault in faults {
        fault.power_cut(*seed).map_err(|e| Failure::new("DEVICE", e.to_string()))?;
    }
    // As a machine without power: no destructor runs and nobody is told.
    std::process::abort()
}
