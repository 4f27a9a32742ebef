//! Resident memory of the daemons under many files.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::Arguments;
use crate::measure::{Results, Unit, rate, time};
use crate::process;
use crate::subject::Subject;

const FILES_IN_DIRECTORY: usize = 1000;
const THREADS: usize = 4;

pub fn run(arguments: &Arguments, subject: &Subject, results: &mut Results) -> Result<()> {
    let files = arguments.memory_files;
    if files == 0 {
        return Ok(());
    }
    note(subject, "before", results)?;
    let root = subject.root().join("many");
    fs::create_dir(&root)?;
    let directories = files.div_ceil(FILES_IN_DIRECTORY);
    let elapsed = time(|| {
        std::thread::scope(|scope| {
            let work = |thread: usize| {
                let root = &root;
                move || -> Result<()> {
                    for n in (thread..directories).step_by(THREADS) {
                        let dir = root.join(format!("d{n}"));
                        fs::create_dir(&dir)?;
                        for file in 0..FILES_IN_DIRECTORY {
                            fs::write(dir.join(format!("file-{file}")), format!("{n} {file}\n"))?;
                        }
                    }
                    Ok(())
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            threads.into_iter().try_for_each(|t| t.join().expect("a thread does not panic"))
        })
    })?;
    let made = rate(directories * FILES_IN_DIRECTORY, elapsed);
    results.add("files made for the memory steps", "claudefs", Unit::PerSecond, made);
    note(subject, &format!("{files} files made"), results)?;
    let mut find = Command::new("find");
    process::run(find.arg(&root).args(["-type", "f", "-size", "+1000M"]))?;
    note(subject, &format!("{files} files looked at"), results)
}

fn note(subject: &Subject, when: &str, results: &mut Results) -> Result<()> {
    for (pid, name) in subject.daemons() {
        let step = format!("memory of {name}, {when}");
        results.add(&step, "claudefs", Unit::Mebibytes, process::rss_mib(pid)?);
    }
    Ok(())
}
