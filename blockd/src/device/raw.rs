//! The Identify structures as the controller fills them, for what no field of ours shows.

use serde::Serialize;

use crate::engine::Device;
use crate::error::{Error, Result};
use crate::nvme::command::Command;

/// Both structures of 4096 bytes, as hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Raw {
    /// CNS 01h.
    pub controller: String,
    /// CNS 00h.
    pub namespace: String,
}

/// Asks the controller of an open device.
///
/// # Errors
/// [`Error::Invalid`] if no engine of ours speaks NVMe to it.
pub fn raw_of(path: &str, device: &dyn Device) -> Result<Raw> {
    let admin = device.admin().ok_or_else(|| {
        let engine = device.engine();
        Error::Invalid(format!(
            "{path} is driven by the engine {engine}, which speaks no NVMe: name /dev/ngXnY or a PCI address"
        ))
    })?;
    let fetch = |structure, nsid| {
        let page = admin.fetch(&Command::identify(structure, 0, nsid));
        let failed =
            |source| Error::Device { path: path.to_owned(), doing: "identifying it", source };
        Ok::<_, Error>(hex(&page.map_err(failed)?))
    };
    Ok(Raw { controller: fetch(1, 0)?, namespace: fetch(0, admin.nsid())? })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Mem;

    #[test]
    fn ram_has_no_structures() {
        let refused = raw_of("ram", &Mem::new(4096)).unwrap_err();
        assert!(refused.to_string().contains("engine mem"), "{refused}");
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
    }
}
