//! Monitoring: a Prometheus that reads the metrics of every node, with rules that say when something is wrong and pages
//! that show how it goes.
//!
//! ```text
//!   n1:9090/metrics ─┐                            ┌─▶ data/      samples, a week of them at most
//!   n2:9090/metrics ─┼─▶ prometheus, HOST:3000 ───┼─▶ rules.yml  alerts
//!   …  targets.json ─┘   (Debian's, on the host)  └─▶ consoles/  the dashboards; what is drawn asks /api/v1
//! ```
//! It is a process like those of the nodes. Everything but `data/` and `log` is written anew when it starts, from the
//! files in `tools/cfs-dev/monitor`.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::node::tail;
use super::{Cluster, METRICS_PORT, STOP_WITHIN};
use crate::error::{Doing, Error, Kind, Result};
use crate::process::{Launch, Process, with_argument_in};
use crate::{programs, wait};

/// Port of the dashboards.
pub const MONITOR_PORT: u16 = 3000;
const PROGRAM: &str = "prometheus";
/// Between two looks at a node, and at the rules; a node that takes longer counts as silent.
const SCRAPE_SECS: u32 = 5;
/// What is older goes, and the oldest first when there is more.
const RETENTION: &str = "7d";
const RETENTION_BYTES: &str = "512MB";
/// One question whether it is ready.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Where Debian keeps the pages of Prometheus' own.
const PACKAGED: &str = "/usr/share/prometheus/web";

/// What is read by it, by name in its directory.
const FILES: [(&str, &str); 9] = [
    ("rules.yml", include_str!("../../monitor/rules.yml")),
    ("libraries/claudefs.lib", include_str!("../../monitor/libraries/claudefs.lib")),
    ("consoles/index.html", include_str!("../../monitor/consoles/index.html")),
    ("consoles/overview.html", include_str!("../../monitor/consoles/overview.html")),
    ("consoles/latency.html", include_str!("../../monitor/consoles/latency.html")),
    ("consoles/replication.html", include_str!("../../monitor/consoles/replication.html")),
    ("consoles/reduction.html", include_str!("../../monitor/consoles/reduction.html")),
    ("user/graph.js", include_str!("../../monitor/user/graph.js")),
    ("user/style.css", include_str!("../../monitor/user/style.css")),
];
/// Directories of which nothing is kept.
const WRITTEN: [&str; 4] = ["libraries", "consoles", "user", "web"];

/// The monitoring of a [`Cluster`], running or not.
#[derive(Clone, Copy, Debug)]
pub struct Monitor<'a> {
    cluster: &'a Cluster,
}

/// An entry of `targets.json`, as `file_sd_configs` reads it.
#[derive(Serialize)]
struct Target {
    targets: [String; 1],
    labels: Labels,
}

#[derive(Serialize)]
struct Labels {
    node: String,
}

impl Cluster {
    pub fn monitor(&self) -> Monitor<'_> {
        Monitor { cluster: self }
    }

    /// Says that there is no Prometheus, before anything is started.
    pub(super) fn can_monitor(&self) -> Result<()> {
        if programs::is_in_path(PROGRAM) {
            return Ok(());
        }
        let what = format!("monitoring, of phase 3, needs `{PROGRAM}`, which is not installed");
        Err(Error::new(Kind::Precondition, what)
            .next("apt-get install prometheus, or without it: cfs-dev up --phase 2"))
    }
}

impl Monitor<'_> {
    pub fn directory(&self) -> PathBuf {
        self.cluster.options.directory.join("monitor")
    }

    pub fn log(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// The host's own in the cluster's network.
    pub fn address(&self) -> Ipv4Addr {
        self.cluster.state.lock().network.orchestrator()
    }

    /// Where the dashboards are.
    pub fn url(&self) -> String {
        format!("http://{}:{MONITOR_PORT}/", self.address())
    }

    /// The list of the dashboards itself: for a browser `url` leads there.
    pub fn index(&self) -> String {
        format!("{}consoles/index.html", self.url())
    }

    /// `prometheus`, if it runs.
    pub fn process(&self) -> Option<Process> {
        self.cluster.state.lock().monitor.clone().filter(Process::is_alive)
    }

    /// Starts it, unless it runs, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        if self.process().is_some() {
            self.refresh()?;
            return self.ready();
        }
        self.cluster.can_monitor()?;
        self.cluster.say(&format!("starting the dashboards at {}", self.url()));
        self.end()?;
        self.is_free()?;
        let directory = self.directory();
        self.write()?;
        let config = directory.join("prometheus.yml");
        let mut arguments = vec!["--config.file".into(), config.into()];
        for (option, value) in [
            ("--storage.tsdb.path", "data"),
            ("--web.console.templates", "consoles"),
            ("--web.console.libraries", "libraries"),
            ("--web.user-assets", "user"),
        ] {
            arguments.extend([option.into(), directory.join(value).into()]);
        }
        for (option, value) in [
            ("--storage.tsdb.retention.time", RETENTION.to_owned()),
            ("--storage.tsdb.retention.size", RETENTION_BYTES.to_owned()),
            ("--web.listen-address", self.socket().to_string()),
            ("--web.external-url", self.url()),
            ("--web.page-title", format!("ClaudeFS {}", self.cluster.name())),
        ] {
            arguments.extend([option.into(), value.into()]);
        }
        if let Some(web) = self.write_web()? {
            arguments.extend(["--web.local-assets".into(), web.into()]);
        }
        let (program, log) = (Path::new(PROGRAM), self.log());
        let environment = Vec::new();
        let launch = Launch { namespace: None, program, arguments, environment, log: &log };
        self.record(Some(launch.start()?))?;
        self.ready()
    }

    fn socket(&self) -> SocketAddr {
        (self.address(), MONITOR_PORT).into()
    }

    /// Somebody else who listens there would answer in its stead.
    fn is_free(&self) -> Result<()> {
        let socket = self.socket();
        TcpListener::bind(socket).map(drop).map_err(|error| {
            let what = format!("the dashboards cannot be at {socket}: {error}");
            Error::new(Kind::Precondition, what).next(format!("ss -ltnp sport = :{MONITOR_PORT}"))
        })
    }

    fn record(&self, process: Option<Process>) -> Result<()> {
        self.cluster.state.lock().monitor = process;
        self.cluster.save()
    }

    fn ready(&self) -> Result<()> {
        wait::until("the dashboards ready", self.cluster.options.limit, || {
            if self.process().is_none() {
                let log = self.log();
                let what = format!("{PROGRAM} has ended; its log:\n{}", tail(&log));
                return Err(Error::new(Kind::Failed, what)
                    .next(format!("all of it is in {}", log.display())));
            }
            Ok(self.is_ready().unwrap_or(false).then_some(()))
        })
    }

    fn is_ready(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&self.socket(), ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(b"GET /-/ready HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    }

    /// Everything that it reads.
    fn write(&self) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(directory.join("data"))
            .doing(|| format!("cannot make {}", directory.display()))?;
        for name in WRITTEN {
            let path = directory.join(name);
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).doing(|| format!("cannot remove {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        for (name, text) in FILES {
            write(&directory.join(name), text)?;
        }
        write(&directory.join("prometheus.yml"), &config(&self.cluster.name()))?;
        self.write_targets()
    }

    /// Tells it of nodes that were added or removed since; does nothing while it does not run.
    pub fn refresh(&self) -> Result<()> {
        match self.process() {
            Some(_) => self.write_targets(),
            None => Ok(()),
        }
    }

    /// All nodes but those that an operator has removed, if any node tells. Replaced as a whole: it is read at any time.
    fn write_targets(&self) -> Result<()> {
        let told = self.cluster.list().unwrap_or_default();
        let is_removed = |name: &str| {
            let mut named = told.iter().filter(|node| node.name == name).peekable();
            named.peek().is_some() && named.all(|node| node.state == "removed")
        };
        let state = self.cluster.state.lock().clone();
        let nodes = state.nodes.iter().enumerate();
        let targets: Vec<Target> = nodes
            .filter(|(_, node)| !is_removed(&node.name))
            .map(|(at, node)| Target {
                targets: [format!("{}:{METRICS_PORT}", state.network.node(at + 1))],
                labels: Labels { node: node.name.clone() },
            })
            .collect();
        let text = serde_json::to_string_pretty(&targets).expect("plain data always serialises");
        let path = self.directory().join("targets.json");
        let new = path.with_extension("new");
        write(&new, &text)?;
        fs::rename(&new, &path).doing(|| format!("cannot write {}", path.display()))
    }

    /// Prometheus shows its expressions at `/`: this makes that page lead a browser to the dashboards, unless it comes
    /// with an expression, or from a page of its own. Nothing where the page is not as Debian has it.
    fn write_web(&self) -> Result<Option<PathBuf>> {
        let packaged = Path::new(PACKAGED);
        let Ok(graph) = fs::read_to_string(packaged.join("templates/graph.html")) else {
            return Ok(None);
        };
        let Some(graph) = leading_on(&graph) else { return Ok(None) };
        let web = self.directory().join("web");
        let doing = || format!("cannot make {}", web.display());
        fs::create_dir_all(web.join("templates")).doing(doing)?;
        symlink(packaged.join("static"), web.join("static")).doing(doing)?;
        for entry in fs::read_dir(packaged.join("templates")).doing(doing)? {
            let entry = entry.doing(doing)?;
            let name = entry.file_name();
            if name != "graph.html" {
                symlink(entry.path(), web.join("templates").join(name)).doing(doing)?;
            }
        }
        write(&web.join("templates/graph.html"), &graph)?;
        Ok(Some(web))
    }

    /// Stops it in order: SIGTERM, SIGKILL after a minute. Its samples stay.
    pub fn stop(&self) -> Result<()> {
        if let Some(process) = self.process() {
            process.stop(STOP_WITHIN)?;
        }
        self.end()
    }

    /// Ends it at once, also one that was started and not recorded.
    pub fn end(&self) -> Result<()> {
        if let Some(process) = self.process() {
            process.kill()?;
        }
        let left = with_argument_in(&[PROGRAM], &self.directory());
        left.iter().try_for_each(Process::kill)?;
        self.record(None)
    }
}

/// The page of expressions, going on to the dashboards when somebody comes from elsewhere and asks for nothing.
fn leading_on(graph: &str) -> Option<String> {
    const HEAD: &str = "{{define \"head\"}}";
    const LEAD: &str = "\
<script>
if (!location.search && !document.referrer.startsWith(location.origin)) location.replace(\"/consoles/index.html\");
</script>";
    let at = graph.find(HEAD)? + HEAD.len();
    Some(format!("{}\n{LEAD}{}", &graph[..at], &graph[at..]))
}

/// `prometheus.yml`. Names in it are relative to it.
fn config(cluster: &str) -> String {
    format!(
        "\
global:
  scrape_interval: {SCRAPE_SECS}s
  scrape_timeout: {SCRAPE_SECS}s
  evaluation_interval: {SCRAPE_SECS}s
  external_labels:
    cluster: \"{cluster}\"
rule_files:
  - rules.yml
scrape_configs:
  - job_name: claudefs
    file_sd_configs:
      - files: [targets.json]
        refresh_interval: {SCRAPE_SECS}s
"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).doing(doing)?;
    }
    fs::write(path, text).doing(doing)
}

#[cfg(test)]
mod tests;
