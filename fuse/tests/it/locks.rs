//! `flock` and `fcntl` locks, in one mount and across mounts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Mounts, eventually, run_child};

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The part of these tests that runs in a process of its own; nothing without its environment.
#[test]
fn as_child() {
    let Ok(what) = std::env::var("FUSE_TEST_CHILD") else { return };
    let file = open(&PathBuf::from(std::env::var("FUSE_TEST_PATH").unwrap()));
    println!("child ready");
    match what.as_str() {
        "lock" => fcntl_lock(&file, FlockOperation::LockExclusive).unwrap(),
        "try" => match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => println!("child refused"),
            Err(error) => panic!("{error}"),
        },
        other => panic!("{other}"),
    }
    println!("child done");
}

/// A child that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Running {
    /// Reads what it prints until a line that ends so.
    fn wait_for(&mut self, end: &str) -> Vec<String> {
        let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        let mut seen = Vec::new();
        for line in &mut lines {
            let line = line.unwrap();
            let found = line.ends_with(end);
            seen.push(line);
            if found {
                return seen;
            }
        }
        panic!("the child ended without {end:?}: {seen:?}");
    }

    fn is_asleep(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The main thread of a test binary waits anyway; it is the others that count.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let blocked = tasks.flatten().any(|task| {
            let wchan = std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            wchan.contains("fuse") || wchan.contains("request_wait")
        });
        blocked || stat.is_empty()
    }
}

#[test]
fn flock_excludes_across_mounts() {
    let Some(mounts) = Mounts::new(2) else { return };
    let (here, there) = (open(&mounts.path(0).join("f")), open(&mounts.path(1).join("f")));
    flock(&here, FlockOperation::LockShared).unwrap();
    flock(&there, FlockOperation::NonBlockingLockShared).unwrap();
    let upgrade = flock(&there, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(upgrade, Err(Errno::AGAIN));
    drop(here);
    eventually("the lock of a closed file going", || {
        flock(&there, FlockOperation::NonBlockingLockExclusive).is_ok()
    });
    drop(there);
    mounts.end();
}

#[test]
fn a_waiting_flock_gets_its_turn() {
    let Some(mounts) = Mounts::new(2) else { return };
    for other in [0, 1] {
        let here = open(&mounts.path(0).join("f"));
        let there = open(&mounts.path(other).join("f"));
        flock(&here, FlockOperation::LockExclusive).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| flock(&there, FlockOperation::LockExclusive));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!waiter.is_finished());
            flock(&here, FlockOperation::Unlock).unwrap();
            waiter.join().unwrap().unwrap();
        });
    }
    mounts.end();
}

#[test]
fn fcntl_locks_exclude_processes_and_go_with_a_close() {
    let Some(mounts) = Mounts::new(2) else { return };
    for mount in [0, 1] {
        let held = open(&mounts.path(0).join("f"));
        fcntl_lock(&held, FlockOperation::LockExclusive).unwrap();
        let path = mounts.path(mount).join("f");
        let attempt = || {
            let mut child = Running(run_child("try", &path));
            let lines = child.wait_for("child done");
            !lines.iter().any(|line| line.ends_with("child refused"))
        };
        assert!(!attempt(), "held by us, asked through mount {mount}");
        // Any descriptor of the file drops the locks of the process when it is closed.
        drop(open(&mounts.path(0).join("f")));
        assert!(attempt());
        drop(held);
    }
    mounts.end();
}

#[test]
fn a_signal_ends_the_wait_for_a_lock() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("f");
    let held = open(&path);
    fcntl_lock(&held, FlockOperation::LockExclusive).unwrap();
    let mut child = Running(run_child("lock", &path));
    child.wait_for("child ready");
    // As far as can be seen from outside; a signal that comes before ends it all the same.
    for _ in 0..200 {
        if child.is_asleep() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    eventually("the end of the child", || child.0.try_wait().unwrap().is_some());
    // Nothing of it is left that would stand in the way.
    drop(held);
    let mut again = Running(run_child("lock", &path));
    again.wait_for("child done");
    drop(again);
    mounts.end();
}

#[test]
fn a_lock_shows_what_was_written_under_it() {
    let Some(mounts) = Mounts::new(2) else { return };
    use std::os::unix::fs::FileExt;
    let files = [open(&mounts.path(0).join("f")), open(&mounts.path(1).join("f"))];
    // A counter that both mounts raise, open all the time.
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(move || {
                for _ in 0..50 {
                    flock(file, FlockOperation::LockExclusive).unwrap();
                    let mut bytes = [0; 8];
                    let len = file.read_at(&mut bytes, 0).unwrap();
                    assert!(len == 8 || len == 0);
                    let next = u64::from_le_bytes(bytes) + 1;
                    file.write_all_at(&next.to_le_bytes(), 0).unwrap();
                    flock(file, FlockOperation::Unlock).unwrap();
                }
            });
        }
    });
    let mut bytes = [0; 8];
    flock(&files[0], FlockOperation::LockShared).unwrap();
    files[0].read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 100);
    drop(files);
    mounts.end();
}

#[test]
fn the_flock_program_can_be_killed_while_it_waits() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("f");
    let held = open(&path);
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let program = Command::new("flock").arg(&path).arg("true").stdin(Stdio::null()).spawn();
    let Ok(program) = program else {
        eprintln!("SKIPPED: no flock(1) here");
        return;
    };
    let mut program = Running(program);
    std::thread::sleep(std::time::Duration::from_millis(50));
    kill_process(Pid::from_child(&program.0), Signal::KILL).unwrap();
    eventually("the end of flock(1)", || program.0.try_wait().unwrap().is_some());
    drop((program, held));
    mounts.end();
}
