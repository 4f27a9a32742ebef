//! Header and data digests: CRC32C, little-endian on the wire (NVMe/TCP §3.3.1.1).

use crc_fast::{CrcAlgorithm, Digest};

use crate::engine::Memory;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 4;

/// The digest of some bytes.
pub fn of(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A digest that is computed as the data comes.
#[derive(Clone, Debug)]
pub struct Running(Digest);

impl Running {
    pub fn new() -> Running {
        Running(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn memory(&mut self, memory: &Memory, at: usize, len: usize) {
        let mut bounce = [0; 4096];
        let mut done = 0;
        while done < len {
            let n = bounce.len().min(len - done);
            memory.read(at + done, &mut bounce[..n]);
            self.0.update(&bounce[..n]);
            done += n;
        }
    }

    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_one_go_and_in_pieces() {
        // RFC 3720 B.4: 32 bytes of zeros.
        assert_eq!(of(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        let data: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
        let mut running = Running::new();
        running.bytes(&data[..7]);
        running.memory(&Memory::copy_of(&data), 7, data.len() - 7);
        assert_eq!(running.value(), of(&data));
    }
}
