//! Commands of the admin queue (NVMe base 2.0 §5).

use super::commands::Stage;
use super::connection::{Connection, Outcome, Reply};
use super::controller::{EVENT_DISCOVERY, EVENT_NAMESPACE};
use super::status::Status;
use super::{abort, features, identify, log_page};
pub use crate::nvme::opcode::admin::*;

/// Event requests at once.
pub const EVENT_REQUESTS_MAX: usize = 4;

pub fn execute(connection: &mut Connection, slot: usize) -> Outcome {
    connection.alive();
    let controller = connection.controller.clone().ok_or(Status::SEQUENCE)?;
    let sqe = connection.command(slot).sqe;
    match sqe.opcode() {
        IDENTIFY => identify::execute(connection, &controller, &sqe).map(Reply::Data),
        GET_LOG_PAGE => {
            let len = connection.command(slot).len;
            log_page::execute(connection, &controller, &sqe, len).map(Reply::Data)
        }
        SET_FEATURES => features::set(connection, &controller, &sqe).map(Reply::Done),
        GET_FEATURES => features::get(connection, slot, &controller, &sqe),
        EVENT_REQUEST => {
            if connection.events.len() >= EVENT_REQUESTS_MAX {
                return Err(Status::EVENTS_LIMIT);
            }
            connection.command(slot).stage = Stage::Event;
            connection.events.push(slot);
            Ok(Reply::Pending)
        }
        KEEP_ALIVE => Ok(Reply::Done(0)),
        ABORT => abort::execute(connection, slot),
        _ => Err(Status::INVALID_OPCODE),
    }
}

/// Dword 0 of an event request's completion: type notice, information, log page.
pub fn event_result(event: u32) -> u64 {
    match event {
        EVENT_NAMESPACE => 0x02 | u64::from(log_page::CHANGED_NAMESPACES) << 16,
        EVENT_DISCOVERY => 0x02 | 0xf0 << 8 | u64::from(log_page::DISCOVERY) << 16,
        _ => unreachable!("the controller has no other events"),
    }
}

/// The numbers of the namespaces, ascending.
pub fn namespace_ids(connection: &mut Connection) -> Vec<u32> {
    connection.namespaces().iter().map(|n| n.nsid).collect()
}
