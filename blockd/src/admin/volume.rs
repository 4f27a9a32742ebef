//! `volume.…`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Answer;
use crate::config::VolumeConfig;
use crate::daemon::Daemon;
use crate::pool::Pool;
use crate::pool::format::EXTENT_BYTES;
use crate::volume::Volume;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    name: String,
    size: u64,
}

#[derive(Serialize)]
struct Status<'a> {
    name: &'a str,
    size: u64,
    thin: bool,
    allocated_extents: u64,
    allocated_bytes: u64,
    device: String,
    users: u32,
    exports: Vec<String>,
    poisoned: bool,
}

fn describe(pool: &Pool, volume: &Volume, daemon: &Daemon) -> Value {
    json!(Status {
        name: &volume.name,
        size: volume.bytes,
        thin: volume.thin,
        allocated_extents: volume.allocated(),
        allocated_bytes: volume.allocated() * EXTENT_BYTES,
        device: pool.status().path,
        users: volume.users(),
        exports: daemon.nvmet().map(|t| t.names_of(&volume.name)).unwrap_or_default(),
        poisoned: volume.is_poisoned(),
    })
}

pub fn list(daemon: &Daemon) -> Value {
    let of = |pool: &Pool| -> Vec<Value> {
        pool.volumes().iter().map(|v| describe(pool, v, daemon)).collect()
    };
    daemon.pools().iter().flat_map(|pool| of(pool)).collect::<Vec<_>>().into()
}

pub fn create(wanted: &VolumeConfig, daemon: &Daemon) -> Answer {
    let volume = daemon.create(wanted)?;
    Ok(describe(daemon.find(&wanted.name)?, &volume, daemon))
}

pub fn resize(Resize { name, size }: &Resize, daemon: &Daemon) -> Answer {
    let volume = daemon.resize(name, *size)?;
    Ok(describe(daemon.find(name)?, &volume, daemon))
}

/// `returns_empty`: the configuration makes it again at the next start.
pub fn delete(Named { name }: &Named, daemon: &Daemon) -> Answer {
    daemon.delete(name)?;
    Ok(json!({ "returns_empty": daemon.is_configured(name) }))
}
