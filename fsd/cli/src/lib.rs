//! The commands `cfs`, `cfsctl` (which is `cfs admin`) and `mount.cfs` (which mount(8) calls): one file per verb
//! in `command/`, and here what is common to all: parsing, how an error is told, and the exit code.
//!
//! | module | what |
//! |---|---|
//! | `command` | the verbs |
//! | `advertise` | how a node lets itself be found on its host |
//! | `connect`, `identity` | how a command finds the cluster, and who it is there |
//! | `location`, `mounts` | what a PATH names; the mount table |
//! | `mount` | the process behind a mount |
//! | `output`, `progress`, `units` | what is printed |
//! | `failed`, `logging` | how failures are told; the log |
//!
//! Only verbs that work are listed in `--help`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod advertise;
mod command;
mod connect;
mod failed;
mod identity;
mod location;
mod logging;
mod mount;
mod mounts;
mod output;
mod progress;
mod units;

use failed::{Exit, Failed};

/// ClaudeFS: a distributed POSIX file system.
#[derive(Debug, Parser)]
#[command(
    name = "cfs",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  cfs server --config config/dev.toml       run a storage node
  cfs mount /mnt/claudefs                   mount from the node of this host
  cfs admin status                          how the cluster is
  cfs umount /mnt/claudefs

`cfs VERB --help` has more. `cfsctl X` is `cfs admin X`."
)]
struct Cfs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a storage node, or check its configuration
    Server(command::server::Server),
    /// Mount the file system on a directory
    Mount(command::mount::Mount),
    /// Unmount it, and wait until everything written is safe
    Umount(command::umount::Umount),
    /// Ask and administer the cluster
    Admin(command::admin::Admin),
    /// Print the completion script of a shell
    Completion(command::completion::Completion),
    /// Print a manual page
    Man(command::man::Man),
}

/// Administer a ClaudeFS cluster: the same as `cfs admin`.
#[derive(Debug, Parser)]
#[command(name = "cfsctl", version, propagate_version = true)]
struct Cfsctl {
    #[command(flatten)]
    admin: command::admin::Admin,
}

/// Runs the command line of this process. Data goes to stdout, everything else to stderr. A link to `cfs`
/// that is called `mount.cfs` is that command.
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().map(std::path::PathBuf::from);
    let called = called.as_deref().and_then(|path| path.file_name()).map(|name| name.to_owned());
    if called.is_some_and(|name| name == "mount.cfs") {
        return told("mount.cfs", command::mount::MountHelper::parse().run());
    }
    let result = match Cfs::parse().verb {
        Verb::Server(server) => server.run().map(|()| Exit::Ok),
        Verb::Mount(mount) => mount.run(),
        Verb::Umount(umount) => umount.run(),
        Verb::Admin(admin) => admin.run(),
        Verb::Completion(completion) => completion.run().map(|()| Exit::Ok),
        Verb::Man(man) => man.run().map(|()| Exit::Ok),
    };
    told("cfs", result)
}

/// `cfsctl`.
pub fn main_ctl() -> ExitCode {
    told("cfsctl", Cfsctl::parse().admin.run())
}

fn told(name: &str, result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            // stderr may be closed: the exit code tells then.
            let _ = writeln!(std::io::stderr(), "{name}: {error:#}");
            error.downcast_ref::<Failed>().map_or(Exit::Failed, |failed| failed.exit).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parsers_are_consistent() {
        Cfs::command().debug_assert();
        Cfsctl::command().debug_assert();
        command::mount::MountHelper::command().debug_assert();
    }
}
