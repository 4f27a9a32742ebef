//! `cfs admin protection show | set`.

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{self, AdminReply, AdminRequest};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};

#[derive(Debug, Subcommand)]
pub enum Protection {
    /// Say what it is
    Show,
    /// Change it; copies are made, or dropped, in the background
    Set(Set),
}

#[derive(Debug, Args)]
#[command(after_help = "\
A shard that loses a replica goes on without it as long as at least --in-sync-min are left; with fewer it waits for the
lost one and acknowledges no write. More is safer, less keeps on writing. Half of the copies, rounded up, is usual.
More copies are refused where there are too few nodes for them, or no room.")]
pub struct Set {
    /// `replica:N`: copies of everything, each on a node of its own; 1 to 7
    #[arg(value_parser = parse_copies, required_unless_present = "in_sync_min")]
    copies: Option<u8>,
    /// Copies in sync that a shard needs to acknowledge writes; 1 to N
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u8).range(1..=7))]
    in_sync_min: Option<u8>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(admin::Protection);

fn parse_copies(text: &str) -> Result<u8, String> {
    match text.strip_prefix("replica:").and_then(|n| n.parse().ok()) {
        Some(copies @ 1..=7) => Ok(copies),
        Some(_) | None => Err("not `replica:N` with N from 1 to 7".into()),
    }
}

impl Protection {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let (doing, replicas, in_sync_min) = match self {
            Protection::Show => ("cannot ask for the protection", None, None),
            Protection::Set(Set { copies, in_sync_min }) => {
                ("cannot set the protection", copies, in_sync_min)
            }
        };
        let request = AdminRequest::Protection { replicas, in_sync_min };
        match context.connect()?.ask(doing, request)? {
            AdminReply::Protection(protection) => {
                output::print(context.format, &View(protection))?;
                Ok(Exit::Ok)
            }
            _ => Err(unexpected(doing).into()),
        }
    }
}

/// `replica:3, at least 2 in sync`.
pub(super) fn words(protection: &admin::Protection) -> String {
    let admin::Protection { replicas, in_sync_min } = protection;
    format!("replica:{replicas}, at least {in_sync_min} in sync")
}

impl Shown for View {
    const KIND: &'static str = "protection";

    fn table(&self, _wide: bool) -> String {
        words(&self.0) + "\n"
    }

    fn names(&self) -> Vec<String> {
        vec![format!("replica:{}", self.0.replicas)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_said_as_in_the_configuration() {
        assert_eq!(parse_copies("replica:3"), Ok(3));
        for bad in ["3", "replica:0", "replica:8", "replica:", "ec:4+2", "replica:999"] {
            assert!(parse_copies(bad).is_err(), "{bad}");
        }
        let view = View(admin::Protection { replicas: 3, in_sync_min: 2 });
        assert_eq!(view.table(false), "replica:3, at least 2 in sync\n");
    }
}
