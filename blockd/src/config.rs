//! The configuration file, TOML. A key that is not known is refused by name.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::FaultSettings;
use crate::error::{Error, Result};

/// Most reactors; a larger number of cores is refused.
pub const CORES_MAX: usize = 256;

/// All of the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Socket of the data path; clients connect here.
    pub ipc_socket: PathBuf,
    /// Socket of the admin interface, mode 0600.
    pub admin_socket: PathBuf,
    /// Number of reactor threads.
    #[serde(default = "one")]
    pub cores: usize,
    /// Microseconds a reactor polls without finding work before it sleeps.
    #[serde(default = "fifty")]
    pub idle_us: u64,
    #[serde(default)]
    pub device: Vec<DeviceConfig>,
    #[serde(default)]
    pub volume: Vec<VolumeConfig>,
}

/// One `[[device]]`: a pool of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// File or block device; only a name with `engine = "mem"`.
    pub path: PathBuf,
    #[serde(default)]
    pub engine: EngineKind,
    /// Bytes of a device of RAM, or of a file that is made.
    pub size: Option<u64>,
    /// Makes the file if it is missing, and a pool if the device is blank.
    #[serde(default)]
    pub create: bool,
    /// For `engine = "fault"`.
    pub fault: Option<FaultConfig>,
}

/// Which engine drives a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The best that the device supports.
    #[default]
    Auto,
    Uring,
    Mem,
    Fault,
}

/// What the fault engine wraps, and how it misbehaves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    #[serde(default)]
    pub inner: EngineKind,
    #[serde(default)]
    pub rates: FaultSettings,
}

/// One `[[volume]]`, made at start if it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    pub name: String,
    /// Bytes, rounded up to 4 MiB.
    pub size: u64,
    #[serde(default)]
    pub thin: bool,
    /// Path of the device it is made on; without it the one with the most free space.
    pub device: Option<PathBuf>,
}

fn one() -> usize {
    1
}

fn fifty() -> u64 {
    50
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::Config(format!("reading {}: {e}", path.display())))?;
        Config::parse(&text)
    }

    /// Checks the text of a file.
    pub fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::Config(message));
        if !(1..=CORES_MAX).contains(&self.cores) {
            return wrong(format!("cores = {}: 1 to {CORES_MAX}", self.cores));
        }
        if self.device.is_empty() {
            return wrong("no [[device]]: at least one is needed".to_owned());
        }
        for (i, device) in self.device.iter().enumerate() {
            let path = device.path.display();
            if self.device[..i].iter().any(|d| d.path == device.path) {
                return wrong(format!("device {path} is listed twice"));
            }
            let fault = device.engine == EngineKind::Fault;
            if fault != device.fault.is_some() {
                return wrong(format!(
                    "device {path}: engine \"fault\" and [device.fault] go together"
                ));
            }
            let inner = device.fault.as_ref().map_or(device.engine, |f| f.inner);
            if inner == EngineKind::Fault {
                return wrong(format!("device {path}: a fault engine wraps auto, uring or mem"));
            }
            if inner == EngineKind::Mem && device.size.is_none() {
                return wrong(format!("device {path}: engine \"mem\" needs a size"));
            }
        }
        for (i, volume) in self.volume.iter().enumerate() {
            if self.volume[..i].iter().any(|v| v.name == volume.name) {
                return wrong(format!("volume {:?} is listed twice", volume.name));
            }
            let known = |path: &PathBuf| self.device.iter().any(|d| d.path == *path);
            if volume.device.as_ref().is_some_and(|d| !known(d)) {
                return wrong(format!(
                    "volume {:?} is on a device that is not listed",
                    volume.name
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "ipc_socket = '/a'\nadmin_socket = '/b'\n";

    #[test]
    fn defaults() {
        let config = Config::parse(&format!("{HEAD}[[device]]\npath = '/d'\n")).unwrap();
        assert_eq!((config.cores, config.idle_us), (1, 50));
        assert_eq!(config.device[0].engine, EngineKind::Auto);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("colour = 1\n[[device]]\npath = '/d'\n", "colour"),
            ("", "[[device]]"),
            ("cores = 0\n[[device]]\npath = '/d'\n", "cores"),
            ("[[device]]\npath = '/d'\n[[device]]\npath = '/d'\n", "twice"),
            ("[[device]]\npath = '/d'\nengine = 'mem'\n", "size"),
            ("[[device]]\npath = '/d'\nengine = 'fault'\n", "fault"),
            ("[[device]]\npath = '/d'\nspeed = 3\n", "speed"),
            (
                "[[device]]\npath = '/d'\n[[volume]]\nname = 'v'\nsize = 1\ndevice = '/e'\n",
                "not listed",
            ),
        ];
        for (text, word) in cases {
            let error = Config::parse(&format!("{HEAD}{text}")).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
