//! `cfs admin gc [--dry-run]`.

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{DataStatus, GcReport, Job, JobReport};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::{progress, units};

#[derive(Debug, Args)]
#[command(after_help = "\
The cluster collects its garbage by itself; this does it now and to the end.")]
pub struct Gc {
    /// Only say what is pending
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(GcReport);

impl Gc {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let doing = "cannot collect garbage";
        let job = Job::Gc { dry_run: self.dry_run };
        let report = match progress::run(&context.connect()?, doing, job)? {
            JobReport::Gc(report) => report,
            JobReport::Du(_) | JobReport::Fsck(_) | JobReport::Scrub(_) => {
                return Err(unexpected(doing).into());
            }
        };
        output::print(context.format, &View(report))?;
        Ok(Exit::Ok)
    }
}

impl Shown for View {
    const KIND: &'static str = "gc";

    fn table(&self, _wide: bool) -> String {
        let GcReport { dry_run, pending, freed, before, after } = &self.0;
        let mut text = format!(
            "pending  {} chunks ({}) without references, {} deleted files to reap, {} in dead records\n",
            units::count(pending.garbage_chunks),
            units::bytes(pending.garbage_bytes),
            units::count(pending.dead_inodes),
            units::bytes(pending.dead_bytes),
        );
        text += &format!(
            "waiting  {} unlinked files that clients hold open, {} small writes to settle\n",
            units::count(pending.orphans),
            units::count(pending.unsettled_extents),
        );
        if !dry_run {
            text += &format!(
                "freed    {} chunks ({}), {} segments\n",
                units::count(freed.chunks),
                units::bytes(freed.chunk_bytes),
                units::count(freed.segments),
            );
            text += &format!("before   {}\n", space(before));
        }
        text + &format!("space    {}\n", space(after))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

fn space(data: &DataStatus) -> String {
    format!(
        "{} live in {} of segments, {} free, {} reserve, {} in all",
        units::bytes(data.live_bytes),
        units::bytes(data.used_bytes),
        units::bytes(data.free_bytes),
        units::bytes(data.reserve_bytes),
        units::bytes(data.total_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dry_run_frees_nothing() {
        let mut report = GcReport { dry_run: true, ..GcReport::default() };
        assert!(!View(report.clone()).table(false).contains("freed"));
        report.dry_run = false;
        report.freed.chunks = 1234;
        assert!(View(report).table(false).contains("freed    1,234 chunks"));
    }
}
