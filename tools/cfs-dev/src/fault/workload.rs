//! What the clients do while the cluster is broken, and how each of it is checked.
//!
//! | worker | operations | checked |
//! |---|---|---|
//! | registers | a file written as a whole and synced, or read | linearizable, by file |
//! | appends | a record appended with O_APPEND and synced; the other client's file read | acknowledged records are there, once and in order |
//! | names | make, remove, rename without replacing, list, in a small directory | linearizable, by directory |
//! | locks | a counter read, raised and synced under `flock` or `fcntl` | no two from one value, none lost |
//!
//! An operation that failed may have taken effect, now or later; a read that failed says nothing. Files and directories
//! are of an epoch of some seconds and then left alone, so that no history grows beyond what can be checked; all of them
//! are read again at the end.
//!
//! A write is seen by its own mount before it is committed (close-to-open): reads of one mount wait for its writes.
//!
//! EEXIST says nothing either: the kernel keeps an entry for a second (docs/posix.md), and may be wrong about it as long.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::history::{History, Increment, NamesOp, RegisterOp, append_findings};
use super::linear::Entry;
use crate::error::{Doing, Error, Kind, Result};
use crate::random::{Random, fill};

/// How long a file or directory is worked on.
const EPOCH_US: u64 = 8_000_000;
/// Registers of an epoch; those with an odd number are kept in the metadata, the others in chunks.
const REGISTERS: usize = 4;
const SMALL_BYTES: usize = 512;
const LARGE_BYTES: usize = 12 << 10;
/// Names of a directory; the last two are of directories.
const NAMES: usize = 6;
const FILES: usize = 4;
/// A read that met a write half way is repeated; one that meets it every time has read what nobody wrote.
const TORN_READS_MAX: usize = 50;
/// A lock that somebody else holds longer is let be.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Registers,
    Appends,
    Names,
    Flock,
    Fcntl,
}

/// One thread on one mount.
#[derive(Debug)]
struct Worker<'a> {
    work: Work,
    /// A number of its own.
    process: usize,
    mount: PathBuf,
    history: &'a History,
    stop: &'a AtomicBool,
    /// Held by those who write and read the registers of this mount.
    registers: &'a [RwLock<()>; REGISTERS],
    random: Random,
}

/// What each client does, a thread each.
const WORKS: [Work; 6] =
    [Work::Registers, Work::Registers, Work::Appends, Work::Names, Work::Flock, Work::Fcntl];

/// Holds a [`Job`] in the environment of the process of the workers.
const JOB: &str = "CFS_DEV_WORK";

/// What the process of the workers is to do, until its stdin ends. A process of its own: one that is started while files of a
/// mount are open inherits and closes them, and waits for the cluster with that.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The same directory by the mount of each client.
    pub directories: Vec<PathBuf>,
    pub seed: u64,
    /// Where it writes its history in the end.
    pub history: PathBuf,
}

impl Job {
    /// Makes the directories that the workers share, and starts them.
    pub fn start(&self) -> Result<Child> {
        let shared = &self.directories[0];
        for name in ["", "reg", "app", "names", "lock"] {
            let path = shared.join(name);
            fs::create_dir(&path).doing(|| format!("cannot make {}", path.display()))?;
        }
        let program =
            std::env::current_exe().doing(|| "cannot tell where this program is".into())?;
        let job = serde_json::to_string(self).expect("plain data always serialises");
        Command::new(program)
            .args(["fault", "work"])
            .env(JOB, job)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .doing(|| "cannot start the workers".into())
    }

    /// Does the job of this process.
    pub fn work() -> Result<()> {
        let job: Option<Job> =
            std::env::var(JOB).ok().and_then(|text| serde_json::from_str(&text).ok());
        let Some(job) = job else {
            let what = format!("{JOB} does not hold what is to be done");
            return Err(Error::new(Kind::Usage, what).next("cfs-dev fault run"));
        };
        // Nobody would end it otherwise while its mount waits.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .doing(|| "cannot ask to end with the controller".into())?;
        let (history, stop) = (History::default(), AtomicBool::new(false));
        let registers: Vec<[RwLock<()>; REGISTERS]> =
            job.directories.iter().map(|_| Default::default()).collect();
        std::thread::scope(|scope| {
            for (client, directory) in job.directories.iter().enumerate() {
                for (at, work) in WORKS.into_iter().enumerate() {
                    let worker = Worker {
                        work,
                        process: client * WORKS.len() + at + 1,
                        mount: directory.clone(),
                        history: &history,
                        stop: &stop,
                        registers: &registers[client],
                        random: Random::branch(job.seed, &[4, client as u64, at as u64]),
                    };
                    scope.spawn(move || worker.run());
                }
            }
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            stop.store(true, Ordering::Relaxed);
        });
        history.save(&job.history)
    }
}

impl Worker<'_> {
    /// Works until it is told to stop.
    fn run(mut self) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            match self.work {
                Work::Registers => self.register(number),
                Work::Appends => self.append(&mut number),
                Work::Names => self.names(),
                Work::Flock | Work::Fcntl => self.count(),
            }
            std::thread::sleep(Duration::from_millis(5 + self.random.below(45) as u64));
        }
    }

    fn epoch(&self) -> u64 {
        self.history.now_us() / EPOCH_US
    }

    fn register(&mut self, number: u64) {
        let place = self.random.below(REGISTERS);
        let key = format!("reg/e{}-{place}", self.epoch());
        if self.random.chance(45) {
            let value = (self.process as u64) << 32 | number;
            let _alone = self.registers[place].write();
            let start_us = self.history.now_us();
            let written = write_register(&self.mount.join(&key), &key, value);
            let end_us = self.known("write", &written);
            let op = RegisterOp::Write(value);
            self.history.register(&key, Entry { process: self.process, start_us, end_us, op });
        } else {
            let direct = self.random.chance(30);
            let _together = self.registers[place].read();
            read_register(self.history, self.process, &self.mount, &key, direct);
        }
    }

    /// The end of an operation; nothing if it failed, which is counted.
    fn known<T>(&self, what: &str, result: &io::Result<T>) -> Option<u64> {
        match result {
            Ok(_) => Some(self.history.now_us()),
            Err(error) => {
                self.history.error(what, error);
                None
            }
        }
    }

    /// Appends until that fails, to a file of its own, and looks at another one now and then.
    fn append(&mut self, number: &mut u64) {
        let own = format!("app/{}", self.process);
        let path = self.mount.join(&own);
        let opened = OpenOptions::new().append(true).create(true).open(path);
        let Ok(mut file) = opened.inspect_err(|error| self.history.error("open", error)) else {
            return;
        };
        while !self.stop.load(Ordering::Relaxed) {
            *number += 1;
            let record = (self.process as u64) << 32 | *number;
            let bytes = content(record, record_bytes(record));
            let done = file.write_all(&bytes).and_then(|()| file.sync_all());
            let known = self.known("append", &done).is_some();
            self.history.append(&own, record, known);
            if !known {
                return;
            }
            if self.random.chance(20) {
                self.look_at_others(&own);
            }
            std::thread::sleep(Duration::from_millis(10 + self.random.below(60) as u64));
        }
    }

    /// What others appended and synced before is there.
    fn look_at_others(&self, own: &str) {
        for other in self.history.keys().2.iter().filter(|key| *key != own) {
            let known = self.history.appended(other);
            match read_records(&self.mount.join(other)) {
                Ok(Ok(found)) => {
                    if let Some(lost) = known.iter().find(|record| !found.contains(record)) {
                        let process = self.process;
                        self.history.wrong(format!(
                            "{other}: record {lost:#x} was acknowledged before process {process} opened the \
                             file, and it did not see it"
                        ));
                    }
                }
                Ok(Err(wrong)) => self.history.wrong(format!("{other}: {wrong}")),
                Err(error) => self.history.error("read records", &error),
            }
        }
    }

    fn names(&mut self) {
        let key = format!("names/e{}", self.epoch());
        let directory = self.mount.join(&key);
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return self.history.error("mkdir", &error),
        }
        let (a, b) = (self.random.below(NAMES), self.random.below(NAMES));
        let path = |name: usize| directory.join(format!("n{name}"));
        let start_us = self.history.now_us();
        let (op, done) = match self.random.below(100) {
            0..=34 if a < FILES => {
                let mut options = OpenOptions::new();
                (NamesOp::Make(a), options.write(true).create_new(true).open(path(a)).map(drop))
            }
            0..=34 => (NamesOp::Make(a), fs::create_dir(path(a))),
            35..=54 if a < FILES => (NamesOp::Remove(a), fs::remove_file(path(a))),
            35..=54 => (NamesOp::Remove(a), fs::remove_dir(path(a))),
            55..=84 if a != b && (a < FILES) == (b < FILES) => {
                let moved = rename(&path(a), &path(b));
                (NamesOp::Move(a, b), moved)
            }
            _ => match list(&directory) {
                Ok(mask) => (NamesOp::List(mask), Ok(())),
                Err(error) => return self.history.error("readdir", &error),
            },
        };
        let end_us = Some(self.history.now_us());
        let entry = |end_us, op| Entry { process: self.process, start_us, end_us, op };
        match done.map_err(|error| (error.kind(), error)) {
            Ok(()) => self.history.names(&key, entry(end_us, op)),
            Err((ErrorKind::NotFound, _)) => self.history.names(&key, entry(end_us, absent(&op))),
            Err((ErrorKind::AlreadyExists, _)) => {}
            Err((_, error)) => {
                self.history.error("names", &error);
                self.history.names(&key, entry(None, op));
            }
        }
    }

    /// Raises a counter under a lock.
    fn count(&mut self) {
        let key = if self.work == Work::Flock { "lock/flock" } else { "lock/fcntl" };
        let path = self.mount.join(key);
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let Ok(file) = opened.inspect_err(|error| self.history.error("open", error)) else {
            return;
        };
        let asked = self.history.now_us();
        match self.lock(&file) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return self.history.error("lock", &error),
        }
        let locked = self.history.now_us();
        let from = match read_counter(&file) {
            Ok(from) => from,
            Err(error) => return self.history.error("read counter", &error),
        };
        let written =
            file.write_all_at(&(from + 1).to_le_bytes(), 0).and_then(|()| file.sync_all());
        let known = self.known("count", &written).is_some();
        let times_us = [asked, locked, self.history.now_us()];
        let process = self.process;
        self.history.increment(key, Increment { process, times_us, from, known });
        // Closing it gives the lock back.
    }

    /// Tries until it has the lock, or for long enough.
    fn lock(&self, file: &File) -> io::Result<bool> {
        let since = Instant::now();
        while since.elapsed() < LOCK_PATIENCE && !self.stop.load(Ordering::Relaxed) {
            let operation = FlockOperation::NonBlockingLockExclusive;
            let taken = match self.work {
                Work::Flock => rustix::fs::flock(file, operation),
                _ => rustix::fs::fcntl_lock(file, operation),
            };
            match taken.map_err(io::Error::from) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// The operation that ENOENT for another one means.
fn absent(op: &NamesOp) -> NamesOp {
    match op {
        NamesOp::Make(name) | NamesOp::Remove(name) | NamesOp::Absent(name) => {
            NamesOp::Absent(*name)
        }
        NamesOp::Move(from, _) => NamesOp::Absent(*from),
        NamesOp::List(_) => NamesOp::List(0),
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Which names are there, in one listing.
fn list(directory: &Path) -> io::Result<u8> {
    let mut mask = 0;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('n')?.parse::<usize>().ok());
        match number {
            Some(number @ 0..NAMES) => mask |= 1 << number,
            _ => return Err(io::Error::other(format!("a name that nobody made: {name:?}"))),
        }
    }
    Ok(mask)
}

/// The bytes of value `number`: the number, and noise that it determines.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    fill(&mut bytes, &mut Random::new(number), len);
    bytes
}

fn register_bytes(key: &str) -> usize {
    let small = key.ends_with(['1', '3']);
    if small { SMALL_BYTES } else { LARGE_BYTES }
}

fn write_register(path: &Path, key: &str, value: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&content(value, register_bytes(key)), 0)?;
    file.sync_all()
}

/// Reads a register and writes down what it saw; `false` if it could not be read.
fn read_register(history: &History, process: usize, mount: &Path, key: &str, direct: bool) -> bool {
    let mut flags = OFlags::empty();
    flags.set(OFlags::DIRECT, direct);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits() as i32);
    for _ in 0..TORN_READS_MAX {
        let start_us = history.now_us();
        let mut bytes = Vec::with_capacity(LARGE_BYTES + 1);
        let read = options.open(mount.join(key)).and_then(|mut file| file.read_to_end(&mut bytes));
        let value = match read {
            Ok(0) => Some(0),
            Ok(_) => value_of(&bytes, register_bytes(key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(0),
            Err(error) => {
                history.error("read", &error);
                return false;
            }
        };
        if let Some(value) = value {
            let end_us = Some(history.now_us());
            let op = RegisterOp::Read(value);
            history.register(key, Entry { process, start_us, end_us, op });
            return true;
        }
    }
    history
        .wrong(format!("{key}: process {process} read bytes that nobody wrote, again and again"));
    true
}

fn value_of(bytes: &[u8], len: usize) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    (bytes == content(value, len)).then_some(value)
}

fn read_counter(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    match file.read_at(&mut bytes, 0)? {
        0 => Ok(0),
        8 => Ok(u64::from_le_bytes(bytes)),
        len => Err(io::Error::other(format!("{len} bytes of a counter"))),
    }
}

fn record_bytes(record: u64) -> usize {
    100 + (record as usize).wrapping_mul(997) % 5000
}

/// The records of a file, or what in it is none.
fn read_records(path: &Path) -> io::Result<std::result::Result<Vec<u64>, String>> {
    let bytes = fs::read(path)?;
    let (mut records, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let record = bytes[at..].get(..8).and_then(|head| head.try_into().ok());
        let record = record.map_or(0, u64::from_le_bytes);
        let len = record_bytes(record);
        if record == 0 || bytes.get(at..at + len) != Some(&content(record, len)) {
            let (len, last) = (bytes.len(), records.last().copied().unwrap_or(0));
            let zeros = bytes[at..].iter().take_while(|byte| **byte == 0).count();
            return Ok(Err(format!(
                "no record at byte {at} of {len}, after record {last:#x}; {zeros} zeros"
            )));
        }
        records.push(record);
        at += len;
    }
    Ok(Ok(records))
}

/// Reads everything once more when all is well again, by this mount, and says what is wrong.
pub fn read_all(history: &History, process: usize, mount: &Path) -> Vec<String> {
    let (registers, names, appends, counters) = history.keys();
    let mut wrong = Vec::new();
    for key in &registers {
        if !read_register(history, process, mount, key, false) {
            wrong.push(format!("{key}: process {process} cannot read it"));
        }
    }
    for key in &names {
        let start_us = history.now_us();
        match list(&mount.join(key)) {
            Ok(mask) => {
                let (end_us, op) = (Some(history.now_us()), NamesOp::List(mask));
                history.names(key, Entry { process, start_us, end_us, op });
            }
            Err(error) => wrong.push(format!("{key}: process {process} cannot list it: {error}")),
        }
    }
    for file in &appends {
        let found = match read_records(&mount.join(file)) {
            Ok(Ok(found)) => append_findings(&history.appends(file), &found),
            Ok(Err(why)) => Some(why),
            Err(error) => Some(format!("cannot be read: {error}")),
        };
        wrong.extend(found.map(|why| format!("{file}: {why}")));
    }
    for file in &counters {
        let last = File::open(mount.join(file)).and_then(|file| read_counter(&file));
        let found = match last {
            Ok(last) => super::history::counter_findings(&history.increments(file), last),
            Err(error) => Some(format!("cannot be read: {error}")),
        };
        wrong.extend(found.map(|why| format!("{file}: {why}")));
    }
    wrong
}
