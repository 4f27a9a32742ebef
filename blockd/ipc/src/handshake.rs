//! The frames on the socket, once per connection; little-endian, fixed lengths.
//!
//! ```text
//! hello, client to server, 96 bytes         answer, server to client, 48 bytes
//!  0 u32 magic "CFSB"                        0 u32 magic "CFSB"
//!  4 u32 version                             4 u32 version
//!  8 u32 queue depth                         8 u32 status: 0, or the kind of the refusal
//! 12 u32 bytes of the name                  12 u32 block size, bytes
//! 16 u64 arena, bytes                       16 u64 blocks
//! 24 u64 zero                               24 u64 volume number
//! 32 [u8; 64] volume name, zero padded      32 u32 longest transfer, bytes
//!                                           36 [u8; 12] zero
//! ```
//! Behind the hello comes one byte with three descriptors: the arena's memfd, the SQ eventfd, the CQ
//! eventfd. Nothing follows: the socket stays open as the sign of life of both sides.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Kind};
use crate::layout::VERSION;
use crate::ring::depth_is_valid;
use crate::volume::Geometry;

pub const MAGIC: u32 = u32::from_le_bytes(*b"CFSB");
/// Longest name of a volume, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest arena that a client may bring, in bytes: 64 GiB.
pub const ARENA_BYTES_MAX: u64 = 1 << 36;
pub(crate) const FDS: usize = 3;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Hello {
    magic: U32,
    version: U32,
    depth: U32,
    name_bytes: U32,
    arena_bytes: U64,
    reserved: U64,
    name: [u8; NAME_BYTES_MAX],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Answer {
    magic: U32,
    version: U32,
    status: U32,
    block_size: U32,
    blocks: U64,
    volume: U64,
    transfer_bytes_max: U32,
    reserved: [u8; 12],
}

pub const HELLO_BYTES: usize = size_of::<Hello>();
pub const ANSWER_BYTES: usize = size_of::<Answer>();
const _: () = assert!(HELLO_BYTES == 96 && ANSWER_BYTES == 48);

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub volume: String,
    pub depth: u32,
    pub arena_bytes: usize,
}

impl Wish {
    /// # Errors
    /// `Invalid` when the name is empty or too long, or the depth is not a possible one.
    pub(crate) fn encode(&self) -> Result<[u8; HELLO_BYTES], Error> {
        let bytes = self.volume.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || !depth_is_valid(self.depth) {
            let context = format!("volume {:?} with queue depth {}", self.volume, self.depth);
            return Err(Error::new(Kind::Invalid, context));
        }
        let mut name = [0; NAME_BYTES_MAX];
        name[..bytes.len()].copy_from_slice(bytes);
        let hello = Hello {
            magic: U32::new(MAGIC),
            version: U32::new(VERSION),
            depth: U32::new(self.depth),
            name_bytes: U32::new(bytes.len() as u32),
            arena_bytes: U64::new(self.arena_bytes as u64),
            reserved: U64::new(0),
            name,
        };
        Ok(zerocopy::transmute!(hello))
    }

    /// # Errors
    /// `Invalid` for anything that this version does not understand.
    pub(crate) fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Wish, Error> {
        let hello: Hello = zerocopy::transmute!(bytes);
        let invalid = |what: &str| Error::new(Kind::Invalid, format!("hello of a client: {what}"));
        if hello.magic.get() != MAGIC || hello.version.get() != VERSION {
            return Err(invalid("magic or version"));
        }
        let depth = hello.depth.get();
        if !depth_is_valid(depth) {
            return Err(invalid("queue depth"));
        }
        let arena_bytes = hello.arena_bytes.get();
        if arena_bytes > ARENA_BYTES_MAX {
            return Err(invalid("arena too large"));
        }
        let name = hello.name.get(..hello.name_bytes.get() as usize);
        let name = name.and_then(|name| std::str::from_utf8(name).ok()).filter(|n| !n.is_empty());
        let volume = name.ok_or_else(|| invalid("name of the volume"))?.to_owned();
        Ok(Wish { volume, depth, arena_bytes: arena_bytes as usize })
    }
}

/// What a server grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub volume: u64,
    pub geometry: Geometry,
}

pub(crate) fn encode_answer(answer: Result<Grant, Kind>) -> [u8; ANSWER_BYTES] {
    let status = answer.err().map_or(0, Kind::status);
    let none = Geometry { block_size: 0, blocks: 0, transfer_bytes_max: 0 };
    let grant = answer.unwrap_or(Grant { volume: 0, geometry: none });
    let answer = Answer {
        magic: U32::new(MAGIC),
        version: U32::new(VERSION),
        status: U32::new(status),
        block_size: U32::new(grant.geometry.block_size),
        blocks: U64::new(grant.geometry.blocks),
        volume: U64::new(grant.volume),
        transfer_bytes_max: U32::new(grant.geometry.transfer_bytes_max),
        reserved: [0; 12],
    };
    zerocopy::transmute!(answer)
}

/// # Errors
/// The refusal's kind, or `Invalid` for an answer that makes no sense.
pub(crate) fn decode_answer(bytes: [u8; ANSWER_BYTES]) -> Result<Grant, Error> {
    let answer: Answer = zerocopy::transmute!(bytes);
    if answer.magic.get() != MAGIC || answer.version.get() != VERSION {
        return Err(Error::new(Kind::Invalid, "blockd's answer: magic or version"));
    }
    if answer.status.get() != 0 {
        let kind = Kind::from_status(answer.status.get());
        return Err(Error::new(kind, "blockd refuses the volume"));
    }
    let geometry = Geometry {
        block_size: answer.block_size.get(),
        blocks: answer.blocks.get(),
        transfer_bytes_max: answer.transfer_bytes_max.get(),
    };
    if !matches!(geometry.block_size, 512 | 4096)
        || geometry.transfer_bytes_max < geometry.block_size
    {
        return Err(Error::new(Kind::Invalid, "blockd's answer: geometry"));
    }
    Ok(Grant { volume: answer.volume.get(), geometry })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: [[u8; 24]; 4], real: bool) {
            let mut hello = [0; HELLO_BYTES];
            hello.copy_from_slice(bytes.as_flattened());
            if real {
                hello[..4].copy_from_slice(&MAGIC.to_le_bytes());
                hello[4..8].copy_from_slice(&VERSION.to_le_bytes());
            }
            let _ = Wish::decode(hello);
            let _ = decode_answer(hello[..ANSWER_BYTES].try_into().unwrap());
        }
    }

    #[test]
    fn frames_come_back() {
        let wish = Wish { volume: "meta".into(), depth: 64, arena_bytes: 4 << 20 };
        assert_eq!(Wish::decode(wish.encode().unwrap()).unwrap(), wish);
        let geometry = Geometry { block_size: 4096, blocks: 77, transfer_bytes_max: 1 << 20 };
        let grant = Grant { volume: 3, geometry };
        assert_eq!(decode_answer(encode_answer(Ok(grant))).unwrap(), grant);
        let refused = decode_answer(encode_answer(Err(Kind::NotFound))).unwrap_err();
        assert_eq!(refused.kind(), Kind::NotFound);
        assert!(Wish { depth: 3, ..wish.clone() }.encode().is_err());
        assert!(Wish { volume: "x".repeat(65), ..wish }.encode().is_err());
    }
}
