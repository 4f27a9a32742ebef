//! `cfs admin block volume create | list | resize | delete`.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rpc::Door;
use super::{Context, confirm};
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};
use crate::units;

#[derive(Debug, Subcommand)]
pub enum Volume {
    /// Make a volume
    Create(Create),
    /// List the volumes
    List(List),
    /// Give a volume another size
    Resize(Resize),
    /// Delete a volume and all it holds
    Delete(Delete),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  cfsctl block volume create disk1 --size 10G --thin

Sizes are rounded up to 4 MiB. A volume has all its space at once, zeroed; a --thin one takes it when it is written, and gives it
back when it is deallocated. The volume stays when blockd restarts: the pool on the device knows it.")]
pub struct Create {
    /// Name of the volume: up to 64 bytes
    name: String,
    /// Its size: a number with K, M, G or T (powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    size: u64,
    /// Take space only when it is written
    #[arg(long)]
    thin: bool,
    /// Device that it is made on, as `device list` shows it [default: the one with the most free space]
    #[arg(long, value_name = "PATH")]
    device: Option<String>,
}

#[derive(Debug, Args)]
pub struct List {}

#[derive(Debug, Args)]
#[command(after_help = "\
A volume in use or exported is refused: who uses it would not believe the new size. What is cut off is lost, so a smaller size
wants the name once more. A crash leaves the old size or the new one.")]
pub struct Resize {
    name: String,
    /// New size: a number with K, M, G or T (powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    size: u64,
    /// The name once more, for a smaller size
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "A volume in use or exported is refused: `cfsctl block unexport NAME` first."
)]
pub struct Delete {
    name: String,
    /// The name once more
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

/// As blockd tells it. Sizes in bytes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    pub name: String,
    #[serde(rename(deserialize = "size"))]
    pub size_bytes: u64,
    pub thin: bool,
    pub allocated_bytes: u64,
    pub device: String,
    pub users: u32,
    pub exports: Vec<String>,
    pub poisoned: bool,
}

/// All volumes.
pub fn list(door: &Door, doing: &str) -> Result<Vec<Listed>, Failed> {
    door.call(doing, "volume.list", Value::Null)
}

/// The volume of that name.
pub fn find(door: &Door, doing: &str, name: &str) -> Result<Listed, Failed> {
    list(door, doing)?.into_iter().find(|volume| volume.name == name).ok_or_else(|| {
        Failed::new(Exit::NotFound, "NOT_FOUND", format!("{doing}: no volume named {name:?}"))
            .next("`cfsctl block volume list` shows the volumes")
    })
}

impl Volume {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        match self {
            Volume::Create(create) => {
                let Create { name, size, thin, device } = create;
                let doing = format!("cannot create volume {name:?}");
                let params = json!({ "name": name, "size": size, "thin": thin, "device": device });
                let made: Listed = door.call(&doing, "volume.create", params)?;
                output::print(context.format, &One(made))?;
            }
            Volume::List(List {}) => {
                let items = list(door, "cannot list the volumes")?;
                output::print(context.format, &View { items })?;
            }
            Volume::Resize(resize) => output::print(context.format, &resize.run(door)?)?,
            Volume::Delete(delete) => delete.run(door)?,
        }
        Ok(Exit::Ok)
    }
}

impl Resize {
    fn run(self, door: &Door) -> Result<One> {
        let doing = format!("cannot resize volume {:?}", self.name);
        let now = find(door, &doing, &self.name)?.size_bytes;
        if self.size < now {
            let (from, to) = (units::bytes(now), units::bytes(self.size));
            let loss = format!("What {} holds between {to} and {from} is lost.", self.name);
            confirm(&self.name, self.confirm.as_deref(), &loss)?;
        }
        let params = json!({ "name": self.name, "size": self.size });
        Ok(One(door.call(&doing, "volume.resize", params)?))
    }
}

#[derive(Deserialize)]
struct Deleted {
    returns_empty: bool,
}

impl Delete {
    fn run(self, door: &Door) -> Result<()> {
        let doing = format!("cannot delete volume {:?}", self.name);
        let volume = find(door, &doing, &self.name)?;
        // Before the question: nobody is asked about what cannot be.
        if let Some(nqn) = volume.exports.first() {
            let what = format!("{doing}: it is exported as {nqn}");
            let next = format!("`cfsctl block unexport {}`", self.name);
            return Err(Failed::new(Exit::Precondition, "EXPORTED", what).next(next).into());
        }
        let loss = format!(
            "Volume {} of {}, {} of it written, is lost.",
            self.name,
            units::bytes(volume.size_bytes),
            units::bytes(volume.allocated_bytes)
        );
        confirm(&self.name, self.confirm.as_deref(), &loss)?;
        let done: Deleted = door.call(&doing, "volume.delete", json!({ "name": self.name }))?;
        if done.returns_empty {
            eprintln!(
                "the configuration of blockd makes {} again, empty, at its next start: take it out there, too",
                self.name
            );
        }
        Ok(())
    }
}

/// One volume, shown as a list of one.
#[derive(Serialize)]
#[serde(transparent)]
struct One(Listed);

#[derive(Serialize)]
struct View {
    items: Vec<Listed>,
}

fn table<'a>(volumes: impl Iterator<Item = &'a Listed>) -> String {
    let row = |volume: &Listed| {
        vec![
            volume.name.clone(),
            units::bytes(volume.size_bytes),
            if volume.thin { "thin" } else { "thick" }.into(),
            units::bytes(volume.allocated_bytes),
            volume.users.to_string(),
            if volume.poisoned { "poisoned" } else { "ok" }.into(),
            volume.device.clone(),
            volume.exports.join(", "),
        ]
    };
    let head = ["VOLUME", "SIZE", "TYPE", "ALLOCATED", "USERS", "STATE", "DEVICE", "EXPORTED AS"];
    output::columns(&head, &[1, 3, 4], volumes.map(row).collect())
}

impl Shown for One {
    const KIND: &'static str = "block-volume";

    fn table(&self, _wide: bool) -> String {
        table(std::iter::once(&self.0))
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.name.clone()]
    }
}

impl Shown for View {
    const KIND: &'static str = "block-volume-list";

    fn table(&self, _wide: bool) -> String {
        table(self.items.iter())
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|volume| volume.name.clone()).collect()
    }
}
