//! The daemon's binary: parse, configure, run until SIGINT or SIGTERM.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fsd::config::Config;

/// A storage node of ClaudeFS.
#[derive(Debug, Parser)]
#[command(name = "fsd", version)]
struct Arguments {
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the file, name what is wrong in it, and start nothing
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fsd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        println!("{}: good, node {}", arguments.config.display(), config.node.name);
        return Ok(());
    }
    fsd::node::log_to_stderr();
    fsd::node::serve(config, |ready| println!("{ready}"))?;
    Ok(())
}
