//! `cfs admin block device list | identify | format | wipe`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::format::Format;
use super::rpc::Door;
use super::{Context, confirm};
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::units;

#[derive(Debug, Subcommand)]
pub enum Device {
    /// List the devices of blockd, with what is free on them
    List(List),
    /// Show what a device is, which engine drives it, and what is on it
    Identify(Identify),
    /// Make an empty pool on a device
    Format(Format),
    /// Remove what is on a device
    Wipe(Wipe),
}

#[derive(Debug, Args)]
pub struct List {}

#[derive(Debug, Args)]
#[command(after_help = "\
A device that is not blockd's is opened for this command alone; no blockd need run for that.")]
pub struct Identify {
    /// File, block device or what the configuration calls the device
    path: PathBuf,
    /// With the Identify structures of controller and namespace as they are, in hexadecimal
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The head and the end of the device are overwritten, the rest is deallocated. A device that is mounted or whose
volumes are in use is refused.")]
pub struct Wipe {
    /// File or block device
    path: PathBuf,
    /// The path once more
    #[arg(long, value_name = "PATH")]
    confirm: Option<String>,
    /// Overwrite every byte with zeros, which takes its time
    #[arg(long)]
    zero: bool,
}

impl Device {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        match self {
            Device::List(List {}) => {
                let items = door.call("cannot list the devices", "device.list", Value::Null)?;
                output::print(context.format, &View { items })?;
            }
            Device::Identify(Identify { path, raw }) => {
                let doing = format!("cannot identify {}", path.display());
                let params = json!({ "path": absolute(&path), "raw": raw });
                let identity: Identity = door.call_or_do(&doing, "device.identify", params)?;
                output::print(context.format, &identity)?;
            }
            Device::Format(format) => format.run(context, door)?,
            Device::Wipe(wipe) => wipe.run(door)?,
        }
        Ok(Exit::Ok)
    }
}

/// blockd has another working directory; PCI addresses and names of its configuration, which are no files, stay as they are.
pub(super) fn absolute(path: &Path) -> PathBuf {
    if path.exists() {
        return std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    }
    path.to_owned()
}

#[derive(Deserialize)]
struct Wiped {
    restart_needed: bool,
}

impl Wipe {
    fn run(self, door: &Door) -> Result<()> {
        let name = self.path.display().to_string();
        confirm(&name, self.confirm.as_deref(), &format!("All that is on {name} is lost."))?;
        let params = json!({ "path": absolute(&self.path), "zero": self.zero });
        let done: Wiped = door.call_or_do(&format!("cannot wipe {name}"), "device.wipe", params)?;
        eprintln!("{name} is blank");
        if done.restart_needed {
            eprintln!(
                "blockd has it open and makes nothing on it any more: take it out of the configuration, or \
                 restart blockd with `create = true` to make a pool again"
            );
        }
        Ok(())
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    path: String,
    engine: String,
    bytes: u64,
    uuid: String,
    volumes: u64,
    extent_bytes: u64,
    extents: u64,
    extents_free: u64,
    state: String,
    facts: Facts,
}

/// What an engine says of its device.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    engine: String,
    model: String,
    serial: String,
    firmware: String,
    bytes: u64,
    lba_bytes: u64,
    transfer_bytes_max: u64,
    volatile_cache: bool,
    atomic_bytes: u64,
    controller: Option<Controller>,
    health: Value,
}

/// What an NVMe controller and the namespace say of themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Controller {
    nvme_version: String,
    nsid: u32,
    namespaces: u32,
    mdts_bytes: u64,
    write_zeroes: bool,
    deallocate: bool,
    formats: Vec<LbaFormat>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LbaFormat {
    pub(super) index: u8,
    pub(super) lba_bytes: u64,
    metadata_bytes: u64,
    performance: u8,
    in_use: bool,
}

impl Controller {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let knows = [(self.write_zeroes, "Write Zeroes"), (self.deallocate, "deallocate")];
        let known: Vec<&str> =
            knows.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        let mut lines = vec![
            (
                "nvme",
                format!("{}, namespace {} of {}", self.nvme_version, self.nsid, self.namespaces),
            ),
            (
                "mdts",
                match self.mdts_bytes {
                    0 => "no limit".to_owned(),
                    bytes => units::bytes(bytes),
                },
            ),
            ("commands", known.join(", ")),
        ];
        for format in &self.formats {
            let LbaFormat { index, lba_bytes, metadata_bytes, performance, in_use } = format;
            let metadata = match metadata_bytes {
                0 => String::new(),
                bytes => format!(" + {bytes} of metadata"),
            };
            let speed = ["best", "better", "good", "degraded"][usize::from(*performance & 3)];
            let used = if *in_use { ", in use" } else { "" };
            let text =
                format!("lbaf {index}: {lba_bytes} bytes{metadata}, {speed} performance{used}");
            lines.push(("format", text));
        }
        lines
    }
}

#[derive(Serialize)]
struct View {
    items: Vec<Listed>,
}

impl Shown for View {
    const KIND: &'static str = "block-device-list";

    fn table(&self, wide: bool) -> String {
        let row = |device: &Listed| {
            let mut row = vec![
                device.path.clone(),
                device.engine.clone(),
                units::bytes(device.bytes),
                units::bytes(device.extents_free * device.extent_bytes),
                device.volumes.to_string(),
                device.state.clone(),
            ];
            if wide {
                let Facts { model, serial, .. } = &device.facts;
                row.extend([model.clone(), serial.clone(), device.uuid.clone()]);
            }
            row
        };
        let mut head = vec!["DEVICE", "ENGINE", "SIZE", "FREE", "VOLUMES", "STATE"];
        if wide {
            head.extend(["MODEL", "SERIAL", "POOL"]);
        }
        output::columns(&head, &[2, 3, 4], self.items.iter().map(row).collect())
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|device| device.path.clone()).collect()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    path: String,
    kind: String,
    #[serde(flatten)]
    facts: Facts,
    contents: Contents,
    used_by: Option<String>,
    nvme: Option<Nvme>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raw: Option<Raw>,
}

/// The structures of 4096 bytes, in hexadecimal digits.
#[derive(Debug, Serialize, Deserialize)]
struct Raw {
    controller: String,
    namespace: String,
}

impl Raw {
    fn dump(&self) -> String {
        let parts = [("controller", &self.controller), ("namespace", &self.namespace)];
        parts
            .iter()
            .map(|(name, digits)| format!("\nidentify {name}\n{}", hex_dump(digits)))
            .collect()
    }
}

/// Sixteen bytes a line, with their offset; a line like the one before is left out, as `hexdump` does.
fn hex_dump(digits: &str) -> String {
    let lines: Vec<&[u8]> = digits.as_bytes().chunks(32).collect();
    let mut text = String::new();
    let mut before: Option<&[u8]> = None;
    let mut is_skipping = false;
    for (at, line) in lines.iter().enumerate() {
        if before == Some(*line) {
            if !std::mem::replace(&mut is_skipping, true) {
                text += "*\n";
            }
            continue;
        }
        (before, is_skipping) = (Some(*line), false);
        let bytes: Vec<_> = line.chunks(2).map(String::from_utf8_lossy).collect();
        text += &format!("{:04x}  {}\n", at * 16, bytes.join(" "));
    }
    text + &format!("{:04x}\n", digits.len() / 2)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub(super) enum Contents {
    Blank,
    Pool { uuid: String, generation: u64, volumes: Vec<String>, extents: u64, extents_free: u64 },
    DamagedPool { why: String },
    Foreign { signature: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Nvme {
    transport: String,
    address: String,
    nsid: u32,
    wwid: String,
}

impl Shown for Identity {
    const KIND: &'static str = "block-device";

    fn table(&self, _wide: bool) -> String {
        let facts = &self.facts;
        let mut lines = vec![
            ("device", format!("{} ({})", self.path, self.kind)),
            ("size", format!("{} ({} bytes)", units::bytes(facts.bytes), facts.bytes)),
            ("engine", facts.engine.clone()),
            ("model", facts.model.clone()),
            ("serial", facts.serial.clone()),
            ("firmware", facts.firmware.clone()),
            ("lba", units::bytes(facts.lba_bytes)),
            ("atomic", units::bytes(facts.atomic_bytes)),
            ("cache", if facts.volatile_cache { "volatile" } else { "none that is lost" }.into()),
        ];
        if facts.transfer_bytes_max > 0 {
            lines.push(("transfer", format!("at most {}", units::bytes(facts.transfer_bytes_max))));
        }
        if let Some(controller) = &facts.controller {
            lines.extend(controller.lines());
        }
        if let Some(nvme) = &self.nvme {
            let Nvme { transport, address, nsid, wwid } = nvme;
            lines.push(("nvme", format!("namespace {nsid} at {transport} {address}, {wwid}")));
        }
        let health = facts.health["state"].as_str().unwrap_or("unknown");
        let reason = facts.health["reason"].as_str().map_or(String::new(), |r| format!(": {r}"));
        lines.push(("health", format!("{health}{reason}")));
        lines.push(("contents", self.contents.to_string()));
        lines.push(("used by", self.used_by.clone().unwrap_or_else(|| "nobody".into())));
        let known = lines.iter().filter(|(_, value)| !value.is_empty());
        let text: String = known.map(|(name, value)| format!("{name:<10}{value}\n")).collect();
        text + &self.raw.as_ref().map(Raw::dump).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        vec![self.path.clone()]
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contents::Blank => f.write_str("blank: zeros in its first 128 KiB"),
            Contents::Pool { uuid, volumes, extents, extents_free, .. } => write!(
                f,
                "pool {uuid}, {extents_free} of {extents} extents free, volumes: {}",
                if volumes.is_empty() { "none".into() } else { volumes.join(", ") }
            ),
            Contents::DamagedPool { why } => write!(f, "a pool that cannot be opened: {why}"),
            Contents::Foreign { signature } => f.write_str(signature),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lines_are_left_out() {
        let digits = format!("{}{}{}", "00".repeat(64), "ab".repeat(16), "cd");
        let expected = format!(
            "0000  {}\n*\n0040  {}\n0050  cd\n0051\n",
            ["00"; 16].join(" "),
            ["ab"; 16].join(" ")
        );
        assert_eq!(hex_dump(&digits), expected);
    }

    #[test]
    fn only_files_are_made_absolute() {
        let here = absolute(Path::new("Cargo.toml"));
        assert!(here.is_absolute() && here.ends_with("Cargo.toml"), "{here:?}");
        for name in ["0000:01:00.0", "01:00.0/n2", "ram", "/dev/ng99n1"] {
            assert_eq!(absolute(Path::new(name)), Path::new(name));
        }
    }
}
