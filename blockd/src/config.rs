//! The configuration file, TOML. A key that is not known is refused by name.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::engine::FaultSettings;
use crate::error::{Error, Result};
use crate::nvme::address::Place;
use crate::nvmet::Export;

/// Most reactors; a larger number of cores is refused.
pub const CORES_MAX: usize = 256;

/// What `timeout_ms` may be: a reset alone may take seconds.
pub const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1000..=600_000;

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
    /// Microseconds a reactor looks for work before it sleeps, at most; less where that has not paid lately.
    #[serde(default = "idle_us")]
    pub idle_us: u64,
    #[serde(default)]
    pub device: Vec<DeviceConfig>,
    #[serde(default)]
    pub volume: Vec<VolumeConfig>,
    /// The NVMe/TCP target; without it there is none.
    pub nvmet: Option<NvmetConfig>,
    #[serde(default)]
    pub export: Vec<Export>,
}

/// `[nvmet]`: where hosts connect, and how much of the daemon they may use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvmetConfig {
    /// Addresses for I/O and admin queues. Port 4420 is the usual one.
    #[serde(default = "io_addresses")]
    pub listen: Vec<SocketAddr>,
    /// Addresses of the discovery controller, port 8009.
    #[serde(default = "discovery_addresses")]
    pub discovery: Vec<SocketAddr>,
    /// Address that discovery gives, where hosts reach this machine by another one than it knows.
    pub advertise: Option<IpAddr>,
    /// Keeps what the admin method `nvmet.export` makes.
    pub exports_file: Option<PathBuf>,
    #[serde(default = "connections")]
    pub connections_max: usize,
    /// I/O queues of one controller.
    #[serde(default = "queues")]
    pub queues_max: u16,
    /// Entries of a queue.
    #[serde(default = "depth")]
    pub queue_depth: u16,
    /// Bytes of buffers that one connection may use; commands beyond wait.
    #[serde(default = "buffers")]
    pub buffer_bytes: usize,
}

fn io_addresses() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([0, 0, 0, 0], 4420))]
}

fn discovery_addresses() -> Vec<SocketAddr> {
    vec![SocketAddr::from(([0, 0, 0, 0], 8009))]
}

fn connections() -> usize {
    256
}

fn queues() -> u16 {
    16
}

fn depth() -> u16 {
    128
}

fn buffers() -> usize {
    16 << 20
}

impl NvmetConfig {
    fn check(&self) -> Result<()> {
        let ranges: [(&str, usize, usize, usize); 4] = [
            ("connections_max", self.connections_max, 1, 65_536),
            ("queues_max", self.queues_max.into(), 1, 256),
            ("queue_depth", self.queue_depth.into(), 16, 1024),
            ("buffer_bytes", self.buffer_bytes, 2 << 20, 1 << 30),
        ];
        for (key, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(Error::Config(format!("[nvmet] {key} = {value}: {low} to {high}")));
            }
        }
        if self.listen.is_empty() {
            return Err(Error::Config("[nvmet] listen is empty: name an address".to_owned()));
        }
        Ok(())
    }
}

/// One `[[device]]`: a pool of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// File, block device, `/dev/ngXnY`, or PCI address (`0000:01:00.0`, with `/n2` for its second namespace); only a
    /// name with `engine = "mem"`.
    pub path: PathBuf,
    #[serde(default)]
    pub engine: EngineKind,
    /// For `passthru`: polled queues of the kernel's driver. Without it they are used if there are some.
    pub polled: Option<bool>,
    /// An operation that the device has not done by then ends with an error. Without it 30 s on `passthru` and `vfio`; 120 s on
    /// others, where the kernel may try for long and nobody can take the operation back.
    pub timeout_ms: Option<u64>,
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
    Passthru,
    Vfio,
    Mem,
    Fault,
}

impl DeviceConfig {
    /// A device as it is with nothing but this said.
    #[must_use]
    pub fn plain(path: &Path, engine: EngineKind, size: Option<u64>) -> DeviceConfig {
        DeviceConfig {
            path: path.to_owned(),
            engine,
            polled: None,
            timeout_ms: None,
            size,
            create: false,
            fault: None,
        }
    }

    /// How long an operation may take on this engine.
    #[must_use]
    pub fn timeout(&self, driver: EngineKind) -> Duration {
        let usual_ms = match driver {
            EngineKind::Passthru | EngineKind::Vfio => 30_000,
            EngineKind::Auto | EngineKind::Uring | EngineKind::Mem | EngineKind::Fault => 120_000,
        };
        Duration::from_millis(self.timeout_ms.unwrap_or(usual_ms))
    }

    /// The engine that drives it, or that the fault engine wraps: what the path is decides where nothing is said.
    ///
    /// # Errors
    /// Says what the path should be for the engine that is asked for.
    pub fn driver(&self) -> std::result::Result<EngineKind, &'static str> {
        let asked = self.fault.as_ref().map_or(self.engine, |f| f.inner);
        match (asked, Place::of(&self.path)) {
            (EngineKind::Auto | EngineKind::Vfio, Place::Pci { .. }) => Ok(EngineKind::Vfio),
            (EngineKind::Auto | EngineKind::Passthru, Place::Generic(_)) => {
                Ok(EngineKind::Passthru)
            }
            (EngineKind::Auto | EngineKind::Uring, Place::Path(_)) => Ok(EngineKind::Uring),
            (EngineKind::Mem, _) => Ok(EngineKind::Mem),
            (EngineKind::Vfio, _) => {
                Err("engine \"vfio\" wants a PCI address, such as 0000:01:00.0")
            }
            (EngineKind::Passthru, _) => Err("engine \"passthru\" wants a device /dev/ngXnY"),
            (EngineKind::Uring, _) => Err("engine \"uring\" wants a file or a block device"),
            (EngineKind::Fault, _) => Err("a fault engine wraps any other, but not itself"),
        }
    }
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

fn idle_us() -> u64 {
    200
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
            let driver =
                device.driver().map_err(|e| Error::Config(format!("device {path}: {e}")))?;
            if driver == EngineKind::Mem && device.size.is_none() {
                return wrong(format!("device {path}: engine \"mem\" needs a size"));
            }
            if device.polled.is_some() && driver != EngineKind::Passthru {
                return wrong(format!("device {path}: polled is for engine \"passthru\""));
            }
            if device.timeout_ms.is_some_and(|ms| !TIMEOUT_MS.contains(&ms)) {
                let (low, high) = (TIMEOUT_MS.start(), TIMEOUT_MS.end());
                return wrong(format!("device {path}: timeout_ms is {low} to {high}"));
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
        if let Some(nvmet) = &self.nvmet {
            nvmet.check()?;
        } else if let Some(export) = self.export.first() {
            return wrong(format!("export of {:?}: there is no [nvmet]", export.volume));
        }
        for export in &self.export {
            export.check().map_err(|e| Error::Config(e.to_string()))?;
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
        assert_eq!((config.cores, config.idle_us), (1, 200));
        assert_eq!(config.device[0].engine, EngineKind::Auto);
    }

    #[test]
    fn the_shipped_configuration_is_sound() {
        let config = Config::parse(include_str!("../../config/blockd.toml")).unwrap();
        assert_eq!(config.export[0].volume, config.volume[0].name);
        assert!(config.nvmet.is_some());
    }

    #[test]
    fn the_path_chooses_the_engine() {
        let cases = [
            ("0000:01:00.0", "auto", Some(EngineKind::Vfio)),
            ("01:00.0/n2", "vfio", Some(EngineKind::Vfio)),
            ("/dev/ng0n1", "auto", Some(EngineKind::Passthru)),
            ("/dev/nvme0n1", "auto", Some(EngineKind::Uring)),
            ("/dev/nvme0n1", "passthru", None),
            ("/dev/ng0n1", "uring", None),
            ("/dev/ng0n1", "vfio", None),
            ("0000:01:00.0", "passthru", None),
        ];
        for (path, engine, expected) in cases {
            let text = format!("{HEAD}[[device]]\npath = '{path}'\nengine = '{engine}'\n");
            let driver = Config::parse(&text).ok().and_then(|c| c.device[0].driver().ok());
            assert_eq!(driver, expected, "{path} {engine}");
        }
        let text = "[[device]]\npath = '/dev/ng0n1'\nengine = 'fault'\n[device.fault]\n";
        let config = Config::parse(&format!("{HEAD}{text}")).unwrap();
        assert_eq!(config.device[0].driver(), Ok(EngineKind::Passthru));
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
            ("[[device]]\npath = '/d'\npolled = true\n", "polled"),
            ("[[device]]\npath = '/dev/ng0n1'\ntimeout_ms = 1\n", "timeout_ms"),
            ("[[device]]\npath = '/d'\nengine = 'vfio'\n", "PCI address"),
            (
                "[[device]]\npath = '/d'\nengine = 'fault'\n[device.fault]\ninner = 'fault'\n",
                "itself",
            ),
            (
                "[[device]]\npath = '/d'\n[[volume]]\nname = 'v'\nsize = 1\ndevice = '/e'\n",
                "not listed",
            ),
            ("[[device]]\npath = '/d'\n[[export]]\nvolume = 'v'\nany_host = true\n", "[nvmet]"),
            ("[nvmet]\n[[device]]\npath = '/d'\n[[export]]\nvolume = 'v'\n", "any_host"),
            ("[nvmet]\nqueue_depth = 1\n[[device]]\npath = '/d'\n", "queue_depth"),
            ("[nvmet]\nlisten = []\n[[device]]\npath = '/d'\n", "listen"),
            (
                "[nvmet]\n[[device]]\npath = '/d'\n[[export]]\nvolume = 'v'\n\
                 [[export.host]]\nnqn = 'iqn.x'\n",
                "iqn.x",
            ),
        ];
        for (text, word) in cases {
            let error = Config::parse(&format!("{HEAD}{text}")).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
