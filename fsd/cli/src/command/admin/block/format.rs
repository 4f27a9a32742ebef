//! `cfs admin block device format`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::device::{Contents, LbaFormat, absolute};
use super::rpc::Door;
use super::{Context, confirm};
use crate::output::{self, Shown};
use crate::units;

/// A device that overwrites all of its blocks may need that long.
const NVME_WITHIN: Duration = Duration::from_secs(4 * 3600);

#[derive(Debug, Args)]
#[command(after_help = "\
All volumes on it are lost. A device that is mounted or whose volumes are in use is refused; one that
holds volumes or something else is refused without --force.

With --lba-size, --lbaf or --secure-erase the controller formats the NVMe namespace before (Format NVM): for /dev/ngXnY and
PCI addresses, and only while no blockd has the device. `device identify` shows its formats. A controller that
would do it to other namespaces, too, is refused.

Examples:
  cfsctl block device format /dev/nvme1n1 --confirm /dev/nvme1n1
  cfsctl block device format /dev/ng1n1 --lba-size 4096 --dry-run
  cfsctl block device format 0000:01:00.0 --secure-erase user-data --force --confirm 0000:01:00.0")]
pub struct Format {
    /// File, block device, /dev/ngXnY or PCI address
    path: PathBuf,
    /// NVMe: bytes of a block from now on: 512 or 4096
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes, conflicts_with = "lbaf")]
    lba_size: Option<u64>,
    /// NVMe: number of one of its formats
    #[arg(long, value_name = "N")]
    lbaf: Option<u8>,
    /// NVMe: what happens to the data that is on it
    #[arg(long, value_enum, value_name = "HOW")]
    secure_erase: Option<SecureErase>,
    /// The path once more
    #[arg(long, value_name = "PATH")]
    confirm: Option<String>,
    /// Whatever is on it
    #[arg(long)]
    force: bool,
    /// Change nothing, only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SecureErase {
    /// Who takes the device apart may find some of it
    None,
    /// All of it is erased
    UserData,
    /// The key that it is encrypted with is thrown away
    Crypto,
}

impl Format {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<()> {
        let name = self.path.display().to_string();
        if !self.dry_run {
            confirm(&name, self.confirm.as_deref(), &format!("All that is on {name} is lost."))?;
        }
        let nvme = self.nvme();
        let within = (!nvme.is_null()).then_some(NVME_WITHIN);
        let params = json!({
            "path": absolute(&self.path),
            "force": self.force,
            "dry_run": self.dry_run,
            "nvme": nvme,
        });
        let doing = format!("cannot format {name}");
        let done: Result<Done, _> = door.within(within).call_or_do(&doing, "device.format", params);
        let done = done.map_err(|failed| match failed.code.as_str() {
            "NOT_BLANK" => failed.next("the same with --force, if all of that may be lost"),
            "UNSUPPORTED" => failed.next(format!("`cfsctl block device identify {name}`")),
            _ => failed,
        })?;
        let formatted = Formatted { path: name, dry_run: self.dry_run, done };
        output::print(context.format, &formatted)
    }

    /// What the controller is asked for; null for nothing.
    fn nvme(&self) -> Value {
        if self.lba_size.is_none() && self.lbaf.is_none() && self.secure_erase.is_none() {
            return Value::Null;
        }
        json!({
            "lba_bytes": self.lba_size,
            "lbaf": self.lbaf,
            "secure_erase": self.secure_erase.unwrap_or(SecureErase::None),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Done {
    plan: Option<Plan>,
    contents: Option<Contents>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    nsid: u32,
    from: Option<LbaFormat>,
    to: LbaFormat,
    secure_erase: SecureErase,
}

#[derive(Debug, Serialize)]
struct Formatted {
    path: String,
    dry_run: bool,
    #[serde(flatten)]
    done: Done,
}

impl Shown for Formatted {
    const KIND: &'static str = "block-format";

    fn table(&self, _wide: bool) -> String {
        let mut lines = vec![("device", self.path.clone())];
        if let Some(Plan { nsid, from, to, secure_erase }) = &self.done.plan {
            let of = |f: &LbaFormat| format!("lbaf {} of {} bytes", f.index, f.lba_bytes);
            let from = from.as_ref().map_or("unknown".to_owned(), of);
            lines.push(("namespace", format!("{nsid}: {from} -> {}", of(to))));
            let erase = match secure_erase {
                SecureErase::None => "no",
                SecureErase::UserData => "user-data",
                SecureErase::Crypto => "crypto",
            };
            lines.push(("erase", erase.to_owned()));
        }
        let held = match &self.done.contents {
            Some(contents) => contents.to_string(),
            None => "cannot be read in its present format".to_owned(),
        };
        lines.push(("held", held));
        let result = if self.dry_run { "nothing was changed (--dry-run)" } else { "an empty pool" };
        lines.push(("now", result.to_owned()));
        lines.iter().map(|(name, value)| format!("{name:<10}{value}\n")).collect()
    }

    fn names(&self) -> Vec<String> {
        vec![self.path.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_is_asked_for() {
        let mut format = Format {
            path: "/dev/ng0n1".into(),
            lba_size: None,
            lbaf: None,
            secure_erase: None,
            confirm: None,
            force: false,
            dry_run: false,
        };
        assert_eq!(format.nvme(), Value::Null);
        format.lba_size = Some(4096);
        let expected = json!({ "lba_bytes": 4096, "lbaf": null, "secure_erase": "none" });
        assert_eq!(format.nvme(), expected);
        format.secure_erase = Some(SecureErase::UserData);
        assert_eq!(format.nvme()["secure_erase"], "user-data");
    }

    #[test]
    fn a_plan_is_shown() {
        let done: Done = serde_json::from_value(json!({
            "plan": {
                "nsid": 1,
                "from": { "index": 0, "lba_bytes": 512, "metadata_bytes": 0, "performance": 2, "in_use": true },
                "to": { "index": 4, "lba_bytes": 4096, "metadata_bytes": 0, "performance": 0, "in_use": false },
                "secure_erase": "user-data",
            },
            "contents": null,
            "identity": null,
        }))
        .unwrap();
        let shown = Formatted { path: "p".into(), dry_run: true, done };
        let table = shown.table(false);
        assert!(table.contains("1: lbaf 0 of 512 bytes -> lbaf 4 of 4096 bytes"), "{table}");
        assert!(table.contains("user-data") && table.contains("--dry-run"), "{table}");
    }
}
