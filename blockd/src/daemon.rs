//! The daemon as a whole: devices, pools, reactors and doors, from a configuration.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::{Config, DeviceConfig, EngineKind, VolumeConfig};
use crate::engine::{BLOCK_BYTES, Device, Fault, Mem, Memory, Passthru, Uring, Vfio, Watched};
use crate::error::{Error, Result};
use crate::nvme::address::Place;
use crate::nvmet;
use crate::pool::{Mapper, Pool};
use crate::reactor::{self, Client, Handle, Share, Stats};
use crate::volume::Volume;

/// Memory for what does not come in a client's arena, where a device can be told of it once: data of NVMe/TCP hosts and of
/// the pool. What is beyond is copied through a bounce buffer, or pinned for each command.
const DMA_BYTES: usize = 64 << 20;

/// See the module.
#[derive(Debug)]
pub struct Daemon {
    pools: Vec<Arc<Pool>>,
    reactors: Mutex<Vec<Handle>>,
    mappers: Mutex<Vec<Mapper>>,
    stats: Vec<Arc<Stats>>,
    next_core: AtomicUsize,
    nvmet: Option<nvmet::Target>,
    ipc_socket: PathBuf,
    // Volumes that the configuration makes when they are missing.
    configured: Vec<String>,
}

impl Daemon {
    /// Opens all devices, makes the volumes that are missing, and starts the reactors.
    pub fn start(config: &Config) -> Result<Daemon> {
        let nvme = [Ok(EngineKind::Passthru), Ok(EngineKind::Vfio)];
        if config.device.iter().any(|d| nvme.contains(&d.driver()))
            && let Err(error) = Memory::share_pool(DMA_BYTES)
        {
            tracing::warn!(%error, "no memory that devices know: what hosts send is copied once more");
        }
        let mut pools = Vec::new();
        for device in &config.device {
            let path = device.path.display().to_string();
            pools.push(Arc::new(Pool::open(&path, open(device)?, device.create)?));
        }
        let failed = |source| Error::Device {
            path: config.device[0].path.display().to_string(),
            doing: "starting a reactor",
            source,
        };
        let mut mappers = Vec::new();
        for pool in &pools {
            mappers.push(Mapper::start(Arc::clone(pool)).map_err(failed)?);
        }
        let mut reactors = Vec::new();
        for core in 0..config.cores {
            let idle = Duration::from_micros(config.idle_us);
            reactors.push(reactor::start(core, &pools, &mappers, idle).map_err(failed)?);
        }
        let stats = reactors.iter().map(|r| Arc::clone(&r.stats)).collect();
        let mut daemon = Daemon {
            pools,
            reactors: Mutex::new(reactors),
            mappers: Mutex::new(mappers),
            stats,
            next_core: AtomicUsize::new(0),
            nvmet: None,
            ipc_socket: std::path::absolute(&config.ipc_socket)
                .unwrap_or_else(|_| config.ipc_socket.clone()),
            configured: config.volume.iter().map(|v| v.name.clone()).collect(),
        };
        for volume in &config.volume {
            if daemon.find(&volume.name).is_err() {
                daemon.create(volume)?;
                tracing::info!(volume = volume.name, bytes = volume.size, "volume created");
            }
        }
        if let Some(nvmet) = &config.nvmet {
            daemon.nvmet = Some(nvmet::Target::start(nvmet, &config.export, &daemon)?);
        }
        Ok(daemon)
    }

    /// The NVMe/TCP target, if there is one.
    #[must_use]
    pub fn nvmet(&self) -> Option<&nvmet::Target> {
        self.nvmet.as_ref()
    }

    /// The socket of the data door.
    #[must_use]
    pub fn ipc_socket(&self) -> &Path {
        &self.ipc_socket
    }

    /// Whether the configuration makes a volume of that name at the next start, if there is none.
    #[must_use]
    pub fn is_configured(&self, volume: &str) -> bool {
        self.configured.iter().any(|name| name == volume)
    }

    #[must_use]
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    #[must_use]
    pub fn stats(&self) -> &[Arc<Stats>] {
        &self.stats
    }

    /// The pool that has a volume.
    pub fn find(&self, name: &str) -> Result<&Arc<Pool>> {
        self.pools
            .iter()
            .find(|p| p.volumes().iter().any(|v| v.name == name))
            .ok_or_else(|| Error::NoVolume(name.to_owned()))
    }

    /// Makes a volume on the device it names, or on the one with the most free space.
    pub fn create(&self, volume: &VolumeConfig) -> Result<Arc<Volume>> {
        if self.find(&volume.name).is_ok() {
            return Err(Error::Exists(volume.name.clone()));
        }
        let wanted = volume.device.as_ref().map(|d| d.display().to_string());
        self.pools
            .iter()
            .filter(|p| wanted.as_ref().is_none_or(|path| p.status().path == *path))
            .max_by_key(|p| p.status().extents_free)
            .ok_or_else(|| Error::NoDevice(wanted.clone().unwrap_or_default()))?
            .create(&volume.name, volume.size, volume.thin)
    }

    /// Resets the controller of a device; operations in flight are sent again.
    pub fn reset(&self, path: &str) -> Result<()> {
        let pool = self.pools.iter().find(|p| p.status().path == path);
        let pool = pool.ok_or_else(|| Error::NoDevice(path.to_owned()))?;
        pool.device().reset().map_err(|source| Error::Device {
            path: path.to_owned(),
            doing: "resetting its controller",
            source,
        })
    }

    /// Removes a volume and all it holds. Refused while it is used or exported.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.unexported(name)?;
        self.find(name)?.delete(name)
    }

    /// Gives a volume another size. Refused while it is used or exported: a host would not believe the new one.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<Arc<Volume>> {
        self.unexported(name)?;
        self.find(name)?.resize(name, bytes)
    }

    fn unexported(&self, name: &str) -> Result<()> {
        let exports = self.nvmet.as_ref().map(|t| t.names_of(name)).unwrap_or_default();
        match exports.into_iter().next() {
            Some(nqn) => Err(Error::Exported { volume: name.to_owned(), nqn }),
            None => Ok(()),
        }
    }

    /// A use of the volume, counted until the last clone is dropped.
    pub fn connect(&self, name: &str) -> Result<Arc<Share>> {
        for (pool, of) in self.pools.iter().enumerate() {
            match of.connect(name) {
                Ok(volume) => return Ok(Arc::new(Share { pool, volume })),
                Err(Error::NoVolume(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::NoVolume(name.to_owned()))
    }

    /// Gives a connected client to a reactor, each in turn.
    pub fn serve(&self, client: Box<dyn Client>) {
        let reactors = self.reactors.lock().unwrap_or_else(PoisonError::into_inner);
        let core = self.next_core.fetch_add(1, Ordering::Relaxed) % reactors.len();
        reactors[core].admit(client);
    }

    /// Ends the reactors after what is in flight, and then the devices.
    pub fn stop(&self) {
        for reactor in self.reactors.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            reactor.stop();
        }
        for mapper in self.mappers.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            mapper.stop();
        }
        for pool in &self.pools {
            pool.device().shut_down();
        }
    }
}

/// Opens a device of the configuration with its engine.
pub fn open(config: &DeviceConfig) -> Result<Arc<dyn Device>> {
    let driver = config.driver().map_err(|e| Error::Config(e.to_owned()))?;
    let mut device = open_plain(config, driver)?;
    if let Some(fault) = &config.fault {
        let wrapped = Fault::new(device, fault.rates.clone());
        device = Arc::new(wrapped.map_err(|e| device_error(config, "opening a queue", e))?);
    } else if matches!(driver, EngineKind::Mem | EngineKind::Passthru | EngineKind::Vfio) {
        // RAM does not hang, and the NVMe engines see to that themselves.
        return Ok(device);
    }
    let path = config.path.display().to_string();
    Ok(Arc::new(Watched::new(path, device, config.timeout(driver))))
}

fn open_plain(config: &DeviceConfig, driver: EngineKind) -> Result<Arc<dyn Device>> {
    let timeout = config.timeout(driver);
    let shared = |device| -> Arc<dyn Device> { device };
    let opened = match driver {
        EngineKind::Mem => {
            let bytes = config.size.unwrap_or(0) / BLOCK_BYTES * BLOCK_BYTES;
            return Ok(Arc::new(Mem::new(bytes)));
        }
        EngineKind::Passthru => {
            Passthru::open(&config.path, config.polled, timeout).map(|d| shared(Arc::new(d)))
        }
        EngineKind::Vfio => match Place::of(&config.path) {
            Place::Pci { address, nsid } => {
                Vfio::open(address, nsid, timeout).map(|d| shared(Arc::new(d)))
            }
            Place::Generic(_) | Place::Path(_) => {
                unreachable!("driver() wants an address for vfio")
            }
        },
        EngineKind::Auto | EngineKind::Uring | EngineKind::Fault => {
            Uring::open(&config.path, config.create, config.size).map(|d| shared(Arc::new(d)))
        }
    };
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => Error::InUse { path: config.path.display().to_string() },
        _ => device_error(config, "opening", error),
    })
}

fn device_error(config: &DeviceConfig, doing: &'static str, source: std::io::Error) -> Error {
    Error::Device { path: config.path.display().to_string(), doing, source }
}

/// Removes a socket that nobody listens on any more, so that it can be bound again.
pub fn clear_socket(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() || UnixStream::connect(path).is_ok() {
        return Err(Error::Config(format!("{} is in use", path.display())));
    }
    std::fs::remove_file(path)
        .map_err(|e| Error::Config(format!("removing the old socket {}: {e}", path.display())))
}

/// Binds a socket that only this user may connect to.
pub fn bind(path: &Path) -> Result<UnixListener> {
    clear_socket(path)?;
    let listener = UnixListener::bind(path)
        .map_err(|e| Error::Config(format!("binding {}: {e}", path.display())))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| Error::Config(format!("protecting {}: {e}", path.display())))?;
    Ok(listener)
}
