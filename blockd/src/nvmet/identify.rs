//! Identify: what the controller and its namespaces are (NVMe base 2.0 §5.17, NVM command set 1.0 §4.1.5).

use super::abort::ABORTS_MAX;
use super::admin::{EVENT_REQUESTS_MAX, namespace_ids};
use super::buffers::BUFFER_BYTES_MAX;
use super::capsule::Sqe;
use super::connection::{CAPSULE_DATA_MAX, Connection};
use super::controller::{Controller, ERRORS_MAX, EVENT_DISCOVERY, EVENT_NAMESPACE};
use super::fabrics::NVME_VERSION;
use super::io::{COPY_BLOCKS_MAX, COPY_RANGES_MAX};
use super::registry::{NAMESPACES_MAX, Namespace};
use super::status::Status;
use super::text::{DISCOVERY_NQN, ascii, zero_ended};
use crate::engine::BLOCK_BYTES;
use crate::nvme::bytes::{put16, put32, put64};

const BYTES: usize = 4096;
/// Longest transfer, as a power of two of 4 KiB pages.
pub const TRANSFER_EXPONENT: u8 = (BUFFER_BYTES_MAX / 4096).trailing_zeros() as u8;
const BLOCK_EXPONENT: u8 = BLOCK_BYTES.trailing_zeros() as u8;
/// Granularity of keep-alive times, in units of 100 ms.
const KEEP_ALIVE_UNITS: u16 = 10;
/// All namespaces at once.
pub const BROADCAST: u32 = 0xffff_ffff;
/// The one ANA group: every path is as good as any other.
pub const ANA_GROUP: u32 = 1;

pub fn execute(
    connection: &mut Connection,
    controller: &Controller,
    sqe: &Sqe,
) -> Result<Vec<u8>, Status> {
    let structure = sqe.dword(10) as u8;
    let command_set = (sqe.dword(11) >> 24) as u8;
    if structure == 0x01 {
        return Ok(if controller.is_discovery() {
            discovery_controller(connection, controller)
        } else {
            io_controller(connection, controller)
        });
    }
    if controller.is_discovery() {
        return Err(Status::INVALID_FIELD);
    }
    let is_nvm = command_set == 0;
    match structure {
        0x00 => match sqe.nsid() {
            BROADCAST => Ok(common_namespace()),
            nsid => existing(connection, nsid)
                .map(|n| n.map_or_else(|| vec![0; BYTES], |n| namespace(&n))),
        },
        0x02 => active(connection, sqe.nsid()),
        0x07 if is_nvm => active(connection, sqe.nsid()),
        0x03 => descriptors(&*required(connection, sqe.nsid())?),
        0x05 if is_nvm => {
            required(connection, sqe.nsid())?;
            Ok(vec![0; BYTES])
        }
        0x06 if is_nvm => Ok(nvm_controller()),
        0x08 => Ok(independent_namespace(&*required(connection, sqe.nsid())?)),
        0x13 => Ok(controller_list(controller, (sqe.dword(10) >> 16) as u16)),
        0x1c => {
            let mut b = vec![0; BYTES];
            // Combination 0: the NVM command set.
            put64(&mut b, 0, 1);
            Ok(b)
        }
        _ => Err(Status::INVALID_FIELD),
    }
}

/// `None` for a number that may exist but does not now.
fn existing(
    connection: &mut Connection,
    nsid: u32,
) -> Result<Option<std::sync::Arc<Namespace>>, Status> {
    if !(1..=NAMESPACES_MAX).contains(&nsid) {
        return Err(Status::INVALID_NAMESPACE);
    }
    Ok(connection.namespace(nsid))
}

fn required(connection: &mut Connection, nsid: u32) -> Result<std::sync::Arc<Namespace>, Status> {
    existing(connection, nsid)?.ok_or(Status::INVALID_NAMESPACE)
}

/// What both kinds of controllers say of themselves.
fn any_controller(connection: &Connection, controller: &Controller) -> Vec<u8> {
    let mut b = vec![0; BYTES];
    let serial = controller.subsystem.as_ref().map_or("claudefs", |s| s.serial.as_str());
    ascii(&mut b[4..24], serial);
    ascii(&mut b[24..64], "ClaudeFS blockd");
    ascii(&mut b[64..72], env!("CARGO_PKG_VERSION"));
    put16(&mut b, 78, controller.id);
    put32(&mut b, 80, NVME_VERSION);
    // A host identifier has 128 bits.
    put32(&mut b, 96, 1);
    // Extended data of log pages: 32-bit lengths and offsets.
    b[261] = 1 << 2;
    b[259] = (EVENT_REQUESTS_MAX - 1) as u8;
    b[262] = (ERRORS_MAX - 1) as u8;
    put16(&mut b, 320, KEEP_ALIVE_UNITS);
    put16(&mut b, 514, connection.registry.limits.depth);
    // SGLs without alignment, and as offsets into the capsule.
    put32(&mut b, 536, 1 | 1 << 20);
    let name = controller.subsystem.as_ref().map_or(DISCOVERY_NQN, |s| s.nqn.as_str());
    zero_ended(&mut b[768..1024], name);
    b
}

fn discovery_controller(connection: &Connection, controller: &Controller) -> Vec<u8> {
    let mut b = any_controller(connection, controller);
    put32(&mut b, 92, EVENT_DISCOVERY);
    b[77] = TRANSFER_EXPONENT;
    b[111] = 2;
    b
}

fn io_controller(connection: &Connection, controller: &Controller) -> Vec<u8> {
    let mut b = any_controller(connection, controller);
    // Several ports and controllers; reports asymmetric access (always optimized).
    b[76] = 1 | 1 << 1 | 1 << 3;
    b[77] = TRANSFER_EXPONENT;
    put32(&mut b, 92, EVENT_NAMESPACE);
    b[111] = 1;
    b[258] = (ABORTS_MAX - 1) as u8;
    // One firmware slot, read-only.
    b[260] = 1 | 1 << 1;
    // Commands-supported log.
    b[261] |= 1 << 1;
    // A change of asymmetric access would take at most 10 s.
    b[342] = 10;
    // Optimized is the only state, and a namespace stays in its group.
    b[343] = 1 | 1 << 6 | 1 << 7;
    put32(&mut b, 344, ANA_GROUP);
    put32(&mut b, 348, ANA_GROUP);
    b[512] = 0x66;
    b[513] = 0x44;
    put32(&mut b, 516, NAMESPACES_MAX);
    // Compare, Dataset Management, Write Zeroes, Verify, Copy.
    put16(&mut b, 520, 1 | 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8);
    // There is a volatile cache, and Flush of all namespaces at once works.
    b[525] = 1 | 3 << 1;
    // AWUN and AWUPF stay 0: one block is what a device promises.
    // Copy takes descriptors of format 0.
    put16(&mut b, 534, 1);
    put32(&mut b, 540, NAMESPACES_MAX);
    put32(&mut b, 1792, ((64 + CAPSULE_DATA_MAX) / 16) as u32);
    put32(&mut b, 1796, 1);
    b[1803] = 1;
    b
}

/// Limits of the NVM command set: Verify moves data through a buffer like the others.
fn nvm_controller() -> Vec<u8> {
    let mut b = vec![0; BYTES];
    b[0] = TRANSFER_EXPONENT;
    b
}

/// What is the same for all namespaces.
fn common_namespace() -> Vec<u8> {
    let mut b = vec![0; BYTES];
    // May be shared by controllers.
    b[30] = 1;
    put16(&mut b, 74, COPY_BLOCKS_MAX);
    put32(&mut b, 76, COPY_BLOCKS_MAX.into());
    b[80] = (COPY_RANGES_MAX - 1) as u8;
    put32(&mut b, 92, ANA_GROUP);
    b[130] = BLOCK_EXPONENT;
    b
}

fn namespace(namespace: &Namespace) -> Vec<u8> {
    let mut b = common_namespace();
    let volume = &namespace.share.volume;
    let blocks = namespace.blocks();
    put64(&mut b, 0, blocks);
    put64(&mut b, 8, blocks);
    let extent_blocks = crate::pool::format::EXTENT_BYTES / BLOCK_BYTES;
    let used = if volume.thin { volume.allocated() * extent_blocks } else { blocks };
    put64(&mut b, 16, used.min(blocks));
    b[24] = u8::from(volume.thin);
    // Deallocated blocks read as zeros or as they were: DLFEAT stays "not reported".
    b[99] = u8::from(namespace.read_only);
    b[104..120].copy_from_slice(&namespace.id);
    b
}

fn independent_namespace(namespace: &Namespace) -> Vec<u8> {
    let mut b = vec![0; BYTES];
    // NSFEAT has no bit for thin volumes here. May be shared by controllers.
    b[1] = 1;
    put32(&mut b, 4, ANA_GROUP);
    b[8] = u8::from(namespace.read_only);
    // Ready.
    b[14] = 1;
    b
}

fn active(connection: &mut Connection, after: u32) -> Result<Vec<u8>, Status> {
    if after >= BROADCAST - 1 {
        return Err(Status::INVALID_NAMESPACE);
    }
    let mut b = vec![0; BYTES];
    let ids = namespace_ids(connection);
    for (i, nsid) in ids.into_iter().filter(|n| *n > after).take(BYTES / 4).enumerate() {
        put32(&mut b, i * 4, nsid);
    }
    Ok(b)
}

/// NGUID, UUID and command set.
fn descriptors(namespace: &Namespace) -> Result<Vec<u8>, Status> {
    let mut b = Vec::with_capacity(BYTES);
    for (kind, value) in [(2_u8, &namespace.id[..]), (3, &namespace.id[..]), (4, &[0][..])] {
        b.extend_from_slice(&[kind, value.len() as u8, 0, 0]);
        b.extend_from_slice(value);
    }
    b.resize(BYTES, 0);
    Ok(b)
}

fn controller_list(controller: &Controller, from: u16) -> Vec<u8> {
    // A host learns of its own controller; those of others are none of its business.
    let mut b = vec![0; BYTES];
    if controller.id >= from {
        put16(&mut b, 0, 1);
        put16(&mut b, 2, controller.id);
    }
    b
}
