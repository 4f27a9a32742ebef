//! Get Log Page (NVMe base 2.0 §5.16).

use std::sync::atomic::Ordering;

use super::admin::{self, namespace_ids};
use super::capsule::Sqe;
use super::connection::Connection;
use super::controller::{Controller, EVENT_DISCOVERY, EVENT_NAMESPACE};
use super::identify::{ANA_GROUP, BROADCAST};
use super::status::Status;
use super::{discovery, io};

const SUPPORTED: u8 = 0x00;
const ERRORS: u8 = 0x01;
const HEALTH: u8 = 0x02;
const FIRMWARE: u8 = 0x03;
pub const CHANGED_NAMESPACES: u8 = 0x04;
const EFFECTS: u8 = 0x05;
const ANA: u8 = 0x0c;
pub const DISCOVERY: u8 = 0x70;

const IO_PAGES: [u8; 7] = [SUPPORTED, ERRORS, HEALTH, FIRMWARE, CHANGED_NAMESPACES, EFFECTS, ANA];
const DISCOVERY_PAGES: [u8; 3] = [SUPPORTED, ERRORS, DISCOVERY];

/// Namespaces that the page of changes names; more are one entry that means "all".
const CHANGED_MAX: usize = 1024;

/// The part of a page that was asked for, `len` bytes.
pub fn execute(
    connection: &mut Connection,
    controller: &Controller,
    sqe: &Sqe,
    len: usize,
) -> Result<Vec<u8>, Status> {
    let page = sqe.dword(10) as u8;
    let retain = sqe.dword(10) & 1 << 15 != 0;
    let dwords = u64::from(sqe.dword(10) >> 16) | u64::from(sqe.dword(11) & 0xffff) << 16;
    let offset = u64::from(sqe.dword(12)) | u64::from(sqe.dword(13)) << 32;
    if (dwords + 1) * 4 != len as u64 {
        return Err(Status::SGL_LENGTH);
    }
    if sqe.dword(14) & 1 << 23 != 0 || offset % 4 != 0 {
        // Offsets by index are not offered.
        return Err(Status::INVALID_FIELD);
    }
    let pages: &[u8] = if controller.is_discovery() { &DISCOVERY_PAGES } else { &IO_PAGES };
    if !pages.contains(&page) {
        return Err(Status::LOG_PAGE);
    }
    let whole = match page {
        SUPPORTED => supported(pages),
        ERRORS => errors(controller),
        HEALTH => health(connection, controller),
        FIRMWARE => firmware(),
        CHANGED_NAMESPACES => changed(controller, retain || offset > 0),
        EFFECTS => effects(),
        ANA => ana(connection, sqe.dword(10) >> 8 & 1 == 1),
        _ => discovery::log(connection, controller),
    };
    if !retain {
        match page {
            CHANGED_NAMESPACES => controller.acknowledge(EVENT_NAMESPACE),
            DISCOVERY => controller.acknowledge(EVENT_DISCOVERY),
            _ => {}
        }
    }
    let from = usize::try_from(offset).map_err(|_| Status::INVALID_FIELD)?;
    if from > whole.len() {
        return Err(Status::INVALID_FIELD);
    }
    let mut part = whole[from..whole.len().min(from + len)].to_vec();
    part.resize(len, 0);
    Ok(part)
}

fn supported(pages: &[u8]) -> Vec<u8> {
    let mut b = vec![0; 1024];
    for page in pages {
        b[usize::from(*page) * 4] = 1;
    }
    b
}

fn errors(controller: &Controller) -> Vec<u8> {
    let mut b = Vec::new();
    for entry in controller.errors() {
        let mut e = [0; 64];
        e[0..8].copy_from_slice(&entry.count.to_le_bytes());
        e[8..10].copy_from_slice(&entry.queue.to_le_bytes());
        e[10..12].copy_from_slice(&entry.command.to_le_bytes());
        e[12..14].copy_from_slice(&(entry.status.0 << 1).to_le_bytes());
        // No byte of the command is to blame in particular.
        e[14..16].copy_from_slice(&[0xff, 0xff]);
        e[16..24].copy_from_slice(&entry.lba.to_le_bytes());
        e[24..28].copy_from_slice(&entry.nsid.to_le_bytes());
        b.extend_from_slice(&e);
    }
    b.resize(super::controller::ERRORS_MAX * 64, 0);
    b
}

fn health(connection: &mut Connection, controller: &Controller) -> Vec<u8> {
    let mut b = vec![0; 512];
    let poisoned = connection.namespaces().iter().any(|n| n.share.volume.is_poisoned());
    // Reliability is degraded: a volume serves nothing until it is reopened.
    b[0] = u8::from(poisoned) << 2;
    // Spare, its threshold; no wear and no temperature are known.
    b[3] = 100;
    b[4] = 10;
    if let Some(subsystem) = &controller.subsystem {
        let counters = &subsystem.counters;
        // Data in units of 1000 × 512 bytes, rounded up.
        let units = |blocks: u64| (blocks * 8).div_ceil(1000);
        let values = [
            units(counters.read_blocks.load(Ordering::Relaxed)),
            units(counters.written_blocks.load(Ordering::Relaxed)),
            counters.reads.load(Ordering::Relaxed),
            counters.writes.load(Ordering::Relaxed),
        ];
        for (i, value) in values.into_iter().enumerate() {
            b[32 + i * 16..40 + i * 16].copy_from_slice(&value.to_le_bytes());
        }
    }
    b[176..184].copy_from_slice(&controller.error_count().to_le_bytes());
    b
}

fn firmware() -> Vec<u8> {
    let mut b = vec![0; 512];
    b[0] = 1;
    super::text::ascii(&mut b[8..16], env!("CARGO_PKG_VERSION"));
    b
}

fn changed(controller: &Controller, retain: bool) -> Vec<u8> {
    let mut list = controller.changed_namespaces(retain);
    if list.len() > CHANGED_MAX {
        list = vec![BROADCAST];
    }
    let mut b: Vec<u8> = list.iter().flat_map(|n| n.to_le_bytes()).collect();
    b.resize(4096, 0);
    b
}

fn effects() -> Vec<u8> {
    let mut b = vec![0; 4096];
    let supported = 1;
    let changes_data = 1 << 1;
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        b[usize::from(opcode) * 4] = supported;
    }
    for opcode in [io::FLUSH, io::READ, io::COMPARE, io::VERIFY] {
        b[1024 + usize::from(opcode) * 4] = supported;
    }
    for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET, io::COPY] {
        b[1024 + usize::from(opcode) * 4] = supported | changes_data;
    }
    b
}

/// One group with every namespace in it, optimized.
fn ana(connection: &mut Connection, groups_only: bool) -> Vec<u8> {
    let ids = if groups_only { Vec::new() } else { namespace_ids(connection) };
    let mut b = vec![0; 48];
    // Change count 1: nothing ever changes. One group.
    b[0] = 1;
    b[8] = 1;
    b[16..20].copy_from_slice(&ANA_GROUP.to_le_bytes());
    b[20..24].copy_from_slice(&(ids.len() as u32).to_le_bytes());
    b[24] = 1;
    b[32] = 1;
    b.extend(ids.iter().flat_map(|n| n.to_le_bytes()));
    b
}
