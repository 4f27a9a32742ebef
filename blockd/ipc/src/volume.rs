//! [`Volume`]: what a user of blocks sees, whoever provides them.
//!
//! The seam for simulation: `blockd_ipc::RemoteVolume` is the real one, over shared memory to blockd;
//! `blockd_ipc::sim::SimVolume` is memory with a volatile cache that a test can cut the power of.

use std::future::Future;

use hugepages::Buffer;

use crate::error::{Error, Kind};

/// Size and rules of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a logical block: 512 or 4096.
    pub block_size: u32,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Longest single read or write, in bytes.
    pub transfer_bytes_max: u32,
}

impl Geometry {
    /// Whether the range lies in the volume.
    ///
    /// # Errors
    /// `OutOfRange`, with `op` and the range as context.
    pub fn check(&self, op: &str, lba: u64, blocks: u64) -> Result<(), Error> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(Error::new(Kind::OutOfRange, format!("{op} of {blocks} blocks at {lba}"))),
        }
    }
}

/// An LBA space. Offsets and lengths are in blocks; a buffer's length decides how many.
///
/// A buffer in flight belongs to the operation: it is moved in and comes back with the completion.
/// An operation that fails gives its error; its buffer is freed when the device is done with it.
pub trait Volume: Send + Sync + 'static {
    fn geometry(&self) -> Geometry;

    /// A DMA-able buffer of at least `len` bytes (rounded up to blocks); waits while none is free.
    fn buffer(&self, len: usize) -> impl Future<Output = Result<Buffer, Error>> + Send;

    /// Fills the buffer from `lba` on.
    fn read(&self, lba: u64, buffer: Buffer) -> impl Future<Output = Result<Buffer, Error>> + Send;

    /// Writes the buffer. Durable after a later `flush`, or on completion with `fua`.
    fn write(
        &self,
        lba: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = Result<Buffer, Error>> + Send;

    /// Makes every write completed before this call durable. A failed flush poisons the volume.
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Gives the space of the range back; it reads as zeros or as it was until written again.
    fn deallocate(&self, lba: u64, blocks: u64) -> impl Future<Output = Result<(), Error>> + Send;
}
