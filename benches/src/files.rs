//! Small files: made, looked at, read and removed, each of 4 KiB.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::Arguments;
use crate::measure::{Random, Results, Unit, rate, time};
use crate::subject::Subject;

const FILES: usize = 2000;
const THREADS: usize = 4;
const FILE_BYTES: usize = 4096;

pub fn run(
    arguments: &Arguments,
    subject: &mut Subject,
    dir: &Path,
    results: &mut Results,
) -> Result<()> {
    let name = subject.kind.to_string();
    if !["create", "stat", "read small", "unlink"].iter().any(|step| arguments.wants_step(step)) {
        return Ok(());
    }
    let dir = dir.join("files");
    fs::create_dir(&dir)?;
    let elapsed = time(|| create(&dir.join("t1"), FILES, 1))?;
    results.add("create, 1 thread", &name, Unit::PerSecond, rate(FILES, elapsed));
    let elapsed = time(|| {
        std::thread::scope(|scope| {
            let work = |thread: usize| {
                let dir = dir.join(format!("p{thread}"));
                move || create(&dir, FILES / THREADS, thread as u64 + 2)
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            threads.into_iter().try_for_each(|t| t.join().expect("a thread does not panic"))
        })
    })?;
    results.add("create, 4 threads", &name, Unit::PerSecond, rate(FILES, elapsed));

    let mut paths: Vec<PathBuf> =
        (0..FILES).map(|n| dir.join("t1").join(format!("f{n}"))).collect();
    Random(1).shuffle(&mut paths);
    subject.cool()?;
    let elapsed = time(|| {
        for path in &paths {
            anyhow::ensure!(
                fs::metadata(path)?.len() == FILE_BYTES as u64,
                "a file changed its size"
            );
        }
        Ok(())
    })?;
    results.add("stat, cold", &name, Unit::PerSecond, rate(FILES, elapsed));
    subject.cool()?;
    let elapsed = time(|| {
        for path in &paths {
            anyhow::ensure!(fs::read(path)?.len() == FILE_BYTES, "a file was read short");
        }
        Ok(())
    })?;
    results.add("read small files, cold", &name, Unit::PerSecond, rate(FILES, elapsed));
    let elapsed = time(|| paths.iter().try_for_each(|path| Ok(fs::remove_file(path)?)))?;
    results.add("unlink", &name, Unit::PerSecond, rate(FILES, elapsed));
    fs::remove_dir_all(&dir)?;
    Ok(())
}

fn create(dir: &Path, count: usize, seed: u64) -> Result<()> {
    fs::create_dir(dir)?;
    let noise = Random(seed).noise(FILE_BYTES + count * 8);
    for n in 0..count {
        // Each file differs, at no cost worth measuring.
        let bytes = &noise[n * 8..n * 8 + FILE_BYTES];
        fs::File::create_new(dir.join(format!("f{n}")))?.write_all(bytes)?;
    }
    Ok(())
}
