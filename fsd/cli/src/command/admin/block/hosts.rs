//! `cfs admin block hosts [NAME]`.

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Context;
use super::export::Allowed;
use super::rpc::Door;
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfsctl block hosts                                      all subsystems, their hosts, and who is connected
  cfsctl block hosts disk1 --host nqn.…:a --host nqn.…:b  from now on these two, and nobody else

The list is replaced as a whole. Hosts that are not on it any more are disconnected at once.")]
pub struct Hosts {
    /// Volume or subsystem (nqn.…)
    name: Option<String>,
    #[command(flatten)]
    allowed: Allowed,
}

#[derive(Deserialize)]
struct Target {
    subsystems: Vec<Subsystem>,
    controllers: Vec<Controller>,
}

#[derive(Deserialize)]
struct Subsystem {
    nqn: String,
    namespaces: Vec<Namespace>,
    any_host: bool,
    hosts: Vec<Host>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Namespace {
    nsid: u32,
    volume: String,
    bytes: u64,
    read_only: bool,
    uuid: String,
}

#[derive(Deserialize)]
struct Host {
    nqn: String,
    authenticated: bool,
    mutual: bool,
}

#[derive(Deserialize)]
struct Controller {
    host: String,
    subsystem: String,
    queues: u64,
}

/// A subsystem as it is shown: who may connect, and who is.
#[derive(Serialize)]
struct Shows {
    subsystem: String,
    namespaces: Vec<Namespace>,
    any_host: bool,
    hosts: Vec<Guest>,
}

#[derive(Serialize)]
struct Guest {
    nqn: String,
    /// It is on the list; else it came in because every host may.
    listed: bool,
    /// It proves that it knows its secret.
    authenticated: bool,
    /// blockd proves itself, too.
    mutual: bool,
    /// Queues that it has open, of all its controllers.
    queues: u64,
}

#[derive(Serialize)]
struct View {
    items: Vec<Shows>,
}

#[derive(Deserialize)]
struct Changed {
    until_restart: bool,
}

impl Hosts {
    pub(super) fn run(self, context: &Context, door: &Door) -> Result<Exit> {
        let doing = "cannot list the hosts";
        let target: Target = door.call(doing, "nvmet.list", Value::Null)?;
        let Some(name) = &self.name else {
            if !self.allowed.is_empty() {
                let what = "of which subsystem? Name it, or its volume, before --host";
                return Err(Failed::new(Exit::Usage, "NAME", what).into());
            }
            output::print(context.format, &view(&target, |_| true))?;
            return Ok(Exit::Ok);
        };
        let matching = |s: &&Subsystem| {
            s.nqn == *name || s.namespaces.iter().any(|namespace| namespace.volume == *name)
        };
        let found: Vec<&str> =
            target.subsystems.iter().filter(matching).map(|s| s.nqn.as_str()).collect();
        if found.is_empty() {
            let what = format!("{name} is not exported");
            return Err(Failed::new(Exit::NotFound, "NOT_FOUND", what)
                .next("`cfsctl block hosts` shows what is exported")
                .into());
        }
        if self.allowed.is_empty() {
            output::print(context.format, &view(&target, |s| found.contains(&s.nqn.as_str())))?;
            return Ok(Exit::Ok);
        }
        let [nqn] = found[..] else {
            let what = format!("{name} is exported as {}: name one of them", found.join(" and "));
            return Err(Failed::new(Exit::Usage, "NAME", what).into());
        };
        let mut params = self.allowed.params()?;
        params["nqn"] = json!(nqn);
        let doing = format!("cannot set the hosts of {nqn}");
        let changed: Changed = door.call(&doing, "nvmet.hosts", params)?;
        if changed.until_restart {
            eprintln!(
                "the configuration of blockd has the last word at its next start: change it there, too"
            );
        }
        let target: Target = door.call(&doing, "nvmet.list", Value::Null)?;
        output::print(context.format, &view(&target, |s| s.nqn == nqn))?;
        Ok(Exit::Ok)
    }
}

fn view(target: &Target, which: impl Fn(&Subsystem) -> bool) -> View {
    let shown = |s: &Subsystem| {
        let connected = target.controllers.iter().filter(|c| c.subsystem == s.nqn);
        let queues = |host: &str| {
            connected.clone().filter(|c| c.host == host).map(|c| c.queues).sum::<u64>()
        };
        let listed = s.hosts.iter().map(|host| Guest {
            nqn: host.nqn.clone(),
            listed: true,
            authenticated: host.authenticated,
            mutual: host.mutual,
            queues: queues(&host.nqn),
        });
        let mut hosts: Vec<Guest> = listed.collect();
        for controller in connected.clone() {
            if hosts.iter().all(|host| host.nqn != controller.host) {
                hosts.push(Guest {
                    nqn: controller.host.clone(),
                    listed: false,
                    authenticated: false,
                    mutual: false,
                    queues: queues(&controller.host),
                });
            }
        }
        let namespaces = s.namespaces.clone();
        Shows { subsystem: s.nqn.clone(), namespaces, any_host: s.any_host, hosts }
    };
    View { items: target.subsystems.iter().filter(|s| which(s)).map(shown).collect() }
}

impl Shown for View {
    const KIND: &'static str = "block-host-list";

    fn table(&self, _wide: bool) -> String {
        let mut rows = Vec::new();
        for subsystem in &self.items {
            let volumes: Vec<String> =
                subsystem.namespaces.iter().map(|n| format!("{}:{}", n.nsid, n.volume)).collect();
            let volumes = volumes.join(" ");
            let name = &subsystem.subsystem;
            if subsystem.any_host {
                let row = [name, &volumes, "(every host)", "none", "-"];
                rows.push(row.map(str::to_owned).to_vec());
            }
            for host in &subsystem.hosts {
                let secret = match (host.authenticated, host.mutual) {
                    (true, true) => "both ways",
                    (true, false) => "host",
                    (false, _) => "none",
                };
                let row = [name, &volumes, &host.nqn, secret, &host.queues.to_string()];
                rows.push(row.map(str::to_owned).to_vec());
            }
        }
        output::columns(&["SUBSYSTEM", "VOLUMES", "HOST", "SECRET", "QUEUES"], &[4], rows)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|subsystem| subsystem.subsystem.clone()).collect()
    }
}
