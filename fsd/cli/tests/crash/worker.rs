//! The process that works on the mount: some writers, each in a directory of its own, each with a log
//! outside of the mount.
//!
//! A line of the log is one `write`, before (`b N`) and after (`a N`) operation `N`; `f N why` is one that
//! failed, after which a writer ends; `end` is a writer that did all it was to do.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use cfs_dev::random::Random;
use rustix::fs::{CWD, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::model::{self, Model, Node};
use crate::plan::{self, Op, Pace};
use crate::scan::{Found, History};

/// Holds a [`Job`] in the worker's environment.
pub const VARIABLE: &str = "CRASH_WORKER";

/// What the process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Directory on the mount; writer `i` works in `w<i>` below it.
    pub root: PathBuf,
    /// Directory of the logs.
    pub logs: PathBuf,
    pub seed: u64,
    pub round: u64,
    pub writers: u64,
    /// Operations of each writer.
    pub operations: usize,
    /// See [`Model`].
    pub barriers: bool,
}

impl Job {
    pub fn dir(&self, writer: u64) -> PathBuf {
        self.root.join(format!("w{writer}"))
    }

    pub fn log(&self, writer: u64) -> PathBuf {
        self.logs.join(format!("writer-{writer}.log"))
    }

    fn random(&self, writer: u64) -> Random {
        Random::branch(self.seed, &[self.round, writer])
    }

    /// Starts the process; it dies with the calling thread. Old logs are removed.
    pub fn start(&self) -> Child {
        for writer in 0..self.writers {
            // The first round has none.
            let _ = fs::remove_file(self.log(writer));
        }
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe().expect("the test's own binary"))
            .args(["--exact", "worker_process", "--nocapture", "--ignored"])
            .env(VARIABLE, serde_json::to_string(self).expect("a job is plain data"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("starting the worker")
    }

    /// The worker's main function: runs the writers to their ends.
    pub fn run(&self) {
        std::thread::scope(|scope| {
            for writer in 0..self.writers {
                scope.spawn(move || self.write(writer));
            }
        });
    }

    fn write(&self, writer: u64) {
        let log = OpenOptions::new().create(true).append(true).open(self.log(writer));
        let mut log = log.expect("the log is on a local file system");
        let mut say = |line: String| {
            log.write_all(format!("{line}\n").as_bytes()).expect("writing the log");
        };
        let dir = self.dir(writer);
        let mut model = match Found::scan(&dir) {
            Ok(found) => found.into_model(self.barriers),
            Err(error) => return say(format!("f 0 reading the tree: {error}")),
        };
        let mut random = self.random(writer);
        let mut files = BTreeMap::new();
        for n in 0..self.operations {
            let op = plan::next(&model, &mut random);
            say(format!("b {n}"));
            if let Err(error) = perform(&dir, &mut files, &model, &op) {
                return say(format!("f {n} {op:?}: {error}"));
            }
            model.apply(&op, true);
            say(format!("a {n}"));
        }
        drop(files);
        say("end".to_owned());
    }

    /// The last operations that a writer began, for who has to find out what went wrong.
    pub fn operations(&self, writer: u64, mut model: Model) -> Vec<String> {
        let told = Told::read(&self.log(writer));
        let mut random = self.random(writer);
        let mut operations = Vec::new();
        for n in 0..told.begun {
            let op = plan::next(&model, &mut random);
            let durable = model.apply(&op, n < told.acknowledged);
            operations.push(format!("{} {op:?}{}", n + 1, if durable { ": durable" } else { "" }));
        }
        operations.split_off(operations.len().saturating_sub(20))
    }

    /// What the log of a writer says, as a history from `start` on.
    pub fn history(&self, writer: u64, start: Model, exact: bool) -> History {
        let told = Told::read(&self.log(writer));
        let mut random = self.random(writer);
        let mut history =
            History { names: vec![start.names.clone()], model: start, durable: 0, exact };
        for n in 0..told.begun {
            let op = plan::next(&history.model, &mut random);
            let durable = history.model.apply(&op, n < told.acknowledged);
            history.names.push(history.model.names.clone());
            if durable && self.barriers {
                history.durable = history.names.len() - 1;
            }
        }
        history
    }
}

/// What a log says.
#[derive(Debug, Default)]
pub struct Told {
    pub begun: usize,
    pub acknowledged: usize,
    pub failure: Option<String>,
    pub ended: bool,
}

impl Told {
    pub fn read(path: &Path) -> Told {
        let mut told = Told::default();
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            match line.split_once(' ') {
                Some(("b", _)) => told.begun += 1,
                Some(("a", _)) => told.acknowledged += 1,
                Some(("f", why)) => told.failure = Some(why.to_owned()),
                _ => told.ended |= line == "end",
            }
        }
        told
    }
}

fn perform(
    dir: &Path,
    files: &mut BTreeMap<usize, File>,
    model: &Model,
    op: &Op,
) -> io::Result<()> {
    match op {
        Op::Create { path, slot, append, pace } => {
            let mut options = options(*append, *pace, false);
            files.insert(*slot, options.create_new(true).open(dir.join(path))?);
        }
        Op::Open { path, slot, append, pace, truncate } => {
            let options = options(*append, *pace, *truncate);
            files.insert(*slot, options.open(dir.join(path))?);
        }
        Op::Write { slot, offset, len, number } => {
            let bytes = model::content(*number, *len);
            files[slot].write_all_at(&bytes, *offset as u64)?;
        }
        Op::Fsync { slot, data_only: true } => files[slot].sync_data()?,
        Op::Fsync { slot, data_only: false } => files[slot].sync_all()?,
        Op::Close { slot } => {
            // Safe Rust does not tell what `close` returned. A client that died before it answered does
            // not answer this either; a failed write-back would show as bytes that are missing.
            files.remove(slot);
            rustix::fs::statvfs(dir)?;
        }
        Op::Truncate { path, size } => {
            let file = OpenOptions::new().write(true).open(dir.join(path))?;
            file.set_len(*size as u64)?;
        }
        Op::Read { path } => return compare(dir, model, path),
        Op::FsyncDir { path } => File::open(dir.join(path))?.sync_all()?,
        Op::Rename { from, to } => fs::rename(dir.join(from), dir.join(to))?,
        Op::Exchange { a, b } => {
            let (a, b) = (dir.join(a), dir.join(b));
            rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?;
        }
        Op::Link { from, to } => fs::hard_link(dir.join(from), dir.join(to))?,
        Op::Symlink { path, target } => std::os::unix::fs::symlink(target, dir.join(path))?,
        Op::Unlink { path } => fs::remove_file(dir.join(path))?,
        Op::Mkdir { path } => fs::create_dir(dir.join(path))?,
        Op::Rmdir { path } => fs::remove_dir(dir.join(path))?,
    }
    Ok(())
}

fn options(append: bool, pace: Pace, truncate: bool) -> OpenOptions {
    let mut flags = OFlags::empty();
    // `OpenOptions` refuses some of their combinations, Linux none.
    flags.set(OFlags::APPEND, append);
    flags.set(OFlags::TRUNC, truncate);
    flags.set(OFlags::SYNC, pace == Pace::Synchronous);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags.bits() as i32);
    options
}

fn compare(dir: &Path, model: &Model, path: &str) -> io::Result<()> {
    let Some(Node::File(file)) = model.names.get(path) else { return Ok(()) };
    let bytes = fs::read(dir.join(path))?;
    let expected = &model.files[file].bytes;
    if bytes == *expected {
        return Ok(());
    }
    let at = bytes.iter().zip(expected).position(|(a, b)| a != b);
    let (found, wanted) = (bytes.len(), expected.len());
    Err(io::Error::other(format!("WRONG at byte {at:?}; {found} bytes long, {wanted} expected")))
}
