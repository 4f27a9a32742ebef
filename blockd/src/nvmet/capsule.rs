//! Commands and completions: accessors for the fields of an SQE, and the bytes of a CQE.

use super::pdu::{u16_at, u32_at, u64_at};
use super::status::Status;

/// A submission queue entry as it came.
#[derive(Clone, Copy, Debug)]
pub struct Sqe(pub [u8; 64]);

/// Where the data of a command is, by its SGL descriptor (NVMe base 2.0 §4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgl {
    /// In the capsule itself.
    Capsule { len: u32 },
    /// Fetched with R2T, or sent with C2HData.
    Transport { len: u32 },
}

impl Sgl {
    pub fn len(self) -> u32 {
        match self {
            Sgl::Capsule { len } | Sgl::Transport { len } => len,
        }
    }
}

impl Sqe {
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    pub fn id(&self) -> u16 {
        u16_at(&self.0, 2)
    }

    pub fn fabrics_type(&self) -> u8 {
        self.0[4]
    }

    pub fn nsid(&self) -> u32 {
        u32_at(&self.0, 4)
    }

    /// Command dword 10 to 15.
    pub fn dword(&self, number: usize) -> u32 {
        assert!((10..16).contains(&number), "dword {number}");
        u32_at(&self.0, number * 4)
    }

    /// Starting LBA of the I/O commands.
    pub fn lba(&self) -> u64 {
        u64_at(&self.0, 40)
    }

    /// Number of blocks, made 1's based.
    pub fn blocks(&self) -> u64 {
        u64::from(u16_at(&self.0, 48)) + 1
    }

    pub fn fua(&self) -> bool {
        self.dword(12) & 1 << 30 != 0
    }

    /// Neither fused nor with PRPs: fabrics use SGLs only.
    pub fn check_flags(&self) -> Result<(), Status> {
        let flags = self.0[1];
        let fused = flags & 3;
        let sgl = flags >> 6;
        if fused != 0 || !(sgl == 1 || sgl == 2) { Err(Status::INVALID_FIELD) } else { Ok(()) }
    }

    /// The one descriptor of the command; `in_capsule` bytes came with it.
    pub fn sgl(&self, in_capsule: usize) -> Result<Sgl, Status> {
        let (address, len) = (u64_at(&self.0, 24), u32_at(&self.0, 32));
        match self.0[39] {
            // Data block, address is an offset in the capsule.
            0x01 => {
                if address != 0 {
                    return Err(Status::SGL_OFFSET);
                }
                if len as usize != in_capsule {
                    return Err(Status::SGL_LENGTH);
                }
                Ok(Sgl::Capsule { len })
            }
            // Transport data block.
            0x5a if in_capsule == 0 => Ok(Sgl::Transport { len }),
            0x5a => Err(Status::SGL_LENGTH),
            // A null descriptor of a command without data.
            0x00 if len == 0 && in_capsule == 0 => Ok(Sgl::Transport { len }),
            _ => Err(Status::SGL_TYPE),
        }
    }
}

/// What goes back for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    pub result: u64,
    pub queue_head: u16,
    pub id: u16,
    pub status: Status,
}

impl Cqe {
    pub fn encode(&self) -> [u8; 16] {
        let mut b = [0; 16];
        b[0..8].copy_from_slice(&self.result.to_le_bytes());
        b[8..10].copy_from_slice(&self.queue_head.to_le_bytes());
        b[12..14].copy_from_slice(&self.id.to_le_bytes());
        b[14..16].copy_from_slice(&(self.status.0 << 1).to_le_bytes());
        b
    }
}
