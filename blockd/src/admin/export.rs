//! `nvmet.…`: what is exported to whom.

use serde::Deserialize;
use serde_json::json;

use super::{Answer, Failure};
use crate::daemon::Daemon;
use crate::nvmet::{Export, Host, Target};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unexport {
    volume: String,
    nqn: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    nqn: String,
    #[serde(default)]
    any_host: bool,
    #[serde(default, rename = "host")]
    hosts: Vec<Host>,
}

pub fn target(daemon: &Daemon) -> Result<&Target, Failure> {
    let message = "there is no NVMe/TCP target: add [nvmet] to the configuration";
    daemon.nvmet().ok_or_else(|| Failure::new("NO_TARGET", message))
}

pub fn export(wanted: Export, daemon: &Daemon) -> Answer {
    Ok(json!(target(daemon)?.export(wanted, daemon)?))
}

pub fn unexport(Unexport { volume, nqn }: &Unexport, daemon: &Daemon) -> Answer {
    let (removed, returns) = target(daemon)?.unexport(volume, nqn.as_deref())?;
    Ok(json!({ "removed": removed, "until_restart": returns }))
}

pub fn hosts(Hosts { nqn, any_host, hosts }: &Hosts, daemon: &Daemon) -> Answer {
    let until_restart = target(daemon)?.hosts(nqn, hosts, *any_host)?;
    Ok(json!({ "until_restart": until_restart }))
}
