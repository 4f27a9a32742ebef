//! `cfs admin scrub`.

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{Job, JobReport, NodeScrub, ScrubReport};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::{progress, units};

#[derive(Debug, Args)]
#[command(after_help = "\
Every node reads all segments that it holds against their checksums, and replaces what is damaged by a good copy from
another node. The cluster does that by itself, too, about once a week, and whenever a read finds damage; this does
it now, with about half of each device's time. Interrupted, it goes on at its usual pace.
The exit code is 0 when nothing is damaged or everything was repaired, 8 when some was repaired or a node could not be
asked, else 1.")]
pub struct Scrub {}

#[derive(Serialize)]
#[serde(transparent)]
struct View(ScrubReport);

impl Scrub {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let doing = "cannot scrub";
        let report = match progress::run(&context.connect()?, doing, Job::Scrub)? {
            JobReport::Scrub(report) => report,
            JobReport::Du(_) | JobReport::Fsck(_) | JobReport::Gc(_) => {
                return Err(unexpected(doing).into());
            }
        };
        let view = View(report);
        output::print(context.format, &view)?;
        Ok(exit(&view.0))
    }
}

fn exit(report: &ScrubReport) -> Exit {
    let sum = |of: fn(&NodeScrub) -> u64| report.nodes.iter().map(of).sum::<u64>();
    let (damaged, repaired) = (sum(|node| node.damaged), sum(|node| node.repaired));
    let unasked = report.nodes.iter().any(|node| node.failed.is_some());
    match (repaired >= damaged, unasked, repaired) {
        (true, false, _) => Exit::Ok,
        (true, true, _) => Exit::Partial,
        (false, _, 0) => Exit::Failed,
        (false, ..) => Exit::Partial,
    }
}

impl Shown for View {
    const KIND: &'static str = "scrub";

    fn table(&self, _wide: bool) -> String {
        let mut text = String::new();
        for node in &self.0.nodes {
            text += &format!(
                "{}  {} segments read ({})",
                node.name,
                units::count(node.segments),
                units::bytes(node.bytes)
            );
            text += &match node.damaged {
                0 => ": clean".to_owned(),
                damaged => format!(
                    ": {} damaged, {} repaired",
                    units::count(damaged),
                    units::count(node.repaired)
                ),
            };
            if let Some(why) = &node.failed {
                text += &format!("; not finished: {why}");
            }
            text.push('\n');
        }
        text
    }

    /// The nodes with damage that is left.
    fn names(&self) -> Vec<String> {
        let left = self.0.nodes.iter().filter(|node| node.repaired < node.damaged);
        left.map(|node| node.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_repaired_and_left() {
        let node = |damaged, repaired| NodeScrub {
            name: "n1".into(),
            segments: 1200,
            damaged,
            repaired,
            ..NodeScrub::default()
        };
        let report = |nodes: Vec<NodeScrub>| ScrubReport { nodes };
        let clean = View(report(vec![node(0, 0)]));
        assert_eq!(clean.table(false), "n1  1,200 segments read (0 B): clean\n");
        assert_eq!(exit(&clean.0), Exit::Ok);
        assert_eq!(exit(&report(vec![node(3, 3)])), Exit::Ok);
        assert_eq!(exit(&report(vec![node(3, 0)])), Exit::Failed);
        let some = View(report(vec![node(0, 0), node(3, 1)]));
        assert_eq!((exit(&some.0), some.names()), (Exit::Partial, vec!["n1".to_owned()]));
        let silent = NodeScrub { failed: Some("it is down".into()), ..node(0, 0) };
        assert_eq!(exit(&report(vec![silent])), Exit::Partial);
    }
}
