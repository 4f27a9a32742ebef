//! [`DeviceFacts`]: what a device is and how it is, for the operator.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::nvme::PAGE_BYTES;
use crate::nvme::identify::{Controller, LbaFormat, Namespace};

/// What a device says of itself, and its state. Names are empty where it has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceFacts {
    pub engine: &'static str,
    pub model: String,
    pub serial: String,
    pub firmware: String,
    /// Bytes that a pool may use.
    pub bytes: u64,
    /// Bytes of a logical block of the device; blockd's own unit is 4096.
    pub lba_bytes: u32,
    /// Longest transfer of one command in bytes (MDTS); 0 where there is no such limit.
    pub transfer_bytes_max: u64,
    /// Completed writes may be in a cache that a power cut empties.
    pub volatile_cache: bool,
    /// Bytes that are written whole or not at all when power fails.
    pub atomic_bytes: u64,
    /// Of an NVMe controller that the engine talks to itself.
    pub controller: Option<ControllerFacts>,
    pub health: Health,
}

/// What a controller and one of its namespaces say of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllerFacts {
    /// Version of the specification that it follows.
    pub nvme_version: String,
    pub nsid: u32,
    /// Highest number that a namespace of it can have.
    pub namespaces: u32,
    /// Longest transfer of one command by its own word (MDTS); 0 for no limit.
    pub mdts_bytes: u64,
    pub write_zeroes: bool,
    pub deallocate: bool,
    pub formats: Vec<LbaFormat>,
}

impl ControllerFacts {
    #[must_use]
    pub fn new(controller: &Controller, namespace: &Namespace, nsid: u32) -> ControllerFacts {
        let version = controller.version;
        ControllerFacts {
            nvme_version: match version {
                0 => "older than 1.2".to_owned(),
                _ => format!("{}.{}.{}", version >> 16, version >> 8 & 0xff, version & 0xff),
            },
            nsid,
            namespaces: controller.namespaces,
            mdts_bytes: match controller.mdts {
                0 => 0,
                mdts => PAGE_BYTES.checked_shl(mdts.into()).unwrap_or(0),
            },
            write_zeroes: controller.has_write_zeroes,
            deallocate: controller.has_deallocate,
            formats: namespace.formats.clone(),
        }
    }
}

/// The state of a device, in order of gravity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state", content = "reason")]
pub enum Health {
    /// It serves.
    #[default]
    Ok,
    /// It serves, and says or shows that something is wrong.
    Degraded(String),
    /// It is being reset; operations wait.
    Recovering(String),
    /// It is gone or does not come back: operations fail until blockd is restarted.
    Failed(String),
}

/// The health that an engine's parts report and `facts` shows. [`Health::Failed`] is final.
#[derive(Debug, Default)]
pub struct HealthCell(Mutex<Health>);

impl HealthCell {
    #[must_use]
    pub fn get(&self) -> Health {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state, and says so in the log once.
    pub fn set(&self, device: &str, health: Health) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == health || matches!(*now, Health::Failed(_)) {
            return;
        }
        match &health {
            Health::Ok => tracing::info!(device, "the device serves again"),
            Health::Degraded(reason) | Health::Recovering(reason) => {
                tracing::warn!(device, reason, "the device has trouble");
            }
            Health::Failed(reason) => tracing::error!(device, reason, "the device has failed"),
        }
        *now = health;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_is_final() {
        let cell = HealthCell::default();
        assert_eq!(cell.get(), Health::Ok);
        cell.set("d", Health::Recovering("reset".to_owned()));
        cell.set("d", Health::Ok);
        let gone = Health::Failed("gone".to_owned());
        cell.set("d", gone.clone());
        cell.set("d", Health::Ok);
        assert_eq!(cell.get(), gone);
        assert_eq!(serde_json::to_value(gone).unwrap()["reason"], "gone");
    }
}
