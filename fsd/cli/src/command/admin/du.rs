//! `cfs admin du PATH`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{DuReport, Job, JobReport};
use serde::Serialize;

use super::Context;
use super::stat::locate;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::{progress, units};

#[derive(Debug, Args)]
#[command(after_help = "\
PATH inside a ClaudeFS mount of this host is resolved against it; any other absolute path is one in the
cluster, and so is one that begins with a colon (:/src).

Examples:
  cfs admin du /                        the whole cluster
  cfs admin du /mnt/claudefs/src        a directory of a mount
  cfs admin du :/src -o json")]
pub struct Du {
    /// A file or directory
    path: PathBuf,
    /// PATH is one in the cluster, whatever is mounted here
    #[arg(long)]
    cluster_path: bool,
}

#[derive(Serialize)]
struct View {
    path: String,
    #[serde(flatten)]
    report: DuReport,
    /// Referenced bytes by distinct ones; nothing without chunks.
    dedup_ratio: Option<f64>,
    /// Distinct bytes by stored ones.
    compression_ratio: Option<f64>,
}

impl Du {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let doing = format!("cannot measure {}", self.path.display());
        let admin = context.connect()?;
        let location = locate(&admin, &self.path, self.cluster_path)?;
        let job = Job::Du { target: location.target() };
        let report = match progress::run(&admin, &doing, job)? {
            JobReport::Du(report) => report,
            JobReport::Fsck(_) | JobReport::Gc(_) | JobReport::Scrub(_) => {
                return Err(unexpected(&doing).into());
            }
        };
        let missing = report.missing_chunks;
        output::print(context.format, &View::new(location.path.display().to_string(), report))?;
        Ok(if missing > 0 { Exit::Partial } else { Exit::Ok })
    }
}

impl View {
    fn new(path: String, report: DuReport) -> View {
        let ratio = |of: u64, by: u64| (by > 0).then(|| of as f64 / by as f64);
        View {
            path,
            dedup_ratio: ratio(report.chunked_bytes, report.plain_bytes),
            compression_ratio: ratio(report.plain_bytes, report.stored_bytes),
            report,
        }
    }
}

impl Shown for View {
    const KIND: &'static str = "du";

    fn table(&self, _wide: bool) -> String {
        let report = &self.report;
        let mut text = format!(
            "path      {}\n\
             entries   {} files, {} directories, {} others\n\
             logical   {}  ({} allocated: {} in chunks, {} in the metadata, {} unwritten)\n",
            self.path,
            units::count(report.files),
            units::count(report.directories),
            units::count(report.others),
            units::bytes(report.logical_bytes),
            units::bytes(report.allocated_bytes),
            units::bytes(report.chunked_bytes),
            units::bytes(report.inline_bytes),
            units::bytes(report.zero_bytes),
        );
        text += &format!(
            "stored    {} in {} chunks: {} only here, {} shared with others\n\
             dedup     {}  ({} refer to {})\n\
             compress  {}  ({} in {})\n\
             pool      {} live\n",
            units::bytes(report.stored_bytes),
            units::count(report.chunks),
            units::bytes(report.unique_bytes),
            units::bytes(report.shared_bytes),
            units::ratio(report.chunked_bytes, report.plain_bytes),
            units::bytes(report.chunked_bytes),
            units::bytes(report.plain_bytes),
            units::ratio(report.plain_bytes, report.stored_bytes),
            units::bytes(report.plain_bytes),
            units::bytes(report.stored_bytes),
            units::bytes(report.pool_live_bytes),
        );
        if report.missing_chunks > 0 {
            let missing = units::count(report.missing_chunks);
            text += &format!("MISSING   {missing} chunks: run `cfs admin fsck`\n");
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.path.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_of_a_copied_tree() {
        let report = DuReport {
            chunked_bytes: 2000,
            plain_bytes: 1000,
            stored_bytes: 400,
            ..DuReport::default()
        };
        let view = View::new("/src".into(), report);
        assert_eq!((view.dedup_ratio, view.compression_ratio), (Some(2.0), Some(2.5)));
        let text = view.table(false);
        assert!(text.contains("dedup     2.00x") && text.contains("compress  2.50x"), "{text}");
        let empty = View::new("/".into(), DuReport::default());
        assert_eq!((empty.dedup_ratio, empty.compression_ratio), (None, None));
        assert!(empty.table(false).contains("dedup     -"));
    }
}
