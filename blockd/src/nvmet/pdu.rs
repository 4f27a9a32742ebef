//! PDUs of NVMe/TCP on the wire (NVMe/TCP transport 1.0, §3.6). Little-endian.
//!
//! ```text
//! common header   0 type · 1 flags · 2 HLEN · 3 PDO · 4..8 PLEN
//! ICReq      128  8..10 PFV · 10 HPDA · 11 digests · 12..16 MAXR2T (0's based)
//! ICResp     128  8..10 PFV · 10 CPDA · 11 digests · 12..16 MAXH2CDATA
//! TermReq     24  8..10 FES · 10..14 FEI · data: header of the PDU in error
//! CapsuleCmd  72  8..72 SQE · data
//! CapsuleResp 24  8..24 CQE
//! H2CData     24  8..10 CCCID · 10..12 TTAG · 12..16 DATAO · 16..20 DATAL · data
//! C2HData     24  8..10 CCCID · 12..16 DATAO · 16..20 DATAL · data
//! R2T         24  8..10 CCCID · 10..12 TTAG · 12..16 R2TO · 16..20 R2TL
//! ```

pub use crate::nvme::bytes::{u16_at, u32_at, u64_at};

pub const COMMON_BYTES: usize = 8;
pub const IC_BYTES: usize = 128;
pub const TERM_BYTES: usize = 24;
pub const COMMAND_BYTES: usize = 72;
pub const RESPONSE_BYTES: usize = 24;
pub const DATA_BYTES: usize = 24;
pub const R2T_BYTES: usize = 24;
/// Longest TermReq, with its data.
pub const TERM_BYTES_MAX: usize = 152;

pub const IC_REQUEST: u8 = 0x00;
pub const IC_RESPONSE: u8 = 0x01;
pub const H2C_TERM: u8 = 0x02;
pub const C2H_TERM: u8 = 0x03;
pub const COMMAND: u8 = 0x04;
pub const RESPONSE: u8 = 0x05;
pub const H2C_DATA: u8 = 0x06;
pub const C2H_DATA: u8 = 0x07;
pub const R2T: u8 = 0x09;

/// A header digest follows the header.
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// A data digest follows the data.
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// Last data of the command, or of the R2T.
pub const FLAG_LAST: u8 = 1 << 2;
/// The command succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Digest bits of ICReq and ICResp.
pub const DIGEST_HEADER: u8 = 1 << 0;
pub const DIGEST_DATA: u8 = 1 << 1;

/// Why a connection ends (NVMe/TCP §3.6.2.4, FES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// A header field; FEI is its offset.
    HeaderField(u32),
    /// A PDU that may not come now.
    Sequence,
    /// FEI is the digest that came.
    HeaderDigest(u32),
    /// Data outside of what an R2T asked for; FEI is the offset of the field.
    DataRange(u32),
    /// More commands than the queue holds.
    Limit,
    /// A parameter of ICReq; FEI is its offset.
    Unsupported(u32),
}

impl Fatal {
    /// FES and FEI.
    pub fn code(self) -> (u16, u32) {
        match self {
            Fatal::HeaderField(at) => (1, at),
            Fatal::Sequence => (2, 0),
            Fatal::HeaderDigest(digest) => (3, digest),
            Fatal::DataRange(at) => (4, at),
            Fatal::Limit => (5, 0),
            Fatal::Unsupported(at) => (6, at),
        }
    }
}

/// What a host may send, with its header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pdu {
    Connect(IcRequest),
    /// The host ends the connection.
    Terminate {
        status: u16,
        information: u32,
    },
    Command([u8; 64]),
    Data(DataHeader),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcRequest {
    pub version: u16,
    /// Alignment of data that goes to the host, in units of 4 bytes, 0's based.
    pub alignment: u8,
    pub digests: u8,
    /// R2Ts of one command at once, 0's based.
    pub r2t_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    pub command: u16,
    pub tag: u16,
    pub offset: u32,
    pub len: u32,
}

/// A common header in front of `body`, which becomes a whole header.
pub fn common(header: &mut [u8], kind: u8, flags: u8, data_offset: u8, total: u32) {
    header[0] = kind;
    header[1] = flags;
    header[2] = header.len() as u8;
    header[3] = data_offset;
    header[4..8].copy_from_slice(&total.to_le_bytes());
}

/// ICResp.
pub fn ic_response(digests: u8, data_max: u32) -> [u8; IC_BYTES] {
    let mut b = [0; IC_BYTES];
    common(&mut b, IC_RESPONSE, 0, 0, IC_BYTES as u32);
    b[11] = digests;
    b[12..16].copy_from_slice(&data_max.to_le_bytes());
    b
}

/// C2HTermReq with the header of the PDU in error.
pub fn c2h_term(fatal: Fatal, offender: &[u8]) -> Vec<u8> {
    let offender = &offender[..offender.len().min(TERM_BYTES_MAX - TERM_BYTES)];
    let mut b = vec![0; TERM_BYTES];
    common(&mut b, C2H_TERM, 0, 0, (TERM_BYTES + offender.len()) as u32);
    let (status, information) = fatal.code();
    b[8..10].copy_from_slice(&status.to_le_bytes());
    b[10..14].copy_from_slice(&information.to_le_bytes());
    b.extend_from_slice(offender);
    b
}

/// R2T without its digest.
pub fn r2t(command: u16, tag: u16, offset: u32, len: u32) -> [u8; R2T_BYTES] {
    let mut b = [0; R2T_BYTES];
    b[8..10].copy_from_slice(&command.to_le_bytes());
    b[10..12].copy_from_slice(&tag.to_le_bytes());
    b[12..16].copy_from_slice(&offset.to_le_bytes());
    b[16..20].copy_from_slice(&len.to_le_bytes());
    b
}
