//! The network between the members (nodes and clients) of a cluster.
//!
//! ```text
//!   root       bridge cfs-NAME, 198.18.X.254/24, on the host
//!                 ├─ v……-n1 ═ eth0 198.18.X.1     in the namespace cfs-NAME-n1
//!                 ├─ v……-n2 ═ eth0 198.18.X.2     …
//!                 └─ v……-c1 ═ eth0 198.18.X.201   a client
//!   not root   n1 127.A.B.1, n2 127.A.B.2, …      loopback addresses: nothing to make, nothing to cut
//! ```
//! 198.18.0.0/15 is for test beds (RFC 2544). X, A and B come of the cluster's name; an X that an interface of this host
//! has is passed over. The host reaches every member by the bridge.

pub mod faults;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Longest name of an interface in bytes: `IFNAMSIZ` with its zero is 16.
const INTERFACE_BYTES_MAX: usize = 15;
/// Last byte of the first client's address, and of the bridge's.
const CLIENT_FIRST: u8 = 200;
const BRIDGE_HOST: u8 = 254;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Every member in a network namespace.
    Namespaces,
    /// Every member at a loopback address of its own.
    Loopback,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub provider: Provider,
    /// Name of the cluster.
    name: String,
    /// First three bytes of every address.
    prefix: [u8; 3],
}

impl Network {
    /// Chooses addresses for a new cluster of this name.
    pub fn choose(provider: Provider, name: &str) -> Result<Network> {
        let hash = hash(name);
        let network = |prefix| Network { provider, name: name.to_owned(), prefix };
        if provider == Provider::Loopback {
            let [a, b, ..] = hash.to_le_bytes();
            return Ok(network([127, 64 + a % 128, b]));
        }
        for tool in ["ip", "nsenter", "setsid"] {
            if !crate::programs::is_in_path(tool) {
                let what = format!("network namespaces need `{tool}`, which is not installed");
                return Err(Error::new(Kind::Precondition, what)
                    .next("apt-get install iproute2 util-linux"));
            }
        }
        let taken = run(Command::new("ip").args(["-4", "-o", "address"]))?;
        for step in 0..512 {
            let place = (hash as u16).wrapping_add(step) % 512;
            let prefix = [198, 18 + (place / 256) as u8, (place % 256) as u8];
            let start = format!(" {}.{}.{}.", prefix[0], prefix[1], prefix[2]);
            if !taken.contains(&start) {
                return Ok(network(prefix));
            }
        }
        let what = "every network of 198.18.0.0/15 has an interface on this host already";
        Err(Error::new(Kind::Precondition, what).next("destroy clusters that nobody needs"))
    }

    /// Address of node `number`, from 1.
    pub fn node(&self, number: usize) -> Ipv4Addr {
        self.host(number as u8)
    }

    /// Address of client `number`, from 1.
    pub fn client(&self, number: usize) -> Ipv4Addr {
        self.host(CLIENT_FIRST + number as u8)
    }

    /// Address of this host itself, from which every member is reached.
    pub fn orchestrator(&self) -> Ipv4Addr {
        self.host(BRIDGE_HOST)
    }

    fn host(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Name of a member's network namespace, if it has one.
    pub fn namespace(&self, member: &str) -> Option<String> {
        match self.provider {
            Provider::Namespaces => Some(format!("cfs-{}-{member}", self.name)),
            Provider::Loopback => None,
        }
    }

    fn bridge(&self) -> String {
        let plain = format!("cfs-{}", self.name);
        if plain.len() <= INTERFACE_BYTES_MAX {
            return plain;
        }
        format!("{}-{:04x}", &plain[..10], hash(&self.name) as u16)
    }

    /// The host's end of a member's cable.
    fn cable(&self, member: &str) -> String {
        format!("v{:08x}-{member}", hash(&self.name) as u32)
    }

    /// Refuses a name whose interfaces and namespaces somebody else has.
    pub fn is_free(&self) -> Result<()> {
        if self.provider == Provider::Loopback || !has_interface(&self.bridge()) {
            return Ok(());
        }
        let what = format!("there is an interface `{}` already, of another cluster", self.bridge());
        Err(Error::new(Kind::Precondition, what)
            .next("choose another name with --name, or destroy that one with its --state-dir"))
    }

    /// Makes the bridge, unless it is there.
    pub fn up(&self) -> Result<()> {
        if self.provider == Provider::Loopback {
            return Ok(());
        }
        let bridge = self.bridge();
        if !has_interface(&bridge) {
            ip(&["link", "add", &bridge, "type", "bridge"])?;
        }
        let address = format!("{}/24", self.orchestrator());
        ip(&["address", "replace", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])
    }

    /// Makes a member's namespace and its cable, unless they are there.
    pub fn add(&self, member: &str, address: Ipv4Addr) -> Result<()> {
        let Some(namespace) = self.namespace(member) else { return Ok(()) };
        let cable = self.cable(member);
        if !has_namespace(&namespace) {
            ip(&["netns", "add", &namespace])?;
        }
        if !has_interface(&cable) {
            ip(&[
                "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
            ])?;
        }
        ip(&["link", "set", &cable, "master", &self.bridge(), "up"])?;
        let address = format!("{address}/24");
        ip(&["-n", &namespace, "address", "replace", &address, "dev", "eth0"])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])
    }

    /// Takes away what there is of the members' namespaces and of the bridge.
    pub fn remove<'a>(&self, members: impl Iterator<Item = &'a str>) -> Result<()> {
        if self.provider == Provider::Loopback {
            return Ok(());
        }
        for member in members {
            // The cable first: a namespace lives on, without a name, while a process is in it.
            let cable = self.cable(member);
            if has_interface(&cable) {
                ip(&["link", "delete", &cable])?;
            }
            if let Some(namespace) = self.namespace(member)
                && has_namespace(&namespace)
            {
                ip(&["netns", "delete", &namespace])?;
            }
        }
        if has_interface(&self.bridge()) {
            ip(&["link", "delete", &self.bridge()])?;
        }
        Ok(())
    }
}

fn has_namespace(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists()
}

fn has_interface(name: &str) -> bool {
    Command::new("ip")
        .args(["link", "show", "dev", name])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}

/// Runs a command that has to succeed; its stdout.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let words = [command_name(command)].into_iter().chain(arguments(command));
    let line = words.collect::<Vec<_>>().join(" ");
    let failed = |why: String| Error::new(Kind::Failed, format!("`{line}` failed: {why}"));
    let output = match command.stdin(std::process::Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Err(failed(error.to_string())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(if said.is_empty() { output.status.to_string() } else { said }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn arguments(command: &Command) -> impl Iterator<Item = String> + '_ {
    command.get_args().map(|argument| argument.to_string_lossy().into_owned())
}

/// FNV-1a, folded: the same for a name everywhere and always.
fn hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_in_the_kernel_and_addresses_do_not_meet() {
        let network = Network::choose(Provider::Loopback, "dev").unwrap();
        assert!(network.node(1).is_loopback());
        assert_ne!(network.node(64), network.client(1));
        assert_eq!(network.namespace("n1"), None);
        let long = "a-name-that-is-quite-long";
        for name in ["dev", long, "a-name-that-is-quite-longer"] {
            let network =
                Network { provider: Provider::Namespaces, name: name.into(), prefix: [198, 18, 0] };
            assert!(network.bridge().len() <= INTERFACE_BYTES_MAX, "{}", network.bridge());
            assert!(network.cable("n64").len() <= INTERFACE_BYTES_MAX);
            assert!(network.bridge().starts_with(&format!("cfs-{}", &name[..3])));
        }
        let bridge = |name: &str| {
            Network { provider: Provider::Namespaces, name: name.into(), prefix: [198, 18, 0] }
                .bridge()
        };
        assert_ne!(bridge(long), bridge("a-name-that-is-quite-longer"));
    }
}
