//! Commands of the I/O queues (NVM command set 1.0 §3). All are checked against their namespace before a byte of data
//! is fetched, and once more by the reactor.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::buffers::BUFFER_BYTES_MAX;
use super::commands::{Command, Stage};
use super::connection::{Connection, Outcome, Reply};
use super::identify::BROADCAST;
use super::pdu::{u16_at, u32_at, u64_at};
use super::registry::Namespace;
use super::status::Status;
use crate::engine::{BLOCK_BYTES, Memory};
pub use crate::nvme::opcode::io::*;
use crate::reactor::Ask;

/// Blocks that one Copy moves, and that one of its ranges has.
pub const COPY_BLOCKS_MAX: u16 = (BUFFER_BYTES_MAX as u64 / BLOCK_BYTES) as u16;
pub const COPY_RANGES_MAX: usize = 128;
const COPY_RANGE_BYTES: usize = 32;
const DATASET_RANGE_BYTES: usize = 16;
/// Blocks that are deallocated at once: 4 GiB, which are a thousand extents.
const DEALLOCATE_BLOCKS_MAX: u64 = 1 << 20;
/// Bits of dword 12 that ask for what is not offered: protection information and directives.
const PROTECTION: u32 = 0x3c00_0000;
const DIRECTIVE: u32 = 0x00f0_0000;

/// Checks an I/O command, and says which buffers it needs.
pub fn check(connection: &mut Connection, slot: usize) -> Result<(), Status> {
    let command = connection.command(slot);
    let (sqe, len) = (command.sqe, command.len);
    let opcode = sqe.opcode();
    if opcode == FLUSH && sqe.nsid() == BROADCAST {
        return Ok(());
    }
    let writes = matches!(opcode, WRITE | WRITE_ZEROES | DATASET | COPY);
    if !writes && !matches!(opcode, FLUSH | READ | COMPARE | VERIFY) {
        return Err(Status::INVALID_OPCODE);
    }
    let namespace = connection.namespace(sqe.nsid()).ok_or(Status::INVALID_NAMESPACE)?;
    if writes && namespace.read_only {
        return Err(Status::WRITE_PROTECTED);
    }
    let bytes = sqe.blocks() * BLOCK_BYTES;
    if matches!(opcode, READ | WRITE | COMPARE | VERIFY | WRITE_ZEROES) {
        if sqe.dword(12) & (PROTECTION | DIRECTIVE) != 0 {
            return Err(Status::INVALID_FIELD);
        }
        inside(&namespace, sqe.lba(), sqe.blocks())?;
    }
    let command = connection.command(slot);
    match opcode {
        READ | WRITE | COMPARE if len as u64 != bytes => return Err(Status::SGL_LENGTH),
        READ => command.need = [len, 0],
        COMPARE => command.need[1] = len,
        VERIFY if bytes > BUFFER_BYTES_MAX as u64 => return Err(Status::INVALID_FIELD),
        VERIFY => command.need = [bytes as usize, 0],
        DATASET => check_ranges(len, sqe.dword(10) & 0xff, DATASET_RANGE_BYTES)?,
        COPY => {
            // Only descriptors of format 0.
            if sqe.dword(12) & (PROTECTION | DIRECTIVE | 0xff00) != 0 {
                return Err(Status::INVALID_FIELD);
            }
            let ranges = sqe.dword(12) & 0xff;
            if ranges as usize >= COPY_RANGES_MAX {
                return Err(Status::SIZE_LIMIT);
            }
            check_ranges(len, ranges, COPY_RANGE_BYTES)?;
        }
        _ => {}
    }
    command.namespace = Some(namespace);
    Ok(())
}

/// A list of ranges, whose number is 0's based, has to come whole. Linux sends a page however few there are.
fn check_ranges(len: usize, last: u32, each: usize) -> Result<(), Status> {
    if len >= (last as usize + 1) * each { Ok(()) } else { Err(Status::SGL_LENGTH) }
}

fn inside(namespace: &Namespace, lba: u64, blocks: u64) -> Result<(), Status> {
    match lba.checked_add(blocks) {
        Some(end) if end <= namespace.blocks() => Ok(()),
        _ => Err(Status::LBA_RANGE),
    }
}

/// Whether what the command has asked of the volume changes it: what fails then is a write.
pub fn is_writing(command: &Command) -> bool {
    match command.sqe.opcode() {
        READ | COMPARE | VERIFY => false,
        COPY => command.stage != Stage::First,
        _ => true,
    }
}

pub fn execute(connection: &mut Connection, slot: usize) -> Outcome {
    let command = connection.command(slot);
    let sqe = command.sqe;
    if sqe.opcode() == FLUSH && sqe.nsid() == BROADCAST {
        return flush_all(connection, slot);
    }
    let command = connection.command(slot);
    command.stage = Stage::First;
    let namespace = command.namespace.clone().expect("checked before");
    let offset = sqe.lba().saturating_mul(BLOCK_BYTES);
    let len = sqe.blocks() * BLOCK_BYTES;
    match sqe.opcode() {
        FLUSH => connection.request(slot, &namespace, Ask::Flush),
        READ => {
            count(connection, sqe.blocks(), false);
            let memory = first(connection, slot).part(0, len as usize);
            connection.request(slot, &namespace, Ask::Read { offset, memory });
        }
        WRITE => {
            count(connection, sqe.blocks(), true);
            let memory = first(connection, slot).part(0, len as usize);
            let fua = sqe.fua() || writes_through(connection);
            connection.request(slot, &namespace, Ask::Write { offset, memory, fua });
        }
        WRITE_ZEROES => {
            count(connection, sqe.blocks(), true);
            let fua = sqe.fua() || writes_through(connection);
            connection.request(slot, &namespace, Ask::WriteZeroes { offset, len, fua });
        }
        COMPARE => {
            let memory = second(connection, slot).part(0, len as usize);
            connection.request(slot, &namespace, Ask::Read { offset, memory });
        }
        VERIFY => {
            let memory = first(connection, slot).part(0, len as usize);
            connection.request(slot, &namespace, Ask::Read { offset, memory });
        }
        DATASET => return deallocate(connection, slot, &namespace),
        COPY => return copy(connection, slot, &namespace),
        _ => return Err(Status::INVALID_OPCODE),
    }
    Ok(Reply::Pending)
}

/// The requests of the command's stage are done.
pub fn advance(connection: &mut Connection, slot: usize) -> Outcome {
    let command = connection.command(slot);
    if !command.status.is_success() {
        return Err(command.status);
    }
    let (sqe, stage) = (command.sqe, command.stage);
    match (sqe.opcode(), stage) {
        (READ, _) => {
            connection.finish_read(slot);
            Ok(Reply::Pending)
        }
        (COMPARE, _) => {
            let len = command.len;
            let same = equal(&first(connection, slot), &second(connection, slot), len);
            if same { Ok(Reply::Done(0)) } else { Err(Status::COMPARE_FAILURE) }
        }
        (DATASET, _) => deallocate_next(connection, slot),
        (COPY, Stage::First) => {
            command.stage = Stage::Second;
            let namespace = command.namespace.clone().expect("checked before");
            let len = command.need[1];
            let memory = second(connection, slot).part(0, len);
            // FUA of Copy is where that of Write is.
            let fua = sqe.fua() || writes_through(connection);
            let offset = sqe.lba().saturating_mul(BLOCK_BYTES);
            connection.request(slot, &namespace, Ask::Write { offset, memory, fua });
            Ok(Reply::Pending)
        }
        _ => Ok(Reply::Done(0)),
    }
}

fn first(connection: &mut Connection, slot: usize) -> Memory {
    connection.command(slot).memory.clone().expect("acquired before it is executed")
}

fn second(connection: &mut Connection, slot: usize) -> Memory {
    connection.command(slot).second.clone().expect("acquired before it is executed")
}

fn writes_through(connection: &Connection) -> bool {
    connection.controller.as_ref().is_some_and(|c| !c.write_cache.load(Ordering::Relaxed))
}

fn count(connection: &Connection, blocks: u64, write: bool) {
    let subsystem = connection.controller.as_ref().and_then(|c| c.subsystem.as_ref());
    if let Some(counters) = subsystem.map(|s| &s.counters) {
        let (commands, data) = if write {
            (&counters.writes, &counters.written_blocks)
        } else {
            (&counters.reads, &counters.read_blocks)
        };
        commands.fetch_add(1, Ordering::Relaxed);
        data.fetch_add(blocks, Ordering::Relaxed);
    }
}

fn flush_all(connection: &mut Connection, slot: usize) -> Outcome {
    let namespaces: Vec<Arc<Namespace>> = connection.namespaces().to_vec();
    connection.command(slot).stage = Stage::First;
    for namespace in &namespaces {
        connection.request(slot, namespace, Ask::Flush);
    }
    Ok(if namespaces.is_empty() { Reply::Done(0) } else { Reply::Pending })
}

/// The ranges of a Dataset Management command: first block, and how many.
fn dataset_ranges(connection: &mut Connection, slot: usize) -> Vec<(u64, u64)> {
    let count = (connection.command(slot).sqe.dword(10) as usize & 0xff) + 1;
    let data = connection.data(slot, count * DATASET_RANGE_BYTES);
    let ranges =
        data.chunks_exact(DATASET_RANGE_BYTES).map(|r| (u64_at(r, 8), u32_at(r, 4).into()));
    // An empty one is nowhere.
    ranges.filter(|(_, blocks)| *blocks > 0).collect()
}

fn deallocate(connection: &mut Connection, slot: usize, namespace: &Namespace) -> Outcome {
    for (lba, blocks) in dataset_ranges(connection, slot) {
        inside(namespace, lba, blocks)?;
    }
    // The other attributes are hints about access, which change nothing here.
    if connection.command(slot).sqe.dword(11) & DEALLOCATE == 0 {
        return Ok(Reply::Done(0));
    }
    deallocate_next(connection, slot)
}

/// Asks for the next part of a deallocation, one at a time: 256 ranges may each be all of a volume, and each extent of it is
/// an operation.
fn deallocate_next(connection: &mut Connection, slot: usize) -> Outcome {
    let ranges = dataset_ranges(connection, slot);
    let command = connection.command(slot);
    let namespace = command.namespace.clone().expect("checked before");
    let (range, done) = &mut command.progress;
    while let Some((lba, blocks)) = ranges.get(*range) {
        let now = (blocks - *done).min(DEALLOCATE_BLOCKS_MAX);
        if now == 0 {
            (*range, *done) = (*range + 1, 0);
            continue;
        }
        let (offset, len) = ((lba + *done) * BLOCK_BYTES, now * BLOCK_BYTES);
        *done += now;
        connection.request(slot, &namespace, Ask::Deallocate { offset, len });
        return Ok(Reply::Pending);
    }
    Ok(Reply::Done(0))
}

/// Reads all sources into one buffer, then writes it: overlapping ranges do no harm.
fn copy(connection: &mut Connection, slot: usize, namespace: &Namespace) -> Outcome {
    let sqe = connection.command(slot).sqe;
    let wanted = (sqe.dword(12) as usize & 0xff) + 1;
    let data = connection.data(slot, wanted * COPY_RANGE_BYTES);
    let ranges: Vec<(u64, u64)> = data
        .chunks_exact(COPY_RANGE_BYTES)
        .map(|r| (u64_at(r, 8), u64::from(u16_at(r, 16)) + 1))
        .collect();
    let blocks: u64 = ranges.iter().map(|(_, blocks)| blocks).sum();
    if blocks > COPY_BLOCKS_MAX.into() {
        return Err(Status::SIZE_LIMIT);
    }
    for (lba, blocks) in &ranges {
        inside(namespace, *lba, *blocks)?;
    }
    inside(namespace, sqe.lba(), blocks)?;
    let bytes = (blocks * BLOCK_BYTES) as usize;
    if connection.command(slot).second.is_none() {
        connection.want_second(slot, bytes);
        return Ok(Reply::Pending);
    }
    connection.command(slot).need[1] = bytes;
    count(connection, blocks, true);
    let buffer = second(connection, slot);
    let mut at = 0;
    for (lba, blocks) in ranges {
        let len = (blocks * BLOCK_BYTES) as usize;
        let memory = buffer.part(at, len);
        at += len;
        connection.request(slot, namespace, Ask::Read { offset: lba * BLOCK_BYTES, memory });
    }
    Ok(Reply::Pending)
}

fn equal(a: &Memory, b: &Memory, len: usize) -> bool {
    let (mut left, mut right) = ([0; 4096], [0; 4096]);
    (0..len).step_by(4096).all(|at| {
        let n = (len - at).min(4096);
        a.read(at, &mut left[..n]);
        b.read(at, &mut right[..n]);
        left[..n] == right[..n]
    })
}
