//! The volume in bytes and slots. Offsets and lengths are multiples of [`BLOCK`].

use blockd_ipc::volume::Volume;
use hugepages::Buffer;

use super::error::{Error, Kind};
use super::format::{BLOCK, SLOTS_START, VolumeHeader};

/// Longest single transfer, in bytes; the volume may allow less.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Failed reads of one range after which it is not single blocks that cannot be read.
const UNREADABLE_MAX: u32 = 64;

pub(super) struct Device<V> {
    pub volume: V,
    pub header: VolumeHeader,
}

impl<V: Volume> Device<V> {
    pub fn slot_start(&self, slot: u32) -> u64 {
        SLOTS_START + u64::from(slot) * u64::from(self.header.segment_bytes)
    }

    pub fn segment_bytes(&self) -> usize {
        self.header.segment_bytes as usize
    }

    fn lba(&self, offset: u64) -> u64 {
        offset / u64::from(self.volume.geometry().block_size)
    }

    /// Bytes of one transfer at most.
    pub fn piece(&self) -> usize {
        let most = self.volume.geometry().transfer_bytes_max as usize / BLOCK * BLOCK;
        most.clamp(BLOCK, PIECE_BYTES_MAX)
    }

    /// Writes the parts one after the other, and zeros up to the end of the block. The one copy on
    /// the way to the device: out of where each part was sealed, into a buffer that it reads.
    pub async fn write(&self, mut offset: u64, parts: &[&[u8]]) -> Result<(), Error> {
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        left = left.next_multiple_of(BLOCK);
        let mut parts = parts.iter().copied();
        let mut part: &[u8] = &[];
        while left > 0 {
            let piece = left.min(self.piece());
            let mut buffer = self.volume.buffer(piece).await?;
            buffer.set_len(piece);
            let mut at = 0;
            while at < piece {
                if part.is_empty() {
                    let Some(next) = parts.next() else { break };
                    part = next;
                }
                let len = part.len().min(piece - at);
                buffer[at..at + len].copy_from_slice(&part[..len]);
                at += len;
                part = &part[len..];
            }
            buffer[at..].fill(0);
            self.volume.write(self.lba(offset), buffer, false).await?;
            offset += piece as u64;
            left -= piece;
        }
        Ok(())
    }

    /// At most [`Device::piece`] bytes, in the buffer that the device wrote to.
    pub async fn read_piece(&self, offset: u64, len: usize) -> Result<Buffer, Error> {
        let mut buffer = self.volume.buffer(len).await?;
        buffer.set_len(len);
        Ok(self.volume.read(self.lba(offset), buffer).await?)
    }

    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let piece = (len - out.len()).min(self.piece());
            out.extend_from_slice(&self.read_piece(offset + out.len() as u64, piece).await?);
        }
        Ok(out)
    }

    /// As [`Device::read`], with zeros for single blocks that the device cannot read.
    ///
    /// # Errors
    /// `Io`: it reads nothing of the range, or fails too often.
    pub async fn read_around(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let whole = match self.read(offset, len).await {
            Err(error) if error.kind() == Kind::Io => error,
            done => return done,
        };
        let mut out = vec![0; len];
        let (mut failures, mut any) = (1, false);
        // Halves of what fails, and halves of these, down to the blocks that are to blame.
        let mut left = vec![(0, len)];
        while let Some((at, len)) = left.pop() {
            let half = (len / 2).next_multiple_of(BLOCK);
            if len > self.piece() {
                left.extend([(at + half, len - half), (at, half)]);
                continue;
            }
            match self.read_piece(offset + at as u64, len).await {
                Ok(piece) => {
                    out[at..at + len].copy_from_slice(&piece);
                    any = true;
                }
                Err(error) if error.kind() == Kind::Io && failures < UNREADABLE_MAX => {
                    failures += 1;
                    if len > BLOCK {
                        left.extend([(at + half, len - half), (at, half)]);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match any {
            true => Ok(out),
            false => Err(whole),
        }
    }

    pub async fn deallocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        Ok(self.volume.deallocate(self.lba(offset), self.lba(len)).await?)
    }
}
