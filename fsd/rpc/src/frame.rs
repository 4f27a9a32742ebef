//! One message on the wire.
//!
//! ```text
//!  0  magic u32      "CFSR"             16  reserved [u8; 8], zero
//!  4  version u8     1                  24  meta crc32c u32
//!  5  kind u8        1..=4              28  header crc32c u32, of bytes 0..28
//!  6  flags u16      zero               32  meta: postcard of `Request`, `Response` or `Event`
//!  8  meta length u32, at most 1 MiB     …  data: bulk bytes as they are
//! 12  data length u32, at most 8 MiB
//! ```
//!
//! Integers are little-endian. Lengths are checked before anything is allocated. Data carries no
//! checksum here: chunks are named by their hash, and TLS or a Unix socket keeps the rest.

use std::io::{self, IoSlice, Read, Write};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `CFSR` as it lies on the wire.
pub const MAGIC: u32 = u32::from_le_bytes(*b"CFSR");
/// Version of the frame, not of the messages in it.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_LEN: usize = 32;
/// Most bytes of an encoded message; a longer one is refused unread.
pub const META_LEN_MAX: usize = 1 << 20;
/// Most bytes of the data part; more is refused unread.
pub const DATA_LEN_MAX: usize = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Reply,
    Event,
    /// Says that the sender lives; no message, no data.
    Alive,
}

impl Kind {
    fn from_wire(kind: u8) -> Result<Kind, FrameError> {
        match kind {
            1 => Ok(Kind::Request),
            2 => Ok(Kind::Reply),
            3 => Ok(Kind::Event),
            4 => Ok(Kind::Alive),
            other => Err(FrameError::Kind(other)),
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Reply => 2,
            Kind::Event => 3,
            Kind::Alive => 4,
        }
    }
}

/// Why bytes are not a frame. The connection ends after any of these.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("not a ClaudeFS frame (magic {0:#010x})")]
    Magic(u32),
    #[error("frame version {0}, this program speaks {VERSION}")]
    Version(u8),
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    #[error("reserved bits of the frame header are set")]
    Reserved,
    #[error("checksum of the frame header is wrong")]
    HeaderChecksum,
    #[error("checksum of the message is wrong")]
    MetaChecksum,
    #[error("message of {0} bytes, at most {META_LEN_MAX} are taken")]
    MetaTooLong(u64),
    #[error("data of {0} bytes, at most {DATA_LEN_MAX} are taken")]
    DataTooLong(u64),
    #[error("message does not decode: {0}")]
    Message(postcard::Error),
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    #[error("a frame of kind {got:?} where {expected:?} belongs")]
    Unexpected { expected: Kind, got: Kind },
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    version: u8,
    kind: u8,
    flags: U16,
    meta_len: U32,
    data_len: U32,
    reserved: [u8; 8],
    meta_crc: U32,
    header_crc: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// What a valid header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    pub kind: Kind,
    pub meta_len: usize,
    pub data_len: usize,
    meta_crc: u32,
}

/// Checks a header: magic, checksum, version, kind, reserved bits, bounds, in this order.
pub fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<Announced, FrameError> {
    let header = Header::read_from_bytes(bytes).expect("the sizes are equal");
    if header.magic.get() != MAGIC {
        return Err(FrameError::Magic(header.magic.get()));
    }
    if header.header_crc.get() != crc32c(&bytes[..28]) {
        return Err(FrameError::HeaderChecksum);
    }
    if header.version != VERSION {
        return Err(FrameError::Version(header.version));
    }
    let kind = Kind::from_wire(header.kind)?;
    if header.flags.get() != 0 || header.reserved != [0; 8] {
        return Err(FrameError::Reserved);
    }
    let (meta_len, data_len) = (header.meta_len.get() as usize, header.data_len.get() as usize);
    if meta_len > META_LEN_MAX {
        return Err(FrameError::MetaTooLong(meta_len as u64));
    }
    if data_len > DATA_LEN_MAX {
        return Err(FrameError::DataTooLong(data_len as u64));
    }
    Ok(Announced { kind, meta_len, data_len, meta_crc: header.meta_crc.get() })
}

/// A frame as read.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: Kind,
    pub meta: Bytes,
    pub data: Bytes,
}

impl Frame {
    /// The message, whose kind must be `expected`; bytes behind it are refused.
    pub fn message<M: DeserializeOwned>(&self, expected: Kind) -> Result<M, FrameError> {
        if self.kind != expected {
            return Err(FrameError::Unexpected { expected, got: self.kind });
        }
        let (message, rest) = postcard::take_from_bytes(&self.meta).map_err(FrameError::Message)?;
        if !rest.is_empty() {
            return Err(FrameError::Trailing(rest.len()));
        }
        Ok(message)
    }
}

/// Header and message, ready to be followed by `data_len` bytes.
fn head(kind: Kind, meta: Option<&impl Serialize>, data_len: usize) -> Result<Vec<u8>, FrameError> {
    let mut head = vec![0; HEADER_LEN];
    if let Some(message) = meta {
        head = postcard::to_extend(message, head).map_err(FrameError::Message)?;
    }
    let meta_len = head.len() - HEADER_LEN;
    if meta_len > META_LEN_MAX {
        return Err(FrameError::MetaTooLong(meta_len as u64));
    }
    if data_len > DATA_LEN_MAX {
        return Err(FrameError::DataTooLong(data_len as u64));
    }
    let mut header = Header {
        magic: U32::new(MAGIC),
        version: VERSION,
        kind: kind.to_wire(),
        flags: U16::ZERO,
        meta_len: U32::new(meta_len as u32),
        data_len: U32::new(data_len as u32),
        reserved: [0; 8],
        meta_crc: U32::new(crc32c(&head[HEADER_LEN..])),
        header_crc: U32::ZERO,
    };
    header.header_crc = U32::new(crc32c(&header.as_bytes()[..28]));
    head[..HEADER_LEN].copy_from_slice(header.as_bytes());
    Ok(head)
}

fn check_meta(announced: Announced, meta: Vec<u8>, data: Vec<u8>) -> Result<Frame, FrameError> {
    if crc32c(&meta) != announced.meta_crc {
        return Err(FrameError::MetaChecksum);
    }
    Ok(Frame { kind: announced.kind, meta: meta.into(), data: data.into() })
}

/// Writes one frame with vectored writes; `data` is not copied. Nothing is written when the message
/// is out of bounds.
pub fn write(
    to: &mut impl Write,
    kind: Kind,
    message: &impl Serialize,
    data: &[&[u8]],
) -> Result<(), FrameError> {
    let head = head(kind, Some(message), data.iter().map(|part| part.len()).sum())?;
    let mut slices = Vec::with_capacity(1 + data.len());
    slices.push(IoSlice::new(&head));
    slices.extend(data.iter().map(|part| IoSlice::new(part)));
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match to.write_vectored(left) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    to.flush()?;
    Ok(())
}

/// Reads one frame; end of stream is `Io` with `UnexpectedEof`.
pub fn read(from: &mut impl Read) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header)?;
    let announced = parse_header(&header)?;
    let mut part = |len: usize| -> Result<Vec<u8>, FrameError> {
        let mut bytes = Vec::with_capacity(len);
        from.by_ref().take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    };
    let meta = part(announced.meta_len)?;
    let data = part(announced.data_len)?;
    check_meta(announced, meta, data)
}

/// Data up to this many bytes is joined to the message to save a system call.
const JOIN_MAX: usize = 16 << 10;

/// [`write()`] for tokio.
pub async fn write_async(
    to: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    message: &impl Serialize,
    data: &[Bytes],
) -> Result<(), FrameError> {
    let data_len = data.iter().map(Bytes::len).sum();
    let mut head = head(kind, Some(message), data_len)?;
    if data_len <= JOIN_MAX {
        data.iter().for_each(|part| head.extend_from_slice(part));
        to.write_all(&head).await?;
    } else {
        to.write_all(&head).await?;
        for part in data {
            to.write_all(part).await?;
        }
    }
    to.flush().await?;
    Ok(())
}

/// Tells the peer that this side lives.
pub async fn write_alive(to: &mut (impl AsyncWrite + Unpin)) -> Result<(), FrameError> {
    to.write_all(&head(Kind::Alive, None::<&()>, 0)?).await?;
    to.flush().await?;
    Ok(())
}

/// [`read()`] for tokio. Not cancel-safe: a cancelled read leaves the stream in the middle of a frame.
pub async fn read_async(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_LEN];
    from.read_exact(&mut header).await?;
    read_body(from, &header).await
}

/// The rest of a frame whose header was read.
pub async fn read_body(
    from: &mut (impl AsyncRead + Unpin),
    header: &[u8; HEADER_LEN],
) -> Result<Frame, FrameError> {
    let announced = parse_header(header)?;
    let mut meta = vec![0; announced.meta_len];
    from.read_exact(&mut meta).await?;
    let mut data = Vec::with_capacity(announced.data_len);
    (&mut *from).take(announced.data_len as u64).read_to_end(&mut data).await?;
    if data.len() < announced.data_len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    check_meta(announced, meta, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let request = Request::GetChunks { hashes: vec![] };
        write(&mut out, Kind::Request, &request, &[b"ab", b"", b"cde"]).unwrap();
        out
    }

    #[test]
    fn a_frame_comes_back_as_it_was_written() {
        let frame = read(&mut &sample()[..]).unwrap();
        assert_eq!(&frame.data[..], b"abcde");
        let request = frame.message::<Request>(Kind::Request).unwrap();
        assert!(matches!(request, Request::GetChunks { .. }));
        assert!(matches!(
            frame.message::<Request>(Kind::Reply),
            Err(FrameError::Unexpected { .. })
        ));
    }

    #[test]
    fn the_bytes_are_those_of_the_documentation() {
        // docs/formats/rpc.md, made by other means.
        #[rustfmt::skip]
        let golden = [
            0x43, 0x46, 0x53, 0x52, 0x01, 0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xef, 0xf2, 0x7a, 0x21, 0x24, 0xc1, 0xa1, 0x88,
            0x04, 0x81, 0x80, 0x04, 0x61, 0x62,
        ];
        let mut out = Vec::new();
        let request = Request::GetAttr { ino: raftmeta_types::Ino(65537) };
        write(&mut out, Kind::Request, &request, &[b"ab"]).unwrap();
        assert_eq!(out, golden);
        let frame = read(&mut &golden[..]).unwrap();
        assert!(matches!(frame.message(Kind::Request).unwrap(), Request::GetAttr { .. }));
        assert_eq!(&frame.data[..], b"ab");
    }

    #[test]
    fn every_flipped_bit_of_head_and_message_is_noticed() {
        let good = sample();
        for bit in 0..(good.len() - 5) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&mut &bad[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_an_end_of_stream() {
        let good = sample();
        for len in 0..good.len() {
            match read(&mut &good[..len]) {
                Err(FrameError::Io(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
                other => panic!("{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_much_is_refused_before_it_is_sent() {
        let long = vec![0; DATA_LEN_MAX + 1];
        let mut out = Vec::new();
        let refused = write(&mut out, Kind::Request, &Request::Ping, &[&long]);
        assert!(matches!(refused, Err(FrameError::DataTooLong(_))));
        assert!(out.is_empty());
    }

    #[test]
    fn seeded_garbage_never_panics() {
        let good = sample();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + next() % 6 {
                let at = (next() % bytes.len() as u64) as usize;
                bytes[at] = next() as u8;
            }
            // A right checksum lets the mutation through to the checks behind it.
            let crc = crc32c(&bytes[..28]).to_le_bytes();
            bytes[28..32].copy_from_slice(&crc);
            if let Ok(frame) = read(&mut &bytes[..]) {
                let _ = frame.message::<Request>(frame.kind);
            }
            let meta: Vec<u8> = (0..next() % 64).map(|_| next() as u8).collect();
            let frame = Frame { kind: Kind::Request, meta: meta.into(), data: Bytes::new() };
            let _ = frame.message::<Request>(Kind::Request);
        }
    }
}
