//! `cfs admin status [--watch[=2s]]`.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{AdminReply, AdminRequest, DataStatus, JobSummary, Level, Progress, Store};
use serde::Serialize;

use super::{Context, protection};
use crate::connect::{Admin, unexpected};
use crate::failed::{Exit, Failed};
use crate::output::{self, Format, Shown};
use crate::{progress, units};

const DOING: &str = "cannot ask for the status";
/// A node that is away is asked again this long while watched.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What more nodes than this do by themselves is told together.
const NODES_SHOWN_MAX: usize = 4;

#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is 0 for HEALTH_OK, 3 for HEALTH_WARN and 4 for HEALTH_ERR, so that a script can wait:
  until cfs admin status; do sleep 1; done")]
pub struct Status {
    /// Again and again; with -o json one document a line
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "2s", value_parser = units::parse_duration)]
    watch: Option<Duration>,
    /// With --watch: stop after this many
    #[arg(long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(fsd_rpc::admin::Status);

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let Some(every) = self.watch else {
            let view = ask(&context.connect()?)?;
            output::print(context.format, &view)?;
            return Ok(exit(view.0.health.word));
        };
        let mut admin = None;
        let mut shown = 0;
        loop {
            let next = Instant::now() + every;
            match once(context, &mut admin) {
                Ok(view) => {
                    let clear = context.format == Format::Table && std::io::stdout().is_terminal();
                    let text = output::render(context.format, true, &view)?;
                    let home = if clear { "\x1b[H\x1b[2J" } else { "" };
                    output::write_out(&format!("{home}{text}"))?;
                    shown += 1;
                    if self.count.is_some_and(|count| shown >= count) {
                        return Ok(exit(view.0.health.word));
                    }
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Err(failed) => {
                    eprintln!("cfs: {failed}");
                    admin = None;
                    std::thread::sleep(PAUSE_AFTER_FAILURE);
                }
            }
        }
    }
}

fn once(context: &Context, admin: &mut Option<Admin>) -> Result<View, Failed> {
    let admin = match admin {
        Some(admin) => admin,
        None => admin.insert(context.local.admin()?),
    };
    ask(admin)
}

fn ask(admin: &Admin) -> Result<View, Failed> {
    match admin.ask(DOING, AdminRequest::Status)? {
        AdminReply::Status(status) => Ok(View(*status)),
        _ => Err(unexpected(DOING)),
    }
}

fn exit(word: Level) -> Exit {
    match word {
        Level::Ok => Exit::Ok,
        Level::Warn => Exit::HealthWarning,
        Level::Err => Exit::HealthError,
    }
}

impl Shown for View {
    const KIND: &'static str = "status";

    fn table(&self, wide: bool) -> String {
        screen(&self.0, wide, output::colours())
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.health.word.to_string()]
    }
}

fn screen(status: &fsd_rpc::admin::Status, wide: bool, colours: bool) -> String {
    let mut text = head(status, colours);
    let metadata = &status.metadata;
    let leader = metadata.leader.map_or("no leader".into(), |leader| format!("leader n{leader}"));
    let uptime = units::duration(Duration::from_millis(status.uptime_ms));
    text += &format!(
        "nodes    {}/{} up, {leader}, {} up for {uptime}\n",
        status.nodes_up, status.nodes, status.node
    );
    text += &data(status);
    text += &format!("copies   {}\n", protection::words(&status.protection));
    text += &format!(
        "meta     {} inodes, term {}, log {}\n",
        units::count(metadata.inodes),
        metadata.term,
        units::bytes(metadata.log_bytes)
    );
    let blockd = &status.blockd;
    let pid = blockd.pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    text += &format!("blockd   {}{pid}", blockd.state);
    if blockd.restarts > 0 {
        text += &format!(", restarted {} times", blockd.restarts);
    }
    text += &format!(", buffers in {} pages\n", blockd.memory);
    text += &format!("clients  {} mounts\n", status.clients);
    for (at, (name, job)) in jobs(&status.jobs, wide).iter().enumerate() {
        let label = if at == 0 { "jobs" } else { "" };
        text += &format!("{label:<8} {name} {}\n", progress::summary(job));
    }
    if wide {
        text += &wide_part(status);
    }
    text
}

/// With their names. What many nodes do by themselves is one line, unless all are asked for.
fn jobs(jobs: &[JobSummary], wide: bool) -> Vec<(String, JobSummary)> {
    let (own, common): (Vec<&JobSummary>, Vec<&JobSummary>) =
        jobs.iter().partition(|job| job.node.is_some());
    let named = |job: &&JobSummary| match &job.node {
        Some(node) => (format!("{} {node}", job.name), (*job).clone()),
        None => (job.name.clone(), (*job).clone()),
    };
    let mut lines: Vec<(String, JobSummary)> = common.iter().map(named).collect();
    if wide || own.len() <= NODES_SHOWN_MAX {
        lines.extend(own.iter().map(named));
    } else {
        lines.extend(
            together(&own).map(|job| (format!("{} of {} nodes", job.name, own.len()), job)),
        );
    }
    lines
}

/// The sum of what nodes do by themselves; over when the last of them is.
fn together(jobs: &[&JobSummary]) -> Option<JobSummary> {
    let mut sum = (*jobs.first()?).clone();
    let add = |of: fn(&Progress) -> u64| jobs.iter().map(|job| of(&job.progress)).sum::<u64>();
    let (done, total) = (add(|progress| progress.done), add(|progress| progress.total));
    (sum.progress.done, sum.progress.total) = (done, total);
    sum.percent = (total > 0).then(|| units::percent(done, total).min(100) as u8);
    sum.bytes_left = Some(total.saturating_sub(done));
    let last = jobs.iter().map(|job| job.eta_ms).collect::<Option<Vec<u64>>>();
    sum.eta_ms = last.and_then(|all| all.into_iter().max());
    Some(sum)
}

fn head(status: &fsd_rpc::admin::Status, colours: bool) -> String {
    let word = match status.health.word {
        Level::Ok => output::paint("HEALTH_OK", 32, colours),
        Level::Warn => output::paint("HEALTH_WARN", 33, colours),
        Level::Err => output::paint("HEALTH_ERR", 31, colours),
    };
    let bad = status.health.checks.iter().filter(|check| check.level > Level::Ok).count();
    let checks = match bad {
        0 => String::new(),
        1 => "  1 check".into(),
        n => format!("  {n} checks"),
    };
    let uuid = status.cluster_uuid.simple().to_string();
    let mut text = format!(
        "cluster  {} ({})   {word}{checks}   v{}\n",
        status.cluster_name,
        uuid.get(..8).unwrap_or(&uuid),
        status.build
    );
    for check in &status.health.checks {
        text += &format!("  {}  {}", check.name, check.detail);
        if !check.next.is_empty() {
            text += &format!("  -> {}", check.next);
        }
        text.push('\n');
    }
    text
}

fn data(status: &fsd_rpc::admin::Status) -> String {
    let data = &status.data;
    let logical = status.metadata.logical_bytes;
    let on = match (data.nodes, status.nodes) {
        (1, 1) => String::new(),
        (heard, all) if heard == all => format!(" on {all} nodes"),
        (heard, all) => format!(" on {heard} of {all} nodes"),
    };
    let fullest = status.stores.iter().max_by_key(|store| flash_percent(&store.data));
    let fullest = fullest.filter(|_| status.stores.len() > 1).map_or(String::new(), |store| {
        format!("; fullest {} with {}%", store.name, flash_percent(&store.data))
    });
    format!(
        "data     logical {}  stored {} ({})  flash {}% of {}{on}, {} free{fullest}\n",
        units::bytes(logical),
        units::bytes(data.live_bytes),
        units::ratio(logical, data.live_bytes),
        flash_percent(data),
        units::bytes(writable(data)),
        units::bytes(data.free_bytes),
    )
}

/// What is not kept for cleaning.
fn writable(data: &DataStatus) -> u64 {
    data.total_bytes.saturating_sub(data.reserve_bytes)
}

fn flash_percent(data: &DataStatus) -> u64 {
    units::percent(data.used_bytes, writable(data)).min(100)
}

fn store(store: &Store) -> String {
    let Store { name, data, .. } = store;
    format!(
        "{name}  stored {}, flash {}% of {}, {} free\n",
        units::bytes(data.live_bytes),
        flash_percent(data),
        units::bytes(writable(data)),
        units::bytes(data.free_bytes),
    )
}

fn wide_part(status: &fsd_rpc::admin::Status) -> String {
    let (data, metadata) = (&status.data, &status.metadata);
    let index = |index: Option<u64>| index.map_or("-".into(), |index| index.to_string());
    let mut text = String::new();
    for (at, one) in status.stores.iter().enumerate() {
        text += &format!("{:<8} {}", if at == 0 { "stores" } else { "" }, store(one));
    }
    text + &format!(
        "segments {} free, {} open, {} closed; reserve {}\n\
         chunks   {}, damaged {}\n\
         log      last {}, applied {}\n\
         time     {}\n",
        data.segments_free,
        data.segments_open,
        data.segments_closed,
        units::bytes(data.reserve_bytes),
        units::count(data.chunks),
        data.damaged_chunks,
        index(metadata.last_log),
        index(metadata.applied),
        status.time,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsd_rpc::admin::{BlockdStatus, Check, Health, MetadataStatus, Protection, Timestamp};

    fn example() -> fsd_rpc::admin::Status {
        fsd_rpc::admin::Status {
            cluster_name: "prod".into(),
            cluster_uuid: uuid::Uuid::from_u128(0x7f3c_0011 << 96),
            node: "n1".into(),
            build: "0.1.0".into(),
            time: Timestamp::default(),
            uptime_ms: 370_000,
            health: Health {
                word: Level::Warn,
                checks: vec![Check {
                    name: "FLASH_NEARFULL".into(),
                    level: Level::Warn,
                    detail: "81 % of the flash is used".into(),
                    next: "delete something".into(),
                }],
            },
            nodes_up: 1,
            nodes: 1,
            protection: Protection { replicas: 3, in_sync_min: 2 },
            metadata: MetadataStatus {
                term: 3,
                leader: Some(1),
                last_log: Some(9),
                applied: Some(9),
                log_bytes: 4096,
                inodes: 12_345,
                logical_bytes: 28 << 30,
            },
            stores: vec![],
            data: DataStatus {
                nodes: 1,
                total_bytes: 110 << 30,
                used_bytes: 81 << 30,
                live_bytes: 10 << 30,
                reserve_bytes: 10 << 30,
                free_bytes: 19 << 30,
                ..DataStatus::default()
            },
            blockd: BlockdStatus {
                state: "running".into(),
                pid: Some(7),
                restarts: 2,
                memory: "hugetlb 2 MiB".into(),
            },
            clients: 14,
            jobs: vec![],
        }
    }

    #[test]
    fn the_screen() {
        let text = screen(&example(), false, false);
        let expected = "\
cluster  prod (7f3c0011)   HEALTH_WARN  1 check   v0.1.0
  FLASH_NEARFULL  81 % of the flash is used  -> delete something
nodes    1/1 up, leader n1, n1 up for 6m10s
data     logical 28.0 GiB  stored 10.0 GiB (2.80x)  flash 81% of 100 GiB, 19.0 GiB free
copies   replica:3, at least 2 in sync
meta     12,345 inodes, term 3, log 4.0 KiB
blockd   running (process 7), restarted 2 times, buffers in hugetlb 2 MiB pages
clients  14 mounts
";
        assert_eq!(text, expected);
        assert!(screen(&example(), true, true).contains("\x1b[1;33mHEALTH_WARN"));
    }

    #[test]
    fn the_space_is_that_of_all_nodes() {
        let store = |number: u64, used: u64| Store {
            node: number,
            name: format!("n{number}"),
            data: DataStatus {
                nodes: 1,
                total_bytes: 11 << 30,
                used_bytes: used << 30,
                reserve_bytes: 1 << 30,
                free_bytes: (10 - used) << 30,
                ..DataStatus::default()
            },
        };
        let mut status = example();
        status.nodes = 3;
        status.stores = vec![store(1, 2), store(2, 7)];
        status.data.nodes = 2;
        let text = screen(&status, false, false);
        let expected = "flash 81% of 100 GiB on 2 of 3 nodes, 19.0 GiB free; fullest n2 with 70%\n";
        assert!(text.contains(expected), "{text}");
        status.data.nodes = 3;
        assert!(screen(&status, false, false).contains("100 GiB on 3 nodes, "));
        let wide = screen(&status, true, false);
        let expected = "\
stores   n1  stored 0 B, flash 20% of 10.0 GiB, 8.0 GiB free
         n2  stored 0 B, flash 70% of 10.0 GiB, 3.0 GiB free
";
        assert!(wide.contains(expected), "{wide}");
    }

    #[test]
    fn scrubs_are_told_one_by_one_or_together() {
        let scrub = |node: u64| JobSummary {
            job: 0,
            name: "scrub".into(),
            node: Some(format!("n{node}")),
            started: Timestamp::default(),
            progress: Progress {
                phase: "reading".into(),
                done: node << 30,
                total: 10 << 30,
                unit: "bytes".into(),
            },
            percent: Some(node as u8 * 10),
            bytes_left: Some((10 - node) << 30),
            eta_ms: Some(node * 86_400_000),
        };
        let mut status = example();
        status.jobs = (1..=2).map(scrub).collect();
        let text = screen(&status, false, false);
        let expected = "\
jobs     scrub n1 [#---------] 10%  9.0 GiB left  eta 1d0h
         scrub n2 [##--------] 20%  8.0 GiB left  eta 2d0h
";
        assert!(text.ends_with(expected), "{text}");
        status.jobs = (1..=5).map(scrub).collect();
        let text = screen(&status, false, false);
        let expected = "jobs     scrub of 5 nodes [###-------] 30%  35.0 GiB left  eta 5d0h\n";
        assert!(text.ends_with(expected), "{text}");
        assert!(screen(&status, true, false).contains("scrub n5 [#####-----] 50%"));
        status.jobs[3].eta_ms = None;
        assert!(screen(&status, false, false).contains("eta -"));
    }

    #[test]
    fn json_has_integers_and_times() {
        let text = output::render(Format::Json, true, &View(example())).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["kind"], "status");
        assert_eq!(json["health"]["word"], "HEALTH_WARN");
        assert_eq!(json["data"]["used_bytes"], 81u64 << 30);
        assert_eq!(json["time"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn the_exit_code_is_the_health() {
        assert_eq!(exit(Level::Ok).code(), 0);
        assert_eq!(exit(Level::Warn).code(), 3);
        assert_eq!(exit(Level::Err).code(), 4);
    }
}
