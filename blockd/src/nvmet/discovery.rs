//! The discovery log page: which subsystems this host may connect to, and where (NVMe base 2.0 §5.16.1.23).

use std::net::{IpAddr, SocketAddr};

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

/// Where a host reaches the target that has asked at the address `asked`: at each address that is listened on, by its place in
/// the list. An operator who knows better gives another IP address.
fn reachable(
    bound: &[SocketAddr],
    advertise: Option<IpAddr>,
    asked: IpAddr,
) -> Vec<(u16, SocketAddr)> {
    let asked = asked.to_canonical();
    let mut found: Vec<(u16, SocketAddr)> = Vec::new();
    for (place, address) in (1..).zip(bound) {
        let own = address.ip().to_canonical();
        let ip = match advertise {
            Some(ip) => ip.to_canonical(),
            // Every address of the machine, but with 0.0.0.0 only those of IPv4.
            None if own.is_unspecified() && (own.is_ipv6() || asked.is_ipv4()) => asked,
            None if own.is_unspecified() || own.is_loopback() && !asked.is_loopback() => continue,
            None => own,
        };
        let address = SocketAddr::new(ip, address.port());
        if found.iter().all(|(_, known)| *known != address) {
            found.push((place, address));
        }
    }
    found
}

pub fn log(connection: &Connection, controller: &Controller) -> Vec<u8> {
    let registry = &connection.registry;
    let (generation, names) = registry.discover(&controller.host_nqn);
    let bound = registry.bound.get().map_or(&[][..], |b| &b.io);
    let addresses = reachable(bound, registry.advertise, connection.place.local.ip());
    let mut b = vec![0; ENTRY_BYTES];
    b[0..8].copy_from_slice(&generation.to_le_bytes());
    b[8..16].copy_from_slice(&((names.len() * addresses.len()) as u64).to_le_bytes());
    for name in &names {
        for (port, address) in &addresses {
            b.extend_from_slice(&entry(name, *port, *address, registry.limits.depth));
        }
    }
    b
}

fn entry(name: &str, port: u16, address: SocketAddr, depth: u16) -> [u8; ENTRY_BYTES] {
    let mut e = [0; ENTRY_BYTES];
    e[0] = TCP;
    e[1] = if address.is_ipv4() { IPV4 } else { IPV6 };
    e[2] = NVM_SUBSYSTEM;
    e[3] = NO_CHANNEL;
    e[4..6].copy_from_slice(&port.to_le_bytes());
    // Controllers are made when a host connects.
    e[6..8].copy_from_slice(&0xffff_u16.to_le_bytes());
    e[8..10].copy_from_slice(&depth.to_le_bytes());
    ascii(&mut e[32..64], &address.port().to_string());
    zero_ended(&mut e[256..512], name);
    ascii(&mut e[512..768], &address.ip().to_string());
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_that_the_host_can_reach() {
        let of = |bound: &[&str], advertise: Option<&str>, asked: &str| {
            let bound: Vec<SocketAddr> = bound.iter().map(|a| a.parse().unwrap()).collect();
            let advertise = advertise.map(|a| a.parse().unwrap());
            let found = reachable(&bound, advertise, asked.parse().unwrap());
            found.iter().map(|(port, a)| format!("{port} {a}")).collect::<Vec<_>>()
        };
        let both = ["10.0.0.1:4420", "10.0.1.1:4421"];
        assert_eq!(of(&both, None, "10.0.1.1"), ["1 10.0.0.1:4420", "2 10.0.1.1:4421"]);
        assert_eq!(of(&["0.0.0.0:4420"], None, "10.0.1.1"), ["1 10.0.1.1:4420"]);
        assert_eq!(of(&["[::]:4420"], None, "::ffff:10.0.1.1"), ["1 10.0.1.1:4420"]);
        assert_eq!(of(&["[::]:4420"], None, "fd00::1"), ["1 [fd00::1]:4420"]);
        assert_eq!(of(&["0.0.0.0:4420", "[fd00::1]:4420"], None, "fd00::1"), ["2 [fd00::1]:4420"]);
        assert_eq!(of(&["127.0.0.1:4420", "10.0.0.1:9"], None, "10.0.0.1"), ["2 10.0.0.1:9"]);
        assert_eq!(of(&["127.0.0.1:4420"], None, "127.0.0.1"), ["1 127.0.0.1:4420"]);
        let given = of(&["10.0.0.1:4420", "10.0.1.1:4420"], Some("192.0.2.7"), "10.0.0.1");
        assert_eq!(given, ["1 192.0.2.7:4420"], "once");
    }
}
