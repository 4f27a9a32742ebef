//! Fabrics commands: Connect, properties, authentication (NVMe base 2.0 §6).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::auth::{self, Authentication};
use super::capsule::Sqe;
use super::commands::Stage;
use super::connection::{Connection, Outcome, Reply};
use super::controller::{Controller, Registers};
use super::pdu::{u16_at, u32_at, u64_at};
use super::registry::Caller;
use super::status::Status;
use super::text::{DISCOVERY_NQN, nqn_of};
use crate::reactor::Ask;

pub const OPCODE: u8 = 0x7f;
const PROPERTY_SET: u8 = 0x00;
const CONNECT: u8 = 0x01;
const PROPERTY_GET: u8 = 0x04;
const AUTHENTICATION_SEND: u8 = 0x05;
const AUTHENTICATION_RECEIVE: u8 = 0x06;

const CONNECT_BYTES: usize = 1024;
/// Any controller: the dynamic model.
const ANY_CONTROLLER: u16 = 0xffff;
/// Bit of Connect's attributes: the host does not look at the queue's head.
const NO_FLOW_CONTROL: u8 = 1 << 2;
/// In Connect's result: the host has to authenticate.
const MUST_AUTHENTICATE: u64 = 1 << 17;

const CAPABILITIES: u32 = 0x00;
const VERSION: u32 = 0x08;
const CONFIGURATION: u32 = 0x14;
const STATUS: u32 = 0x1c;
/// NVMe 2.0.
pub const NVME_VERSION: u32 = 0x0002_0000;
pub const READY: u32 = 1;
const FAILED: u32 = 1 << 1;
const SHUTDOWN_MASK: u32 = 3 << 2;
const SHUTDOWN_UNDER_WAY: u32 = 1 << 2;
const SHUTDOWN_DONE: u32 = 2 << 2;

/// Whether a command may come now.
pub fn authorize(connection: &Connection, sqe: &Sqe) -> Result<(), Status> {
    let fabrics = sqe.opcode() == OPCODE;
    let kind = sqe.fabrics_type();
    let connects = fabrics && kind == CONNECT;
    let Some(controller) = &connection.controller else {
        return if connects { Ok(()) } else { Err(Status::SEQUENCE) };
    };
    if connects {
        return Err(Status::SEQUENCE);
    }
    let authenticates = fabrics && (kind == AUTHENTICATION_SEND || kind == AUTHENTICATION_RECEIVE);
    if authenticates {
        return Ok(());
    }
    if !connection.authenticated {
        return Err(Status::AUTH_REQUIRED);
    }
    if fabrics && connection.queue.id > 0 {
        return Err(Status::INVALID_OPCODE);
    }
    // A reset closes I/O queues, so that only the admin queue has to look.
    if !fabrics && connection.queue.id == 0 && !controller.is_ready() {
        return Err(Status::SEQUENCE);
    }
    Ok(())
}

pub fn execute(connection: &mut Connection, slot: usize) -> Outcome {
    connection.alive();
    let sqe = connection.command(slot).sqe;
    match sqe.fabrics_type() {
        CONNECT => connect(connection, slot, &sqe),
        PROPERTY_GET => property_get(connection, &sqe),
        PROPERTY_SET => property_set(connection, slot, &sqe),
        AUTHENTICATION_SEND => {
            let data = connection.data(slot, usize::MAX);
            auth::send(connection, &sqe, &data)
        }
        AUTHENTICATION_RECEIVE => auth::receive(connection, slot, &sqe),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// Connect's status with the place of the wrong parameter: its offset in the data or in the command.
fn wrong(connection: &mut Connection, slot: usize, in_data: bool, offset: u16) -> Outcome {
    let result = u64::from(in_data) << 16 | u64::from(offset);
    connection.finish(slot, Status::CONNECT_PARAMETERS, result);
    Ok(Reply::Pending)
}

fn connect(connection: &mut Connection, slot: usize, sqe: &Sqe) -> Outcome {
    let data = connection.data(slot, usize::MAX);
    if data.len() != CONNECT_BYTES {
        return Err(Status::SGL_LENGTH);
    }
    if u16_at(&sqe.0, 40) != 0 {
        return Err(Status::CONNECT_FORMAT);
    }
    let (queue, size) = (u16_at(&sqe.0, 42), u16_at(&sqe.0, 44));
    let (attributes, keep_alive_ms) = (sqe.0[46], u32_at(&sqe.0, 48));
    let limits = connection.registry.limits;
    if size == 0 || size >= limits.depth {
        return wrong(connection, slot, false, 44);
    }
    let Some(subsystem) = nqn_of(&data[256..512]) else {
        return wrong(connection, slot, true, 256);
    };
    let Some(host) = nqn_of(&data[512..768]) else {
        return wrong(connection, slot, true, 512);
    };
    if connection.place.discovery_only && subsystem != DISCOVERY_NQN {
        return wrong(connection, slot, true, 256);
    }
    let mut host_id = [0; 16];
    host_id.copy_from_slice(&data[..16]);
    let caller = Caller { subsystem, host, host_id };
    let wanted = u16_at(&data, 16);
    let controller = if queue == 0 {
        if wanted != ANY_CONTROLLER {
            return wrong(connection, slot, true, 16);
        }
        match connection.registry.connect(caller, &connection.link) {
            Err(Status::CONNECT_PARAMETERS) => return wrong(connection, slot, true, 256),
            other => other.inspect_err(|status| {
                tracing::info!(host, subsystem, ?status, "a host was refused");
            })?,
        }
    } else {
        if queue > limits.queues_max {
            return wrong(connection, slot, false, 42);
        }
        let Some(controller) = connection.registry.find(wanted, caller) else {
            return wrong(connection, slot, true, 16);
        };
        if !controller.is_ready() || !controller.attach(queue, &connection.link) {
            return Err(Status::SEQUENCE);
        }
        controller
    };
    if queue == 0 {
        controller.keep_alive_ms.store(keep_alive_ms, Ordering::Release);
        tracing::info!(host, subsystem, id = controller.id, "a host connected");
    }
    let flow = attributes & NO_FLOW_CONTROL == 0;
    let mut result = u64::from(controller.id);
    if controller.credentials.is_some() {
        connection.authentication = Authentication::Expected;
        result |= MUST_AUTHENTICATE;
    } else {
        connection.authenticated = true;
        connection.link.establish();
    }
    connection.become_queue(controller, queue, size + 1, flow);
    Ok(Reply::Done(result))
}

fn registers(controller: &Controller) -> std::sync::MutexGuard<'_, Registers> {
    controller.registers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn property_get(connection: &Connection, sqe: &Sqe) -> Outcome {
    let controller = connection.controller.as_ref().ok_or(Status::SEQUENCE)?;
    let is_long = match sqe.0[40] & 7 {
        0 => false,
        1 => true,
        _ => return Err(Status::INVALID_FIELD),
    };
    let value = match (u32_at(&sqe.0, 44), is_long) {
        (CAPABILITIES, true) => {
            let entries = u64::from(connection.registry.limits.depth - 1);
            // CQR, TO = 15 s, CSS: the NVM command set, pages of 4 KiB.
            entries | 1 << 16 | 30 << 24 | 1 << 37
        }
        (VERSION, false) => u64::from(NVME_VERSION),
        (CONFIGURATION, false) => u64::from(registers(controller).configuration),
        (STATUS, false) => u64::from(registers(controller).status),
        _ => return Err(Status::INVALID_FIELD),
    };
    Ok(Reply::Done(value))
}

fn property_set(connection: &mut Connection, slot: usize, sqe: &Sqe) -> Outcome {
    let controller = connection.controller.clone().ok_or(Status::SEQUENCE)?;
    if sqe.0[40] & 7 != 0 || u32_at(&sqe.0, 44) != CONFIGURATION {
        return Err(Status::INVALID_FIELD);
    }
    let new = u64_at(&sqe.0, 48) as u32;
    let (enabled, shuts_down) = (new & 1 != 0, new >> 14 & 3 != 0);
    let was_enabled = {
        let mut registers = registers(&controller);
        let was_enabled = registers.configuration & 1 != 0;
        registers.configuration = new;
        if enabled && !was_enabled {
            let sizes = new >> 16 & 0xff;
            // Page size, arbitration and command set have to be what the capabilities offer. A discovery
            // controller has no I/O queues whose entries would have a size.
            let fits = new >> 4 & 0x3ff == 0 && (controller.is_discovery() || sizes == 0x46);
            registers.status = if fits { READY } else { FAILED };
        } else if was_enabled && !enabled {
            registers.status = 0;
        }
        if shuts_down {
            registers.status = registers.status & !SHUTDOWN_MASK | SHUTDOWN_UNDER_WAY;
        }
        was_enabled
    };
    if was_enabled && !enabled {
        controller.reset();
        // The host sends new ones when it has enabled the controller again.
        for event in std::mem::take(&mut connection.events) {
            connection.finish(event, Status::ABORT_REQUESTED, 0);
        }
    }
    if shuts_down { flush(connection, slot) } else { Ok(Reply::Done(0)) }
}

/// A host that shuts down need not flush before: what it wrote is durable when the status says that the shutdown is done.
fn flush(connection: &mut Connection, slot: usize) -> Outcome {
    let namespaces = connection.namespaces().to_vec();
    if namespaces.is_empty() {
        return advance(connection, slot);
    }
    connection.command(slot).stage = Stage::First;
    for namespace in &namespaces {
        connection.request(slot, namespace, Ask::Flush);
    }
    Ok(Reply::Pending)
}

/// The volumes are flushed.
pub fn advance(connection: &mut Connection, slot: usize) -> Outcome {
    let status = connection.command(slot).status;
    if !status.is_success() {
        return Err(status);
    }
    let controller = connection.controller.as_ref().ok_or(Status::SEQUENCE)?;
    let mut registers = registers(controller);
    // Unless it was reset meanwhile.
    if registers.status & SHUTDOWN_MASK == SHUTDOWN_UNDER_WAY {
        registers.status = registers.status & !SHUTDOWN_MASK | SHUTDOWN_DONE;
    }
    Ok(Reply::Done(0))
}
