//! `cfs umount [--force] DIR`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::failed::{Exit, Failed};
use crate::mount::control::{self, Answer, Ask};
use crate::mount::serve::last_sync_failed;
use crate::mounts::{self, Mount};
use crate::units;

/// The process of a mount that does not answer by then is left to itself; `--force` must end within 10 s.
const FORCE_WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Waits for the last sync: exit code 0 means that everything written is safe, 1 that it failed. Plain `umount`
and `fusermount3 -u` work as well, but do not tell. While files are open it is refused (exit code 6).")]
pub struct Umount {
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// At once, even while files are open or the server is dead: what was not sent yet is lost
    #[arg(long)]
    force: bool,
    /// How long to wait for the last sync
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = units::parse_duration)]
    timeout: Duration,
}

impl Umount {
    pub fn run(self) -> Result<Exit> {
        let mount = find(&self.directory)?;
        let socket = control::path(&control::runtime_dir(), &mount.device);
        let (ask, within) = match self.force {
            true => (Ask::Force, FORCE_WAIT),
            false => (Ask::Unmount, self.timeout),
        };
        let answer = match control::ask(&socket, ask, within) {
            Ok(answer) => answer,
            Err(error) if self.force => {
                eprintln!("cfs: the process of the mount does not answer ({error}): by force");
                by_force(&mount)?
            }
            Err(error) if is_timeout(&error) => {
                let what = format!(
                    "{}: the last sync did not end within {}",
                    self.directory.display(),
                    units::duration(within)
                );
                return Err(Failed::new(Exit::Timeout, "TIMEOUT", what)
                    .next("wait for the server, or `cfs umount --force`, which may lose data")
                    .into());
            }
            Err(error) => {
                eprintln!(
                    "cfs: no process of the mount answers ({error}): if it died, what it had not sent is lost"
                );
                answer(rustix::mount::unmount(&mount.mountpoint, UnmountFlags::NOFOLLOW))
            }
        };
        told(&self.directory, answer)
    }
}

fn told(directory: &Path, answer: Answer) -> Result<Exit> {
    match answer {
        Answer::Done => Ok(Exit::Ok),
        Answer::Busy => {
            let what = format!("{} is busy: files on it are open", directory.display());
            Err(Failed::new(Exit::Precondition, "BUSY", what)
                .next(format!("find who with `fuser -vm {}`, or use --force", directory.display()))
                .into())
        }
        Answer::Failed(why) => Err(last_sync_failed(directory, &why).into()),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn answer(unmounted: Result<(), Errno>) -> Answer {
    match unmounted {
        Ok(()) => Answer::Done,
        Err(Errno::BUSY) => Answer::Busy,
        Err(errno) => Answer::Failed(errno.to_string()),
    }
}

/// The mount there, by the letter: nothing is asked of a mount that may hang.
fn find(directory: &Path) -> Result<Mount, Failed> {
    let failed = |error: io::Error| {
        Failed::new(Exit::Failed, "PATH", format!("{}: {error}", directory.display()))
    };
    let table = mounts::read().map_err(failed)?;
    let plain = mounts::lexical(directory).map_err(failed)?;
    // The directory itself may hang, the one it lies in does not.
    let real = match (plain.parent().map(Path::canonicalize), plain.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => plain.clone(),
    };
    let resolved = || plain.canonicalize().ok();
    let found = mounts::at(&table, &plain)
        .or_else(|| mounts::at(&table, &real))
        .cloned()
        .or_else(|| resolved().and_then(|path| mounts::at(&table, &path).cloned()));
    match found {
        Some(mount) if mount.is_ours() => Ok(mount),
        Some(mount) => {
            let what = format!("{} is a mount of type {}", directory.display(), mount.kind);
            Err(Failed::new(Exit::NotFound, "NOT_CLAUDEFS", what).next("use `umount`"))
        }
        None => {
            let what = format!("{}: nothing is mounted there", directory.display());
            Err(Failed::new(Exit::NotFound, "NOT_MOUNTED", what).next("`findmnt -t fuse.claudefs`"))
        }
    }
}

/// Ends the connection of the kernel to a process that does not answer, and takes the mount away.
fn by_force(mount: &Mount) -> Result<Answer, Failed> {
    let minor = mount.device.rsplit(':').next().unwrap_or_default();
    let abort = Path::new("/sys/fs/fuse/connections").join(minor).join("abort");
    if let Err(error) = std::fs::write(&abort, b"1") {
        // Without fusectl the forced unmount below does the same.
        tracing::debug!(%error, path = %abort.display(), "abort");
    }
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(&mount.mountpoint, flags) {
        Ok(()) | Err(Errno::INVAL) => Ok(Answer::Done),
        Err(Errno::PERM) => Err(Failed::new(
            Exit::Failed,
            "PERMISSION",
            format!("cannot unmount {}: permission denied", mount.mountpoint.display()),
        )
        .next("run as root")),
        Err(errno) => Ok(Answer::Failed(errno.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mounted_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        let failed = find(directory.path()).unwrap_err();
        assert_eq!((failed.exit, failed.code.as_str()), (Exit::NotFound, "NOT_MOUNTED"));
        let failed = find(Path::new("/proc")).unwrap_err();
        assert_eq!((failed.exit, failed.code.as_str()), (Exit::NotFound, "NOT_CLAUDEFS"));
        assert!(failed.what.contains("proc"));
    }

    #[test]
    fn answers_become_exit_codes() {
        let exit = |answer| match told(Path::new("/mnt"), answer) {
            Ok(exit) => exit,
            Err(error) => error.downcast_ref::<Failed>().unwrap().exit,
        };
        assert_eq!(exit(answer(Ok(()))), Exit::Ok);
        assert_eq!(exit(answer(Err(Errno::BUSY))), Exit::Precondition);
        assert_eq!(exit(answer(Err(Errno::IO))), Exit::Failed);
    }
}
