//! `cfs-dev status`.

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use fsd_rpc::admin::Level;
use serde::Serialize;

use super::{Place, columns, print};
use crate::cluster::{self, ClientStatus, NodeStatus};
use crate::error::{Doing, Result};
use crate::net::Provider;

/// Version of the JSON document; grows when a field goes or changes its meaning.
const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// One versioned document, with all that --detailed shows
    Json,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Processes, namespaces, directories and metrics as well
    #[arg(long)]
    detailed: bool,
    /// What to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    kind: &'static str,
    #[serde(flatten)]
    status: &'a cluster::Status,
}

impl Status {
    pub(super) fn run(self, place: &Place) -> Result<ExitCode> {
        let directory = place.directory()?;
        let status = cluster::Status::of(&directory, &cluster::view(&directory)?)?;
        let text = match self.output {
            Format::Table => table(&status, self.detailed),
            Format::Json => {
                let document = Document { version: VERSION, kind: "dev-status", status: &status };
                serde_json::to_string_pretty(&document).doing(|| "JSON".into())? + "\n"
            }
        };
        print(&text)?;
        Ok(match status.level() {
            Level::Ok => ExitCode::SUCCESS,
            Level::Warn => ExitCode::from(3),
            Level::Err => ExitCode::from(4),
        })
    }
}

fn table(status: &cluster::Status, detailed: bool) -> String {
    let provider = match status.provider {
        Provider::Namespaces => "network namespaces",
        Provider::Loopback => "loopback addresses",
    };
    let health = match &status.health {
        Some(health) => health.word.to_string(),
        None => "no node answers".to_owned(),
    };
    let cluster::Status { name, phase, protection, site, .. } = status;
    let mut text =
        format!("cluster  {name}   {health}   site {site}, phase {phase}, {protection}\n");
    for check in status.health.iter().flat_map(|health| &health.checks) {
        text += &format!("  {}  {}\n", check.name, check.detail);
    }
    if detailed {
        text += &format!("provider {provider}, everything in {}\n", status.directory.display());
    }
    text += "\n";
    let rows: Vec<_> = status.nodes.iter().map(|node| node_row(node, detailed)).collect();
    let head = ["NODE", "PROCESS", "STATE", "METADATA", "SHARDS", "ADDRESS"];
    let more = ["TYPE", "SERVER", "BLOCKD", "NAMESPACE", "METRICS", "LOG"];
    let head = if detailed { [&head[..], &more[..]].concat() } else { head.to_vec() };
    text += &columns(&head, &rows);
    if !status.clients.is_empty() {
        let rows: Vec<_> = status.clients.iter().map(|c| client_row(c, detailed)).collect();
        let head = ["CLIENT", "PROCESS", "MOUNTPOINT"];
        let more = ["PID", "NAMESPACE", "ADDRESS", "LOG"];
        let head = if detailed { [&head[..], &more[..]].concat() } else { head.to_vec() };
        text += &format!("\n{}", columns(&head, &rows));
    }
    let rows: Vec<_> = services(status, detailed);
    if !rows.is_empty() {
        let (head, more) = (["SERVICE", "PROCESS", "WHAT"], ["PID", "LOG"]);
        let head = if detailed { [&head[..], &more[..]].concat() } else { head.to_vec() };
        text += &format!("\n{}", columns(&head, &rows));
    }
    text
}

/// What phase 3 has besides nodes and clients.
fn services(status: &cluster::Status, detailed: bool) -> Vec<Vec<String>> {
    let row = |name: &str, pid: Option<u32>, what: &str, log: &Path| {
        let process = if pid.is_some() { "running" } else { "stopped" };
        let mut row = vec![name.to_owned(), process.to_owned(), what.to_owned()];
        if detailed {
            row.push(pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()));
            row.push(log.display().to_string());
        }
        row
    };
    let monitor = status.monitor.iter().map(|of| row("monitoring", of.pid, &of.url, &of.log));
    let controller = status.controller.iter().map(|of| {
        let doing = match &of.job {
            Some(job) => format!("{}: {}", job.what, job.now),
            None if of.pid.is_some() => "idle".to_owned(),
            None => "-".to_owned(),
        };
        row("fault controller", of.pid, &doing, &of.log)
    });
    monitor.chain(controller).collect()
}

fn node_row(node: &NodeStatus, detailed: bool) -> Vec<String> {
    let or_dash = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or("-".into());
    let number = |pid: Option<u32>| or_dash(pid.map(|pid| pid.to_string()));
    let mut row = vec![
        node.name.clone(),
        if node.pid.is_some() { "running" } else { "stopped" }.to_owned(),
        or_dash(node.state.clone()),
        or_dash(node.role.clone()),
        node.shards.to_string(),
        node.address.clone(),
    ];
    if detailed {
        row.extend([node.instance_type.clone(), number(node.pid), number(node.blockd_pid)]);
        row.extend([or_dash(node.namespace.clone()), node.metrics.clone()]);
        row.push(node.log.display().to_string());
    }
    row
}

fn client_row(client: &ClientStatus, detailed: bool) -> Vec<String> {
    let process = match (client.pid, client.mounted) {
        (Some(_), true) => "mounted",
        (Some(_), false) => "starting",
        (None, true) => "dead",
        (None, false) => "stopped",
    };
    let mut row =
        vec![client.name.clone(), process.to_owned(), client.mountpoint.display().to_string()];
    if detailed {
        let dash = || "-".to_owned();
        row.push(client.pid.map_or_else(dash, |pid| pid.to_string()));
        row.push(client.namespace.clone().unwrap_or_else(dash));
        row.extend([client.address.clone(), client.log.display().to_string()]);
    }
    row
}
