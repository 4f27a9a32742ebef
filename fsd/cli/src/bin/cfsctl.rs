//! `cfsctl`: see the library.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    fsd_cli::main_ctl()
}
