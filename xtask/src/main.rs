//! `cargo xtask`: what a developer and CI run.
//!
//! `ci` is formatting, lints, tidiness and tests, in that order and stopping at the first failure.

#![forbid(unsafe_code)]

mod tidy;

use std::process::Command;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
cargo xtask ci [--quick]   format check, clippy, tidy, tests (--quick: unit tests only)
cargo xtask tidy           dependency arrows, file sizes, stray files";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ci"] => ci(false),
        ["ci", "--quick"] => ci(true),
        ["tidy"] => tidy::check(),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown arguments {arguments:?}\n{USAGE}"),
    }
}

fn ci(quick: bool) -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    tidy::check()?;
    // The integration tests start the daemons' binaries: all of them are built first.
    cargo(&["build", "--locked", "--workspace", "--bins"])?;
    if quick {
        cargo(&["test", "--locked", "--workspace", "--lib", "--bins"])
    } else {
        cargo(&["test", "--locked", "--workspace"])
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    eprintln!("+ cargo {}", arguments.join(" "));
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo).args(arguments).status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
