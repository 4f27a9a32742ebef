//! The kernel's vfio: container, group, device (linux/vfio.h), and nothing of NVMe.
//!
//! ```text
//! /dev/vfio/vfio  container   IOMMU: which of our memory the device sees, and where
//! /dev/vfio/N     group       what the IOMMU cannot tell apart
//!   device fd                 BAR 0 (mapped), configuration space (read, written), interrupts (eventfds), reset
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use super::bus::Bus;
use super::iova::Space;
use crate::nvme::address::PciAddress;

const fn request(number: u64) -> libc::Ioctl {
    // _IO(';', 100 + number)
    (0x3b << 8 | (100 + number)) as libc::Ioctl
}
const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_GET_IRQ_INFO: libc::Ioctl = request(9);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET: libc::Ioctl = request(11);
const IOMMU_GET_INFO: libc::Ioctl = request(12);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
const IOMMU_UNMAP_DMA: libc::Ioctl = request(14);

const API_VERSION: i32 = 0;
const TYPE1V2: u64 = 3;
const GROUP_VIABLE: u32 = 1;
const REGION_MMAP: u32 = 1 << 2;
const REGION_BAR0: u32 = 0;
const REGION_CONFIG: u32 = 7;
const IRQ_MSIX: u32 = 2;
const IRQ_REMOVAL: u32 = 4;
const SET_EVENTFDS: u32 = 1 << 2 | 1 << 5;
const MAP_READ_WRITE: u32 = 3;
const UNMAP_ALL: u32 = 1 << 1;
const CAP_IOVA_RANGES: u16 = 1;
/// Vectors that are asked for; queues beyond have none and are polled.
const VECTORS_MAX: u32 = 64;
/// Of configuration space: the command register, and its bit that lets the device start transfers.
const COMMAND_AT: u64 = 4;
const BUS_MASTER: u16 = 1 << 2;

#[repr(C)]
struct Words<const N: usize>([u32; N]);

/// Runs an ioctl whose argument is a structure that starts with its own size.
fn ioctl<const N: usize>(
    file: RawFd,
    request: libc::Ioctl,
    argument: &mut Words<N>,
) -> io::Result<i32> {
    argument.0[0] = (N * 4) as u32;
    // SAFETY: every request here takes a structure of 32-bit words whose length its first word says; the kernel stays
    // within that length. Words are aligned to 4; the kernel copies, so 64-bit fields need no more.
    let result = unsafe { libc::ioctl(file, request, argument.0.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn plain(file: RawFd, request: libc::Ioctl, argument: u64) -> io::Result<i32> {
    // SAFETY: these requests take a number, not an address.
    let result = unsafe { libc::ioctl(file, request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn two(words: &[u32]) -> u64 {
    u64::from(words[0]) | u64::from(words[1]) << 32
}

fn put(words: &mut [u32], value: u64) {
    words[0] = value as u32;
    words[1] = (value >> 32) as u32;
}

/// A mapping of registers.
#[derive(Debug)]
struct Registers {
    start: NonNull<u32>,
    bytes: usize,
}

// SAFETY: device registers, accessed only by volatile 32-bit reads and writes, which the device orders.
unsafe impl Send for Registers {}
// SAFETY: as above.
unsafe impl Sync for Registers {}

impl Registers {
    /// Puts ordinary memory of all ones where the registers were.
    fn bury(&self) {
        // SAFETY: replaces a mapping of ours, at once and in place; whoever reads or writes there meanwhile meets either.
        let start = unsafe {
            libc::mmap(
                self.start.as_ptr().cast(),
                self.bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, "registers cannot be unmapped");
            return;
        }
        for offset in (0..self.bytes).step_by(4) {
            // SAFETY: inside the mapping.
            unsafe { self.start.byte_add(offset).write_volatile(u32::MAX) }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: mapped in `map_bar` with this length, and unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// A PCI function that this process drives. Dropping it gives it back.
#[derive(Debug)]
pub struct VfioBus {
    // In the order in which they are to be closed.
    registers: Registers,
    device: File,
    removal: Option<OwnedFd>,
    config_at: u64,
    vectors: u16,
    space: Space,
    container: File,
    group: File,
    isolated: AtomicBool,
    released: AtomicBool,
}

impl VfioBus {
    /// Opens the function, which is bound to vfio-pci.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it; others say what to do.
    pub fn open(address: PciAddress) -> io::Result<VfioBus> {
        let group_number = group_of(address)?;
        let container = open_rw("/dev/vfio/vfio".into())?;
        if plain(container.as_raw_fd(), GET_API_VERSION, 0)? != API_VERSION
            || plain(container.as_raw_fd(), CHECK_EXTENSION, TYPE1V2)? == 0
        {
            return Err(io::Error::other("the kernel's vfio has no type 1 version 2 IOMMU"));
        }
        let group = open_rw(format!("/dev/vfio/{group_number}").into()).map_err(|e| {
            match e.raw_os_error() {
                Some(libc::EBUSY) => io::ErrorKind::WouldBlock.into(),
                _ => e,
            }
        })?;
        let mut status = Words([0; 2]);
        ioctl(group.as_raw_fd(), GROUP_GET_STATUS, &mut status)?;
        if status.0[1] & GROUP_VIABLE == 0 {
            return Err(io::Error::other(format!(
                "IOMMU group {group_number} has other devices that are not bound to vfio-pci: \
                 scripts/vfio status {address}"
            )));
        }
        let container_fd = container.as_raw_fd();
        // SAFETY: the argument is the address of a descriptor, which lives for the call.
        if unsafe { libc::ioctl(group.as_raw_fd(), GROUP_SET_CONTAINER, &raw const container_fd) }
            < 0
        {
            return Err(io::Error::last_os_error());
        }
        plain(container.as_raw_fd(), SET_IOMMU, TYPE1V2)?;
        let name = std::ffi::CString::new(address.to_string()).expect("an address has no zeros");
        // SAFETY: the argument is a string that ends with a zero and lives for the call.
        let fd = unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let device = unsafe { File::from_raw_fd(fd) };
        let registers = map_bar(&device)?;
        let config_at = region(&device, REGION_CONFIG)?.offset;
        let vectors = enable_vectors(&device);
        let removal = watch_removal(&device);
        let space = Space::new(iova_ranges(&container));
        let bus = VfioBus {
            registers,
            device,
            removal,
            config_at,
            vectors,
            space,
            container,
            group,
            isolated: AtomicBool::new(false),
            released: AtomicBool::new(false),
        };
        bus.set_bus_master(true)?;
        Ok(bus)
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        let mut command = [0; 2];
        self.device.read_exact_at(&mut command, self.config_at + COMMAND_AT)?;
        let now = u16::from_le_bytes(command);
        let wanted = if on { now | BUS_MASTER } else { now & !BUS_MASTER };
        self.device.write_all_at(&wanted.to_le_bytes(), self.config_at + COMMAND_AT)
    }

    /// Takes memory from the device.
    fn hide(&self, iova: u64, bytes: u64) -> io::Result<i32> {
        let mut unmap = Words([0; 6]);
        put(&mut unmap.0[2..4], iova);
        put(&mut unmap.0[4..6], bytes);
        ioctl(self.container.as_raw_fd(), IOMMU_UNMAP_DMA, &mut unmap)
    }

    fn register(&self, offset: usize) -> NonNull<u32> {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= self.registers.bytes,
            "register {offset:#x}"
        );
        // SAFETY: inside the mapping (asserted).
        unsafe { self.registers.start.byte_add(offset) }
    }
}

fn open_rw(path: PathBuf) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(&path).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            io::Error::other(format!("{} is missing: load the module vfio-pci", path.display()))
        } else {
            e
        }
    })
}

/// The IOMMU group of a function that vfio-pci has.
fn group_of(address: PciAddress) -> io::Result<String> {
    let device = PathBuf::from(format!("/sys/bus/pci/devices/{address}"));
    if !device.exists() {
        return Err(io::Error::other("there is no such PCI device (lspci -D lists them)"));
    }
    let link = |name: &str| {
        let target = std::fs::read_link(device.join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    match link("driver") {
        Some(driver) if driver == "vfio-pci" => {}
        driver => {
            let driver = driver.as_deref().unwrap_or("no driver");
            return Err(io::Error::other(format!(
                "it is bound to {driver}: `scripts/vfio bind {address}` gives it to blockd, unless its disks are mounted"
            )));
        }
    }
    link("iommu_group")
        .ok_or_else(|| io::Error::other("it has no IOMMU group: boot with intel_iommu=on"))
}

struct Region {
    flags: u32,
    bytes: u64,
    offset: u64,
}

fn region(device: &File, index: u32) -> io::Result<Region> {
    let mut info = Words([0; 8]);
    info.0[2] = index;
    ioctl(device.as_raw_fd(), DEVICE_GET_REGION_INFO, &mut info)?;
    Ok(Region { flags: info.0[1], bytes: two(&info.0[4..6]), offset: two(&info.0[6..8]) })
}

fn map_bar(device: &File) -> io::Result<Registers> {
    let bar = region(device, REGION_BAR0)?;
    let bytes = usize::try_from(bar.bytes).unwrap_or(0);
    if bar.flags & REGION_MMAP == 0 || bytes < 0x2000 {
        return Err(io::Error::other("its registers cannot be mapped: it is no NVMe controller"));
    }
    // SAFETY: a new mapping of the kernel's choice; offset and length are what the kernel said of the region.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            device.as_raw_fd(),
            bar.offset as libc::off_t,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never gives address 0");
    Ok(Registers { start, bytes })
}

/// Turns MSI-X on with no vector connected. Without vectors everything is polled.
fn enable_vectors(device: &File) -> u16 {
    let mut info = Words([0; 4]);
    info.0[2] = IRQ_MSIX;
    let Ok(_) = ioctl(device.as_raw_fd(), DEVICE_GET_IRQ_INFO, &mut info) else { return 0 };
    let mut wanted = info.0[3].min(VECTORS_MAX);
    while wanted > 1 {
        match set_eventfds(device, IRQ_MSIX, 0, &vec![-1; wanted as usize]) {
            Ok(()) => return wanted as u16,
            // Fewer are to be had than the device has.
            Err(error) => {
                tracing::debug!(%error, wanted, "MSI-X");
                wanted /= 2;
            }
        }
    }
    0
}

fn set_eventfds(device: &File, index: u32, start: u32, fds: &[RawFd]) -> io::Result<()> {
    let mut set = vec![0; 5 + fds.len()];
    set[0] = (set.len() * 4) as u32;
    set[1..5].copy_from_slice(&[SET_EVENTFDS, index, start, fds.len() as u32]);
    for (word, fd) in set[5..].iter_mut().zip(fds) {
        *word = fd.cast_unsigned();
    }
    // SAFETY: a `vfio_irq_set` whose first word is its whole length; the kernel only reads it.
    match unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_SET_IRQS, set.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Becomes readable when the kernel wants the device back. Not every kernel says so.
fn watch_removal(device: &File) -> Option<OwnedFd> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    set_eventfds(device, IRQ_REMOVAL, 0, &[fd.as_raw_fd()]).ok()?;
    Some(fd)
}

/// The addresses that the IOMMU takes; a careful guess where the kernel does not say.
fn iova_ranges(container: &File) -> Vec<(u64, u64)> {
    let mut info = Words([0; 512]);
    let mut ranges = Vec::new();
    if ioctl(container.as_raw_fd(), IOMMU_GET_INFO, &mut info).is_ok() {
        // The chain of capabilities: id and version, offset of the next, contents.
        let mut at = info.0[4] as usize / 4;
        let mut links = 0;
        while at > 0 && at + 4 <= info.0.len() && links < 32 {
            if info.0[at] as u16 == CAP_IOVA_RANGES {
                let count = info.0[at + 2] as usize;
                ranges = info.0[at + 4..]
                    .chunks_exact(4)
                    .take(count)
                    .map(|r| (two(r), two(&r[2..])))
                    .collect();
            }
            at = info.0[at + 1] as usize / 4;
            links += 1;
        }
    }
    if ranges.is_empty() {
        // Above what interrupts use, below the 39 bits of a small IOMMU.
        ranges.push((1 << 32, (1 << 39) - 1));
    }
    ranges
}

impl Bus for VfioBus {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: a register inside the mapping; reading has no effect on memory.
        unsafe { self.register(offset).read_volatile() }
    }

    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: a register inside the mapping; what the device does then stays within memory that `map` gave it.
        unsafe { self.register(offset).write_volatile(value) }
    }

    fn register_bytes(&self) -> usize {
        self.registers.bytes
    }

    fn map(&self, start: NonNull<u8>, bytes: usize) -> io::Result<u64> {
        let iova = self.space.take(bytes as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut map = Words([0; 8]);
        map.0[1] = MAP_READ_WRITE;
        put(&mut map.0[2..4], start.as_ptr() as u64);
        put(&mut map.0[4..6], iova);
        put(&mut map.0[6..8], bytes as u64);
        if let Err(error) = ioctl(self.container.as_raw_fd(), IOMMU_MAP_DMA, &mut map) {
            self.space.give(iova);
            return Err(error);
        }
        Ok(iova)
    }

    fn unmap(&self, iova: u64, bytes: usize) {
        match self.hide(iova, bytes as u64) {
            Ok(_) => self.space.give(iova),
            // The range stays taken, so that nothing else is put there.
            // All were unmapped together.
            Err(_) if self.isolated.load(Ordering::Acquire) => {}
            Err(error) => {
                tracing::warn!(%error, iova, bytes, "unmapping memory from the device failed")
            }
        }
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn connect(&self, vector: u16, fd: Option<RawFd>) -> io::Result<()> {
        set_eventfds(&self.device, IRQ_MSIX, vector.into(), &[fd.unwrap_or(-1)])
    }

    fn removal_fd(&self) -> Option<RawFd> {
        self.removal.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn function_reset(&self) -> io::Result<()> {
        plain(self.device.as_raw_fd(), DEVICE_RESET, 0)?;
        self.set_bus_master(true)
    }

    fn isolate(&self) {
        if self.isolated.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.set_bus_master(false) {
            tracing::debug!(%error, "switching bus mastering off");
        }
        let mut unmap = Words([0; 6]);
        unmap.0[1] = UNMAP_ALL;
        if let Err(error) = ioctl(self.container.as_raw_fd(), IOMMU_UNMAP_DMA, &mut unmap) {
            tracing::debug!(%error, "unmapping all memory from the device at once");
            // Kernels before 5.12 know it only piece by piece.
            for (iova, bytes) in self.space.taken() {
                if let Err(error) = self.hide(iova, bytes) {
                    tracing::debug!(%error, iova, bytes, "unmapping memory from the device");
                }
            }
        }
        self.registers.bury();
    }

    fn release(&self) {
        self.isolate();
        if self.released.swap(true, Ordering::AcqRel) {
            return;
        }
        // The kernel waits for all of them before it lets the function go. Descriptors stay valid, and lead nowhere.
        let Ok(nowhere) = OpenOptions::new().read(true).write(true).open("/dev/null") else {
            return;
        };
        for file in [&self.device, &self.group, &self.container] {
            // SAFETY: both descriptors are open and ours; what the second was is closed by this.
            if unsafe { libc::dup3(nowhere.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
                let error = io::Error::last_os_error();
                tracing::warn!(%error, "a descriptor of vfio cannot be closed");
            }
        }
    }
}

impl Drop for VfioBus {
    fn drop(&mut self) {
        self.release();
    }
}
