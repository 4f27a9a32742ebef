//! The tables, in Markdown.

use std::fmt::Write;

use crate::Arguments;
use crate::measure::{Results, Unit};

/// What issue and design ask for, of medians of one run on a quiet machine.
enum Aim {
    /// At least this many times the rival.
    Ratio { step: &'static str, rival: &'static str, least: f64 },
    /// At most this, in the step's unit.
    Most { step: &'static str, most: f64 },
    /// A third of what the fastest of ZeroFS, CephFS, Gluster and JuiceFS needed (`best`, in seconds), when `fuse`
    /// needed `fuse` on such a machine: scaled by what `fuse` needs in this run.
    Third { step: &'static str, best: f64, fuse: f64 },
    /// At most this much slower than fio, in microseconds.
    Behind { step: &'static str, most_us: f64 },
}

const OWN: &str = "claudefs";
const IPC: &str = "blockd-ipc";
/// blockd-ipc by the client that threads share.
const SHARED: &str = "shared";

const AIMS: &[Aim] = &[
    Aim::Ratio { step: "sequential write", rival: "fuse", least: 0.4 },
    Aim::Ratio { step: "sequential read, cold", rival: "fuse", least: 0.6 },
    Aim::Ratio { step: "sequential read, warm", rival: "fuse", least: 0.8 },
    Aim::Ratio { step: "random write 4 KiB + fsync", rival: "fuse", least: 0.5 },
    Aim::Third { step: "untar", best: 9.0, fuse: 1.6 },
    Aim::Third { step: "rm -rf", best: 4.1, fuse: 0.9 },
    Aim::Most { step: "idle, all daemons", most: 1.0 },
    Aim::Ratio { step: "randread 4 KiB, depth 32, ext4", rival: "fio", least: 0.9 },
    Aim::Ratio { step: "randwrite 4 KiB, depth 32, ext4", rival: "fio", least: 0.9 },
    Aim::Behind { step: "randread 4 KiB, depth 1, ext4, median latency", most_us: 10.0 },
    Aim::Behind { step: "randwrite 4 KiB, depth 1, ext4, median latency", most_us: 10.0 },
];

pub fn render(arguments: &Arguments, results: &Results) -> String {
    let mut text = String::from("# Benchmarks\n\n");
    let _ = writeln!(
        text,
        "Written by `scripts/bench`; medians of {} interleaved rounds of one run. Single figures depend on the machine \
         and on who shares it; the ratios are the result.\n",
        arguments.rounds
    );
    text += &machine();
    let subjects: Vec<String> = arguments.subjects.iter().map(ToString::to_string).collect();
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let on = |subject: &'static str| move |step: &str| results.median(step, subject).is_some();
    let alone = |step: &str| ["idle", "memory", "files made"].iter().any(|p| step.starts_with(p));
    text += &table("File system", results, &subjects, OWN, &["fuse", "ext4"], |step| {
        !alone(step) && !on(IPC)(step) && !on("fio")(step)
    });
    text += "Subjects: `ext4` is the disk's own file system, `fuse` is libfuse's `passthrough_hp` on it, `claudefs` is one node \
             and one mount with pool and metadata on it. Small files have 4 KiB; large ones 512 MiB that do not compress; \
             random reads are `O_DIRECT`, at depth 16 by 16 threads. Before a cold step the mount is made anew and the \
             kernel's caches are dropped.\n\n";
    text += &table("Block path", results, &[IPC, SHARED, "fio"], IPC, &["fio"], on(IPC));
    if results.steps.iter().any(|(step, _)| on(IPC)(step)) {
        text += "Subjects: `blockd-ipc` is a thread that owns its queue, as fio's owns its ring (`cfsctl block bench`); `shared` \
                 is the client that fsd uses, whose queue many threads share; `fio` uses io_uring on the same file. All are \
                 `O_DIRECT` where the file system has it.\n\n";
    }
    text += &table("Idle and memory", results, &[OWN], OWN, &[], alone);
    text += &aims(results);
    text += &commands(arguments);
    text
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok());
    format!(
        "Machine: {} × {}, {} GiB, Linux {}.\n\n",
        count,
        model.map_or("an unnamed CPU", |(_, model)| model),
        kib.unwrap_or(0) >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

fn table(
    title: &str,
    results: &Results,
    subjects: &[&str],
    own: &str,
    rivals: &[&str],
    wanted: impl Fn(&str) -> bool,
) -> String {
    let steps: Vec<_> = results.steps.iter().filter(|(step, _)| wanted(step)).collect();
    if steps.is_empty() {
        return String::new();
    }
    let rivals: Vec<&&str> = rivals.iter().filter(|rival| subjects.contains(rival)).collect();
    let mut text = format!("## {title}\n\n| step | unit |");
    subjects.iter().for_each(|subject| text += &format!(" {subject} |"));
    rivals.iter().for_each(|rival| text += &format!(" {own} / {rival} |"));
    text += "\n|---|---|";
    text += &"---:|".repeat(subjects.len() + rivals.len());
    text.push('\n');
    for (step, unit) in steps {
        let _ = write!(text, "| {step} | {} |", unit_name(*unit));
        for subject in subjects {
            let median = results.median(step, subject);
            let _ = write!(text, " {} |", median.map_or("–".to_owned(), figure));
        }
        for rival in &rivals {
            let ratio = results.ratio(step, own, rival);
            let _ = write!(text, " {} |", ratio.map_or("–".to_owned(), |r| format!("{r:.2}")));
        }
        text.push('\n');
    }
    text += if rivals.is_empty() { "\n" } else { "\nA ratio above 1 is faster, in every row.\n\n" };
    text
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::PerSecond => "/s",
        Unit::MegabytesPerSecond => "MB/s",
        Unit::Seconds => "s",
        Unit::Microseconds => "µs",
        Unit::PercentOfCore => "% of a core",
        Unit::Mebibytes => "MiB",
    }
}

fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn aims(results: &Results) -> String {
    let rows: Vec<String> = AIMS.iter().filter_map(|aim| judge(aim, results)).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("## Aims\n\n| aim | reached | |\n|---|---:|---|\n{}\n\n", rows.join("\n"))
}

fn judge(aim: &Aim, results: &Results) -> Option<String> {
    let word = |good: bool| if good { "yes" } else { "**missed**" };
    match *aim {
        Aim::Ratio { step, rival, least } => {
            let own = if rival == "fio" { IPC } else { OWN };
            let ratio = results.ratio(step, own, rival)?;
            let percent = least * 100.0;
            let good = word(ratio >= least);
            Some(format!(
                "| {step}: at least {percent:.0} % of {rival} | {:.0} % | {good} |",
                ratio * 100.0
            ))
        }
        Aim::Most { step, most } => {
            let unit = results.steps.iter().find(|(known, _)| known == step)?.1;
            let value = results.median(step, OWN)?;
            let (name, good) = (unit_name(unit), word(value <= most));
            Some(format!("| {step}: at most {most} {name} | {} {name} | {good} |", figure(value)))
        }
        Aim::Third { step, best, fuse } => {
            let (value, fuse_now) = (results.median(step, OWN)?, results.median(step, "fuse")?);
            let most = best / 3.0 * fuse_now / fuse;
            let good = word(value <= most);
            Some(format!(
                "| {step}: three times as fast as the fastest rival, {best} s where fuse needs {fuse} s: at most \
                 {most:.2} s | {value:.2} s | {good} |"
            ))
        }
        Aim::Behind { step, most_us } => {
            let behind = results.median(step, IPC)? - results.median(step, "fio")?;
            let good = word(behind <= most_us);
            Some(format!("| {step}: at most {most_us} µs behind fio | {behind:.1} µs | {good} |"))
        }
    }
}

fn commands(arguments: &Arguments) -> String {
    let list = |kinds: &[crate::subject::Kind]| {
        kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    format!(
        "## Commands\n\n    scripts/bench --rounds {} --subjects {} --idle {} --memory-files {}\n\nWithout what takes \
         long: `scripts/bench --rounds 1 --only files --idle 0`; one step: `--step untar`.\n",
        arguments.rounds,
        list(&arguments.subjects),
        arguments.idle,
        arguments.memory_files
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_judged_by_medians() {
        let mut results = Results::default();
        results.add("untar", OWN, Unit::Seconds, 2.0);
        results.add("untar", "fuse", Unit::Seconds, 3.2);
        results.add("sequential write", OWN, Unit::MegabytesPerSecond, 300.0);
        results.add("sequential write", "fuse", Unit::MegabytesPerSecond, 1000.0);
        let step = "randread 4 KiB, depth 1, ext4, median latency";
        results.add(step, IPC, Unit::Microseconds, 95.0);
        results.add(step, "fio", Unit::Microseconds, 80.0);
        let text = aims(&results);
        assert!(text.contains("at most 6.00 s | 2.00 s | yes |"), "{text}");
        assert!(text.contains("at least 40 % of fuse | 30 % | **missed** |"), "{text}");
        assert!(text.contains("behind fio | 15.0 µs | **missed** |"), "{text}");
        assert!(!text.contains("idle"), "{text}");
    }

    #[test]
    fn a_table_has_a_column_for_each_rival() {
        let mut results = Results::default();
        results.add("untar", OWN, Unit::Seconds, 2.0);
        results.add("untar", "ext4", Unit::Seconds, 0.5);
        let text = table("T", &results, &["ext4", OWN], OWN, &["fuse", "ext4"], |_| true);
        assert!(text.contains("| untar | s | 0.50 | 2.00 | 0.25 |"), "{text}");
    }
}
