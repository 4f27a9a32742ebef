//! `cargo xtask`: what a developer and CI run.
//!
//! `ci` is formatting, lints, tidiness, tests, crash test, guest and suites, stopping at the first failure.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ci;
mod tidy;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask ci [--quick]   format check, clippy, tidy, tests, crash test, NVMe in the guest, suites (--quick: unit tests only)
cargo xtask tidy           dependency arrows, file sizes, stray files";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ci"] => ci::run(false),
        ["ci", "--quick"] => ci::run(true),
        ["tidy"] => tidy::check(),
        ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown arguments {arguments:?}\n{USAGE}"),
    }
}
