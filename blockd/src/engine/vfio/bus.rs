//! The seam between the driver and the way to its controller: vfio, or a simulated controller in tests.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

/// Registers, memory and interrupts of one controller.
pub trait Bus: Send + Sync {
    /// A 32-bit register of BAR 0. All ones if the device is gone.
    fn read32(&self, offset: usize) -> u32;
    fn write32(&self, offset: usize, value: u32);
    fn register_bytes(&self) -> usize;

    /// Shows memory to the device, which must stay mapped until `unmap`; gives its address there. `bytes` is a multiple
    /// of 2 MiB.
    fn map(&self, start: NonNull<u8>, bytes: usize) -> io::Result<u64>;
    fn unmap(&self, iova: u64, bytes: usize);

    /// Interrupt vectors; 0 if there are no interrupts.
    fn vectors(&self) -> u16;
    /// Connects a vector with an eventfd, or with nothing.
    fn connect(&self, vector: u16, fd: Option<RawFd>) -> io::Result<()>;

    /// Becomes readable when the device is to be given back at once.
    fn removal_fd(&self) -> Option<RawFd>;
    /// Resets the function, beyond what the controller's own registers do.
    fn function_reset(&self) -> io::Result<()>;
    /// The end: from now on the device transfers nothing, and its registers read as those of a device that is gone. At once.
    fn isolate(&self);
    /// After `isolate`: the kernel may have the function back, whoever still holds this bus. May take a minute, for the
    /// kernel resets the function, and waits for one that is not there.
    fn release(&self);
}
