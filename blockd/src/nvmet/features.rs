//! Get and Set Features (NVMe base 2.0 §5.15, §5.27). No feature is saved.

use std::sync::atomic::Ordering;

use super::capsule::Sqe;
use super::connection::{Connection, Outcome, Reply};
use super::controller::{Controller, EVENTS};
use super::identify::BROADCAST;
use super::status::Status;

const ARBITRATION: u8 = 0x01;
const POWER: u8 = 0x02;
const ERROR_RECOVERY: u8 = 0x05;
const WRITE_CACHE: u8 = 0x06;
const QUEUES: u8 = 0x07;
const ATOMICITY: u8 = 0x0a;
const EVENTS_ENABLED: u8 = 0x0b;
const KEEP_ALIVE: u8 = 0x0f;
const HOST_ID: u8 = 0x81;
const WRITE_PROTECTION: u8 = 0x84;

pub fn set(connection: &mut Connection, controller: &Controller, sqe: &Sqe) -> Result<u64, Status> {
    let (feature, save) = (sqe.dword(10) as u8, sqe.dword(10) >> 31 == 1);
    let value = sqe.dword(11);
    if save {
        return Err(Status::FEATURE_NOT_SAVEABLE);
    }
    if controller.is_discovery() && !matches!(feature, EVENTS_ENABLED | KEEP_ALIVE) {
        return Err(Status::INVALID_FIELD);
    }
    match feature {
        WRITE_CACHE => {
            controller.write_cache.store(value & 1 == 1, Ordering::Release);
            Ok(0)
        }
        QUEUES => {
            let (submission, completion) = (value as u16, (value >> 16) as u16);
            if submission == 0xffff || completion == 0xffff {
                return Err(Status::INVALID_FIELD);
            }
            Ok(queue_counts(connection))
        }
        EVENTS_ENABLED => {
            controller.events_enabled.store(value & EVENTS, Ordering::Release);
            connection.link.wake();
            Ok(0)
        }
        KEEP_ALIVE => {
            controller.keep_alive_ms.store(value, Ordering::Release);
            Ok(0)
        }
        // Decided by the operator, where the volume is exported.
        WRITE_PROTECTION => {
            if connection.namespace(sqe.nsid()).is_none() {
                return Err(Status::INVALID_NAMESPACE);
            }
            Err(Status::FEATURE_NOT_CHANGEABLE)
        }
        ARBITRATION | POWER | ERROR_RECOVERY | ATOMICITY | HOST_ID => {
            Err(Status::FEATURE_NOT_CHANGEABLE)
        }
        _ => Err(Status::INVALID_FIELD),
    }
}

fn queue_counts(connection: &Connection) -> u64 {
    // Both counts are 0's based.
    let most = u64::from(connection.registry.limits.queues_max - 1);
    most | most << 16
}

pub fn get(
    connection: &mut Connection,
    slot: usize,
    controller: &Controller,
    sqe: &Sqe,
) -> Outcome {
    let (feature, select) = (sqe.dword(10) as u8, sqe.dword(10) >> 8 & 7);
    if controller.is_discovery() && !matches!(feature, EVENTS_ENABLED | KEEP_ALIVE) {
        return Err(Status::INVALID_FIELD);
    }
    if select != 0 {
        return Err(Status::INVALID_FIELD);
    }
    if feature == HOST_ID {
        // EXHID: all of the 128 bits.
        if sqe.dword(11) & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        return Ok(Reply::Data(controller.host_id.to_vec()));
    }
    // The others are in the completion; a buffer that comes along stays as it is.
    connection.command(slot).len = 0;
    let value = match feature {
        ARBITRATION | POWER | ERROR_RECOVERY | ATOMICITY => 0,
        WRITE_CACHE => u64::from(controller.write_cache.load(Ordering::Acquire)),
        QUEUES => queue_counts(connection),
        EVENTS_ENABLED => u64::from(controller.events_enabled.load(Ordering::Acquire)),
        KEEP_ALIVE => u64::from(controller.keep_alive_ms.load(Ordering::Acquire)),
        WRITE_PROTECTION => {
            let nsid = sqe.nsid();
            if nsid == BROADCAST {
                return Err(Status::FEATURE_NOT_NAMESPACE);
            }
            let namespace = connection.namespace(nsid).ok_or(Status::INVALID_NAMESPACE)?;
            u64::from(namespace.read_only)
        }
        _ => return Err(Status::INVALID_FIELD),
    };
    Ok(Reply::Done(value))
}
