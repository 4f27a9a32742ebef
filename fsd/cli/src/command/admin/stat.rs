//! `cfs admin stat PATH`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{
    AdminReply, AdminRequest, Backing, ExtentStat, FileStat, STAT_EXTENTS_MAX, Target,
};
use raftmeta_types::Ino;
use serde::Serialize;

use super::Context;
use crate::connect::{Admin, unexpected};
use crate::failed::{Exit, Failed};
use crate::location::Location;
use crate::output::{self, Shown};
use crate::{mounts, units};

#[derive(Debug, Args)]
#[command(after_help = "\
PATH is understood as by `cfs admin du`. With -o wide chunk names are printed in full.

Examples:
  cfs admin stat /mnt/claudefs/src/main.rs
  cfs admin stat :/src/main.rs -o json
  cfs admin stat --ino 1152921504606846978")]
pub struct Stat {
    /// A file
    #[arg(required_unless_present = "ino")]
    path: Option<PathBuf>,
    /// PATH is one in the cluster, whatever is mounted here
    #[arg(long)]
    cluster_path: bool,
    /// By inode number, as `ls -i` shows it
    #[arg(long, value_name = "N", conflicts_with = "path")]
    ino: Option<u64>,
}

#[derive(Serialize)]
struct View {
    path: Option<String>,
    #[serde(flatten)]
    stat: FileStat,
}

/// The location of a path in the cluster that answers.
pub(super) fn locate(admin: &Admin, path: &Path, cluster_path: bool) -> Result<Location, Failed> {
    let mounts = mounts::read().map_err(|error| {
        Failed::new(
            Exit::Failed,
            "MOUNT_TABLE",
            format!("cannot read /proc/self/mountinfo: {error}"),
        )
    })?;
    let location = Location::of(path, cluster_path, &mounts)?;
    let (name, uuid) = admin.cluster();
    location.check_cluster(&name, &uuid)?;
    Ok(location)
}

impl Stat {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let admin = context.connect()?;
        let (target, path, doing) = match (&self.path, self.ino) {
            (_, Some(ino)) => (Target::Ino(Ino(ino)), None, format!("cannot stat inode {ino}")),
            (Some(path), None) => {
                let location = locate(&admin, path, self.cluster_path)?;
                let shown = location.path.display().to_string();
                (location.target(), Some(shown), format!("cannot stat {}", path.display()))
            }
            (None, None) => unreachable!("the parser requires one"),
        };
        let stat = whole(&admin, &doing, &target)?;
        let missing = stat.extents.iter().any(is_missing);
        output::print(context.format, &View { path, stat })?;
        Ok(if missing { Exit::Partial } else { Exit::Ok })
    }
}

/// Asks until every extent is there.
fn whole(admin: &Admin, doing: &str, target: &Target) -> Result<FileStat, Failed> {
    let ask = |from_offset_bytes| {
        let target = target.clone();
        let request =
            AdminRequest::Stat { target, from_offset_bytes, extents_max: STAT_EXTENTS_MAX };
        match admin.ask(doing, request)? {
            AdminReply::Stat(stat) => Ok(*stat),
            _ => Err(unexpected(doing)),
        }
    };
    let mut stat = ask(0)?;
    while let Some(offset) = stat.next_offset_bytes {
        let more = ask(offset)?;
        // A file that grows while it is asked for must not keep us forever.
        if more.next_offset_bytes.is_some_and(|next| next <= offset) {
            return Err(unexpected(doing));
        }
        stat.next_offset_bytes = more.next_offset_bytes;
        stat.extents.extend(more.extents);
    }
    Ok(stat)
}

fn is_missing(extent: &ExtentStat) -> bool {
    matches!(extent.backing, Backing::Chunk { stored_bytes: None, .. })
}

impl Shown for View {
    const KIND: &'static str = "stat";

    fn table(&self, wide: bool) -> String {
        let stat = &self.stat;
        let mut text = String::new();
        if let Some(path) = &self.path {
            text += &format!("path     {path}\n");
        }
        text += &format!(
            "inode    {}  {}  mode {:04o}  uid {}  gid {}  links {}\n\
             size     {} bytes, {} allocated\n\
             times    modified {}  changed {}  created {}\n\
             version  {} (content {})\n",
            stat.ino,
            stat.kind,
            stat.mode,
            stat.uid,
            stat.gid,
            stat.links,
            units::count(stat.size_bytes),
            units::count(stat.allocated_bytes),
            stat.modified,
            stat.changed,
            stat.created,
            stat.version,
            stat.data_version,
        );
        if !stat.extents.is_empty() {
            let head =
                ["OFFSET", "LENGTH", "BACKING", "CHUNK", "AT", "PLAIN", "STORED", "REFS", "SHARD"];
            let rows = stat.extents.iter().map(|extent| row(extent, wide)).collect();
            text += "\n";
            text += &output::columns(&head, &[0, 1, 4, 5, 6, 7, 8], rows);
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.stat.ino.to_string()]
    }
}

fn row(extent: &ExtentStat, wide: bool) -> Vec<String> {
    let mut row = vec![extent.offset_bytes.to_string(), extent.len_bytes.to_string()];
    match &extent.backing {
        Backing::Inline => row.push("inline".into()),
        Backing::Zero => row.push("zero".into()),
        Backing::Chunk {
            hash,
            shard,
            offset_in_chunk_bytes,
            references,
            plain_bytes,
            stored_bytes,
        } => {
            let length = |n: &Option<u32>| n.map_or("MISSING".into(), |n| n.to_string());
            let short = if wide { hash } else { hash.get(..12).unwrap_or(hash) };
            row.extend([
                "chunk".into(),
                short.to_owned(),
                offset_in_chunk_bytes.to_string(),
                length(plain_bytes),
                length(stored_bytes),
                references.to_string(),
                shard.to_string(),
            ]);
        }
    }
    row.resize(9, String::new());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_rows() {
        let chunk = |stored_bytes: Option<u32>| ExtentStat {
            offset_bytes: 65536,
            len_bytes: 100,
            version: 7,
            backing: Backing::Chunk {
                hash: "0123456789abcdef".repeat(4),
                shard: 3,
                offset_in_chunk_bytes: 9,
                references: 2,
                plain_bytes: stored_bytes.map(|n: u32| n * 2),
                stored_bytes,
            },
        };
        let cells = row(&chunk(Some(60)), false);
        assert_eq!(cells, ["65536", "100", "chunk", "0123456789ab", "9", "120", "60", "2", "3"]);
        assert_eq!(row(&chunk(Some(60)), true)[3].len(), 64);
        assert!(is_missing(&chunk(None)) && row(&chunk(None), false)[6] == "MISSING");
        let inline =
            ExtentStat { offset_bytes: 0, len_bytes: 5, version: 1, backing: Backing::Inline };
        assert_eq!(row(&inline, false)[2], "inline");
        assert_eq!(row(&inline, false).len(), 9);
    }
}
