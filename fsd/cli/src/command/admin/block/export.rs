//! `cfs admin block export NAME` and `unexport NAME`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Context;
use super::rpc::Door;
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};

/// Who may connect.
#[derive(Debug, Args)]
pub struct Allowed {
    /// Name of a host that may connect, which is in its /etc/nvme/hostnqn; once for each
    #[arg(long = "host", value_name = "NQN")]
    hosts: Vec<String>,
    /// Let every host connect
    #[arg(long)]
    any_host: bool,
    /// File with the DH-HMAC-CHAP secret of the hosts, or one --secret for each --host in their order
    #[arg(long = "secret", value_name = "FILE", requires = "hosts", value_parser = secret_file)]
    secrets: Vec<PathBuf>,
    /// File with the secret by which blockd proves itself to hosts that ask
    #[arg(long, value_name = "FILE", requires = "secrets", value_parser = secret_file)]
    controller_secret: Option<PathBuf>,
}

/// A secret as an argument would be seen by everybody on this host.
fn secret_file(text: &str) -> Result<PathBuf, String> {
    if text.starts_with("DHHC-1:") {
        return Err("a secret on the command line is seen by others: put it into a file of mode 0600 and name \
                    that (`nvme gen-dhchap-key > FILE`)"
            .into());
    }
    let path = std::path::absolute(text).map_err(|error| error.to_string())?;
    std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

impl Allowed {
    /// Whether anything was said at all.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && !self.any_host
    }

    /// As blockd's methods take it.
    pub fn params(&self) -> Result<Value, Failed> {
        let (hosts, secrets) = (self.hosts.len(), self.secrets.len());
        if secrets > 1 && secrets != hosts {
            let what =
                format!("{secrets} --secret for {hosts} --host: one for all, or one for each");
            return Err(Failed::new(Exit::Usage, "SECRETS", what));
        }
        let host = |(at, nqn): (usize, &String)| {
            let secret = self.secrets.get(at).or_else(|| self.secrets.first());
            json!({
                "nqn": nqn,
                "secret_file": secret,
                "controller_secret_file": self.controller_secret,
            })
        };
        let hosts: Vec<Value> = self.hosts.iter().enumerate().map(host).collect();
        Ok(json!({ "host": hosts, "any_host": self.any_host }))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfsctl block export disk1 --host nqn.2014-08.org.nvmexpress:uuid:…
  cfsctl block export disk1 --nqn nqn.2025-01.org.example:disk1 --any-host --read-only
  cfsctl block export disk1 --host nqn.… --secret /etc/claudefs/host1.dhchap

Then, on the host: nvme discover -t tcp -a ADDRESS -s 8009; nvme connect -t tcp -a ADDRESS -s 4420 -n NQN

Volumes that are exported under one --nqn are namespaces of one subsystem. The export stays when blockd restarts. Secrets are read
by blockd from their files at its start, too: keep them there.")]
pub struct Export {
    /// Name of the volume
    name: String,
    /// Name of the subsystem [default: nqn.2025-01.io.github.claudefs:VOLUME]
    #[arg(long, value_name = "NQN")]
    nqn: Option<String>,
    /// Number of the namespace [default: the lowest that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    nsid: Option<u32>,
    /// Hosts may not write
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    allowed: Allowed,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Hosts that are connected lose the namespace at once; what they had not flushed is lost."
)]
pub struct Unexport {
    /// Name of the volume
    name: String,
    /// Only from this subsystem
    #[arg(long, value_name = "NQN")]
    nqn: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    volume: String,
    nqn: String,
    nsid: u32,
    read_only: bool,
    any_host: bool,
    #[serde(rename(deserialize = "host"))]
    hosts: Vec<Host>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Host {
    nqn: String,
}

#[derive(Deserialize)]
struct Removed {
    removed: u64,
    until_restart: bool,
}

impl Export {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        if self.allowed.is_empty() {
            let what = "an export is for somebody: --host NQN of each host that may connect, or --any-host";
            return Err(Failed::new(Exit::Usage, "HOSTS", what)
                .next("a host's name is in its /etc/nvme/hostnqn")
                .into());
        }
        let mut params = self.allowed.params()?;
        params["volume"] = json!(self.name);
        params["nqn"] = json!(self.nqn);
        params["nsid"] = json!(self.nsid);
        params["read_only"] = json!(self.read_only);
        let doing = format!("cannot export volume {:?}", self.name);
        let exported: Exported = door.call(&doing, "nvmet.export", params)?;
        output::print(context.format, &exported)?;
        Ok(Exit::Ok)
    }
}

impl Unexport {
    pub(super) fn run(self, door: &Door) -> Result<Exit> {
        let doing = format!("cannot unexport volume {:?}", self.name);
        let params = json!({ "volume": self.name, "nqn": self.nqn });
        let Removed { removed, until_restart } = door.call(&doing, "nvmet.unexport", params)?;
        eprintln!("{} was taken out of {removed} subsystem(s)", self.name);
        if until_restart {
            eprintln!(
                "the configuration of blockd exports it again at its next start: take it out there, too"
            );
        }
        Ok(Exit::Ok)
    }
}

impl Shown for Exported {
    const KIND: &'static str = "block-export";

    fn table(&self, _wide: bool) -> String {
        let hosts: Vec<&str> = self.hosts.iter().map(|host| host.nqn.as_str()).collect();
        let who = if self.any_host { "any".to_owned() } else { hosts.join(", ") };
        let mode = if self.read_only { "read-only" } else { "read-write" };
        let row = vec![
            self.volume.clone(),
            self.nqn.clone(),
            self.nsid.to_string(),
            mode.to_owned(),
            who,
        ];
        output::columns(&["VOLUME", "SUBSYSTEM", "NSID", "MODE", "HOSTS"], &[2], vec![row])
    }

    fn names(&self) -> Vec<String> {
        vec![self.nqn.clone()]
    }
}
