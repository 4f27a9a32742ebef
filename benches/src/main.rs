//! How fast is ClaudeFS, beside the disk it stands on and beside the best that FUSE allows?
//!
//! The rivals are measured in the same run, in rounds: each round does every step on every subject, the order of
//! subjects turns from round to round, and what is reported is the median over the rounds and the ratio of medians.
//! Single figures depend on the machine and its mood; the ratios are the result.
//!
//! | module | what |
//! |---|---|
//! | `subject` | the file systems: ext4, libfuse's `passthrough_hp` on it, ClaudeFS on it |
//! | `files`, `data`, `tree` | the steps: small files, large files, source trees |
//! | `block` | blockd's shared-memory door against fio, on one file |
//! | `idle`, `memory` | what the daemons cost when nothing happens, and under many files |
//! | `report` | medians, ratios, aims; `docs/benchmarks.md` |

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
mod data;
mod files;
mod idle;
mod measure;
mod memory;
mod process;
mod report;
mod subject;
mod tree;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::measure::Results;
use crate::subject::{Kind, Subject};

/// Measures ClaudeFS, its rivals in the same run, and writes the tables. Needs root: it drops the kernel's
/// caches and mounts.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Directory of the release binaries `cfs` and `blockd`, and of `examples/ipc_bench`
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    /// Directory to work in, on an ext4 that is large enough (8 GB); a subdirectory is made and removed
    #[arg(long)]
    dir: PathBuf,
    /// A directory with at least 5,000 source files, such as ~/.cargo/registry/src
    #[arg(long)]
    registry: PathBuf,
    /// libfuse's example `passthrough_hp`, for the subject `fuse`
    #[arg(long)]
    passthrough: Option<PathBuf>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One part only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Only the steps whose name contains this
    #[arg(long)]
    step: Option<String>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Ext4, Kind::Fuse, Kind::Claudefs])]
    subjects: Vec<Kind>,
    /// Seconds for the idle measurement; 0 leaves it out
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Files under which the memory of the daemons is measured; 0 leaves it out
    #[arg(long, default_value_t = 0)]
    memory_files: usize,
    /// Where the report is written, besides stdout
    #[arg(long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Files,
    Block,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }

    fn wants_step(&self, name: &str) -> bool {
        self.step.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }
}

/// The directory that is worked in; removed when the value goes.
struct Work(PathBuf);

impl Drop for Work {
    fn drop(&mut self) {
        // A mount that is still there keeps its files: nothing is deleted through it.
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("benches: {} is left behind: {error}", self.0.display());
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(rustix::process::geteuid().is_root(), "benches needs root: it mounts and drops caches");
    ensure!(arguments.rounds > 0, "--rounds is at least 1");
    let dir = arguments.dir.canonicalize();
    let dir = dir.with_context(|| format!("--dir {}", arguments.dir.display()))?;
    let work = Work(dir.join("cfs-benches"));
    std::fs::create_dir(&work.0)
        .with_context(|| format!("making {}: remove what an earlier run left", work.0.display()))?;
    let mut results = Results::default();
    if arguments.wants(Part::Files) {
        file_systems(&arguments, &work, &mut results)?;
    }
    if arguments.wants(Part::Block) {
        block::run(&arguments, &work.0, &mut results)?;
    }
    let report = report::render(&arguments, &results);
    println!("{report}");
    if let Some(output) = &arguments.output {
        let kept = std::fs::read_to_string(output).unwrap_or_default();
        let report = format!("{report}{}", foreign(&kept));
        std::fs::write(output, &report).with_context(|| format!("writing {}", output.display()))?;
    }
    Ok(())
}

/// How the sections begin that others have measured: `scripts/bench-nodes`, `scripts/bench-failover`, `scripts/bench nvme`.
const FOREIGN: [&str; 3] = ["\n## Several nodes\n", "\n## Failover\n", "\n## NVMe\n"];

/// Those sections as they are: they are the last in the file, and stay.
fn foreign(old: &str) -> String {
    let first = FOREIGN.iter().filter_map(|section| old.find(section)).min();
    first.map_or(String::new(), |at| format!("\n{}", old[at..].trim_start()))
}

fn file_systems(arguments: &Arguments, work: &Work, results: &mut Results) -> Result<()> {
    let archive = tree::archive(&arguments.registry, &work.0)?;
    ensure!(!arguments.subjects.is_empty(), "--subjects names none");
    let mut subjects = Vec::new();
    for &kind in &arguments.subjects {
        subjects.push(Subject::start(kind, arguments, &work.0)?);
    }
    for round in 0..arguments.rounds {
        if round > 0 {
            subjects.rotate_left(1);
        }
        for subject in &mut subjects {
            eprintln!("benches: round {} of {}, {}", round + 1, arguments.rounds, subject.kind);
            let dir = subject.root().join(format!("round-{round}"));
            std::fs::create_dir(&dir)?;
            files::run(arguments, subject, &dir, results)?;
            data::run(arguments, subject, &dir, results)?;
            tree::run(arguments, subject, &dir, &archive, results)?;
            std::fs::remove_dir_all(&dir)?;
        }
    }
    if let Some(claudefs) = subjects.iter_mut().find(|s| s.kind == Kind::Claudefs) {
        idle::run(arguments, claudefs, results)?;
        memory::run(arguments, claudefs, results)?;
    }
    subjects.into_iter().try_for_each(Subject::stop)
}

#[cfg(test)]
mod tests {
    use super::foreign;

    #[test]
    fn the_sections_of_others_stay() {
        assert_eq!(foreign("# Benchmarks\n\n## Commands\n"), "");
        assert_eq!(foreign("# Benchmarks\n\n## NVMe\n\ntable\n"), "\n## NVMe\n\ntable\n");
        let more = "\n## Several nodes\n\ntable\n\n## Failover\n\n## NVMe\n\ntable\n";
        assert_eq!(foreign(&format!("# Benchmarks\n\n## Commands\n{more}")), more);
    }
}
