//! The thread that accepts hosts, and that is the target's clock.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::registry::Bound;
use super::socket::Socket;
use super::target::Target;
use crate::config::NvmetConfig;
use crate::daemon::Daemon;
use crate::engine::wait_readable;
use crate::error::{Error, Result};

/// How often silent hosts are looked for, while there are hosts.
const TICK: Duration = Duration::from_millis(500);

/// The sockets of the target.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(TcpListener, bool)>,
}

impl Listeners {
    /// Binds all addresses.
    pub fn bind(config: &NvmetConfig, target: &Target) -> Result<Listeners> {
        let mut sockets = Vec::new();
        for (addresses, discovery) in [(&config.listen, false), (&config.discovery, true)] {
            for address in addresses {
                sockets.push((bind(*address)?, discovery));
            }
        }
        let listeners = Listeners { sockets };
        let bound = Bound { io: listeners.addresses(false), discovery: listeners.addresses(true) };
        target
            .registry
            .bound
            .set(bound)
            .map_err(|_| Error::Config("[nvmet] is listened on already".to_owned()))?;
        Ok(listeners)
    }

    /// The addresses as they were bound, of I/O or of discovery.
    #[must_use]
    pub fn addresses(&self, discovery: bool) -> Vec<SocketAddr> {
        let of = self.sockets.iter().filter(|(_, d)| *d == discovery);
        of.filter_map(|(socket, _)| socket.local_addr().ok()).collect()
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    let failed = |e: std::io::Error| {
        Error::Config(format!("[nvmet] listening on {address}: {e}; is another target running?"))
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Accepts hosts until the process ends.
pub fn serve(listeners: &Listeners, daemon: &Arc<Daemon>) {
    let Some(target) = daemon.nvmet() else { return };
    let registry = &target.registry;
    let fds: Vec<RawFd> = listeners.sockets.iter().map(|(s, _)| s.as_raw_fd()).collect();
    let mut last_tick = Instant::now();
    loop {
        let busy = registry.connections.load(Ordering::Acquire) > 0;
        let timeout_ms = busy.then_some(TICK.as_millis() as i32);
        if let Err(error) = wait_readable(&fds, timeout_ms) {
            tracing::error!(%error, "waiting for hosts failed");
            std::thread::sleep(Duration::from_millis(100));
        }
        for (socket, discovery) in &listeners.sockets {
            accept(socket, *discovery, daemon, target);
        }
        let now = Instant::now();
        if now.saturating_duration_since(last_tick) >= TICK {
            last_tick = now;
            registry.tick(now);
        }
    }
}

fn accept(socket: &TcpListener, discovery: bool, daemon: &Daemon, target: &Target) {
    let registry = &target.registry;
    loop {
        let (stream, peer) = match socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => {
                // Out of descriptors, most likely; they come back when a connection ends.
                tracing::error!(%error, "accepting a host failed");
                std::thread::sleep(Duration::from_millis(100));
                return;
            }
        };
        let limit = registry.limits.connections_max;
        if registry.connections.fetch_add(1, Ordering::AcqRel) >= limit {
            registry.connections.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%peer, limit, "a host was refused: too many connections");
            continue;
        }
        match Socket::new(stream, registry, discovery) {
            Ok(client) => daemon.serve(Box::new(client)),
            Err(error) => {
                registry.connections.fetch_sub(1, Ordering::AcqRel);
                tracing::error!(%peer, %error, "a host's connection could not be set up");
            }
        }
    }
}
