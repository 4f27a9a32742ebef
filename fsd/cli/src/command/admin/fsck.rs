//! `cfs admin fsck [--repair] [--read-data]`.

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{FsckOptions, FsckReport, Job, JobReport};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::{progress, units};

#[derive(Debug, Args)]
#[command(after_help = "\
Runs while the cluster is in use, on the state of one moment. Without --repair nothing is changed.
The exit code is 0 when nothing is wrong or everything was repaired, 8 when some was repaired, else 1.")]
pub struct Fsck {
    /// Repair what can be: counters, references, leftovers of deleted files, chunks that nothing references
    #[arg(long)]
    repair: bool,
    /// Read every chunk and compare it with its name, too
    #[arg(long)]
    read_data: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(FsckReport);

impl Fsck {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let doing = "cannot check";
        let options = FsckOptions { repair: self.repair, read_data: self.read_data };
        let report = match progress::run(&context.connect()?, doing, Job::Fsck(options))? {
            JobReport::Fsck(report) => report,
            JobReport::Du(_) | JobReport::Gc(_) | JobReport::Scrub(_) => {
                return Err(unexpected(doing).into());
            }
        };
        let view = View(report);
        output::print(context.format, &view)?;
        Ok(exit(&view.0))
    }
}

fn exit(report: &FsckReport) -> Exit {
    match (report.found, report.repaired) {
        (found, repaired) if repaired >= found => Exit::Ok,
        (_, 0) => Exit::Failed,
        _ => Exit::Partial,
    }
}

impl Shown for View {
    const KIND: &'static str = "fsck";

    fn table(&self, _wide: bool) -> String {
        let report = &self.0;
        let mut text = String::new();
        for finding in &report.findings {
            let repaired = if finding.repaired { "repaired  " } else { "" };
            text += &format!("{repaired}{}  {}\n", finding.code, finding.detail);
        }
        let more = report.found.saturating_sub(report.findings.len() as u64);
        if more > 0 {
            text += &format!("… and {} more\n", units::count(more));
        }
        text += &format!(
            "checked {} inodes, {} chunks",
            units::count(report.inodes),
            units::count(report.chunks)
        );
        if report.chunks_read > 0 {
            text += &format!(" ({} read)", units::count(report.chunks_read));
        }
        text += &match (report.found, report.repaired) {
            (0, _) => ": clean\n".to_owned(),
            (found, 0) => format!(": {} findings\n", units::count(found)),
            (found, repaired) => {
                format!(": {} findings, {} repaired\n", units::count(found), units::count(repaired))
            }
        };
        if report.unreferenced_chunks > 0 {
            text += &format!(
                "{} chunks ({}) are referenced by nothing: garbage that gc frees\n",
                units::count(report.unreferenced_chunks),
                units::bytes(report.unreferenced_bytes)
            );
        }
        text
    }

    /// The codes of the findings.
    fn names(&self) -> Vec<String> {
        self.0.findings.iter().map(|finding| finding.code.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsd_rpc::admin::Finding;

    #[test]
    fn clean_and_not() {
        let clean = View(FsckReport { inodes: 1200, chunks: 7, ..FsckReport::default() });
        assert_eq!(clean.table(false), "checked 1,200 inodes, 7 chunks: clean\n");
        assert_eq!(exit(&clean.0), Exit::Ok);
        let finding = Finding {
            code: "CHUNK_MISSING".into(),
            detail: "chunk 00ff is not stored".into(),
            repaired: false,
        };
        let findings = vec![finding];
        let found = View(FsckReport { found: 3, findings, ..FsckReport::default() });
        assert_eq!(
            found.table(false),
            "CHUNK_MISSING  chunk 00ff is not stored\n… and 2 more\n\
             checked 0 inodes, 0 chunks: 3 findings\n"
        );
        assert_eq!(exit(&found.0), Exit::Failed);
        assert_eq!(
            exit(&FsckReport { found: 3, repaired: 1, ..FsckReport::default() }),
            Exit::Partial
        );
        assert_eq!(exit(&FsckReport { found: 3, repaired: 3, ..FsckReport::default() }), Exit::Ok);
    }
}
