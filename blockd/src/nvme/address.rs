//! Which device a configuration means: a PCI address, a generic character device, or anything else with a path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A function on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    pub domain: u32,
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// It is no PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address is [domain:]bus:device.function in hexadecimal, such as 0000:01:00.0")]
pub struct NotPci;

impl FromStr for PciAddress {
    type Err = NotPci;

    fn from_str(text: &str) -> Result<PciAddress, NotPci> {
        // Widths are fixed, so that no file name is taken for an address by chance.
        let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
            let fits = digits.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u32::from_str_radix(part, 16).ok()).flatten().ok_or(NotPci)
        };
        let (rest, function) = text.rsplit_once('.').ok_or(NotPci)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(NotPci)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let address = PciAddress {
            domain: hex(domain, 4..=8)?,
            bus: hex(bus, 2..=2)? as u8,
            device: hex(device, 2..=2)? as u8,
            function: hex(function, 1..=1)? as u8,
        };
        (address.device < 32 && address.function < 8).then_some(address).ok_or(NotPci)
    }
}

/// A `path` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A controller, and which of its namespaces; `None` is the only one.
    Pci { address: PciAddress, nsid: Option<u32> },
    /// `/dev/ngXnY`.
    Generic(PathBuf),
    /// A file, a block device, or a name.
    Path(PathBuf),
}

impl Place {
    /// Reads `0000:01:00.0`, `0000:01:00.0/n2`, `/dev/ng0n1`, or a path.
    #[must_use]
    pub fn of(path: &Path) -> Place {
        let text = path.to_string_lossy();
        let (address, nsid) = match text.rsplit_once("/n") {
            Some((address, digits)) => match digits.parse() {
                Ok(nsid) if (1..u32::MAX).contains(&nsid) => (address, Some(nsid)),
                _ => (text.as_ref(), None),
            },
            None => (text.as_ref(), None),
        };
        if let Ok(address) = address.parse() {
            return Place::Pci { address, nsid };
        }
        let name = text.strip_prefix("/dev/ng").and_then(|rest| rest.split_once('n'));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        match name {
            Some((controller, namespace)) if digits(controller) && digits(namespace) => {
                Place::Generic(path.to_owned())
            }
            _ => Place::Path(path.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses() {
        let address = PciAddress { domain: 0, bus: 1, device: 0x1f, function: 7 };
        assert_eq!("0000:01:1f.7".parse(), Ok(address));
        assert_eq!("01:1F.7".parse(), Ok(address));
        assert_eq!(address.to_string(), "0000:01:1f.7");
        let far = PciAddress { domain: 0x10000, ..address };
        assert_eq!(far.to_string().parse(), Ok(far));
        for wrong in [
            "",
            "01:20.0",
            "01:00.8",
            "1:00.0",
            "01:00",
            "g1:00.0",
            "0:01:00.0",
            "/01:00.0",
            "01:00.00",
        ] {
            assert_eq!(wrong.parse::<PciAddress>(), Err(NotPci), "{wrong}");
        }
    }

    #[test]
    fn places() {
        let address = PciAddress { domain: 0, bus: 1, device: 0, function: 0 };
        let of = |text: &str| Place::of(Path::new(text));
        assert_eq!(of("0000:01:00.0"), Place::Pci { address, nsid: None });
        assert_eq!(of("01:00.0/n2"), Place::Pci { address, nsid: Some(2) });
        assert_eq!(of("/dev/ng0n1"), Place::Generic("/dev/ng0n1".into()));
        for path in [
            "/dev/nvme0n1",
            "/dev/ng0",
            "/dev/ngn1",
            "/dev/ng0n",
            "pool",
            "01:00.0/n0",
            "01:00.0/nx",
            "./01:00.0",
        ] {
            assert_eq!(of(path), Place::Path(path.into()), "{path}");
        }
    }
}
