//! The discovery log page: which subsystems this host may connect to, and where (NVMe base 2.0 §5.16.1.23).

use super::connection::Connection;
use super::controller::Controller;
use super::text::{ascii, zero_ended};

const ENTRY_BYTES: usize = 1024;
const TCP: u8 = 3;
const IPV4: u8 = 1;
const IPV6: u8 = 2;
const NVM_SUBSYSTEM: u8 = 2;
/// No secure channel.
const NO_CHANNEL: u8 = 2;

pub fn log(connection: &Connection, controller: &Controller) -> Vec<u8> {
    let registry = &connection.registry;
    let (generation, names) = registry.discover(&controller.host_nqn);
    let io = registry.bound.get().and_then(|b| b.io.first());
    let port = io.map_or(0, |a| a.port());
    let ip = registry.advertise.unwrap_or(connection.place.local.ip()).to_canonical();
    let mut b = vec![0; ENTRY_BYTES];
    b[0..8].copy_from_slice(&generation.to_le_bytes());
    b[8..16].copy_from_slice(&(names.len() as u64).to_le_bytes());
    for name in &names {
        let mut e = vec![0; ENTRY_BYTES];
        e[0] = TCP;
        e[1] = if ip.is_ipv4() { IPV4 } else { IPV6 };
        e[2] = NVM_SUBSYSTEM;
        e[3] = NO_CHANNEL;
        e[4..6].copy_from_slice(&1_u16.to_le_bytes());
        // Controllers are made when a host connects.
        e[6..8].copy_from_slice(&0xffff_u16.to_le_bytes());
        e[8..10].copy_from_slice(&registry.limits.depth.to_le_bytes());
        ascii(&mut e[32..64], &port.to_string());
        zero_ended(&mut e[256..512], name);
        ascii(&mut e[512..768], &ip.to_string());
        b.extend_from_slice(&e);
    }
    b
}
