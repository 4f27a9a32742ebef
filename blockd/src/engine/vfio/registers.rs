//! The controller's registers (NVMe base 2.0 §3.1.3): what it can do, whether it is ready, and its doorbells.

use std::io;
use std::time::{Duration, Instant};

use super::bus::Bus;

const CAP: usize = 0x00;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

const CC_ENABLE: u32 = 1;
/// Entries of 64 and 16 bytes, pages of 4096, the NVM command set.
const CC_SIZES: u32 = 6 << 16 | 4 << 20;
const CC_SHUTDOWN: u32 = 1 << 14;
const CC_SHUTDOWN_MASK: u32 = 3 << 14;
const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 1 << 1;
const CSTS_SHUTDOWN_MASK: u32 = 3 << 2;
const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;
/// What every register of a device that is gone reads as.
const GONE: u32 = u32::MAX;
/// A controller that has flushed its cache for this long is left alone.
const SHUTDOWN_TIME: Duration = Duration::from_secs(15);

/// How a controller is, by its status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    NotReady,
    /// It has given up and wants a reset.
    Fatal,
    Gone,
}

/// What CAP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of a queue at most.
    pub entries_max: u32,
    /// Longest time to become ready, or not ready.
    pub timeout: Duration,
    /// Bytes from one doorbell to the next.
    pub stride: usize,
}

/// Reads and checks CAP.
///
/// # Errors
/// If the controller cannot be driven, and why.
pub fn capabilities(bus: &dyn Bus) -> io::Result<Capabilities> {
    let (low, high) = (bus.read32(CAP), bus.read32(CAP + 4));
    if low == GONE && high == GONE {
        return Err(gone());
    }
    if high >> 5 & 1 == 0 {
        return Err(io::Error::other("it does not know the NVM command set"));
    }
    if high >> 16 & 0xf != 0 {
        return Err(io::Error::other("it does not take pages of 4096 bytes"));
    }
    Ok(Capabilities {
        entries_max: (low & 0xffff) + 1,
        timeout: Duration::from_millis(500) * (low >> 24).max(1),
        stride: 4 << (high & 0xf),
    })
}

pub fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

pub fn state(bus: &dyn Bus) -> State {
    match bus.read32(CSTS) {
        GONE => State::Gone,
        status if status & CSTS_FATAL != 0 => State::Fatal,
        status if status & CSTS_READY != 0 => State::Ready,
        _ => State::NotReady,
    }
}

fn wait(bus: &dyn Bus, time: Duration, done: impl Fn(u32) -> bool) -> io::Result<()> {
    let end = Instant::now() + time;
    loop {
        let late = Instant::now() >= end;
        match bus.read32(CSTS) {
            GONE => return Err(gone()),
            status if done(status) => return Ok(()),
            _ if late => return Err(io::ErrorKind::TimedOut.into()),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Stops the controller: afterwards it has no queues and transfers nothing.
///
/// # Errors
/// `TimedOut` if it does not stop; `ENODEV` if it is gone.
pub fn disable(bus: &dyn Bus, capabilities: &Capabilities) -> io::Result<()> {
    let config = bus.read32(CC);
    if config == GONE {
        return Err(gone());
    }
    if config & CC_ENABLE != 0 {
        // Not while it is still becoming ready; one that failed never does.
        let _ = wait(bus, capabilities.timeout, |s| s & (CSTS_READY | CSTS_FATAL) != 0);
        bus.write32(CC, config & !CC_ENABLE & !CC_SHUTDOWN_MASK);
    }
    wait(bus, capabilities.timeout, |s| s & CSTS_READY == 0)
}

/// Starts it with an admin queue of `entries` at these addresses.
///
/// # Errors
/// As [`disable`].
pub fn enable(
    bus: &dyn Bus,
    capabilities: &Capabilities,
    entries: u16,
    sq: u64,
    cq: u64,
) -> io::Result<()> {
    let size = u32::from(entries - 1);
    bus.write32(AQA, size << 16 | size);
    for (register, address) in [(ASQ, sq), (ACQ, cq)] {
        bus.write32(register, address as u32);
        bus.write32(register + 4, (address >> 32) as u32);
    }
    bus.write32(CC, CC_SIZES | CC_ENABLE);
    wait(bus, capabilities.timeout, |s| s & CSTS_READY != 0)
}

/// Tells the controller that it will lose power: it flushes its cache and comes to rest (§3.6.1).
///
/// # Errors
/// As [`disable`].
pub fn shut_down(bus: &dyn Bus) -> io::Result<()> {
    let config = bus.read32(CC);
    if config == GONE {
        return Err(gone());
    }
    bus.write32(CC, config & !CC_SHUTDOWN_MASK | CC_SHUTDOWN);
    wait(bus, SHUTDOWN_TIME, |s| s & CSTS_SHUTDOWN_MASK == CSTS_SHUTDOWN_DONE)
}

/// Where the doorbell of a queue is.
pub fn doorbell(capabilities: &Capabilities, queue: u16, is_completion: bool) -> usize {
    DOORBELLS + (2 * usize::from(queue) + usize::from(is_completion)) * capabilities.stride
}

/// Highest queue whose doorbells lie in the registers.
pub fn queue_max(bus: &dyn Bus, capabilities: &Capabilities) -> u16 {
    let pairs = bus.register_bytes().saturating_sub(DOORBELLS) / (2 * capabilities.stride);
    pairs.saturating_sub(1).min(usize::from(u16::MAX - 1)) as u16
}
