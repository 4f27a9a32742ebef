//! The command `cfs`: one file per verb in `command/`, and here what is common to all: parsing, how an
//! error is told, and the exit code.
//!
//! Only verbs that work are listed in `--help`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod command;

/// Exit code of a command that was understood and failed. (Wrong usage is 2, from clap.)
const EXIT_FAILED: u8 = 1;

/// ClaudeFS: a distributed POSIX file system.
#[derive(Debug, Parser)]
#[command(name = "cfs", version, propagate_version = true)]
pub struct Cfs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a storage node
    Server(command::server::Server),
    /// Print the completion script of a shell
    Completion(command::completion::Completion),
    /// Print the manual page
    Man(command::man::Man),
}

/// Runs the command line of this process. Data goes to stdout, everything else to stderr.
pub fn main() -> ExitCode {
    let result = match Cfs::parse().verb {
        Verb::Server(server) => server.run(),
        Verb::Completion(completion) => completion.run(),
        Verb::Man(man) => man.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cfs: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
