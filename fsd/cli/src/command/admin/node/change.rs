//! Verbs that change what a node is to the cluster.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{self, AdminReply, AdminRequest, NodeMoved};
use serde::Serialize;

use super::super::Context;
use crate::connect::{Admin, unexpected};
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};
use crate::units;

/// How often a node is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct Named {
    /// `n3`, `3` or the node's name
    pub node: String,
}

/// Whether to wait for the end.
#[derive(Debug, Args)]
struct Waiting {
    /// Wait until it is done
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this; what was begun goes on
    #[arg(long = "wait-timeout", value_name = "TIME", requires = "wait",
          value_parser = units::parse_duration)]
    limit: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Clients notice nothing. Refused where fewer nodes would be left than there are copies of everything, or the others
have no room for what has to move.
Progress: `cfs admin status --watch`. Taken back by `cfs admin node undrain`.")]
pub struct Drain {
    #[command(flatten)]
    named: Named,
    /// Only say what would be moved
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What a node that is down held is copied from its other replicas without being asked; this says how much of that
is left, and --wait waits for its end. Then the node may be removed, or come back.")]
pub struct Recover {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    waiting: Waiting,
}

#[derive(Serialize)]
#[serde(transparent)]
pub struct View(pub NodeMoved);

pub fn ask(admin: &Admin, doing: &str, request: AdminRequest) -> Result<NodeMoved, Failed> {
    match admin.ask(doing, request)? {
        AdminReply::NodeMoved(moved) => Ok(moved),
        _ => Err(unexpected(doing)),
    }
}

impl Named {
    pub fn undrain(self, context: &Context) -> Result<Exit> {
        let doing = format!("cannot take back the drain of {}", self.node);
        let moved =
            ask(&context.connect()?, &doing, AdminRequest::NodeUndrain { node: self.node })?;
        output::print(context.format, &View(moved))?;
        Ok(Exit::Ok)
    }
}

impl Drain {
    pub fn run(self, context: &Context) -> Result<Exit> {
        let doing = format!("cannot drain {}", self.named.node);
        let admin = context.connect()?;
        let request =
            || AdminRequest::NodeDrain { node: self.named.node.clone(), dry_run: self.dry_run };
        let mut moved = ask(&admin, &doing, request())?;
        if self.waiting.wait {
            moved = self.waiting.until(|| {
                let moved = ask(&admin, &doing, request())?;
                Ok((moved.state == "drained", moved))
            })?;
        }
        output::print(context.format, &View(moved))?;
        Ok(Exit::Ok)
    }
}

impl Recover {
    pub fn run(self, context: &Context) -> Result<Exit> {
        let doing = format!("cannot recover {}", self.named.node);
        let admin = context.connect()?;
        let request = || AdminRequest::NodeRecover { node: self.named.node.clone() };
        let mut moved = ask(&admin, &doing, request())?;
        if self.waiting.wait {
            moved = self.waiting.until(|| {
                let moved = ask(&admin, &doing, request())?;
                Ok((moved.shards == 0, moved))
            })?;
        }
        output::print(context.format, &View(moved))?;
        Ok(Exit::Ok)
    }
}

impl Waiting {
    fn until(
        &self,
        mut look: impl FnMut() -> Result<(bool, NodeMoved), Failed>,
    ) -> Result<NodeMoved, Failed> {
        let since = Instant::now();
        loop {
            let (done, moved) = look()?;
            if done {
                return Ok(moved);
            }
            if self.limit.is_some_and(|limit| since.elapsed() >= limit) {
                let what = format!("{} shards are left of {}", moved.shards, moved.name);
                let failed = Failed::new(Exit::Timeout, "TIMEOUT", what);
                return Err(failed.next("it goes on: `cfs admin status --watch`"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Shown for View {
    const KIND: &'static str = "node";

    fn table(&self, _wide: bool) -> String {
        let admin::NodeMoved { node, name, state, shards, bytes } = &self.0;
        let size = if *bytes > 0 { format!(", {}", units::bytes(*bytes)) } else { String::new() };
        match shards {
            0 => format!("n{node} {name} is {state}\n"),
            _ => format!("n{node} {name} is {state}: {shards} shards to move{size}\n"),
        }
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.name.clone()]
    }
}
